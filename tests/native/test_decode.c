/* SPDX-License-Identifier: MIT */
/* needs: cpu/decode/decode.c cpu/decode/plan.c cpu/decode/isa.c cpu/decode/disasm.c */
/* The decoder's rules by hand, a case each; tests/isa compares it with an independent decoder in bulk. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "arch/x86.h"
#include "check.h"
#include "cpu/decode/plan.h"

static struct insn insn;

static size_t parse(const char *hex, uint8_t *bytes)
{
    size_t count = 0;
    for (; hex[0]; hex += hex[0] == ' ' ? 1 : 2) {
        char pair[3] = {hex[0], hex[1], 0};
        if (hex[0] != ' ')
            bytes[count++] = strtoul(pair, NULL, 16);
    }
    return count;
}

/* Decodes exactly these bytes into `insn`. */
static int decode(enum insn_mode mode, const char *hex)
{
    uint8_t bytes[32];
    size_t count = parse(hex, bytes);
    return insn_decode(&insn, bytes, count, mode);
}

/* Exactly these bytes are this instruction, and every shorter run of them is cut off. */
static void check_text(int line, enum insn_mode mode, const char *hex, const char *expected)
{
    uint8_t bytes[32];
    char text[128] = "";
    size_t count = parse(hex, bytes);
    int length = insn_decode(&insn, bytes, count, mode);
    if (length > 0)
        insn_format(&insn, 0x1000, text, sizeof(text));
    if (length != (int)count || strcmp(text, expected))
        printf("line %d: %s is %d \"%s\", expected \"%s\"\n", line, hex, length, text, expected);
    CHECK(length == (int)count && !strcmp(text, expected));
    for (size_t cut = 0; cut < count; cut++) {
        struct insn ignored;
        int result = insn_decode(&ignored, bytes, cut, mode);
        if (result != INSN_ERR_TRUNCATED)
            printf("line %d: %s cut to %zu gives %d\n", line, hex, cut, result);
        CHECK(result == INSN_ERR_TRUNCATED);
    }
}

#define TEXT16(hex, expected) check_text(__LINE__, INSN_MODE_16, hex, expected)
#define TEXT32(hex, expected) check_text(__LINE__, INSN_MODE_32, hex, expected)
#define TEXT64(hex, expected) check_text(__LINE__, INSN_MODE_64, hex, expected)
#define UNDEFINED(mode, hex) CHECK_EQ(decode(mode, hex), INSN_ERR_UNDEFINED)
#define M16 INSN_MODE_16
#define M32 INSN_MODE_32
#define M64 INSN_MODE_64

static void test_table_fits(void)
{
    CHECK(isa_row_count < PLAN_MAX_ROWS);
    unsigned expanded = 0;
    for (unsigned map = 0; map < MAP_COUNT; map++)
        for (unsigned opcode = 0; opcode < 256; opcode++)
            expanded += plan_opcodes[map][opcode].count;
    CHECK(expanded >= isa_row_count && expanded < PLAN_MAX_ROWS);
}

/* Rows are written by hand: rules they must obey whatever they are. */
static void test_rows_are_well_formed(void)
{
    for (unsigned i = 0; i < isa_row_count; i++) {
        const struct isa_row *row = &isa_rows[i];
        bool needs_modrm = false, memory_only = false, register_only = false, vex_operand = false;
        for (unsigned k = 0; k < 4; k++) {
            switch (operand_infos[row->operand[k]].class) {
            case CLASS_M: case CLASS_VSIB_X: case CLASS_VSIB_DQ:
                memory_only = needs_modrm = true;
                break;
            case CLASS_U: case CLASS_N: case CLASS_STI:
                register_only = needs_modrm = true;
                break;
            case CLASS_E: case CLASS_G: case CLASS_W: case CLASS_V: case CLASS_P: case CLASS_Q: case CLASS_S:
            case CLASS_C: case CLASS_D: case CLASS_R:
                needs_modrm = true;
                break;
            case CLASS_B: case CLASS_H:
                vex_operand = true;
                break;
            }
        }
        bool ok = true;
        if (row->modrm == MR__)
            ok = !needs_modrm;
        if (memory_only)
            ok = ok && row->modrm < 0xc0 && (row->modrm & 0x70) == MR_MEM;
        if (register_only)
            ok = ok && (row->modrm >= 0xc0 || (row->modrm & 0x70) == MR_REG);
        if (vex_operand)
            ok = ok && row->map >= MAP_V0F;
        if (row->map >= MAP_V0F)
            ok = ok && row->pp != PP___ && row->pp != PP_NF;
        /* all rows of an opcode agree on whether there is a modrm byte */
        ok = ok && plan_opcodes[row->map][row->opcode].has_modrm == (row->modrm != MR__);
        if (!ok)
            printf("row %u: map %u opcode %02x (%s)\n", i, row->map, row->opcode, op_infos[row->op].mnemonic);
        CHECK(ok);
    }
    for (unsigned op = 0; op < OP_COUNT; op++) {
        bool subset = !(op_infos[op].flags_undefined & ~op_infos[op].flags_written);
        if (!subset)
            printf("op %u (%s): undefined flags it does not write\n", op, op_infos[op].mnemonic);
        CHECK(subset);
    }
}

