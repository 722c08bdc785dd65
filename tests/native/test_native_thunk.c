/* SPDX-License-Identifier: MIT */
/* needs: cpu/exec/native.c cpu/exec/code_memory.c cpu/exec/native_emit.c cpu/exec/fpu.c cpu/exec/cpuid.c cpu/exec/trap.c cpu/decode/[a-z]*.c
 * needs: base/error.c arch/cpu_feature.c */
/* Every NATIVE row of the tables, in many random encodings: its thunk against the same bytes executed as they are.
 * Compared are general registers, status flags, all x87 and vector state and memory; further, that the memory operand
 * has exactly the size the row says and is written exactly when the row says so. Then the traps. */
#include "arch/x86.h"
#include "base/bits.h"
#include "check.h"
#include "cpu/cpu.h"
#include "cpu/decode/isa.h"
#include "cpu/exec/cpuid.h"
#include "cpu/exec/fpu.h"
#include "cpu/exec/native.h"

#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- bytes executed as they are, with every register given ---- */

struct raw {
    uint64_t gpr[16], flags;
    uint8_t *code;
    uint8_t pad[48];
    uint8_t area[4096];
};
_Alignas(64) struct raw raw_state;
void raw_run(void);

#define EACH_GPR(X) X(0, rax) X(1, rcx) X(2, rdx) X(3, rbx) X(5, rbp) X(6, rsi) X(7, rdi) X(8, r8) X(9, r9) \
    X(10, r10) X(11, r11) X(12, r12) X(13, r13) X(14, r14) X(15, r15)
#define LOAD(n, reg) "mov raw_state+8*" #n "(%rip), %" #reg "\n"
#define SAVE(n, reg) "mov %" #reg ", raw_state+8*" #n "(%rip)\n"
__asm__(".text\nraw_run:\n"
        "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %r15\n"
        "mov $7, %eax; xor %edx, %edx; xrstor64 raw_state+192(%rip)\n"
        "push raw_state+128(%rip); popfq\n" EACH_GPR(LOAD)
        "call *raw_state+136(%rip)\n" EACH_GPR(SAVE)
        "pushfq; pop raw_state+128(%rip)\n"
        "mov $7, %eax; xor %edx, %edx; xsave64 raw_state+192(%rip)\n"
        "fninit; push $0x1f80; ldmxcsr (%rsp); pop %rax; vzeroupper; cld\n"
        "pop %r15; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n");
_Static_assert(offsetof(struct raw, flags) == 128 && offsetof(struct raw, code) == 136, "raw_run has these offsets");
_Static_assert(offsetof(struct raw, area) == 192, "and this one");

static uint64_t random_state = 88172645463325252u;
static uint64_t rnd(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1du;
}

/* ---- random state ---- */

/* Values that the interesting paths of arithmetic like, a quarter each: noise, doubles and floats near one, small. */
static void fill(uint8_t *p, size_t bytes)
{
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        uint64_t v = rnd();
        switch (rnd() & 3) {
        case 1: v = (v & 0x800fffffffffffff) | (0x3fe0000000000000 + (rnd() & 0x7f) * 0x10000000000000); break;
        case 2: v = (v & 0x807fffff807fffff) | 0x3f8000003f000000; break;
        case 3: v &= 0x0000007f000000ff; break;
        }
        store_le64(p + i, v);
    }
}

static void random_area(uint8_t *area)
{
    memset(area, 0, 4096);
    fill(area + 32, 384);
    fill(area + 576, 256);
    for (unsigned i = 0; i < 8; i++) {
        static const uint16_t exponents[] = {0, 0x3fff, 0x4000, 0xbffe, 0x7fff, 0x3ffd, 0x400a, 0x43ff};
        store_le16(area + 32 + 16 * i + 8, rnd() & 3 ? exponents[rnd() & 7] : rnd());
        if (load_le16(area + 40 + 16 * i) & 0x7fff)
            area[32 + 16 * i + 7] |= 0x80;
        fpu_zero(area + 32 + 16 * i + 10, 6);
    }
    store_le16(area, 0x037f | (rnd() & 0xc00));
    store_le16(area + 2, (rnd() & 7) << 11 | (rnd() & 0x4700));
    area[4] = rnd();
    store_le32(area + 24, 0x1f80 | (rnd() & 0x6000));
    store_le64(area + 512, 7);
}

