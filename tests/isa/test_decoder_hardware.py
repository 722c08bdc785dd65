# SPDX-License-Identifier: MIT
"""The decoder against the processor this runs on: what decodes must run with the same length, or fault, but exist.

Instructions that leave, privileged ones and those that move the stack are left out. What the processor knows and we
do not (AVX-512's masks, for one) is for test_decoder_capstone.py to judge.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from decoding import TAIL, Answer, Case, ask_ours, prefix_set, systematic, vex

LEAVES = re.compile(
    r"(lock |repn?e? )?(j|call|ret|iret|loop|lcall|ljmp|syscall|sysenter|sysexit|sysret|int|hlt|ud[012]|in |out |ins|outs|cli|sti"
    r"|leave|enter|popf|vm|monitor|mwait|clac|stac|getsec|rsm|xsetbv|f?xrstor|swapgs|skinit|[sc]l?[tg]gi|inv|rdpmc"
    r"|(rd|wr)[fg]sbase|wrmsr|rdmsr|wbinvd|clts|l[fgs]s|mov [c-g]s|mov ss|pop [fg]s|mov \w+, [cd]r|mov [cd]r)")
STACK = re.compile(r"\b[er]?sp\b|\bspl\b")
# What a processor may lack, by its word in /proc/cpuinfo.
FEATURES = [
    (r"movdiri", "movdiri"), (r"v?gf2p8", "gfni"), (r"sha(1|256)", "sha_ni"), (r"vaes", "vaes"), (r"vpclmul", "vpclmulqdq"),
    (r"vpdp", "avx_vnni"), (r"rdpid", "rdpid"), (r"clwb", "clwb"), (r"clflushopt", "clflushopt"), (r"ad[co]x", "adx"),
    (r"rdseed", "rdseed"), (r"vf[mn]", "fma"), (r"v|bl|bzhi|pdep|pext|mulx|rorx|sarx|shlx|shrx|andn|bextr", "avx2"),
    (r"xsaves|xrstors", "xsaves"), (r"xsavec", "xsavec"), (r"prefetchw", "3dnowprefetch"),
]


def run(processor: Path, codes: list[bytes]) -> list[tuple[str, int]]:
    done = subprocess.run([str(processor)], input="".join(f"{code.hex()}\n" for code in codes), capture_output=True, text=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == len(codes), f"died at {codes[len(lines)].hex()}: {done.returncode}"
    return [(word, int(length)) for word, length in lines]


def lacking(text: str, flags: set[str]) -> bool:
    return any(re.match(pattern, text) and flag not in flags for pattern, flag in FEATURES)


def runnable(case: Case, ours: Answer) -> bool:
    text = ours.text
    return ours.valid and not LEAVES.match(text) and not STACK.search(text) and not (
        case.rest[:2] == b"\x0f\x0d" and ours.mnemonic == "nop")  # a NOP on Intel's processors, undefined on AMD's


def check(tool: Path, processor: Path, cases: Iterable[Case], least: int) -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split())
    listed = list(cases)
    ours = {case.code[:answer.length]: answer
            for case, answer in zip(listed, ask_ours(tool, listed), strict=True) if runnable(case, answer)}
    codes = sorted(ours)
    wrong = [f"{code.hex()}: ours {ours[code]}, processor {word} {length}"
             for code, (word, length) in zip(codes, run(processor, codes), strict=True)
             if (word == "undefined" and not lacking(ours[code].text, flags)) or (word == "done" and length != len(code))]
    assert not wrong, f"{len(wrong)} of {len(codes)}\n" + "\n".join(wrong[:40])
    assert len(codes) > least


MODRMS = [digit << 3 for digit in range(8)] + [0xC0 | digit << 3 for digit in range(8)] + [0xCB, 0xD3, 0xDA, 0xF9, 0xFA]


@pytest.mark.nightly
def test_every_opcode_runs(tool: Path, processor: Path) -> None:
    plain = [case for case in systematic(64, prefix_set(64), MODRMS) if 0x67 not in case.prefixes]
    check(tool, processor, (Case(64, case.code[:-len(TAIL)] + bytes(10)) for case in plain), 20000)


@pytest.mark.nightly
def test_every_vex_opcode_runs(tool: Path, processor: Path) -> None:
    cases = vex(64, [15, 12], [0x00, 0x08, 0x30, 0x38, 0xD2, 0xF4, 0xCA, 0xC1])
    check(tool, processor, (Case(64, case.code[:-len(TAIL)] + bytes(10)) for case in cases), 5000)