/* Every operation has a row. */
static void test_operations_are_reachable(void)
{
    static bool seen[OP_COUNT];
    for (unsigned i = 0; i < isa_row_count; i++)
        seen[isa_rows[i].op] = true;
    for (unsigned op = 0; op < OP_COUNT; op++) {
        if (!seen[op])
            printf("op %u (%s) has no row\n", op, op_infos[op].mnemonic);
        CHECK(seen[op]);
    }
}

static void test_operand_size(void)
{
    TEXT16("01 d8", "add ax, bx");
    TEXT16("66 01 d8", "add eax, ebx");
    TEXT32("01 d8", "add eax, ebx");
    TEXT32("66 01 d8", "add ax, bx");
    TEXT64("01 d8", "add eax, ebx");
    TEXT64("66 01 d8", "add ax, bx");
    TEXT64("48 01 d8", "add rax, rbx");
    TEXT64("66 48 01 d8", "add rax, rbx"); /* REX.W wins */
    TEXT64("00 e0", "add al, ah");
    TEXT64("40 00 e0", "add al, spl");
    CHECK(insn.flags & INSN_REX);
    TEXT64("44 00 e0", "add al, r12b");
    TEXT32("00 e0", "add al, ah");
    CHECK_EQ(insn.reg, 16);
    TEXT16("b8 34 12", "mov ax, 0x1234");
    TEXT32("b8 78 56 34 12", "mov eax, 0x12345678");
    TEXT64("48 b8 88 77 66 55 44 33 22 11", "mov rax, 0x1122334455667788");
    TEXT64("41 b0 7f", "mov r8b, 0x7f");
    TEXT64("b4 7f", "mov ah, 0x7f");
    TEXT64("48 05 00 00 00 80", "add rax, 0xffffffff80000000");
    TEXT64("05 00 00 00 80", "add eax, 0x80000000");
    CHECK_EQ(insn.imm, 0x80000000u); /* not extended beyond the operand */
    TEXT64("66 05 00 80", "add ax, 0x8000");
    TEXT64("83 c0 ff", "add eax, -0x1");
    CHECK_EQ(insn.imm, UINT64_MAX);
    TEXT64("c1 e0 ff", "shl eax, 0xff");
    TEXT64("0f b6 c4", "movzx eax, ah");
    CHECK(insn.osize == 4 && insn.rm_size == 1);
    TEXT64("48 0f bf 00", "movsx rax, word ptr [rax]");
    CHECK(insn.osize == 8 && insn.rm_size == 2);
    TEXT64("48 63 c1", "movsxd rax, ecx");
    TEXT32("63 c1", "arpl cx, ax");
    TEXT64("f2 0f 38 f0 c1", "crc32 eax, cl");
    TEXT64("66 f2 0f 38 f1 c1", "crc32 eax, cx");
    TEXT64("f2 48 0f 38 f1 c1", "crc32 rax, rcx");
    TEXT64("66 0f 38 f0 00", "movbe ax, word ptr [rax]");
    TEXT64("66 f3 0f b8 c1", "popcnt ax, cx");
    TEXT16("66 98", "cwde");
    TEXT64("48 98", "cdqe");
    TEXT64("48 99", "cqo");
    TEXT32("66 99", "cwd");
}