static uint64_t flags_of(uint16_t cc)
{
    return (cc >> 8 & 0xd5) | (cc & 1 ? EFLAGS_OF : 0);
}

static uint16_t cc_of(uint64_t flags)
{
    return (flags & 0xd5) << 8 | 0x200 | (flags & EFLAGS_OF ? 1 : 0);
}

/* ---- random encodings of a row ---- */

#define MEMORY_REGISTER RBX

static bool has_class(const struct isa_row *row, unsigned class)
{
    for (unsigned i = 0; i < 4; i++)
        if (operand_infos[row->operand[i]].class == class)
            return true;
    return false;
}

static bool may_be_memory(const struct isa_row *row)
{
    bool operand = has_class(row, CLASS_E) || has_class(row, CLASS_M) || has_class(row, CLASS_W) ||
                   has_class(row, CLASS_Q);
    return operand && row->modrm < 0xc0 && (row->modrm & 0xf0) != MR_REG;
}

static bool may_be_register(const struct isa_row *row)
{
    return !has_class(row, CLASS_M) && (row->modrm & 0xf0) != MR_MEM;
}

static unsigned random_gpr(void)
{
    unsigned n = rnd() & 15;
    return n == RSP || n == MEMORY_REGISTER ? RAX : n;
}

/* Written by hand from SDM vol. 2, chapter 2, not with the emitter under test. */
static unsigned encode(const struct isa_row *row, uint8_t *out, bool memory)
{
    static const uint8_t prefixes[] = {0, 0, 0, 0x66, 0xf3, 0xf2};
    uint8_t *p = out;
    bool vex = row->map >= MAP_V0F, w = row->attributes & A_W1 || (!(row->attributes & A_W0) && rnd() & 1);
    bool l = row->attributes & A_L1 || (!(row->attributes & A_L0) && rnd() & 1);
    bool gpr_reg = has_class(row, CLASS_G), gpr_rm = has_class(row, CLASS_E) || has_class(row, CLASS_R);
    unsigned reg = gpr_reg ? random_gpr() : rnd() & 15, rm = gpr_rm ? random_gpr() : rnd() & 15;
    unsigned vvvv = has_class(row, CLASS_B) ? random_gpr() : has_class(row, CLASS_H) ? rnd() & 15 : 0;

    if (row->modrm & MR_HAS_DIGIT && row->modrm < 0xc0)
        reg = row->modrm & 7;
    if (row->modrm >= 0xc0) {
        reg = row->modrm >> 3 & 7;
        rm = row->modrm & 7;
    }
    if (memory)
        rm = MEMORY_REGISTER;
    if (vex) {
        static const uint8_t pp[] = {0, 0, 0, 1, 2, 3};
        *p++ = 0xc4;
        *p++ = (reg & 8 ? 0 : 0x80) | 0x40 | (rm & 8 ? 0 : 0x20) | (row->map - MAP_V0F + 1);
        *p++ = (w ? 0x80 : 0) | (~vvvv & 15) << 3 | (l ? 4 : 0) | pp[row->pp];
    } else {
        bool sized = false;
        for (unsigned i = 0; i < 4; i++)
            sized |= operand_infos[row->operand[i]].type == TYPE_V;
        if (sized && rnd() % 3 == 0 && row->pp != PP_66 && row->pp != PP_NP)
            *p++ = 0x66;
        if (prefixes[row->pp])
            *p++ = prefixes[row->pp];
        uint8_t rex = (w ? 8 : 0) | (reg & 8 ? 4 : 0) | (rm & 8 ? 1 : 0);
        if (rex || rnd() & 1)
            *p++ = 0x40 | rex;
        if (row->map != MAP_1B)
            *p++ = 0x0f;
        if (row->map == MAP_38 || row->map == MAP_3A)
            *p++ = row->map == MAP_38 ? 0x38 : 0x3a;
    }
    *p++ = row->opcode;
    if (row->modrm != MR__)
        *p++ = (memory ? 0 : 0xc0) | (reg & 7) << 3 | (rm & 7);
    if (has_class(row, CLASS_I) || has_class(row, CLASS_L))
        *p++ = rnd();
    return p - out;
}

