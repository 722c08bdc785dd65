/* SPDX-License-Identifier: MIT */
/* Paging: who may do what with which page, and what the fault says, over the whole matrix of entry bits, page sizes,
 * paging modes and control bits (SDM vol. 3, 4.6 and 4.7); accessed and dirty bits; PCID; translations that must go. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

#define TARGET 0x40250000u /* linear; physical 250000h in every page size */
#define PHYSICAL 0x250000u
#define ROOT 0x100000u

enum layout { PAGE_32_4K, PAGE_32_4M, PAGE_PAE_4K, PAGE_PAE_2M, PAGE_64_4K, PAGE_64_2M, PAGE_64_1G, LAYOUTS };

struct plan {
    enum layout layout;
    bool user, p, w, u, nx, reserved; /* the page */
    bool wp, smep, smap, ac, nxe;     /* the processor */
    bool pke, ad, wd;                 /* protection keys, and what PKRU says of this one */
    uint8_t key;                      /* of the page */
    char access;                      /* r, w, x */
};

static bool is_wide(enum layout layout)
{
    return layout >= PAGE_PAE_4K;
}

/* Tables for the first 4 MiB one to one, for the supervisor but for the code's page, and the target's entry. Returns where
 * the target's entry is. */
static uint32_t build_tables(struct world *w, enum layout layout)
{
    uint32_t next = ROOT;
    if (!is_wide(layout)) {
        uint32_t low = ROOT + 0x1000, high = ROOT + 0x2000;
        put32(w, ROOT, low | 7);
        for (uint32_t i = 0; i < 1024; i++)
            put32(w, low + 4 * i, i << 12 | 3);
        put32(w, ROOT + 4 * (TARGET >> 22), layout == PAGE_32_4K ? high | 7 : 0);
        return layout == PAGE_32_4M ? ROOT + 4 * (TARGET >> 22) : high + 4 * (TARGET >> 12 & 1023);
    }
    uint32_t pdpt = ROOT;
    uint64_t pdpte = 1;
    if (layout >= PAGE_64_4K) {
        pdpt = next += 0x1000;
        put64(w, ROOT, pdpt | 7);
        pdpte = 7;
    }
    uint32_t directory = next + 0x1000, low = next + 0x2000, target_directory = next + 0x4000, high = next + 0x5000;
    for (uint32_t i = 0; i < 4; i++)
        put64(w, pdpt + 8 * i, 0);
    put64(w, pdpt, directory | pdpte);
    put64(w, directory, low | 7);
    put64(w, directory + 8, (low + 0x1000) | 7);
    for (uint64_t i = 0; i < 1024; i++)
        put64(w, low + 8 * i, i << 12 | 3);
    if (layout == PAGE_64_1G)
        return pdpt + 8;
    put64(w, pdpt + 8, target_directory | pdpte);
    uint32_t in_directory = target_directory + 8 * (TARGET >> 21 & 511);
    if (layout == PAGE_PAE_2M || layout == PAGE_64_2M)
        return in_directory;
    put64(w, in_directory, high | 7);
    return high + 8 * (TARGET >> 12 & 511);
}

static uint64_t page_entry(const struct plan *plan)
{
    static const uint64_t page[] = {PHYSICAL, 0 | PTE_PS, PHYSICAL, 0x200000 | PTE_PS, PHYSICAL, 0x200000 | PTE_PS, PTE_PS};
    static const uint64_t reserved[] = {0, BIT(21), BIT(52), BIT(13), BIT(51), BIT(20), BIT(13)};
    return page[plan->layout] | (plan->p ? PTE_P : 0) | (plan->w ? PTE_W : 0) | (plan->u ? PTE_U : 0) | (plan->nx ? PTE_NX : 0) |
           (plan->reserved ? reserved[plan->layout] : 0) | (uint64_t)plan->key << PTE_KEY_SHIFT;
}