static void test_default_sixty_four(void)
{
    TEXT64("50", "push rax");
    TEXT64("66 50", "push ax");
    TEXT64("41 57", "push r15");
    TEXT64("6a ff", "push -0x1");
    CHECK(insn.osize == 8 && insn.form == FORM_IMM);
    TEXT64("68 00 00 00 80", "push 0xffffffff80000000");
    TEXT64("66 68 00 80", "push 0x8000");
    TEXT64("8f 00", "pop qword ptr [rax]");
    TEXT64("ff 30", "push qword ptr [rax]");
    TEXT64("9c", "pushfq");
    TEXT64("66 9c", "pushf");
    TEXT32("9c", "pushfd");
    TEXT16("9d", "popf");
    TEXT64("c9", "leave");
    CHECK_EQ(insn.osize, 8);
    TEXT64("c8 34 12 05", "enter 0x1234, 0x5");
    CHECK_EQ(insn.imm, 0x51234);
    TEXT64("0f a0", "push fs");
    CHECK(insn.osize == 8 && insn.reg == FS && insn.form == FORM_REG);
    TEXT32("16", "push ss");
    CHECK(insn.osize == 4 && insn.reg == SS && insn.op == OP_PUSH_SREG);
    TEXT64("0f 20 c0", "mov rax, cr0");
    TEXT32("66 0f 20 c0", "mov eax, cr0");
    TEXT64("44 0f 22 c0", "mov cr8, rax");
    CHECK_EQ(insn.reg, 8);
    TEXT64("0f 23 fb", "mov dr7, rbx");
    TEXT64("0f 22 18", "mov cr3, rax"); /* mod is ignored */
    CHECK(!(insn.flags & INSN_MEM) && insn.length == 3);
    TEXT64("cb", "retf");
    CHECK_EQ(insn.osize, 4);
    TEXT64("48 cb", "retfq");
    TEXT64("48 cf", "iretq");
    TEXT32("cf", "iretd");
    TEXT16("cf", "iret");
    TEXT64("48 0f 07", "sysretq");
    TEXT64("48 ff 28", "ljmp tbyte ptr [rax]");
}

static void test_branches(void)
{
    TEXT64("e8 00 00 00 00", "call 0x1005");
    CHECK(insn.form == FORM_REL && insn.osize == 8 && insn.op == OP_CALL);
    TEXT64("66 e8 fb ff ff ff", "call 0x1001"); /* 66 is ignored */
    CHECK_EQ(insn.imm, (uint64_t)-5);
    TEXT32("66 e8 fd ff", "call 0x1001");
    TEXT16("e8 fd ff", "call 0x1000");
    TEXT16("66 e8 00 00 00 00", "call 0x1006");
    TEXT64("eb fe", "jmp 0x1000");
    TEXT64("7f 10", "jg 0x1012");
    CHECK(insn.op == OP_JCC && insn.cond == 15);
    TEXT64("0f 84 00 01 00 00", "je 0x1106");
    CHECK(insn.op == OP_JCC && insn.cond == 4);
    TEXT64("0f 95 c0", "setne al");
    CHECK(insn.cond == 5 && insn.osize == 1 && insn.form == FORM_RM);
    TEXT64("48 0f 4c c1", "cmovl rax, rcx");
    CHECK_EQ(insn.cond, 12);
    TEXT64("ff d0", "call rax");
    TEXT64("66 ff d0", "call rax");
    TEXT64("ff 25 10 00 00 00", "jmp qword ptr [rip + 0x10]");
    CHECK(insn.base == INSN_REG_RIP && insn.op == OP_JMP && insn.form == FORM_RM);
    TEXT32("ff 18", "lcall fword ptr [eax]");
    CHECK(insn.op == OP_CALL_FAR && insn.form == FORM_RM && insn.osize == 4);
    TEXT16("ea 00 7c 00 f0", "ljmp 0xf000:0x7c00");
    CHECK_EQ(insn.imm, UINT64_C(0xf00000007c00));
    CHECK(insn.op == OP_JMP_FAR && insn.form == FORM_IMM);
    TEXT32("9a 78 56 34 12 08 00", "lcall 0x8:0x12345678");
    TEXT64("e3 00", "jrcxz 0x1002");
    TEXT64("67 e3 00", "jecxz 0x1003");
    TEXT16("e3 00", "jcxz 0x1002");
    TEXT64("67 e2 fd", "loop 0x1000");
    CHECK_EQ(insn.asize, 4);
    TEXT64("c2 10 00", "ret 0x10");
    TEXT64("cd 80", "int 0x80");
    TEXT64("f1", "int1");
    UNDEFINED(M64, "ea 00 00 00 00 00 00");
    UNDEFINED(M64, "9a 00 00 00 00 00 00");
    UNDEFINED(M32, "ff d8");
    UNDEFINED(M32, "ff ff");
}