/* ---- faults of the bytes ---- */

static sigjmp_buf fault_landing;
static volatile int fault_signal;

static void on_fault(int signal)
{
    fault_signal = signal;
    siglongjmp(fault_landing, 1);
}

/* True when they ran. */
static bool raw_try(void)
{
    if (sigsetjmp(fault_landing, 1)) {
        __asm__ volatile("fninit; vzeroupper");
        return false;
    }
    raw_run();
    return true;
}

/* ---- the comparison ---- */

static struct native_cache *cache;
static uint8_t *code_page, *guarded; /* guarded: one page, then none */

static bool memory_is_written(const struct insn *insn)
{
    unsigned class = operand_infos[isa_rows[insn->row].operand[0]].class;
    return (class == CLASS_E || class == CLASS_M || class == CLASS_W || class == CLASS_Q) &&
           op_infos[insn->op].attributes & (OPA_NO_MEM_READ | OPA_MEM_RMW);
}

static void report(const char *what, const struct insn *insn, const uint8_t *bytes)
{
    char text[128] = "";
    insn_format(insn, 0, text, sizeof text);
    printf("%s: %s:", what, text);
    for (unsigned i = 0; i < insn->length; i++)
        printf(" %02x", bytes[i]);
    printf("\n");
}

#define EXPECT(condition, what)                   \
    do {                                          \
        check_count++;                            \
        if (!(condition)) {                       \
            check_failures++;                     \
            report(what, insn, bytes);            \
            return false;                         \
        }                                         \
    } while (0)

static bool images_equal(const uint8_t *a, const uint8_t *b)
{
    return !memcmp(a, b, 5) && !memcmp(a + 24, b + 24, 4) && !memcmp(a + 32, b + 32, 384) &&
           !memcmp(a + 576, b + 576, 256);
}

static bool compare(const struct insn *insn, const uint8_t *bytes, uint8_t *operand, unsigned size)
{
    _Alignas(64) static uint8_t area[4096];
    static uint8_t before[64], after[64];
    struct {
        struct native_head head;
        uint64_t rest[8];
    } cpu;
    const struct op_info *info = &op_infos[insn->op];

    fill(before, sizeof before);
    if (insn->op == OP_LDMXCSR || insn->op == OP_VLDMXCSR)
        store_le32(before, 0x1f80 | (rnd() & 0xe03f));
    if (insn->op == OP_FLDCW)
        store_le16(before, rnd() | 0x3f);
    random_area(area);
    for (unsigned i = 0; i < 16; i++)
        cpu.head.gpr[i] = raw_state.gpr[i] = rnd() & 1 ? rnd() : rnd() & 0xff;
    if (insn->flags & INSN_MEM)
        cpu.head.gpr[MEMORY_REGISTER] = raw_state.gpr[MEMORY_REGISTER] = (uintptr_t)operand;
    cpu.head.gpr[RSP] = 0x123456789;
    uint64_t flags = rnd() & EFLAGS_STATUS;
    cpu.head.flags = cc_of(flags);

    memcpy(raw_state.area, area, sizeof area);
    raw_state.flags = flags | EFLAGS_FIXED;
    memcpy(operand, before, size);
    EXPECT(raw_try(), "the bytes fault");
    memcpy(after, operand, size);

    memcpy(operand, before, size);
    native_fn thunk = native_thunk(cache, insn, info);
    EXPECT(thunk, "no thunk");
    EXPECT(native_thunk(cache, insn, info) == thunk, "the thunk is not found again");
    fpu_enter(area);
    thunk(&cpu, operand);
    fpu_leave(area);

    for (unsigned i = 0; i < 16; i++)
        EXPECT(cpu.head.gpr[i] == (i == RSP ? 0x123456789 : raw_state.gpr[i]), "general register differs");
    EXPECT(flags_of(cpu.head.flags) == (raw_state.flags & EFLAGS_STATUS), "flags differ");
    EXPECT(((raw_state.flags ^ flags) & EFLAGS_STATUS & ~info->flags_written) == 0, "flags the table does not mention");
    EXPECT(images_equal(area, raw_state.area), "x87 or vector state differs");
    EXPECT(!memcmp(operand, after, size), "memory differs");
    return true;
}