/* -1: allowed, else the error code. */
static int expected(const struct plan *plan)
{
    bool write = plan->access == 'w', fetch = plan->access == 'x';
    int code = (write ? PF_W : 0) | (plan->user ? PF_U : 0);
    if (fetch && ((is_wide(plan->layout) && plan->nxe) || plan->smep))
        code |= PF_I;
    if (!plan->p)
        return code;
    if (plan->reserved || (plan->nx && !plan->nxe))
        return code | PF_P | PF_RSVD;
    bool ok;
    if (plan->user)
        ok = plan->u && (!write || plan->w);
    else if (fetch)
        ok = !(plan->u && plan->smep);
    else
        ok = !(plan->u && plan->smap && !plan->ac) && (!write || plan->w || !plan->wp);
    if (fetch && plan->nx)
        ok = false;
    /* of the user's pages, data only, whoever accesses them (4.6.2); reported beside other reasons (4.7) */
    if (plan->pke && plan->u && !fetch && (plan->ad || (plan->wd && write && (plan->user || plan->wp))))
        return code | PF_P | PF_PK;
    return ok ? -1 : code | PF_P;
}

GUEST(reads, 32, "mov (%edi), %eax; hlt");
GUEST(writes, 32, "mov %eax, (%edi); hlt");
GUEST(jumps, 32, "jmp *%edi");
GUEST(reads64, 64, "mov (%rdi), %eax; hlt");
GUEST(writes64, 64, "mov %eax, (%rdi); hlt");
GUEST(jumps64, 64, "jmp *%rdi");

static void prepare(struct world *w, struct x86_state *s, const struct plan *plan)
{
    static struct x86_state base;
    static enum layout base_layout = LAYOUTS;
    bool wide = plan->layout >= PAGE_64_4K;
    if (plan->layout != base_layout) {
        if (wide)
            long_mode(w, &base);
        else
            protected_mode(w, &base);
        base_layout = plan->layout;
    }
    *s = base;
    if (plan->user)
        to_user(s);
    s->cr3 = ROOT;
    s->cr0 = (s->cr0 & ~(uint64_t)CR0_WP) | CR0_PG | (plan->wp ? CR0_WP : 0);
    s->cr4 |= CR4_PSE | (is_wide(plan->layout) ? CR4_PAE : 0) | (plan->smep ? CR4_SMEP : 0) | (plan->smap ? CR4_SMAP : 0);
    s->cr4 |= plan->pke ? CR4_PKE : 0;
    s->pkru = (plan->ad || plan->wd ? 0u : 3u) << (plan->key ? 0 : 2); /* another key's do not matter */
    s->pkru |= (uint32_t)(plan->ad | plan->wd << 1) << 2 * plan->key;
    s->efer = (wide ? EFER_LME | EFER_LMA : 0) | (plan->nxe ? EFER_NXE : 0);
    s->rflags |= plan->ac ? EFLAGS_AC : 0;
    s->gpr[RDI] = TARGET;
}