static void test_addresses_16(void)
{
    static const char *const texts[] = {"bx + si", "bx + di", "bp + si", "bp + di", "si", "di", "bp", "bx"};
    for (unsigned rm = 0; rm < 8; rm++) {
        char hex[32], expected[64];
        snprintf(hex, sizeof(hex), "8b %02x 80", 0x40 | rm);
        snprintf(expected, sizeof(expected), "mov ax, word ptr [%s - 0x80]", texts[rm]);
        TEXT16(hex, expected);
        CHECK_EQ(insn.segment, rm == 2 || rm == 3 || rm == 6 ? SS : DS);
        snprintf(hex, sizeof(hex), "8b %02x ff 7f", 0x80 | rm);
        snprintf(expected, sizeof(expected), "mov ax, word ptr [%s + 0x7fff]", texts[rm]);
        TEXT16(hex, expected);
    }
    TEXT16("8b 06 34 12", "mov ax, word ptr [0x1234]");
    CHECK(insn.base == INSN_REG_NONE && insn.index == INSN_REG_NONE && insn.segment == DS && insn.asize == 2);
    TEXT16("8b 06 ff ff", "mov ax, word ptr [0xffff]");
    TEXT16("67 8b 04 58", "mov ax, word ptr [eax + ebx*2]");
    TEXT32("67 8b 47 01", "mov eax, dword ptr [bx + 0x1]");
    TEXT16("26 8b 46 00", "mov ax, word ptr es:[bp]");
    CHECK(insn.segment == ES && insn.flags & INSN_SEG_OVERRIDE);
}

static void test_addresses_32_and_64(void)
{
    TEXT32("8b 05 78 56 34 12", "mov eax, dword ptr [0x12345678]");
    CHECK_EQ(insn.base, INSN_REG_NONE);
    TEXT64("8b 05 78 56 34 12", "mov eax, dword ptr [rip + 0x12345678]");
    TEXT64("67 8b 05 f0 ff ff ff", "mov eax, dword ptr [eip - 0x10]");
    TEXT64("8b 04 25 00 00 00 80", "mov eax, dword ptr [0xffffffff80000000]");
    CHECK(insn.base == INSN_REG_NONE && insn.index == INSN_REG_NONE);
    TEXT64("41 8b 05 00 00 00 00", "mov eax, dword ptr [rip]"); /* REX.B has no say */
    TEXT64("41 8b 45 00", "mov eax, dword ptr [r13]");
    TEXT64("41 8b 04 24", "mov eax, dword ptr [r12]");
    TEXT64("8b 04 24", "mov eax, dword ptr [rsp]");
    TEXT64("42 8b 04 20", "mov eax, dword ptr [rax + r12]");
    TEXT64("43 8b 84 e5 00 01 00 00", "mov eax, dword ptr [r13 + r12*8 + 0x100]");
    TEXT64("41 8b 04 85 10 00 00 00", "mov eax, dword ptr [rax*4 + 0x10]");
    TEXT32("8b 44 8b 80", "mov eax, dword ptr [ebx + ecx*4 - 0x80]");
    TEXT32("8b 04 24", "mov eax, dword ptr [esp]");
    CHECK_EQ(insn.segment, SS);
    TEXT32("8b 45 00", "mov eax, dword ptr [ebp]");
    CHECK_EQ(insn.segment, SS);
    TEXT32("8b 04 28", "mov eax, dword ptr [eax + ebp]"); /* an index does not choose SS */
    CHECK_EQ(insn.segment, DS);
    TEXT32("8b 04 2d 00 00 00 00", "mov eax, dword ptr [ebp]"); /* ebp is the index here */
    CHECK_EQ(insn.segment, DS);
    TEXT64("8b 45 00", "mov eax, dword ptr [rbp]");
    CHECK_EQ(insn.segment, INSN_SEG_FLAT);
    TEXT64("64 8b 00", "mov eax, dword ptr fs:[rax]");
    CHECK_EQ(insn.segment, FS);
    TEXT64("2e 8b 00", "mov eax, dword ptr [rax]"); /* without effect */
    CHECK(insn.segment == INSN_SEG_FLAT && !(insn.flags & INSN_SEG_OVERRIDE));
    TEXT64("65 3e 8b 00", "mov eax, dword ptr gs:[rax]"); /* nor does it take the override back */
    TEXT32("64 2e 8b 00", "mov eax, dword ptr cs:[eax]"); /* the last one counts */
    TEXT64("67 8b 00", "mov eax, dword ptr [eax]");
    CHECK_EQ(insn.asize, 4);
    TEXT64("48 8d 44 33 07", "lea rax, [rbx + rsi + 0x7]");
    UNDEFINED(M64, "8d c0");
}

