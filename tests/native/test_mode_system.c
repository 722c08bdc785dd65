/* SPDX-License-Identifier: MIT */
/* What rings may do: I/O privilege, the permission bitmap, UMIP, the table registers; what LAR and its kin see; the A20
 * gate (SDM vol. 1, chapter 18; vol. 2; vol. 3, 5.9 and 5.10). */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

/* Runs `length` bytes in either mode and ring; -1: they ran through to the HLT behind them. */
static int outcome(struct world *w, struct x86_state *s, const uint8_t *code, const uint8_t *end)
{
    unsigned size = s->efer & EFER_LMA ? 8 : 4;
    bool user = (s->segment[CS].selector & 3) == 3;
    CHECK_EQ(run(w, s, code, end), CPU_EXIT_HALT);
    int vector = stopped_in(s);
    uint64_t halt = CODE + (uint64_t)(end - code) - 1;
    if (user && vector == EXC_GP && get(w, s->gpr[RSP] + size, size) == halt)
        return -1;
    return vector;
}
#define OUTCOME(w, s, name) outcome(w, s, name##_begin, name##_end)

/* ---- privileged instructions ---- */

GUEST(p_hlt, 64, "nop; hlt");
GUEST(p_cli, 64, "cli; hlt");
GUEST(p_sti, 64, "sti; hlt");
GUEST(p_in, 64, "in $0x60, %al; hlt");
GUEST(p_outs, 64, "mov $0x60, %dx; mov $0x40000, %esi; outsb; hlt");
GUEST(p_lgdt, 64, "lgdt 0x40000; hlt");
GUEST(p_lidt, 64, "lidt 0x40000; hlt");
GUEST(p_lldt, 64, "xor %eax, %eax; lldt %ax; hlt");
GUEST(p_ltr, 64, "mov $0x40, %eax; ltr %ax; hlt");
GUEST(p_lmsw, 64, "smsw %eax; lmsw %ax; hlt");
GUEST(p_clts, 64, "clts; hlt");
GUEST(p_invlpg, 64, "invlpg 0x40000; hlt");
GUEST(p_wbinvd, 64, "wbinvd; hlt");
GUEST(p_rdmsr, 64, "mov $0x277, %ecx; rdmsr; hlt");
GUEST(p_movcr, 64, "mov %cr0, %rax; hlt");
GUEST(p_movdr, 64, "mov %db0, %rax; hlt");
GUEST(p_swapgs, 64, "swapgs; swapgs; hlt");
GUEST(p_rdtsc, 64, "rdtsc; hlt");
GUEST(p_sgdt, 64, "sgdt 0x40000; hlt");
GUEST(p_sldt, 64, "sldt %eax; hlt");
GUEST(p_str, 64, "str %eax; hlt");
GUEST(p_smsw, 64, "smsw %eax; hlt");
GUEST(p_stac, 64, "stac; clac; hlt");