static bool try_plan(struct world *w, const struct plan *plan, uint32_t slot, uint32_t code_slot)
{
    static struct x86_state s;
    bool wide = is_wide(plan->layout), mode64 = plan->layout >= PAGE_64_4K;
    uint64_t entry = page_entry(plan), now;
    guest_mem_write(&w->mem, slot, &entry, wide ? 8 : 4);
    uint8_t rights = plan->user ? 7 : 3;
    guest_mem_write(&w->mem, code_slot, &rights, 1);
    prepare(w, &s, plan);
    cpu_set_state(w->cpu, &s);
    CHECK_EQ(cpu_run(w->cpu), CPU_EXIT_HALT);
    cpu_get_state(w->cpu, &s);
    int vector = stopped_in(&s), want = expected(plan), got;
    unsigned size = mode64 ? 8 : 4;
    bool passed = plan->user ? vector == EXC_GP : vector < 0; /* HLT faults in ring 3 */
    got = passed ? -1 : vector == EXC_PF ? (int)get32(w, s.gpr[RSP]) : 1000 + vector;
    guest_mem_read(&w->mem, slot, &now, 8);
    if (!wide)
        now = (uint32_t)now;
    uint64_t marked = want >= 0 ? entry : entry | PTE_A | (plan->access == 'w' ? PTE_D : 0);
    bool right = got == want && now == marked && (want < 0 || s.cr2 == TARGET) &&
                 (want < 0 || get(w, s.gpr[RSP] + size, size) == (plan->access == 'x' ? TARGET : CODE));
    if (!right)
        printf("layout %d %s %c, entry %#llx, wp %d smep %d smap %d ac %d nxe %d: %d, expected %d; entry now %#llx cr2 %#llx\n", plan->layout,
               plan->user ? "user" : "supervisor", plan->access, (unsigned long long)entry, plan->wp, plan->smep, plan->smap,
               plan->ac, plan->nxe, got, want, (unsigned long long)now, (unsigned long long)s.cr2);
    CHECK(right);
    return right;
}

static void put_code(struct world *w, bool mode64, char access)
{
    const uint8_t *begin = access == 'r' ? (mode64 ? reads64_begin : reads_begin)
                           : access == 'w' ? (mode64 ? writes64_begin : writes_begin) : (mode64 ? jumps64_begin : jumps_begin);
    guest_mem_write(&w->mem, CODE, begin, 4);
}

static void test_matrix(struct world *w)
{
    unsigned bad = 0;
    for (enum layout layout = 0; layout < LAYOUTS; layout++) {
        uint32_t slot = build_tables(w, layout);
        bool wide = is_wide(layout);
        uint32_t low = layout < PAGE_PAE_4K ? ROOT + 0x1000 : layout < PAGE_64_4K ? ROOT + 0x2000 : ROOT + 0x3000;
        uint32_t code_slot = low + (wide ? 8 : 4) * (CODE >> 12);
        for (const char *access = "rwx"; *access; access++) {
            put_code(w, layout >= PAGE_64_4K, *access);
            for (unsigned bits = 0; bits < 1u << 11 && bad < 20; bits++) {
                struct plan plan = {.layout = layout, .access = *access, .user = bits & 1, .p = bits & 2, .w = bits & 4, .u = bits & 8,
                                    .nx = bits & 16, .reserved = bits & 32, .wp = bits & 64, .smep = bits & 128,
                                    .smap = bits & 256, .ac = bits & 512, .nxe = bits & 1024};
                if (!wide && (plan.nx || plan.nxe))
                    continue;
                if (layout == PAGE_32_4K && plan.reserved)
                    continue; /* it has no reserved bits */
                put(w, PHYSICAL, 0xf4, 1);
                bad += !try_plan(w, &plan, slot, code_slot);
            }
        }
    }
}

/* Protection keys, in long mode by every page size. */
static void test_keys(struct world *w)
{
    unsigned bad = 0;
    for (enum layout layout = PAGE_64_4K; layout <= PAGE_64_1G; layout++) {
        uint32_t slot = build_tables(w, layout);
        for (const char *access = "rwx"; *access; access++) {
            put_code(w, true, *access);
            for (unsigned bits = 0; bits < 1u << 11 && bad < 20; bits++) {
                static const uint8_t keys[] = {0, 1, 9, 15};
                struct plan plan = {.layout = layout, .access = *access, .p = true, .user = bits & 1, .w = bits & 2, .u = bits & 4,
                                    .reserved = bits & 8, .wp = bits & 16, .smap = bits & 32, .pke = bits & 64, .ad = bits & 128,
                                    .wd = bits & 256, .key = keys[bits >> 9 & 3], .nxe = true};
                put(w, PHYSICAL, 0xf4, 1);
                bad += !try_plan(w, &plan, slot, ROOT + 0x3000 + 8 * (CODE >> 12));
            }
        }
    }
}