static void test_moffs(void)
{
    TEXT64("a1 88 77 66 55 44 33 22 11", "mov eax, dword ptr [0x1122334455667788]");
    CHECK(insn.flags & INSN_MEM && insn.form == FORM_REG_RM && insn.reg == RAX);
    CHECK(insn.base == INSN_REG_NONE && insn.index == INSN_REG_NONE && insn.disp == 0);
    CHECK_EQ(insn.imm, UINT64_C(0x1122334455667788));
    TEXT64("67 48 a3 78 56 34 12", "mov qword ptr [0x12345678], rax");
    CHECK(insn.form == FORM_RM_REG && insn.osize == 8 && insn.rm_size == 8);
    TEXT16("a0 34 12", "mov al, byte ptr [0x1234]");
    TEXT32("65 a2 78 56 34 12", "mov byte ptr gs:[0x12345678], al");
    CHECK(insn.segment == GS && insn.osize == 1);
    TEXT32("67 a1 34 12", "mov eax, dword ptr [0x1234]");
    TEXT32("a1 00 00 00 f0", "mov eax, dword ptr [0xf0000000]");
}

static void test_rex_must_be_last(void)
{
    TEXT64("48 66 01 d8", "add ax, bx");
    CHECK(!(insn.flags & (INSN_REX | INSN_W)));
    TEXT64("48 41 01 d8", "add r8d, ebx"); /* of two, the last */
    TEXT32("48", "dec eax");
    TEXT16("40", "inc ax");
}

static void test_mandatory_prefixes(void)
{
    TEXT64("f3 0f bc c1", "tzcnt eax, ecx");
    TEXT64("0f bc c1", "bsf eax, ecx");
    TEXT64("66 0f bc c1", "bsf ax, cx");
    TEXT64("66 f3 0f bc c1", "tzcnt ax, cx");
    TEXT64("f3 66 0f bd c1", "lzcnt ax, cx");
    TEXT64("f2 0f bc c1", "bsf eax, ecx");
    TEXT64("66 0f 38 f6 c1", "adcx eax, ecx");
    TEXT64("66 f3 0f 38 f6 c1", "adox eax, ecx"); /* F3 goes before 66 */
    TEXT64("f2 f3 0f bc c1", "tzcnt eax, ecx");   /* the last of F2 and F3 */
    TEXT64("66 0f 58 c1", "addpd xmm0, xmm1");
    TEXT16("66 0f 58 c1", "addpd xmm0, xmm1");
    TEXT64("66 f2 0f 58 c1", "addsd xmm0, xmm1");
    UNDEFINED(M64, "0f b8 c1");
    UNDEFINED(M64, "f3 0f 38 f0 00");
    UNDEFINED(M64, "66 0f 01 ca");
    UNDEFINED(M64, "f2 0f c7 f0");
}

static void test_nop_and_pause(void)
{
    TEXT64("90", "nop");
    CHECK(insn.op == OP_NOP && insn.form == FORM_NONE);
    TEXT64("48 90", "nop");
    TEXT64("66 90", "nop");
    TEXT64("41 90", "xchg r8d, eax");
    CHECK(insn.op == OP_XCHG && insn.form == FORM_RM_REG && insn.rm == R8 && insn.reg == RAX);
    TEXT64("49 90", "xchg r8, rax");
    TEXT64("f3 90", "pause");
    TEXT64("f3 41 90", "xchg r8d, eax");
    TEXT32("91", "xchg ecx, eax");
    TEXT64("f3 0f 1e fa", "nop edx"); /* ENDBR64 */
    CHECK_EQ(insn.op, OP_NOP);
    TEXT64("66 2e 0f 1f 84 00 00 02 00 00", "nop word ptr [rax + rax + 0x200]");
    TEXT64("0f 18 08", "prefetch [rax]");
    TEXT64("0f 18 c8", "nop eax");
}

