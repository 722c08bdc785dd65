/* SPDX-License-Identifier: MIT */
/* Cases run in the software processor: ring 3 of 64-bit mode under a kernel of page tables and HLTs. Every exception
 * ends in the handler's HLT, with the interrupted state on the kernel's stack. */
#include <stdlib.h>
#include <string.h>

#include "cpu/exec/exec.h"
#include "cpu/jit/jit.h"
#include "differential.h"
#include "../../native/quiet_world.h"

#define RAM_BYTES (4u << 20)
#define GPA_TABLES 0x10000u /* PML4, PDPT, PD, PT of the user's pages; PDPT, PD of the kernel's */
#define GPA_GDT 0x20000u
#define GPA_IDT 0x21000u
#define GPA_TSS 0x22000u
#define GPA_LDT 0x24000u
#define GPA_HANDLERS 0x23000u
#define GPA_STACK 0x30000u /* grows down from here */
#define GPA_CODE 0x100000u
#define GPA_DATA 0x200000u
#define KERNEL UINT64_C(0xffff800000000000) /* where physical memory is mapped, for the supervisor */

struct guest {
    struct guest_mem mem;
    struct cpu *cpu;
    struct x86_state base, s;
    uint64_t *data, pristine[DATA_BYTES / 8];
    uint64_t now;
    bool translate;
};

static void put64(struct guest *g, uint64_t gpa, uint64_t value)
{
    guest_mem_write(&g->mem, gpa, &value, 8);
}

static void map_user(struct guest *g, uint64_t linear, uint64_t gpa, uint64_t bits)
{
    /* 10000000h and 20000000h share a PDPT entry; each has a page table of its own */
    uint64_t table = GPA_TABLES + 0x3000 + (linear >= DATA_BASE ? 0x1000 : 0);
    put64(g, GPA_TABLES + 0x2000 + 8 * (linear >> 21 & 511), table | PTE_P | PTE_W | PTE_U);
    put64(g, table + 8 * (linear >> 12 & 511), gpa | bits | PTE_P | PTE_U);
}

static void build_tables(struct guest *g)
{
    put64(g, GPA_TABLES, (GPA_TABLES + 0x1000) | PTE_P | PTE_W | PTE_U);
    put64(g, GPA_TABLES + 0x1000, (GPA_TABLES + 0x2000) | PTE_P | PTE_W | PTE_U);
    for (unsigned i = 0; i < CODE_BYTES / PAGE; i++)
        map_user(g, CODE_BASE + i * PAGE, GPA_CODE + i * PAGE, 0);
    for (unsigned i = 0; i < DATA_PAGES; i++)
        map_user(g, DATA_BASE + i * PAGE, GPA_DATA + i * PAGE, PTE_NX | (i == READ_ONLY_PAGE ? 0 : PTE_W));
    put64(g, GPA_TABLES + 8 * 256, (GPA_TABLES + 0x5000) | PTE_P | PTE_W);
    put64(g, GPA_TABLES + 0x5000, (GPA_TABLES + 0x6000) | PTE_P | PTE_W);
    for (uint64_t i = 0; i < RAM_BYTES >> 21; i++)
        put64(g, GPA_TABLES + 0x6000 + 8 * i, i << 21 | PTE_PS | PTE_P | PTE_W);
}

/* The one descriptor of Linux's that users may load and that is not the same everywhere: its limit tells processor and
 * node. */
static uint64_t linux_descriptor_15(void)
{
    uint32_t rights = 0, limit = 0;
    bool valid;
    __asm__("lar %2, %0\n setz %1" : "=r"(rights), "=qm"(valid) : "r"(0x7b) : "cc");
    __asm__("lsl %1, %0" : "+r"(limit) : "r"(0x7b) : "cc");
    return valid ? (limit & 0xffff) | (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)(rights >> 8 & 0xf0ff) << 40 : 0;
}