static void test_privilege(struct world *w)
{
    const struct {
        const char *name;
        const uint8_t *begin, *end;
        int user, iopl3, umip_tsd; /* in ring 3: plain, with IOPL 3, with CR4.UMIP and TSD */
    } rows[] = {
#define ROW(name, ...) {#name, name##_begin, name##_end, __VA_ARGS__}
        ROW(p_hlt, -1, -1, -1), /* outcome() takes its fault for the end */
        ROW(p_cli, EXC_GP, -1, EXC_GP),
        ROW(p_sti, EXC_GP, -1, EXC_GP),
        ROW(p_in, -1, -1, -1), /* the bitmap allows it */
        ROW(p_outs, -1, -1, -1),
        ROW(p_lgdt, EXC_GP, EXC_GP, EXC_GP),
        ROW(p_lidt, EXC_GP, EXC_GP, EXC_GP),
        ROW(p_lldt, EXC_GP, EXC_GP, EXC_GP),
        ROW(p_ltr, EXC_GP, EXC_GP, EXC_GP),
        ROW(p_lmsw, EXC_GP, EXC_GP, EXC_GP),
        ROW(p_clts, EXC_GP, EXC_GP, EXC_GP),
        ROW(p_invlpg, EXC_GP, EXC_GP, EXC_GP),
        ROW(p_wbinvd, EXC_GP, EXC_GP, EXC_GP),
        ROW(p_rdmsr, EXC_GP, EXC_GP, EXC_GP),
        ROW(p_movcr, EXC_GP, EXC_GP, EXC_GP),
        ROW(p_movdr, EXC_GP, EXC_GP, EXC_GP),
        ROW(p_swapgs, EXC_GP, EXC_GP, EXC_GP),
        ROW(p_rdtsc, -1, -1, EXC_GP),
        ROW(p_sgdt, -1, -1, EXC_GP),
        ROW(p_sldt, -1, -1, EXC_GP),
        ROW(p_str, -1, -1, EXC_GP),
        ROW(p_smsw, -1, -1, EXC_GP),
        ROW(p_stac, EXC_UD, EXC_UD, EXC_UD),
    };
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (unsigned variant = 0; variant < 4; variant++) {
            struct x86_state s;
            long_mode(w, &s);
            put64(w, DATA, GDT << 16 | 0x7ff); /* for LGDT; as IDTR it is not used any more */
            put64(w, GDT + TSS_SEL, descriptor(TSS, TSS_IO_MAP + 0x2000, 0x89));
            if (variant)
                to_user(&s);
            s.rflags |= variant == 2 ? EFLAGS_IOPL : 0;
            s.cr4 |= variant == 3 ? CR4_UMIP | CR4_TSD : 0;
            int expected = variant == 0 ? -1 : variant == 1 ? rows[i].user : variant == 2 ? rows[i].iopl3 : rows[i].umip_tsd;
            int got = outcome(w, &s, rows[i].begin, rows[i].end);
            if (got != expected)
                printf("%s, variant %u: %d, expected %d\n", rows[i].name, variant, got, expected);
            CHECK(got == expected);
        }
    }
    struct x86_state s; /* DR5 that is not there is undefined in ring 3 too */
    static const uint8_t movdr5[] = {0x0f, 0x21, 0xe8, 0xf4};
    long_mode(w, &s);
    to_user(&s);
    s.cr4 |= CR4_DE;
    CHECK_EQ(outcome(w, &s, movdr5, movdr5 + 4), EXC_UD);
}

/* ---- the I/O permission bitmap ---- */

GUEST(io_byte, 64, "in %dx, %al; hlt");
GUEST(io_word, 64, "in %dx, %ax; hlt");
GUEST(io_dword, 64, "out %eax, %dx; hlt");
static void test_permission_bitmap(struct world *w)
{
    struct x86_state s;
    put(w, TSS + TSS_IO_MAP + 0x100 / 8, 0x08, 1); /* port 103h is not allowed */
    static const struct {
        uint16_t port;
        int byte, word, dword;
    } rows[] = {{0x0ff, -1, -1, -1}, {0x100, -1, -1, EXC_GP}, {0x102, -1, EXC_GP, EXC_GP}, {0x103, EXC_GP, EXC_GP, EXC_GP}, {0x104, -1, -1, -1}};
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (unsigned size = 0; size < 3; size++) {
            long_mode(w, &s);
            to_user(&s);
            s.gpr[RDX] = rows[i].port;
            unsigned before = w->port_reads + w->port_writes;
            int got = size == 0 ? OUTCOME(w, &s, io_byte) : size == 1 ? OUTCOME(w, &s, io_word) : OUTCOME(w, &s, io_dword);
            int expected = size == 0 ? rows[i].byte : size == 1 ? rows[i].word : rows[i].dword;
            CHECK_EQ(got, expected);
            CHECK_EQ(w->port_reads + w->port_writes - before, expected < 0);
        }
    }
    put(w, TSS + TSS_IO_MAP + 0x100 / 8, 0, 1);
    long_mode(w, &s); /* no bitmap within the limit */
    to_user(&s);
    s.tr.limit = 103;
    CHECK_EQ(OUTCOME(w, &s, io_byte), EXC_GP);
    long_mode(w, &s); /* ring 0 is not asked */
    s.tr.limit = 0;
    CHECK_EQ(OUTCOME(w, &s, io_byte), -1);
}

/* ---- LAR LSL VERR VERW ARPL ---- */

GUEST(probes, 32, "mov $0, %ebx; lar %eax, %ebx; setz %cl; mov $0, %edx; lsl %eax, %edx; setz %ch; verr %ax; setz 0x40000;"
                  "verw %ax; setz 0x40001; 1: jmp 1b");
