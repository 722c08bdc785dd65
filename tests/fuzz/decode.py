# SPDX-License-Identifier: MIT
"""Fuzzes the decoder: python tests/fuzz/decode.py [SECONDS].

libFuzzer drives fuzz_decode.c, under AddressSanitizer and UBSan, from one instruction of each opcode; then every input that
opened new ground is decoded by capstone too (tests/isa/test_decoder_capstone.py has the reasons that may be given for a
disagreement). What it finds stays in build/fuzz/decode.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "isa"))

from decoding import SOURCES, Case, ask_ours, build_decoder, systematic, vex  # noqa: E402

from imgvm.vmm import _build  # noqa: E402

OUT = HERE.parents[1] / "build" / "fuzz" / "decode"
MODES = (16, 32, 64)


def build() -> Path:
    OUT.mkdir(parents=True, exist_ok=True)
    program = OUT / "fuzz_decode"
    decoder = [str(_build.NATIVE / "cpu" / "decode" / name) for name in SOURCES]
    command = ["clang", "-std=gnu11", "-O1", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined",
               f"-I{_build.NATIVE}", str(HERE / "fuzz_decode.c"), *decoder, "-o", str(program)]  # fmt: skip
    subprocess.run(command, check=True)
    return program


def available() -> bool:
    """Whether clang and its runtime of the fuzzer are here (Debian: clang, libclang-rt-14-dev)."""
    if shutil.which("clang") is None:
        return False
    done = subprocess.run(["clang", "-print-runtime-dir"], capture_output=True, text=True, check=True)
    return bool(list(Path(done.stdout.strip()).glob("libclang_rt.fuzzer*.a")))


def seeds() -> Path:
    """An input for each opcode of each map and mode."""
    folder = OUT / "seeds"
    folder.mkdir(parents=True, exist_ok=True)
    listed = [case for mode in MODES for case in systematic(mode, [b""], [0x0C])] + list(vex(64, [15, 13], [0x0A, 0xCA]))
    for index, (case, answer) in enumerate(zip(listed, ask_ours(build_decoder(), listed), strict=True)):
        if answer.valid:
            (folder / f"{index:05}").write_bytes(bytes([MODES.index(case.mode)]) + case.code[:answer.length])
    return folder


def fuzz(seconds: int) -> Path:
    """The corpus that it grew. CalledProcessError when a promise was broken: the input lies beside it."""
    program, corpus = build(), OUT / "corpus"
    corpus.mkdir(exist_ok=True)
    subprocess.run(
        [str(program), f"-max_total_time={seconds}", "-max_len=24", "-print_final_stats=1", "-verbosity=0",
         f"-artifact_prefix={OUT}/", str(corpus), str(seeds())], check=True)  # fmt: skip
    return corpus


def cases(*folders: Path) -> list[Case]:
    """The inputs as instructions, in the mode of their first byte and in the other two."""
    codes = {data[1:17].ljust(16, b"\x11") for folder in folders for path in folder.iterdir() if (data := path.read_bytes())}
    return [Case(mode, code) for code in sorted(codes) for mode in MODES]


PREFIXES = (0x26, 0x2E, 0x36, 0x3E, 0x40, 0x41, 0x44, 0x48, 0x4F, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3)


def mutated(code: bytes, source: random.Random) -> bytes:
    """Another instruction nearby: a byte changed, a prefix more, or bytes taken out or in."""
    out = bytearray(code)
    for _ in range(source.randint(1, 3)):
        at = source.randrange(min(8, len(out)))
        match source.randrange(5):
            case 0:
                out[at] = source.randrange(256)
            case 1:
                out[at] ^= 1 << source.randrange(8)
            case 2:
                out.insert(0, source.choice(PREFIXES))
            case 3:
                del out[at]
            case 4:
                out.insert(at, source.randrange(256))
    return bytes(out)[:16].ljust(16, b"\x22")


def compare_mutations(folders: list[Path], seconds: float, seed: int = 0) -> tuple[int, int, list[str]]:
    """Like compare, on neighbours of the inputs, for so long or until 100 disagreements have no reason."""
    from test_decoder_capstone import compare as with_capstone

    tool, source = build_decoder(), random.Random(seed)
    codes = sorted({case.code for case in cases(*folders)})
    compared = agreed = 0
    strange: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(strange) < 100:
        batch = [Case(source.choice(MODES), mutated(source.choice(codes), source)) for _ in range(20000)]
        done, found = with_capstone(tool, batch)
        compared, agreed, strange = compared + len(batch), agreed + done, strange + found
    return compared, agreed, strange


def compare(folders: list[Path]) -> tuple[int, int, list[str]]:
    """How many instructions were compared, on how many both agree, and the disagreements without a reason."""
    from test_decoder_capstone import compare as with_capstone

    listed = cases(*folders)
    agreed, strange = with_capstone(build_decoder(), listed)
    return len(listed), agreed, strange


def main() -> int:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    folders = [fuzz(seconds), seeds()]
    failed = False
    for compared, agreed, strange in (compare(folders), compare_mutations(folders, seconds)):
        print(f"{compared} instructions compared with capstone, {agreed} agreed, {len(strange)} unexplained")
        print("\n".join(strange[:100]))
        failed |= bool(strange)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