/* Linux's table, so that selectors mean the same (arch/x86/include/asm/segment.h); INT 3, 4 and 80h for users. */
static void build_descriptors(struct guest *g)
{
    static const uint64_t gdt[] = {0, UINT64_C(0x00cf9b000000ffff), UINT64_C(0x00af9b000000ffff), UINT64_C(0x00cf93000000ffff),
                                   UINT64_C(0x00cffb000000ffff), UINT64_C(0x00cff3000000ffff), UINT64_C(0x00affb000000ffff)};
    guest_mem_write(&g->mem, GPA_GDT, gdt, sizeof gdt);
    put64(g, GPA_GDT + 8 * 15, linux_descriptor_15());
    for (uint64_t v = 0; v < 256; v++) {
        uint64_t at = KERNEL + GPA_HANDLERS + 16 * v, type = v == 3 || v == 4 || v == 0x80 ? 0xee00 : 0x8e00;
        put64(g, GPA_IDT + 16 * v, (at & 0xffff) | 0x10 << 16 | type << 32 | (at >> 16 & 0xffff) << 48);
        put64(g, GPA_IDT + 16 * v + 8, at >> 32);
        put64(g, GPA_HANDLERS + 16 * v, 0xf4);
    }
    for (unsigned i = 1; i < LDT_SEGMENTS; i++)
        put64(g, GPA_LDT + 8 * i, ldt_descriptor(i));
    put64(g, GPA_TSS, (KERNEL + GPA_STACK) << 32);
    put64(g, GPA_TSS + 8, (KERNEL + GPA_STACK) >> 32);
    put64(g, GPA_TSS + 0x60, UINT64_C(0x68) << 48); /* no I/O bitmap */
}

static void build_state(struct guest *g)
{
    struct x86_state *s = &g->base;
    x86_state_reset(s, true);
    s->cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_NE | CR0_MP | CR0_WP | CR0_AM;
    s->cr3 = GPA_TABLES;
    s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE | CR4_UMIP;
    s->xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX;
    s->efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
    for (unsigned i = 0; i < 6; i++)
        s->segment[i] = (struct x86_segment){0, SEG_UNUSABLE, 0, 0};
    s->segment[CS] = (struct x86_segment){USER_CS, 0xa0fb, 0xffffffff, 0};
    s->segment[SS] = (struct x86_segment){USER_SS, 0xc0f3, 0xffffffff, 0};
    s->segment[FS].base = FS_BASE;
    s->segment[GS].base = GS_BASE;
    s->gdtr = (struct x86_table){KERNEL + GPA_GDT, 0x7f};
    s->idtr = (struct x86_table){KERNEL + GPA_IDT, 0xfff};
    s->tr = (struct x86_segment){0x40, 0x8b, 0x67, KERNEL + GPA_TSS};
    s->ldtr = (struct x86_segment){0x50, 0x82, 8 * LDT_SEGMENTS - 1, KERNEL + GPA_LDT};
}

struct guest *guest_start(bool translate)
{
    static uint8_t filling[CODE_BYTES];
    imgvm_error err;
    struct guest *g = aligned_alloc(64, align_up(sizeof *g, 64));
    struct cpu_options options = {.id = 0, .count = 1, .vendor = cpu_host_vendor(),
                                  .translator = translate ? &jit_translator : NULL};
    if (!g)
        return NULL;
    memset(g, 0, sizeof *g);
    if (cpu_install_trap_handlers(&err) || guest_mem_init(&g->mem, &err) || guest_mem_add(&g->mem, 0, RAM_BYTES, false, &err) ||
        !(g->cpu = cpu_create(&quiet_callbacks, &g->now, &g->mem, &options, &err)))
        return NULL;
    build_tables(g);
    build_descriptors(g);
    build_state(g);
    memset(filling, 0xcc, sizeof filling);
    guest_mem_write(&g->mem, GPA_CODE, filling, sizeof filling);
    g->data = guest_mem_ptr(&g->mem, GPA_DATA, DATA_BYTES, true);
    for (unsigned i = 0; i < DATA_BYTES / 8; i++)
        g->data[i] = g->pristine[i] = data_pristine(i);
    g->translate = translate;
    return g;
}

bool guest_has(const struct guest *g, unsigned feature)
{
    return feature == FEATURE_BASE || cpuid_has(&g->cpu->cpuid, (enum cpu_feature)feature);
}

void guest_stop(struct guest *g)
{
    cpu_destroy(g->cpu);
    guest_mem_destroy(&g->mem);
    free(g);
}