static void test_probes(struct world *w)
{
    static const struct {
        uint64_t descriptor;
        uint16_t selector;
        bool user, lar, lsl, verr, verw;
    } rows[] = {
        {0, 0, false, false, false, false, false},
        {0, 0x7f8 + 8, false, false, false, false, false},
        {1, FREE_SEL, false, true, true, true, true},     /* data, writable */
        {2, FREE_SEL, false, true, true, true, false},    /* data, read-only */
        {3, FREE_SEL, false, true, true, false, false},   /* execute-only */
        {4, FREE_SEL, false, true, true, true, false},    /* readable code */
        {1, FREE_SEL, true, false, false, false, false},  /* DPL 0 from ring 3 */
        {5, FREE_SEL, true, true, true, true, false},     /* conforming */
        {6, FREE_SEL, false, true, true, false, false},   /* a TSS */
        {7, FREE_SEL, false, true, false, false, false},  /* a call gate has no limit */
        {8, FREE_SEL, false, false, false, false, false}, /* an interrupt gate */
    };
    const uint64_t descriptors[] = {0, descriptor(0, 0x1234, 0x4093), descriptor(0, 0x1234, 0x4091), descriptor(0, 0x1234, 0x4099),
                                    descriptor(0, 0x1234, 0x409b), descriptor(0, 0x1234, 0x409f), descriptor(0, 0x67, 0x0089),
                                    gate(CODE32, 0, 0x8c), gate(CODE32, 0, 0x8e)};
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct x86_state s;
        protected_mode(w, &s);
        if (rows[i].user)
            to_user(&s);
        uint64_t entry = descriptors[rows[i].descriptor];
        put64(w, GDT + FREE_SEL, entry);
        s.gpr[RAX] = rows[i].selector;
        guest_mem_write(&w->mem, CODE, probes_begin, (uint64_t)(probes_end - probes_begin));
        cpu_set_state(w->cpu, &s);
        cpu_run_count(w->cpu, 20);
        cpu_get_state(w->cpu, &s);
        bool right = (s.gpr[RCX] & 1) == rows[i].lar && (s.gpr[RCX] >> 8 & 1) == rows[i].lsl && get(w, DATA, 1) == rows[i].verr &&
                     get(w, DATA + 1, 1) == rows[i].verw && s.gpr[RBX] == (rows[i].lar ? entry >> 32 & 0xffff00 : 0);
        if (rows[i].lsl)
            right = right && s.gpr[RDX] == (rows[i].descriptor == 6 ? 0x67 : 0x1234);
        if (!right)
            printf("row %u: lar %d lsl %d\n", i, (int)(s.gpr[RCX] & 1), (int)(s.gpr[RCX] >> 8 & 1));
        CHECK(right);
    }
}

GUEST(adjust, 32, "mov $0x10, %eax; mov $0x33, %ebx; arpl %bx, %ax; setz %cl; arpl %bx, %ax; setz %ch; hlt");
static void test_arpl(struct world *w)
{
    struct x86_state s;
    protected_mode(w, &s);
    CHECK_EQ(OUTCOME(w, &s, adjust), -1);
    CHECK_EQ(s.gpr[RAX], 0x13);
    CHECK_EQ(s.gpr[RCX] & 0xffff, 1);
    real_mode(w, &s);
    CHECK_EQ(OUTCOME(w, &s, adjust), EXC_UD);
}

/* ---- LLDT and LTR ---- */