/* An intermediate entry takes rights away, for all below it. */
static void test_upper_levels(struct world *w)
{
    uint32_t slot = build_tables(w, PAGE_64_4K), code_slot = ROOT + 0x3000 + 8 * (CODE >> 12), directory = ROOT + 0x5000 + 8 * (TARGET >> 21 & 511);
    struct plan plan = {.layout = PAGE_64_4K, .user = true, .p = true, .w = true, .u = true, .nxe = true, .access = 'w'};
    struct x86_state s;
    static const struct {
        uint64_t rights;
        char access;
        int code; /* -1: allowed */
    } cases[] = {{PTE_P | PTE_W | PTE_U, 'w', -1},         {PTE_P | PTE_U, 'w', PF_P | PF_W | PF_U}, {PTE_P | PTE_W, 'r', PF_P | PF_U},
                 {PTE_P | PTE_W | PTE_U | PTE_NX, 'x', PF_P | PF_U | PF_I}, {PTE_W | PTE_U, 'r', PF_U},
                 {PTE_P | PTE_W | PTE_U | BIT(50), 'r', PF_P | PF_RSVD | PF_U}};
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put64(w, slot, page_entry(&plan));
        put(w, code_slot, 7, 1);
        put64(w, directory, (ROOT + 0x6000) | cases[i].rights);
        put_code(w, true, cases[i].access);
        prepare(w, &s, &plan);
        cpu_set_state(w->cpu, &s);
        CHECK_EQ(cpu_run(w->cpu), CPU_EXIT_HALT);
        cpu_get_state(w->cpu, &s);
        CHECK_VECTOR(&s, cases[i].code < 0 ? EXC_GP : EXC_PF);
        if (cases[i].code >= 0)
            CHECK_EQ(get32(w, s.gpr[RSP]), cases[i].code);
        else
            CHECK_EQ(get64(w, directory) & PTE_A, PTE_A);
    }
}

/* Accesses that only an instruction implies: to the descriptor tables, the TSS. They are the supervisor's whoever runs, and
 * EFLAGS.AC does not excuse them from SMAP (4.6.1). */