static void test_strings(void)
{
    TEXT64("f3 a4", "rep movsb byte ptr es:[rdi], byte ptr [rsi]");
    CHECK(insn.flags & INSN_REP && insn.osize == 1 && insn.form == FORM_NONE);
    TEXT64("f3 48 a5", "rep movsq qword ptr es:[rdi], qword ptr [rsi]");
    TEXT64("48 ab", "stosq qword ptr es:[rdi], rax");
    TEXT64("48 ad", "lodsq rax, qword ptr [rsi]");
    CHECK_EQ(insn.osize, 8);
    TEXT64("f2 ae", "repne scasb al, byte ptr es:[rdi]");
    CHECK(insn.flags & INSN_REPNE && !(insn.flags & INSN_REP));
    TEXT32("f3 a6", "repe cmpsb byte ptr ds:[esi], byte ptr es:[edi]");
    TEXT16("f3 26 a5", "rep movsw word ptr es:[di], word ptr es:[si]");
    CHECK_EQ(insn.segment, ES);
    TEXT64("64 67 a5", "movsd dword ptr es:[edi], dword ptr fs:[esi]");
    CHECK(insn.segment == FS && insn.asize == 4);
    TEXT64("48 6d", "insd dword ptr es:[rdi], dx");
    CHECK_EQ(insn.osize, 4);
    TEXT16("6e", "outsb dx, byte ptr ds:[si]");
    TEXT64("d7", "xlatb");
    CHECK_EQ(insn.segment, INSN_SEG_FLAT);
    TEXT32("d7", "xlatb");
    CHECK_EQ(insn.segment, DS);
}

static void test_ports(void)
{
    TEXT64("e4 60", "in al, 0x60");
    CHECK(insn.form == FORM_IMM && insn.osize == 1);
    TEXT64("48 ed", "in eax, dx");
    CHECK(insn.form == FORM_NONE && insn.osize == 4);
    TEXT64("66 ef", "out dx, ax");
    CHECK_EQ(insn.osize, 2);
    TEXT16("e7 80", "out 0x80, ax");
    CHECK(insn.form == FORM_IMM && insn.osize == 2);
}

static void test_forms(void)
{
    TEXT64("04 7f", "add al, 0x7f");
    CHECK(insn.form == FORM_RM_IMM && insn.rm == RAX && !(insn.flags & INSN_MEM));
    TEXT64("01 08", "add dword ptr [rax], ecx");
    CHECK_EQ(insn.form, FORM_RM_REG);
    TEXT64("03 08", "add ecx, dword ptr [rax]");
    CHECK_EQ(insn.form, FORM_REG_RM);
    TEXT64("d1 e0", "shl eax, 1");
    CHECK(insn.form == FORM_RM_1 && insn.imm == 1);
    TEXT64("d3 e0", "shl eax, cl");
    CHECK_EQ(insn.form, FORM_RM_CL);
    TEXT64("6b c1 05", "imul eax, ecx, 0x5");
    CHECK_EQ(insn.form, FORM_REG_RM_IMM);
    TEXT64("0f a4 c8 05", "shld eax, ecx, 0x5");
    CHECK_EQ(insn.form, FORM_RM_REG_IMM);
    TEXT64("0f ad c8", "shrd eax, ecx, cl");
    CHECK_EQ(insn.form, FORM_RM_REG_CL);
    TEXT64("49 0f c8", "bswap r8");
    CHECK(insn.form == FORM_RM && insn.rm == R8);
    TEXT64("f6 c4 01", "test ah, 0x1");
    CHECK(insn.form == FORM_RM_IMM && insn.rm == 16);
    TEXT64("f7 c8 01 00 00 00", "test eax, 0x1"); /* /1 is /0 */
    TEXT64("c1 f0 01", "shl eax, 0x1");           /* /6 is /4 */
    TEXT64("8c d8", "mov eax, ds");
    CHECK(insn.op == OP_MOV_FROM_SREG && insn.form == FORM_RM_REG && insn.reg == DS && insn.osize == 4);
    TEXT64("48 8c 18", "mov word ptr [rax], ds");
    CHECK_EQ(insn.rm_size, 2);
    TEXT64("8e d0", "mov ss, ax");
    CHECK(insn.op == OP_MOV_TO_SREG && insn.form == FORM_REG_RM && insn.reg == SS);
    TEXT64("44 8e d8", "mov ds, ax"); /* REX.R has no say */
    TEXT64("0f 01 f8", "swapgs");
    TEXT32("82 c0 01", "add al, 0x1");
    UNDEFINED(M64, "82 c0 01");
    UNDEFINED(M64, "8e c8");
    UNDEFINED(M64, "8c f0");
    UNDEFINED(M64, "0f 20 c8");
    UNDEFINED(M64, "44 0f 21 c0");
    UNDEFINED(M32, "0f 01 f8");
    UNDEFINED(M64, "06");
    UNDEFINED(M64, "60");
    UNDEFINED(M64, "d6");
    UNDEFINED(M64, "fe d0");
    UNDEFINED(M64, "8f c8");
    UNDEFINED(M64, "c7 f8 00 00 00 00");
}