/* The operand has the row's size to the byte, and a read-only page shows whether it is written. */
static bool check_operand(const struct insn *insn, const uint8_t *bytes, unsigned size)
{
    uint8_t *end = guarded + 4096;
    random_area(raw_state.area);
    raw_state.flags = EFLAGS_FIXED;
    raw_state.gpr[MEMORY_REGISTER] = (uintptr_t)(end - size + 1);
    EXPECT(!raw_try(), "the operand is shorter than the row says");
    fpu_zero(end - size, size);
    if (insn->op == OP_LDMXCSR || insn->op == OP_VLDMXCSR)
        store_le32(end - size, 0x1f80);
    if (insn->op == OP_FLDCW)
        store_le16(end - size, 0x37f);
    random_area(raw_state.area);
    raw_state.gpr[MEMORY_REGISTER] = (uintptr_t)(end - size);
    mprotect(guarded, 4096, PROT_READ);
    bool written = !raw_try();
    mprotect(guarded, 4096, PROT_READ | PROT_WRITE);
    EXPECT(written == memory_is_written(insn), "written to, or not, against the table");
    return true;
}

static void test_row(unsigned number, unsigned *covered)
{
    const struct isa_row *row = &isa_rows[number];
    const struct op_info *info = &op_infos[row->op];
    if (info->kind != OPK_NATIVE || (row->attributes & A_MODE) == MODE_I64 || !cpuid_host_has(info->feature))
        return;
    unsigned compared = 0;
    for (unsigned round = 0; round < 100; round++) {
        bool memory = may_be_memory(row) && (round & 1 || !may_be_register(row));
        uint8_t bytes[16];
        struct insn decoded, *insn = &decoded;
        unsigned length = encode(row, bytes, memory);
        if (insn_decode(insn, bytes, length, INSN_MODE_64) != (int)length) {
            check_count++;
            check_failures++;
            printf("row %u (%s) is not decoded\n", number, info->mnemonic);
            return;
        }
        if (insn->row != number) /* a row above it takes some of its encodings (W, L, memory) */
            continue;
        if (insn->vl == 32 && row->attributes & A_AVX2 && !cpuid_host_has(FEATURE_AVX2))
            continue;
        memcpy(code_page, bytes, length);
        code_page[length] = 0xc3;
        unsigned size = memory ? insn->rm_size : 0;
        if (round < 2)
            ++*covered;
        if (!compare(insn, bytes, guarded + 4096 - (size ? size : 64), size))
            return;
        if (memory && round < 4 && !check_operand(insn, bytes, size))
            return;
        compared++;
    }
    check_count++;
    if (!compared) {
        check_failures++;
        printf("row %u (%s) is never reached\n", number, info->mnemonic);
    }
}

/* ---- encodings that the comparison above cannot run ---- */