/* What changed, and everything as it was again. */
static void capture_data(struct guest *g, struct diff_result *r)
{
    r->words = 0;
    for (unsigned block = 0; block < DATA_BYTES / 8; block += 32) {
        if (!memcmp(&g->data[block], &g->pristine[block], 256))
            continue;
        for (unsigned i = block; i < block + 32; i++) {
            if (g->data[i] == g->pristine[i])
                continue;
            if (r->words < DIFF_WORDS)
                r->word[r->words++] = (struct diff_word){i, g->data[i]};
            else
                r->words = DIFF_WORDS + 1;
            g->data[i] = g->pristine[i];
        }
    }
}

static bool has_error_code(unsigned vector)
{
    return vector == EXC_DF || (vector >= EXC_TS && vector <= EXC_PF) || vector == EXC_AC;
}

static void capture(struct guest *g, struct diff_result *r)
{
    struct x86_state *s = &g->s;
    uint64_t frame[6], handler = s->rip - 1 - (KERNEL + GPA_HANDLERS);
    cpu_get_state(g->cpu, s);
    handler = s->rip - 1 - (KERNEL + GPA_HANDLERS);
    r->vector = (uint8_t)(handler / 16);
    guest_mem_read(&g->mem, GPA_STACK - 48, frame, sizeof frame);
    memcpy(r->gpr, s->gpr, sizeof r->gpr);
    r->error = has_error_code(r->vector) ? (uint32_t)frame[0] : 0;
    r->rip = frame[1];
    r->cs = (uint16_t)frame[2];
    r->rflags = frame[3];
    r->gpr[RSP] = frame[4];
    r->ss = (uint16_t)frame[5];
    r->cr2 = s->cr2;
    r->ds = s->segment[DS].selector;
    r->es = s->segment[ES].selector;
    r->fs = s->segment[FS].selector;
    r->gs = s->segment[GS].selector;
    r->fs_base = s->segment[FS].base;
    r->gs_base = s->segment[GS].base;
    memcpy(r->xsave, s->xsave, XSAVE_BYTES);
}

/* Loading a state empties the TLB, and so does a page's first code; but a translation does its own work only where it
 * finds an operand's page there. */
static void fill_tlb(struct guest *g, uint64_t code)
{
    struct mmu *mmu = &g->cpu->mmu;
    guest_mem_mark_code(guest_mem_find(&g->mem, code), code, 1); /* then what is decoded now is not the first */
    struct mmu_fault fault;
    struct mmu_page page;
    for (unsigned i = 0; i < DATA_PAGES; i++) {
        uint64_t linear = DATA_BASE + i * PAGE;
        if (mmu_translate(mmu, linear, i == READ_ONLY_PAGE ? MMU_READ : MMU_WRITE, MMU_USER, &page, &fault))
            mmu_fill(mmu, linear, &page, guest_mem_find(&g->mem, page.gpa), MMU_USER);
    }
}

void guest_run(struct guest *g, const struct diff_case *c, struct diff_result *r)
{
    static const uint8_t filling[16] = {[0 ... 15] = 0xcc};
    struct x86_state *s = &g->s;
    uint64_t at = code_linear(c) - CODE_BASE, code = GPA_CODE + at, fits = MIN(c->length, CODE_BYTES - at);
    *s = g->base;
    for (unsigned i = 0; i < 6 && c->mode != INSN_MODE_64; i++)
        if (!segment_of(c->selector[i], &s->segment[i]))
            s->segment[i] = (struct x86_segment){.selector = c->selector[i], .attributes = SEG_UNUSABLE};
    memcpy(s->gpr, c->gpr, sizeof s->gpr);
    s->rip = c->rip;
    s->rflags = c->rflags;
    memcpy(s->xsave, c->xsave, XSAVE_BYTES);
    for (unsigned i = 0, at = 0; i < c->patches; at += c->patch[i++].size)
        memcpy((uint8_t *)g->data + c->patch[i].offset, c->patch_bytes + at, c->patch[i].size);
    guest_mem_write(&g->mem, code, c->code, fits);
    cpu_set_state(g->cpu, s);
    if (g->translate && c->number & 1)
        fill_tlb(g, code);
    enum cpu_exit exit = cpu_run_count(g->cpu, 10000);
    r->ran = exit == CPU_EXIT_HALT;
    if (!r->ran)
        fprintf(stderr, "case %llu: the processor stopped with %d: %s\n", (unsigned long long)c->number, exit, cpu_message(g->cpu));
    capture(g, r);
    capture_data(g, r);
    guest_mem_write(&g->mem, code, filling, fits);
}