static void test_lock(void)
{
    TEXT64("f0 48 0f c7 4d 20", "lock cmpxchg16b xmmword ptr [rbp + 0x20]");
    CHECK(insn.rm_size == 16 && insn.flags & INSN_LOCK);
    TEXT64("f0 01 08", "lock add dword ptr [rax], ecx");
    TEXT64("f0 83 00 01", "lock add dword ptr [rax], 0x1");
    TEXT64("f0 87 08", "lock xchg dword ptr [rax], ecx");
    TEXT64("f0 0f c1 08", "lock xadd dword ptr [rax], ecx");
    TEXT64("f0 0f ba 28 01", "lock bts dword ptr [rax], 0x1");
    TEXT64("f0 f7 18", "lock neg dword ptr [rax]");
    UNDEFINED(M64, "f0 01 c8");       /* a register */
    UNDEFINED(M64, "f0 03 08");       /* memory is the source */
    UNDEFINED(M64, "f0 39 08");       /* CMP does not write */
    UNDEFINED(M64, "f0 0f a3 08");    /* nor BT */
    UNDEFINED(M64, "f0 89 08");
    UNDEFINED(M64, "f0 d1 20");
    UNDEFINED(M64, "f0 90");
    UNDEFINED(M64, "f0 ff 30");
    UNDEFINED(M64, "f0 c5 f8 77");
}

static void test_vex(void)
{
    TEXT64("c5 f0 58 c2", "vaddps xmm0, xmm1, xmm2");
    CHECK(insn.flags & INSN_VEX && !(insn.flags & INSN_REX) && insn.vl == 16 && insn.vvvv == 1);
    TEXT64("c5 74 58 c2", "vaddps ymm8, ymm1, ymm2");
    CHECK(insn.vl == 32 && insn.reg == 8);
    TEXT64("c4 41 34 58 14 24", "vaddps ymm10, ymm9, ymmword ptr [r12]");
    TEXT64("c4 c2 70 f2 c0", "andn eax, ecx, r8d");
    TEXT64("c4 e2 f0 f2 c2", "andn rax, rcx, rdx");
    CHECK(insn.flags & INSN_W);
    TEXT64("c4 e2 78 f3 c9", "blsr eax, ecx");
    TEXT64("c4 e3 fb f0 c1 05", "rorx rax, rcx, 0x5");
    TEXT64("c4 e3 71 4a c2 30", "vblendvps xmm0, xmm1, xmm2, xmm3");
    TEXT64("c4 e2 69 90 04 4d 00 00 00 00", "vpgatherdd xmm0, dword ptr [xmm1*2], xmm2");
    TEXT32("c5 f0 58 c2", "vaddps xmm0, xmm1, xmm2");
    TEXT32("c4 e2 f0 f2 c2", "andn eax, ecx, edx"); /* W means nothing here */
    CHECK(!(insn.flags & INSN_W));
    TEXT32("c5 08", "lds ecx, fword ptr [eax]"); /* mod 0: not VEX */
    TEXT16("c4 07", "les ax, dword ptr [bx]");
    TEXT32("62 01", "bound eax, qword ptr [ecx]");
    UNDEFINED(M64, "66 c5 f0 58 c2");
    UNDEFINED(M64, "f3 c5 f0 58 c2");
    UNDEFINED(M64, "48 c5 f0 58 c2");
    UNDEFINED(M64, "c5 f0 77");                         /* vvvv must be 1111b */
    UNDEFINED(M64, "c4 e2 74 f2 c2");                   /* L must be 0 */
    UNDEFINED(M64, "c4 e4 78 00 c0");                   /* no such map */
    UNDEFINED(M64, "c4 e2 69 90 04 45 00 00 00 00"); /* index is the destination */
    UNDEFINED(M64, "c4 e2 69 90 00");                   /* no SIB */
    UNDEFINED(M64, "62 f1 7c 48 58 c2");                /* EVEX */
    UNDEFINED(M32, "62 f1 7c 48 58 c2");
}