/* Outside 64-bit mode: VEX.W does not widen general registers, and there are eight registers. */
static void test_other_modes(void)
{
    static const struct {
        const char *bytes, *same_in_64;
        uint8_t length, length_64;
        enum insn_mode mode;
    } cases[] = {
        {"\xc4\xe2\xf8\xf2\xc1", "\xc4\xe2\x78\xf2\xc1", 5, 5, INSN_MODE_32},     /* andn eax, eax, ecx */
        {"\xc4\xe1\xf9\x6e\xc1", "\xc4\xe1\x79\x6e\xc1", 5, 5, INSN_MODE_32},     /* vmovd xmm0, ecx */
        {"\xf3\x0f\xb8\xc1", "\x66\xf3\x0f\xb8\xc1", 4, 5, INSN_MODE_16},         /* popcnt ax, cx */
        {"\x66\xf3\x0f\xb8\xc1", "\xf3\x0f\xb8\xc1", 5, 4, INSN_MODE_16},         /* popcnt eax, ecx */
        {"\xf2\x0f\x58\x07", "\xf2\x0f\x58\x04\x24", 4, 5, INSN_MODE_16},         /* addsd xmm0, [..] */
        {"\xdc\x46\x08", "\xdc\x00", 3, 2, INSN_MODE_16},                          /* fadd qword [..] */
        {"\xc5\xf4\x58\xc2", "\xc5\xf4\x58\xc2", 4, 4, INSN_MODE_32},             /* vaddps ymm0, ymm1, ymm2 */
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        struct insn a, b;
        uint8_t code_a[NATIVE_MAX_BYTES], code_b[NATIVE_MAX_BYTES];
        CHECK_EQ(insn_decode(&a, (const uint8_t *)cases[i].bytes, cases[i].length, cases[i].mode), cases[i].length);
        CHECK_EQ(insn_decode(&b, (const uint8_t *)cases[i].same_in_64, cases[i].length_64, INSN_MODE_64),
                 cases[i].length_64);
        CHECK_EQ(a.op, b.op);
        unsigned length = native_emit(code_a, &a, &op_infos[a.op]);
        CHECK(length > 0);
        CHECK_EQ(native_emit(code_b, &b, &op_infos[b.op]), length);
        CHECK(!memcmp(code_a, code_b, length));
    }
}

/* RSP is a register like others: the comparison cannot have it, for the host needs its stack. */
static void test_stack_pointer_operand(void)
{
    struct native_head cpu = {.flags = 0x200};
    struct insn insn;
    cpu.gpr[RSP] = 0xff00ff00ff00ff00;
    CHECK_EQ(insn_decode(&insn, (const uint8_t *)"\xf3\x48\x0f\xb8\xe4", 5, INSN_MODE_64), 5); /* popcnt rsp, rsp */
    native_thunk(cache, &insn, &op_infos[insn.op])(&cpu, NULL);
    CHECK_EQ(cpu.gpr[RSP], 32);
    for (unsigned i = 0; i < 16; i++)
        CHECK(i == RSP || cpu.gpr[i] == 0);
}

/* ---- traps ---- */

static sigjmp_buf trap_landing;
static unsigned trap_vector;
static void *trap_cpu;

_Noreturn void native_trap(void *cpu, unsigned vector)
{
    trap_cpu = cpu;
    trap_vector = vector;
    __asm__ volatile("" ::: "memory");
    siglongjmp(trap_landing, 1);
}

/* The vector that the one instruction in `bytes` raises, or ~0. */
static unsigned trap_of(const char *bytes, size_t length, uint8_t *area, void *operand)
{
    struct native_head cpu = {.gpr = {1, 2, 3}, .flags = 0x200};
    struct insn insn;
    CHECK_EQ(insn_decode(&insn, (const uint8_t *)bytes, length, INSN_MODE_64), length);
    native_fn thunk = native_thunk(cache, &insn, &op_infos[insn.op]);
    trap_vector = ~0u;
    native_cache_activate(cache);
    if (!sigsetjmp(trap_landing, 1)) {
        fpu_enter(area);
        thunk(&cpu, operand);
    } else {
        CHECK(trap_cpu == &cpu);
    }
    fpu_leave(area);
    native_cache_activate(NULL);
    CHECK(cpu.gpr[0] == 1 && cpu.gpr[1] == 2 && cpu.gpr[2] == 3);
    return trap_vector;
}
#define TRAP_OF(bytes, operand) trap_of(bytes, sizeof(bytes) - 1, area, operand)