GUEST(loads_ds, 64, "mov $0x33, %ecx; mov %ecx, %ds; hlt");
GUEST(loads_fs0, 64, "mov $0x10, %ecx; mov %ecx, %ds; hlt");
static void test_implicit(struct world *w)
{
    struct x86_state s;
    long_mode(w, &s);
    put64(w, TABLES + 0x6000 + 8 * (GDT >> 12), GDT | 3); /* the supervisor's page; ring 3 loads a selector all the same */
    to_user(&s);
    CHECK_EQ(RUN(w, &s, loads_ds), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(get64(w, s.gpr[RSP] + 8), CODE + 7);
    long_mode(w, &s);
    s.cr4 |= CR4_SMAP;
    s.rflags |= EFLAGS_AC; /* the explicit accesses of ring 0 pass */
    put64(w, TABLES + 0x6000 + 8 * (GDT >> 12), GDT | 7);
    put64(w, TABLES + 0x6000 + 8 * (IDT >> 12), IDT | 3);
    put64(w, TABLES + 0x6000 + 8 * 0x32, 0x32000 | 3);
    put64(w, TABLES + 0x6000 + 8 * (STACK >> 12), STACK | 3);
    put64(w, TABLES + 0x6000 + 8 * 7, 0x7000 | 3);
    /* the handler's segment would be read from the same page: a double fault's too, so it ends in a shutdown */
    CHECK_EQ(RUN(w, &s, loads_fs0), CPU_EXIT_SHUTDOWN);
    CHECK_EQ(s.cr2, GDT + CODE64);
}

/* A stack on the user's page under SMAP: ring 0 may push there with AC, but ring 3's AC does not let it be entered there. */
GUEST(interrupts, 64, "int $0x40; hlt");
static void test_smap_stack(struct world *w)
{
    for (unsigned variant = 0; variant < 4; variant++) {
        bool user = variant & 1, ac = variant & 2;
        struct x86_state s;
        long_mode(w, &s);
        for (unsigned page = 0; page < 512; page++)
            put64(w, TABLES + 0x6000 + 8 * page, (uint64_t)page << 12 | 3);
        put64(w, TABLES + 0x6000 + 8 * 7, 0x7000 | 7); /* the stack */
        put64(w, TABLES + 0x6000 + 8 * (CODE >> 12), CODE | (user ? 7 : 3));
        put64(w, IDT + 16 * 0x40, gate(CODE64, HANDLERS + 16 * 0x40, 0xee));
        put64(w, IDT + 16 * EXC_PF, gate(CODE64, HANDLERS + 16 * EXC_PF, 0x8e) | (uint64_t)1 << 32); /* IST1 is elsewhere */
        put64(w, TSS + 36, 0xa000);
        s.cr4 |= CR4_SMAP;
        s.rflags |= ac ? EFLAGS_AC : 0;
        if (user)
            to_user(&s);
        CHECK_EQ(RUN(w, &s, interrupts), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, !user && ac ? 0x40 : EXC_PF);
        if (stopped_in(&s) == EXC_PF)
            CHECK_EQ(get64(w, s.gpr[RSP]), PF_P | PF_W);
    }
}

GUEST(stale, 64, "mov (%rdi), %eax; movq $0x252007, (%rsi); mov (%rdi), %ebx; invlpg (%rdi); mov (%rdi), %ecx; hlt");
GUEST(pcids, 64, "mov %cr3, %rax; mov (%rdi), %ebx; movq $0x252007, (%rsi); bts $63, %rax; mov %rax, %cr3; mov (%rdi), %ecx; mov %cr3, %rdx; hlt");
GUEST(invpcids, 64, "mov (%rdi), %ebx; movq $0x252007, (%rsi); invpcid (%rbp), %rdx; mov (%rdi), %ecx; hlt");
GUEST(set_cr4, 64, "mov %rax, %cr4; hlt");
GUEST(set_cr3, 64, "mov %rax, %cr3; hlt");
GUEST(set_cr0, 64, "mov %rax, %cr0; hlt");
static void test_invalidation(struct world *w)
{
    struct x86_state s;
    uint32_t slot = TABLES + 0x6000 + 8 * 0x41;
    put32(w, 0x251000, 0x1111);
    put32(w, 0x252000, 0x2222);
    for (unsigned i = 0; i < 3; i++) {
        long_mode(w, &s);
        put64(w, slot, 0x251007);
        s.gpr[RDI] = 0x41000;
        s.gpr[RSI] = slot;
        CHECK_EQ(RUN(w, &s, stale), CPU_EXIT_HALT);
        CHECK_EQ(s.gpr[RAX], 0x1111);
        CHECK_EQ(s.gpr[RCX], 0x2222);
    }
    long_mode(w, &s); /* bit 63 of CR3 is a request, not a bit that is kept */
    put64(w, slot, 0x251007);
    s.gpr[RDI] = 0x41000;
    s.gpr[RSI] = slot;
    s.cr4 |= CR4_PCIDE;
    s.cr3 |= 5;
    CHECK_EQ(RUN(w, &s, pcids), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RDX], TABLES | 5);
    CHECK_EQ(s.gpr[RBX], 0x1111);
    long_mode(w, &s);
    s.gpr[RAX] = TABLES | BIT(63);
    CHECK_EQ(RUN(w, &s, set_cr3), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    long_mode(w, &s);
    s.gpr[RAX] = TABLES | BIT(46);
    CHECK_EQ(RUN(w, &s, set_cr3), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);

    for (uint64_t type = 0; type < 6; type++) {
        long_mode(w, &s);
        put64(w, slot, 0x251007);
        s.gpr[RDI] = 0x41000;
        s.gpr[RSI] = slot;
        s.gpr[RBP] = DATA;
        s.gpr[RDX] = type;
        s.cr4 |= CR4_PCIDE;
        s.cr3 |= 9;
        put64(w, DATA, 9);
        put64(w, DATA + 8, 0x41abc);
        CHECK_EQ(RUN(w, &s, invpcids), CPU_EXIT_HALT);
        if (type > 3) {
            CHECK_VECTOR(&s, EXC_GP);
            continue;
        }
        CHECK_EQ(s.gpr[RBX], 0x1111);
        CHECK_EQ(s.gpr[RCX], 0x2222);
    }
    static const struct {
        uint64_t type, pcid, address;
        bool pcide, user;
    } refused[] = {{0, 0x1000, 0, true, false}, {0, 1, BIT(48), true, false}, {0, 1, 0, false, false}, {1, 1, 0, false, false}, {2, 0, 0, true, true}};
    for (unsigned i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        long_mode(w, &s);
        if (refused[i].user)
            to_user(&s);
        put64(w, slot, 0x251007);
        s.gpr[RDI] = 0x41000;
        s.gpr[RSI] = slot;
        s.gpr[RBP] = DATA;
        s.gpr[RDX] = refused[i].type;
        s.cr4 |= refused[i].pcide ? CR4_PCIDE : 0;
        put64(w, DATA, refused[i].pcid);
        put64(w, DATA + 8, refused[i].address);
        CHECK_EQ(RUN(w, &s, invpcids), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, EXC_GP);
    }
}

/* The bits that control registers refuse. */
static void try_register(struct world *w, unsigned number, uint64_t value, uint64_t cr3, uint64_t cr4, int vector)
{
    struct x86_state s;
    long_mode(w, &s);
    s.cr3 |= cr3;
    s.cr4 |= cr4;
    s.gpr[RAX] = value;
    const uint8_t *begin = number == 0 ? set_cr0_begin : set_cr4_begin;
    CHECK_EQ(run(w, &s, begin, begin + 4), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, vector);
}

static void test_control_registers(struct world *w)
{
    const uint64_t cr4 = CR4_PAE, cr0 = CR0_PE | CR0_PG | CR0_ET;
    try_register(w, 4, cr4 | CR4_PCIDE, 0, 0, -1);
    try_register(w, 4, cr4 | CR4_PCIDE, 3, 0, EXC_GP);  /* CR3[11:0] must be 0 */
    try_register(w, 4, cr4 | CR4_PCIDE, 3, CR4_PCIDE, -1); /* it is on already */
    try_register(w, 4, CR4_PSE, 0, 0, EXC_GP);          /* no long mode without PAE */
    try_register(w, 4, cr4 | BIT(15), 0, 0, EXC_GP);
    try_register(w, 4, cr4 | BIT(32), 0, 0, EXC_GP);
    try_register(w, 4, cr4 | CR4_VMXE, 0, 0, EXC_GP); /* not announced */
    try_register(w, 4, cr4 | CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PGE | CR4_MCE | CR4_UMIP, 0, 0, -1);
    try_register(w, 0, cr0, 0, 0, -1);
    try_register(w, 0, cr0 | CR0_NW, 0, 0, EXC_GP);
    try_register(w, 0, cr0 | BIT(32), 0, 0, EXC_GP);
    try_register(w, 0, CR0_PG, 0, 0, EXC_GP);
    try_register(w, 0, CR0_PE, 0, 0, EXC_GP); /* not out of 64-bit mode */
    try_register(w, 0, cr0 | BIT(6), 0, 0, -1); /* reserved bits of the low half are ignored */
}

int main(void)
{
    struct world w;
    world_main_begin();
    world_init(&w);
    test_matrix(&w);
    test_keys(&w);
    test_upper_levels(&w);
    test_implicit(&w);
    test_smap_stack(&w);
    test_invalidation(&w);
    test_control_registers(&w);
    world_destroy(&w);
    return check_report();
}