GUEST(load_ldt, 32, "lldt %ax; hlt");
GUEST(load_tr, 32, "ltr %ax; hlt");
static void test_table_registers(struct world *w)
{
    const struct {
        uint16_t selector;
        uint64_t entry;
        int ldt, tr;
    } rows[] = {
        {FREE_SEL, descriptor(LDT, 15, 0x0082), -1, EXC_GP},      {FREE_SEL, descriptor(LDT, 15, 0x0002), EXC_NP, EXC_GP},
        {FREE_SEL, descriptor(TSS, 0x67, 0x0089), EXC_GP, -1},    {FREE_SEL, descriptor(TSS, 0x67, 0x0009), EXC_GP, EXC_NP},
        {FREE_SEL, descriptor(TSS, 0x67, 0x008b), EXC_GP, EXC_GP}, /* busy */
        {FREE_SEL, descriptor(TSS, 0x2b, 0x0081), EXC_GP, -1},    {FREE_SEL | 4, descriptor(LDT, 15, 0x0082), EXC_GP, EXC_GP},
        {0, 0, -1, EXC_GP},                                       {0x800, 0, EXC_GP, EXC_GP},
    };
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (unsigned tr = 0; tr < 2; tr++) {
            struct x86_state s;
            protected_mode(w, &s);
            put64(w, GDT + FREE_SEL, rows[i].entry);
            s.gpr[RAX] = rows[i].selector;
            CHECK_EQ(tr ? OUTCOME(w, &s, load_tr) : OUTCOME(w, &s, load_ldt), tr ? rows[i].tr : rows[i].ldt);
            if (stopped_in(&s) >= 0)
                CHECK_EQ(get32(w, s.gpr[RSP]), rows[i].selector & 0xfffc);
            else if (tr)
                CHECK_EQ(get(w, GDT + FREE_SEL + 5, 1) & 2, 2);
        }
    }
}

/* ---- model-specific registers that refuse ---- */

GUEST(write_msr, 64, "wrmsr; hlt");
static void test_msrs(struct world *w)
{
    static const struct {
        uint32_t index;
        uint64_t value;
        int vector;
    } rows[] = {
        {0x277, UINT64_C(0x0007040600070406), -1},     /* PAT */
        {0x277, UINT64_C(0x0007040600070402), EXC_GP}, /* no such memory type */
        {0x277, UINT64_C(0x0307040600070406), EXC_GP},
        {0x2ff, 0xc06, -1},                            /* MTRR default type */
        {0x2ff, 0xc07, EXC_GP},
        {0x200, 0x80000006, -1},                       /* a variable range */
        {0x200, 0x80000003, EXC_GP},
        {0x201, BIT(46), EXC_GP},
        {0x250, UINT64_C(0x0606060606060606), -1},     /* a fixed one */
        {0x250, UINT64_C(0x0606060206060606), EXC_GP},
        {0xc0000080, EFER_LME | EFER_NXE | EFER_SCE, -1},
        {0xc0000080, EFER_NXE, EXC_GP}, /* LME while paging */
        {0xc0000080, EFER_LME | EFER_SVME, EXC_GP},
        {0xc0000082, BIT(47), EXC_GP}, /* LSTAR, not canonical */
        {0xc0000102, BIT(63), EXC_GP},
        {0x175, BIT(50), EXC_GP},
        {0x12345678, 0, EXC_GP},
    };
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct x86_state s;
        long_mode(w, &s);
        s.gpr[RCX] = rows[i].index;
        s.gpr[RAX] = (uint32_t)rows[i].value;
        s.gpr[RDX] = rows[i].value >> 32;
        int got = OUTCOME(w, &s, write_msr);
        if (got != rows[i].vector)
            printf("wrmsr %#x, %#llx: %d\n", rows[i].index, (unsigned long long)rows[i].value, got);
        CHECK(got == rows[i].vector);
    }
}

/* ---- A20 ---- */

GUEST(wrap, 16, "mov $0xffff, %ax; mov %ax, %ds; mov 0x510, %bl; hlt");
static void test_a20(struct world *w)
{
    struct x86_state s;
    real_mode(w, &s);
    put(w, 0x500, 0x11, 1);
    put(w, 0x100500, 0x22, 1);
    CHECK_EQ(OUTCOME(w, &s, wrap), -1);
    CHECK_EQ(s.gpr[RBX] & 0xff, 0x22);
    cpu_set_a20(w->cpu, false);
    real_mode(w, &s);
    CHECK_EQ(OUTCOME(w, &s, wrap), -1);
    CHECK_EQ(s.gpr[RBX] & 0xff, 0x11);
    cpu_set_a20(w->cpu, true);
    real_mode(w, &s);
    CHECK_EQ(OUTCOME(w, &s, wrap), -1);
    CHECK_EQ(s.gpr[RBX] & 0xff, 0x22);
}

int main(void)
{
    struct world w;
    world_main_begin();
    world_init(&w);
    test_privilege(&w);
    test_permission_bitmap(&w);
    test_probes(&w);
    test_arpl(&w);
    test_table_registers(&w);
    test_msrs(&w);
    test_a20(&w);
    world_destroy(&w);
    return check_report();
}