static void test_traps(void)
{
    _Alignas(64) static uint8_t area[4096], operand[64];
    imgvm_error err;
    CHECK_EQ(cpu_install_trap_handlers(&err), 0);
    CHECK_EQ(cpu_install_trap_handlers(&err), 0);

    random_area(area);
    store_le32(area + 24, 0x1f80 & ~0x200); /* divide by zero is not masked */
    store_le64(area + 160, 0x3ff0000000000000);
    store_le64(area + 176, 0);
    CHECK_EQ(TRAP_OF("\xf2\x0f\x5e\xc1", NULL), EXC_XM); /* divsd xmm0, xmm1 */
    CHECK_EQ(load_le32(area + 24) & 0x3f, 4);            /* and says why, the vector state being as it was */
    CHECK_EQ(load_le64(area + 160), 0x3ff0000000000000);
    CHECK_EQ(TRAP_OF("\xf2\x0f\x58\xc1", NULL), ~0u); /* addsd: nothing */

    CHECK_EQ(TRAP_OF("\x0f\x28\x03", operand + 4), EXC_GP); /* movaps xmm0, [rbx] */
    CHECK_EQ(TRAP_OF("\x0f\x10\x03", operand + 4), ~0u);    /* movups */
    store_le32(operand, 0xffff0000);
    CHECK_EQ(TRAP_OF("\x0f\xae\x13", operand), EXC_GP); /* ldmxcsr: reserved bits */

    /* an unmasked x87 exception waits for the next waiting instruction, and stays pending through #MF */
    random_area(area);
    store_le16(area, 0x037f & ~4);
    store_le16(area + 2, 0);
    area[4] = 0;
    CHECK_EQ(TRAP_OF("\xd9\xe8", NULL), ~0u); /* fld1 */
    CHECK_EQ(TRAP_OF("\xd9\xee", NULL), ~0u); /* fldz */
    CHECK_EQ(TRAP_OF("\xde\xf9", NULL), ~0u); /* fdivp */
    CHECK(fpu_pending(area));
    CHECK_EQ(TRAP_OF("\xdd\x3b", operand), ~0u); /* fnstsw [rbx]: does not wait */
    CHECK_EQ(load_le16(operand) & 0x84, 0x84);   /* ES and ZE */
    CHECK_EQ(TRAP_OF("\x9b", NULL), EXC_MF);  /* fwait */
    CHECK_EQ(TRAP_OF("\xd9\xe8", NULL), EXC_MF);
    CHECK(fpu_pending(area));
    CHECK_EQ(TRAP_OF("\xdb\xe2", NULL), ~0u); /* fnclex */
    CHECK(!fpu_pending(area));
    CHECK_EQ(TRAP_OF("\x9b", NULL), ~0u);

    /* a trap of other code goes where it went before */
    native_cache_activate(cache);
    fault_signal = 0;
    if (!sigsetjmp(fault_landing, 1))
        guarded[4096] = 1;
    CHECK_EQ(fault_signal, SIGSEGV);
    native_cache_activate(NULL);
}

static void test_cache_drops_all_when_full(void)
{
    uint32_t generation = cache->generation;
    struct insn insn;
    insn_decode(&insn, (const uint8_t *)"\x66\x0f\x70\xc1\x00", 5, INSN_MODE_64); /* pshufd xmm0, xmm1, 0 */
    for (unsigned i = 0; i < NATIVE_TABLE_SLOTS && cache->generation == generation; i++) {
        insn.reg = i >> 8 & 15;
        insn.rm = i >> 12 & 15;
        insn.imm = i & 255;
        CHECK(native_thunk(cache, &insn, &op_infos[insn.op]) != NULL);
    }
    CHECK_EQ(cache->generation, generation + 1);
    CHECK_EQ(cache->count, 1);
    CHECK((uintptr_t)native_thunk(cache, &insn, &op_infos[insn.op]) == (uintptr_t)cache->code.executable);
}

int main(void)
{
    imgvm_error err;
    cache = native_cache_create(&err);
    guarded = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    code_page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!cache || guarded == MAP_FAILED || code_page == MAP_FAILED)
        return 1;
    mprotect(guarded + 4096, 4096, PROT_NONE);
    raw_state.code = code_page;
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGFPE, &action, NULL);

    unsigned covered = 0;
    for (unsigned row = 0; row < isa_row_count; row++)
        test_row(row, &covered);
    printf("%u row forms\n", covered);
    CHECK(covered > 600);
    test_other_modes();
    test_stack_pointer_operand();
    test_traps();
    test_cache_drops_all_when_full();
    native_cache_destroy(cache);
    return check_report();
}