static void test_x87(void)
{
    TEXT64("d8 00", "fadd st(0), dword ptr [rax]");
    TEXT64("d8 c3", "fadd st(0), st(3)");
    TEXT64("41 d8 c3", "fadd st(0), st(3)");
    TEXT64("d9 e8", "fld1");
}

static void test_limits(void)
{
    CHECK_EQ(decode(M64, "66 66 66 66 66 66 66 66 66 66 66 66 66 66 90"), 15);
    CHECK_EQ(decode(M64, "66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 90"), INSN_ERR_TOO_LONG);
    CHECK_EQ(decode(M64, "66 66 66 66 66 66 66 66 66 66 66 66 66 66"), INSN_ERR_TRUNCATED);
    CHECK_EQ(decode(M64, "2e 2e 2e 2e 2e 2e 2e 81 84 00 11 22 33 44 55 66 77 88"), INSN_ERR_TOO_LONG);
    CHECK_EQ(decode(M64, "2e 2e 2e 2e 81 84 00 11 22 33 44 55 66 77 88"), 15);
    CHECK_EQ(decode(M64, ""), INSN_ERR_TRUNCATED);
    UNDEFINED(M64, "0f 04");
    UNDEFINED(M64, "0f 0f c0 00");
    UNDEFINED(M64, "0f 24 c0");
    UNDEFINED(M64, "0f 38 7f c0");
    CHECK_EQ(decode(M64, "0f 0b"), 2);
    CHECK_EQ(insn.op, OP_UD2);
}

/* Whatever the bytes: a length within bounds, text that fits, and the same answer with more bytes behind. */
static void test_any_bytes(void)
{
    uint64_t seed = 88172645463325252u;
    uint8_t bytes[24];
    unsigned valid = 0;
    for (unsigned round = 0; round < 300000; round++) {
        for (unsigned i = 0; i < sizeof(bytes); i += 8) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            memcpy(bytes + i, &seed, 8);
        }
        enum insn_mode mode = round % 3;
        struct insn first, again;
        int length = insn_decode(&first, bytes, 15, mode);
        bool ok = length == INSN_ERR_UNDEFINED || length == INSN_ERR_TOO_LONG || (length >= 1 && length <= 15);
        if (length > 0) {
            char text[160];
            valid++;
            ok = ok && insn_format(&first, 0, text, sizeof(text)) < (int)sizeof(text);
            ok = ok && insn_decode(&again, bytes, length, mode) == length && !memcmp(&first, &again, sizeof(first));
            ok = ok && insn_decode(&again, bytes, length - 1, mode) == INSN_ERR_TRUNCATED;
        }
        if (!ok) {
            printf("mode %d length %d:", mode, length);
            for (unsigned i = 0; i < 15; i++)
                printf(" %02x", bytes[i]);
            printf("\n");
        }
        CHECK(ok);
    }
    CHECK(valid > 150000);
}

static void print_speed(void)
{
    static const uint8_t code[] = {0x48, 0x8b, 0x45, 0xf8, 0x48, 0x01, 0xd0, 0x0f, 0xb6, 0x00, 0x84, 0xc0, 0x75, 0x10,
                                   0xe8, 0, 0, 0, 0, 0x48, 0x83, 0xc4, 0x10, 0x0f, 0x1f, 0x44, 0, 0, 0x5d, 0xc3};
    struct timespec start, end;
    unsigned count = 0;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (unsigned round = 0; round < 20000; round++)
        for (size_t at = 0; at < sizeof(code); count++)
            at += insn_decode(&insn, code + at, sizeof(code) - at, M64);
    clock_gettime(CLOCK_MONOTONIC, &end);
    double ns = (end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec);
    printf("%.1f ns an instruction\n", ns / count);
}

int main(void)
{
    test_table_fits();
    test_rows_are_well_formed();
    test_operations_are_reachable();
    test_operand_size();
    test_default_sixty_four();
    test_branches();
    test_addresses_16();
    test_addresses_32_and_64();
    test_moffs();
    test_rex_must_be_last();
    test_mandatory_prefixes();
    test_nop_and_pause();
    test_strings();
    test_ports();
    test_forms();
    test_lock();
    test_vex();
    test_x87();
    test_limits();
    test_any_bytes();
    print_speed();
    return check_report();
}
