# SPDX-License-Identifier: MIT
"""The decoder against an independent one: length, validity and mnemonic of systematic, random and real code.

Every kind of disagreement is named in EXPLAINED with its reason; anything else fails.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

import pytest
from decoding import LEGACY_PREFIXES, TAIL, Answer, Case, ask_ours, prefix_set, systematic, vex

capstone = pytest.importorskip("capstone")

ENGINES = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
DISASSEMBLERS = {mode: capstone.Cs(capstone.CS_ARCH_X86, flag) for mode, flag in ENGINES.items()}
def ask_theirs(case: Case) -> Answer:
    for _, length, mnemonic, operands in DISASSEMBLERS[case.mode].disasm_lite(case.code, 0, 1):
        return Answer(length, f"{mnemonic} {operands}")
    return Answer(-2, "")


# ---- what may differ, and why ----

Rule = Callable[[Case, Answer, Answer], bool]

ALIASES = {
    ("shl", "sal"), ("fwait", "wait"), ("fcomip", "fcompi"), ("fucomip", "fucompi"), ("fneni", "feni8087_nop"),
    ("fndisi", "fdisi8087_nop"), ("fnsetpm", "fsetpm"), ("ljmp", "jmp"), ("lcall", "call"), ("mov", "movabs"),
    ("fstp", "fstpnce"), ("wbinvd", "wbnoinvd"), ("jcxz", "jecxz"), ("pushf", "pushfw"), ("popf", "popfw"),
}
# Announced by no CPUID of ours: the instructions of these are undefined.
ABSENT = re.compile(
    r"k(add|and|andn|mov|not|or|ortest|shift[lr]|test|unpck|xnor|xor)[bwdq]+$"  # AVX-512
    r"|vfn?m(add|sub|addsub|subadd)[ps][sd]$|vpermil2p[sd]$|vpcom|vpmac|vpmadcs|vph(add|sub)|vprot|vpsh[al]|vfrcz|vpcmov|vpperm"  # FMA4, XOP
    r"|extrq|insertq|movnts[sd]|femms|pf|pi2f|pswapd|pmulhrw|pavgusb|clzero|monitorx|mwaitx|rdpru"  # AMD only
    r"|clrssbsy|setssbsy|incssp|rstorssp|saveprevssp|wruss|wrss|endbr"  # CET
    r"|enclu|encls|enclv|pconfig|ptwrite|rdpkru|wrpkru|movdir64b|enqcmd|tpause|umonitor|umwait"
    r"|montmul|xcrypt|xsha|xstore|x(abort|begin|end|test)|bnd|llwpcb|slwpcb|lwp|bl(cfill|ci|cic|cmsk|cs|sfill|sic)|t1mskc|tzmsk"
)
UNPREFIXED = re.compile(  # "NP" in the manual: 66, F2 or F3 make them undefined, as processors do; capstone lets them pass
    r"v?(ld|st)mxcsr|[lms]fence|clflush|fx(save|rstor)(64)?|xsave(c|s|opt)?(64)?|xrstors?(64)?|xgetbv|xsetbv|clac|stac"
    r"|monitor|mwait|vm(call|launch|resume|xoff|func|read|write|ptrst|ptrld)|getsec|emms|sha\d|movdiri|movnt[iq]|r(sqrt|cp)ps|rdrand|rdseed"
    r"|mov(hlps|lhps|aps|hps|lps|mskps|q|d|be)|maskmovq"
    r"|p[a-z]+|cvtdq2ps|u?comiss|unpck[hl]ps|shufps|(and|andn|or|xor)ps|rd[fg]sbase"
)


def has_mandatory(case: Case) -> bool:
    return any(prefix in case.prefixes for prefix in (0x66, 0xF2, 0xF3))


def alias(case: Case, ours: Answer, theirs: Answer) -> bool:
    same_length = ours.length == theirs.length
    both = (ours.mnemonic, theirs.mnemonic)
    return same_length and (both in ALIASES or all(word.startswith("prefetch") for word in both))


def condition_in_mnemonic(case: Case, ours: Answer, theirs: Answer) -> bool:
    match = re.fullmatch(r"(v?cmp)\w*([ps][sd])", theirs.mnemonic)
    return match is not None and ours.length == theirs.length and ours.mnemonic == match[1] + match[2]


def absent(case: Case, ours: Answer, theirs: Answer) -> bool:
    return not ours.valid and bool(ABSENT.match(theirs.mnemonic))


def evex_or_xop(case: Case, ours: Answer, theirs: Answer) -> bool:
    return not ours.valid and case.rest[:1] in (b"\x62", b"\x8f", b"\xc4", b"\xc5") and theirs.mnemonic[:1] in ("v", "k")


def reserved_nop(case: Case, ours: Answer, theirs: Answer) -> bool:
    return ours.mnemonic == "nop" and case.rest[:1] == b"\x0f"


def reserved_prefetch(case: Case, ours: Answer, theirs: Answer) -> bool:
    return ours.mnemonic == "prefetchw" and not theirs.valid


def unprefixed(case: Case, ours: Answer, theirs: Answer) -> bool:
    return not ours.valid and has_mandatory(case) and bool(UNPREFIXED.match(theirs.mnemonic))


def near_branch_66(case: Case, ours: Answer, theirs: Answer) -> bool:
    return case.mode == 64 and 0x66 in case.prefixes and bool(re.match(r"j|call|ret|xbegin", theirs.mnemonic + ours.mnemonic))


def ud_with_modrm(case: Case, ours: Answer, theirs: Answer) -> bool:
    return theirs.mnemonic in ("ud0", "ud1") and (ours.mnemonic == theirs.mnemonic or not ours.valid)


def no_such_control_register(case: Case, ours: Answer, theirs: Answer) -> bool:
    return not ours.valid and bool(re.search(r"mov .*\b(cr([15-7]|9|1\d)|dr([89]|1\d))\b", theirs.text))


def sixteen_bit_66(case: Case, ours: Answer, theirs: Answer) -> bool:
    if case.mode != 16 or 0x66 not in case.prefixes or case.rest[:1] != b"\x0f":
        return False
    again = bytes(byte for byte in case.prefixes if byte != 0x67) + case.rest  # the same address size in 32-bit mode
    wide = ask_theirs(Case(32, again if 0x67 in case.prefixes else b"\x67" + case.code))
    if condition_in_mnemonic(case, ours, wide):
        return True
    return (wide.mnemonic == ours.mnemonic) if ours.valid else (not wide.valid or bool(UNPREFIXED.match(wide.mnemonic)))


def sixteen_bit_sign_extension(case: Case, ours: Answer, theirs: Answer) -> bool:
    return (ours.mnemonic, theirs.mnemonic) in {("cbw", "cwde"), ("cwd", "cdq")} and case.mode == 16


def rex_w_over_66(case: Case, ours: Answer, theirs: Answer) -> bool:
    return case.rex_w and 0x66 in case.prefixes


def pause_with_rex(case: Case, ours: Answer, theirs: Answer) -> bool:
    return ours.mnemonic in ("pause", "xchg", "nop") and case.rest[:1] == b"\x90"


def wide_fence(case: Case, ours: Answer, theirs: Answer) -> bool:
    tpause = theirs.mnemonic == "tpause" and 0x66 not in case.prefixes  # 67 and REX have capstone see a 66
    return ours.mnemonic in ("lfence", "mfence", "sfence") and (not theirs.valid or tpause)


def bit_scan_f2(case: Case, ours: Answer, theirs: Answer) -> bool:
    return ours.mnemonic in ("bsf", "bsr") and 0xF2 in case.prefixes


def x87_alias(case: Case, ours: Answer, theirs: Answer) -> bool:
    return not theirs.valid and ours.mnemonic in ("fcom", "fcomp", "fstp", "fxch", "ffreep") and case.rest[0] & 0xF8 == 0xD8


def swapgs_outside(case: Case, ours: Answer, theirs: Answer) -> bool:
    return theirs.mnemonic == "swapgs" and case.mode != 64


def vex_w_ignored(case: Case, ours: Answer, theirs: Answer) -> bool:
    return case.rest[:1] == b"\xc4" and (
        (not theirs.valid and bool(re.match(r"vp(ackusdw|cmp[ei]str[im]|extr[bw]|phsubd|insr[bw])|vphsubd", ours.mnemonic)))
        or (case.mode != 64 and ours.mnemonic + theirs.mnemonic in ("vpextrdvpextrq", "vpinsrdvpinsrq")))


def mov_to_cs(case: Case, ours: Answer, theirs: Answer) -> bool:
    return not ours.valid and theirs.text.startswith("mov cs,")


def lock_without_memory_destination(case: Case, ours: Answer, theirs: Answer) -> bool:
    return not ours.valid and bool(re.search(r"lock (nop|(\w+) \w+, .*\[)", theirs.text))


def movsxd_67(case: Case, ours: Answer, theirs: Answer) -> bool:
    return ours.mnemonic == "movsxd" and not theirs.valid and bool({0x66, 0x67} & set(case.prefixes))


def fsgsbase_66(case: Case, ours: Answer, theirs: Answer) -> bool:
    return bool(re.match(r"(rd|wr)[fg]sbase", ours.mnemonic)) and 0x66 in case.prefixes and not theirs.valid


def lock_with_release(case: Case, ours: Answer, theirs: Answer) -> bool:
    return not ours.valid and 0xF0 in case.prefixes and theirs.mnemonic == "mov"


def lock_behind_repeat(case: Case, ours: Answer, theirs: Answer) -> bool:
    if ours.valid or 0xF0 not in case.prefixes or not {0xF2, 0xF3} & set(case.prefixes):
        return False
    plain = Case(case.mode, bytes(byte for byte in case.prefixes if byte not in (0xF2, 0xF3)) + case.rest)
    answer = ask_theirs(plain)
    return not answer.valid or lock_without_memory_destination(plain, ours, answer)


def vex_behind_prefix(case: Case, ours: Answer, theirs: Answer) -> bool:
    vex = case.rest[:1] in (b"\xc4", b"\xc5") and (case.mode == 64 or case.rest[1] >= 0xC0)
    return not ours.valid and vex and bool({0x66, 0xF0, 0xF2, 0xF3} & set(case.prefixes))


def mandatory_not_last(case: Case, ours: Answer, theirs: Answer) -> bool:
    """Asks again with the last F2 or F3 behind all other legacy prefixes, where capstone wants it."""
    repeats = [byte for byte in case.prefixes if byte in (0xF2, 0xF3)]
    if not repeats or case.rest[:1] != b"\x0f":
        return False
    rex = case.prefixes[-1:] if case.mode == 64 and case.prefixes[-1] & 0xF0 == 0x40 else b""
    legacy = bytes(byte for byte in case.prefixes if byte in LEGACY_PREFIXES and byte not in (0xF2, 0xF3))
    ordered = Case(case.mode, legacy + bytes(repeats[-1:]) + rex + case.rest)
    if ordered.code == case.code:
        return False
    again = ask_theirs(ordered)
    if ours.valid:
        ours = Answer(ours.length - len(case.code) + len(ordered.code), ours.text)
    return same(ours, again) or any(rule(ordered, ours, again) for rule, _ in EXPLAINED if rule != mandatory_not_last)


def same(ours: Answer, theirs: Answer) -> bool:
    return (not ours.valid and not theirs.valid) or (ours.length, ours.mnemonic) == (theirs.length, theirs.mnemonic)


EXPLAINED: list[tuple[Rule, str]] = [
    (alias, "two names of one thing"),
    (condition_in_mnemonic, "capstone writes the predicate of a comparison into the mnemonic"),
    (absent, "no processor of ours announces it"),
    (evex_or_xop, "EVEX and XOP are undefined"),
    (reserved_nop, "0F 18..1F and 0F 0D are NOPs on a processor without CET, MPX, CLDEMOTE"),
    (reserved_prefetch, "0F 0D /3..7 with memory: prefetches (AMD APM vol. 3)"),
    (unprefixed, "NP in the manual"),
    (near_branch_66, "near branches ignore 66 in 64-bit mode on Intel's processors"),
    (ud_with_modrm, "UD0 and UD1 have a modrm byte"),
    (no_such_control_register, "CR1, CR5.., DR8..: #UD"),
    (sixteen_bit_66, "capstone takes 66 for an operand size in 16-bit mode where it selects the operation"),
    (sixteen_bit_sign_extension, "capstone calls CBW CWDE and CWD CDQ behind F2/F3 in 16-bit mode"),
    (rex_w_over_66, "REX.W wins over 66"),
    (pause_with_rex, "F3 90 is PAUSE with any REX but REX.B, 41 90 exchanges"),
    (wide_fence, "0F AE E8..FF: the low three bits are ignored (SDM vol. 2, LFENCE)"),
    (bit_scan_f2, "F2 is ignored by BSF and BSR"),
    (x87_alias, "undocumented aliases of FCOM, FCOMP, FSTP, FXCH, FFREEP"),
    (swapgs_outside, "SWAPGS exists in 64-bit mode only"),
    (mov_to_cs, "CS cannot be loaded by MOV: #UD"),
    (lock_without_memory_destination, "LOCK needs a memory destination: #UD"),
    (fsgsbase_66, "capstone refuses 66 before F3 here; processors do not"),
    (lock_with_release, "LOCK MOV is undefined, though F3 makes it look like XRELEASE to capstone"),
    (lock_behind_repeat, "behind F2 or F3 capstone takes LOCK for an elision's, on whatever it stands"),
    (vex_behind_prefix, "66, F2, F3 and LOCK before VEX: #UD (SDM vol. 2, 2.3.2 and 2.3.3); capstone lets them pass before BMI"),
    (mandatory_not_last, "F2 and F3 count wherever they stand and win over 66 (SDM vol. 2, 2.1.2); for capstone the last prefix counts"),
    (movsxd_67, "capstone does not know MOVSXD with 66 or 67"),
    (vex_w_ignored, "VEX.W is ignored (WIG), and has no say over general registers outside 64-bit mode"),
]


REGISTER = re.compile(
    r"\b(?:[er]?[abcd]x|[abcd][hl]|[er]?[sd]i|[sd]il|[er]?[sb]p|[sb]pl|r\d+[bwd]?|[xyz]?mm\d+|st\(\d\)|[er]ip|[c-g]s|[cd]r\d+)\b")
# Where the two write operands differently on purpose, or capstone leaves some out.
OPERANDS_DIFFER = re.compile(
    r"(cmps|movs|stos|lods|scas|ins|outs)[bwdq]$"  # we name the segment, and INS and OUTS never take 8 bytes
    r"|vp?gather|lar|lsl|movsxd|nop|ud[01]|vm(run|load|save)|bs[fr]|v?u?comis|fn?save|frstor|in$|out$"
    r"|skinit|invlpga")  # all operands are implied: we write none


def fourth_register(case: Case, text: str) -> str:
    """Outside 64-bit mode a register in an immediate is its bits 6:4 (SDM vol. 2, 3.1.1.2, /is4); capstone reads 7:4."""
    if case.mode == 64:
        return text
    return re.sub(r"([xy]mm)(\d+)", lambda found: f"{found[1]}{int(found[2]) % 8}", text)


def same_operands(case: Case, ours: Answer, theirs: Answer) -> bool:
    """Registers in any order, and the size of memory where both tell one."""
    # capstone's sizes err behind both 66 and F2/F3, in 16-bit mode behind either; REX.W wins over 66
    misread = has_mandatory(case) and case.rest[:1] == b"\x0f" and case.mode == 16
    misread |= 0x66 in case.prefixes and (case.rex_w or 0xF2 in case.prefixes or 0xF3 in case.prefixes)
    # it prints segment prefixes that have no effect in 64-bit mode
    misread |= case.mode == 64 and bool({0x26, 0x2E, 0x36, 0x3E} & set(case.prefixes))
    if misread or OPERANDS_DIFFER.match(ours.mnemonic) or case.rest[:1] == b"\x8e":
        return True
    sizes = [re.findall(r"(\w*word|byte) ptr", answer.text.replace("tbyte", "xword")) for answer in (ours, theirs)]
    texts = [ours.text, fourth_register(case, theirs.text)]
    registers = [sorted(REGISTER.findall(text.partition(" ")[2])) for text in texts]
    return registers[0] == registers[1] and (sizes[0] == sizes[1] or not all(sizes))


def compare(tool: Path, cases: Iterable[Case]) -> tuple[int, list[str]]:
    """How many cases both decoders agree to be instructions, and the unexplained disagreements."""
    listed = list(cases)
    agreed = 0
    strange: list[str] = []
    for case, ours in zip(listed, ask_ours(tool, listed), strict=True):
        theirs = ask_theirs(case)
        if not ours.valid and not theirs.valid:
            continue
        if ours.length == theirs.length and ours.mnemonic == theirs.mnemonic:
            agreed += 1
            if not same_operands(case, ours, theirs):
                strange.append(f"{case.mode} {case.code.hex()}: operands {ours}, capstone {theirs}")
        elif not any(rule(case, ours, theirs) for rule, _ in EXPLAINED):
            strange.append(f"{case.mode} {case.code.hex()}: ours {ours}, capstone {theirs}")
    return agreed, strange


def report(strange: list[str]) -> str:
    kinds = Counter(re.sub(r"\b[0-9a-f]{6,}\b|0x[0-9a-f]+|\w+ ptr \S+", "", line)[:60] for line in strange)
    return f"{len(strange)} unexplained, {len(kinds)} kinds\n" + "\n".join(strange[:: max(1, len(strange) // 40)])


FEW_MODRMS = [0x00, 0x0D, 0x5C, 0x33, 0xC9, 0xD2, 0xE4, 0xFF]


@pytest.mark.parametrize("mode", [16, 32, 64])
def test_every_opcode(tool: Path, mode: int) -> None:
    agreed, strange = compare(tool, systematic(mode, prefix_set(mode), FEW_MODRMS))
    assert not strange, report(strange)
    assert agreed > 10000


@pytest.mark.parametrize("mode", [16, 32, 64])
def test_every_modrm_byte_addresses_alike(tool: Path, mode: int) -> None:
    """Lengths of all modrm and SIB bytes, in both address sizes, where nothing else varies."""
    prefixes = [b"", b"\x67", b"\x66", b"\x65", b"\x36"] + ([b"\x42", b"\x67\x41", b"\x47"] if mode == 64 else [])
    cases = [Case(mode, prefix + bytes([0x8B, modrm, sib]) + TAIL)
             for prefix, modrm, sib in product(prefixes, range(256), (0x04, 0x25, 0x2C, 0x60, 0xA5, 0xE5, 0xFF))]
    agreed, strange = compare(tool, cases)
    assert not strange, report(strange)
    assert agreed == len(cases)


@pytest.mark.parametrize("mode", [32, 64])
def test_every_vex_opcode(tool: Path, mode: int) -> None:
    agreed, strange = compare(tool, vex(mode, [15, 12], [0x08, 0xCA, 0xF4]))
    assert not strange, report(strange)
    assert agreed > 3000


@pytest.mark.parametrize(("mode", "code", "text"), [
    (32, "c4e3694be1ca", "vblendvpd xmm4, xmm2, xmm1, xmm4"),
    (64, "c4e3694be1ca", "vblendvpd xmm4, xmm2, xmm1, xmm12"),
    (16, "65c4e3694bcabe", "vblendvpd xmm1, xmm2, xmm2, xmm3"),
    (64, "674f0faef3", "mfence"),
])
def test_what_fuzzing_found(tool: Path, mode: int, code: str, text: str) -> None:
    case = Case(mode, bytes.fromhex(code) + TAIL)
    assert ask_ours(tool, [case])[0].text == text
    assert not compare(tool, [case])[1]


@pytest.mark.parametrize("mode", [16, 32, 64])
def test_random_bytes(tool: Path, mode: int) -> None:
    source = random.Random(mode)
    cases = [Case(mode, source.randbytes(16)) for _ in range(20000)]
    agreed, strange = compare(tool, cases)
    assert not strange, report(strange)
    assert agreed > 10000


@pytest.mark.nightly
@pytest.mark.parametrize("mode", [16, 32, 64])
def test_every_opcode_with_every_modrm(tool: Path, mode: int) -> None:
    for prefix in prefix_set(mode):
        _, strange = compare(tool, systematic(mode, [prefix], list(range(256))))
        assert not strange, report(strange)


# ---- real code ----


def text_section(path: Path) -> tuple[int, bytes]:
    """Address and bytes of .text, from the ELF64 section headers."""
    data = path.read_bytes()
    offset, size, count, names = (int.from_bytes(data[at:at + width], "little")
                                  for at, width in ((0x28, 8), (0x3A, 2), (0x3C, 2), (0x3E, 2)))

    def header(index: int) -> tuple[int, ...]:
        at = offset + index * size
        return tuple(int.from_bytes(data[at + start:at + start + width], "little")
                     for start, width in ((0, 4), (0x10, 8), (0x18, 8), (0x20, 8)))

    strings = header(names)[2]
    for index in range(count):
        name, address, start, length = header(index)
        if data[strings + name:].startswith(b".text\0"):
            return address, data[start:start + length]
    raise LookupError(f"{path}: no .text")


def programs() -> list[Path]:
    candidates = ["/lib/x86_64-linux-gnu/libc.so.6", "/bin/bash", "/bin/busybox", "/usr/bin/python3"]
    return [Path(name).resolve() for name in candidates if Path(name).exists()]


@pytest.mark.parametrize("path", programs(), ids=lambda path: path.name)
def test_real_code(tool: Path, path: Path) -> None:
    address, code = text_section(path)
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    engine.skipdata = True
    pieces = sorted({code[at - address:at - address + length]
                     for at, length, mnemonic, _ in engine.disasm_lite(code, address) if not mnemonic.startswith(".")})
    random.Random(0).shuffle(pieces)
    agreed, strange = compare(tool, [Case(64, piece) for piece in pieces[:30000]])
    assert not strange, report(strange)
    assert agreed > 1000
