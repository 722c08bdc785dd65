# SPDX-License-Identifier: MIT
"""Which rows of isa.def no test executes: python tests/isa/coverage.py [CASES].

The native tests and CASES (a million by default) of the differential runs of each code size are built with -DIMGVM_COVERAGE
(cpu/exec/coverage.h) and run; then the rows that were never executed are listed. Rows in UNEXECUTED have a reason.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "native")]

import test_native  # noqa: E402
from decoding import SOURCES, build  # noqa: E402

from imgvm.vmm import _build  # noqa: E402

OUT = HERE.parents[1] / "build" / "coverage"
FLAG = "-DIMGVM_COVERAGE"
EXECUTED, UNDEFINED = 1, 2
LINKED = ("base/error.c", "arch/*.c", "mem/guest_mem.c", "cpu/exec/*.c", "cpu/mmu/*.c", "cpu/decode/*.c",
          "cpu/jit/*.c")

# By feature or mnemonic: why a row is there though no processor of ours executes it.
UNEXECUTED = {
    r"(VMX|SVM|SMX|MONITOR|WAITPKG|PKU|XSAVES|INVPCID|MOVDIR64B|GFNI|SHA|VAES|VPCLMULQDQ|AVX_VNNI|ADX|RDSEED|SMAP|SERIALIZE|MOVDIRI) ":
        "the feature is not announced, by us or for want of it on this host: #UD, which the tests see",
    r"- (ud0|ud1|ud2)$": "undefined by definition",
    r"- (rsm|getsec)$": "there is no system management mode and no safer mode: #UD",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    number: int
    place: str
    mode: str
    feature: str
    mnemonic: str

    def reason(self) -> str | None:
        key = f"{self.feature} {self.mnemonic}"
        return next((why for pattern, why in UNEXECUTED.items() if re.match(pattern, key)), None)


def rows() -> list[Row]:
    tool = build("coverage_tool", [_build.NATIVE / "cpu" / "decode" / name for name in SOURCES])
    lines = subprocess.run([str(tool)], capture_output=True, text=True, check=True).stdout.splitlines()
    return [Row(int(number), *rest) for number, *rest in (line.split(" ", 4) for line in lines)]


def differential() -> Path:
    """The differential runs' program, counting."""
    folder = OUT / "differential.obj"
    folder.mkdir(parents=True, exist_ok=True)
    here = HERE / "differential"
    sources = [*sorted(here.glob("*.c")), *(path for name in LINKED for path in sorted(_build.NATIVE.glob(name)))]
    objects: list[str] = []
    for source in sources:
        inside = source.is_relative_to(_build.NATIVE)
        flags = _build.file_flags(str(source)) if inside else ["-fno-stack-protector", "-mno-red-zone"]
        objects.append(str(folder / f"{source.parent.name}.{source.name}.o"))
        command = ["cc", *_build.CFLAGS, FLAG, *flags, f"-I{_build.NATIVE}", f"-I{here}", "-c", str(source), "-o", objects[-1]]
        subprocess.run(command, check=True)
    out = OUT / "differential"
    subprocess.run(["cc", "-pthread", "-Wl,-z,now", *objects, "-o", str(out)], check=True)
    return out


def native_programs() -> list[Path]:
    """The native tests of the software processor."""
    os.environ["IMGVM_CFLAGS"] = FLAG
    texts = {program: program.read_text() for program in test_native.PROGRAMS}
    chosen = [program for program, text in texts.items() if "cpu/exec/*.c" in text and "backend/kvm" not in text]
    return [test_native.compile_program(program) for program in chosen]


def measure(count: int) -> bytes:
    """A byte a row: EXECUTED, UNDEFINED, both or neither."""
    OUT.mkdir(parents=True, exist_ok=True)
    record = OUT / "rows"
    record.unlink(missing_ok=True)
    environment = {**os.environ, "IMGVM_COVERAGE_FILE": str(record)}
    for program in native_programs():
        done = subprocess.run([str(program)], env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            print(f"{program.name}: {done.stdout.splitlines()[-1:]}")
    program = str(differential())
    for bits in ("64", "32", "16"):
        command = [program, "--bits", bits, "--seed", "1", "--count", str(count)]
        subprocess.run(command, env=environment, capture_output=True, check=False)
    return record.read_bytes()


def main() -> int:
    seen, listed = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000), rows()
    missing = [row for row in listed if not seen[row.number] & EXECUTED]
    unexplained = [row for row in missing if row.reason() is None]
    print(f"{len(listed)} rows, {len(listed) - len(missing)} executed, {len(missing) - len(unexplained)} with a reason not to be,"
          f" {len(unexplained)} left")
    for row in unexplained:
        kind = "undefined" if seen[row.number] & UNDEFINED else "never"
        print(f"{kind:9} {row.place:22} {row.mode:7} {row.feature:12} {row.mnemonic}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
