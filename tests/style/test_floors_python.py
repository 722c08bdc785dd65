# SPDX-License-Identifier: MIT
"""Who may import whom: cli > launch > pack > config, qcow2, vmm, registry > machine > binding > errors, units, log > record."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from files import ROOT

PACKAGE = ROOT / "imgvm"
# Part -> the parts it may import, its own aside.
GROUND = {"record", "errors", "units", "log"}
FLOORS: dict[str, set[str]] = {
    "record": set(),
    "errors": {"record"},
    "units": set(),
    "log": set(),
    "binding": GROUND,
    "machine": GROUND | {"binding"},
    "registry": GROUND,
    "config": GROUND | {"binding", "machine", ""},
    "qcow2": GROUND | {"binding", "machine"},
    "vmm": GROUND | {"binding", "machine"},
    "pack": GROUND | {"binding", "machine", "config", "qcow2", "vmm", "registry"},
    "launch": GROUND | {"binding", "machine", "config", "qcow2", "vmm", "pack"},
    "audit": GROUND | {"binding", "machine", "config", "qcow2", "vmm"},
    "kept": GROUND | {"machine", "qcow2", "launch"},
    "edit": GROUND | {"machine", "config", "qcow2", "launch"},
    "exchange": GROUND | {"machine", "config", "qcow2", "vmm", "pack", "launch", "kept", "edit", "registry", ""},
    "cli": GROUND | {"machine", "config", "qcow2", "vmm", "pack", "launch", "kept", "audit", "edit", "exchange", ""},
    "__main__": {"cli"},
    "": set(),  # imgvm/__init__.py finds its names when they are used
}
# Foreign module -> the only places that import it.
IMPORTERS = {
    "typer": ("imgvm/cli/",),
    "yaml": ("imgvm/config/document.py", "imgvm/config/edit_text.py"),
    "jsonschema": ("imgvm/config/check.py",),
    "cryptography": ("imgvm/exchange/sign.py",),
    "cffi": ("imgvm/vmm/_build.py",),
    "pyqcow": ("imgvm/qcow2/",),
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "native" not in path.parts)


def part_of(module: str) -> str:
    """`imgvm.config.check` is of the part config; imgvm itself of the part ''."""
    words = module.split(".")
    return words[1] if len(words) > 1 else ""


def imports(path: Path, text: str) -> Iterator[str]:
    """Full names of what a file imports, at any depth of its code."""
    package = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{package}: imports are absolute"
            base = node.module or ""
            for alias in node.names:
                below = PACKAGE / f"{alias.name}.py", PACKAGE / alias.name
                yield f"{base}.{alias.name}" if base == "imgvm" and any(map(Path.exists, below)) else base


def faults(path: Path, text: str) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    part = part_of(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    wrong = []
    for target in imports(path, text):
        top = target.split(".")[0]
        if top == "imgvm":
            other = part_of(target)
            if other != part and other not in FLOORS[part]:
                wrong.append(f"{part or 'imgvm'} imports {target}")
        elif top in IMPORTERS and not name.startswith(IMPORTERS[top]):
            wrong.append(f"{top} is imported in {' '.join(IMPORTERS[top])} only")
    if name not in ("imgvm/binding.py", "imgvm/vmm/_build.py") and "imgvm.vmm._native" in text:
        wrong.append("only binding sees the compiled core")
    return wrong


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down(path: Path) -> None:
    assert faults(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("imgvm/units.py", "from imgvm.errors import ImgvmError"),
        ("imgvm/machine.py", "from imgvm import config"),
        ("imgvm/config/check.py", "def f():\n    from imgvm.vmm import engine"),
        ("imgvm/vmm/vm.py", "from imgvm.qcow2 import Image"),
        ("imgvm/qcow2/image.py", "import imgvm.config.schema"),
        ("imgvm/pack/packer.py", "from imgvm.cli import app"),
        ("imgvm/config/report.py", "import yaml"),
        ("imgvm/vmm/engine.py", "import typer"),
        ("imgvm/vmm/engine.py", "from imgvm.vmm._native import lib"),
        ("imgvm/cli/run.py", "from imgvm import binding"),
        ("imgvm/__init__.py", "from imgvm.config import Config"),
    ],
)
def test_an_import_that_goes_up_is_seen(name: str, line: str) -> None:
    assert faults(ROOT / name, line + "\n")


def loaded_by(*arguments: str) -> set[str]:
    program = (
        "import json, os, sys\n"
        "from imgvm.cli import main\n"
        "sys.stdout = open(os.devnull, 'w')\n"
        f"assert main({list(arguments)!r}) == 0\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.__stdout__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_help_loads_little() -> None:
    loaded = loaded_by("--help")
    assert not loaded & {"imgvm.vmm._native", "_cffi_backend", "yaml", "jsonschema", "imgvm.config", "imgvm.binding"}


def test_arguments_are_read_without_a_model_library() -> None:
    loaded = loaded_by("schema")
    assert "typer" in loaded
    assert not loaded & {"pydantic", "rich"}


def test_validate_loads_no_native_code() -> None:
    loaded = loaded_by("validate", "examples/hello.yaml")
    assert "imgvm.config" in loaded
    assert not loaded & {"imgvm.vmm._native", "_cffi_backend", "imgvm.binding", "imgvm.qcow2", "imgvm.pack", "imgvm.vmm.vm"}


def test_the_package_exports_without_loading() -> None:
    program = (
        "import sys, imgvm\n"
        "assert not [name for name in sys.modules if name.startswith('imgvm.')], sys.modules\n"
        "assert imgvm.Config.__name__ == 'Config' and callable(imgvm.run) and 'run' in dir(imgvm)\n"
        "assert 'imgvm.vmm._native' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
