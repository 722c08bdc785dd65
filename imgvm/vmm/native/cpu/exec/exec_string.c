/* SPDX-License-Identifier: MIT */
/* MOVS STOS LODS CMPS SCAS with their REP forms. Repeated MOVS and STOS go a page at a time with the host's
 * own `rep`; between chunks the registers are exact, so that faults and interrupts find the instruction where it
 * stands (SDM vol. 2, REP). */
#include "alu.h"
#include "exec.h"

#define REPEATED(u) ((u)->in.flags & (INSN_REP | INSN_REPNE))

static inline int64_t step_of(const struct cpu *cpu, unsigned size)
{
    return cpu->eflags & EFLAGS_DF ? -(int64_t)size : (int64_t)size;
}

static inline uint64_t index_value(const struct cpu *cpu, const struct uop *u, unsigned r)
{
    return cpu->gpr[r] & bits_mask_bytes(u->in.asize);
}

static inline void index_advance(struct cpu *cpu, const struct uop *u, unsigned r, int64_t by)
{
    reg_write(cpu, r, u->in.asize, cpu->gpr[r] + (uint64_t)by);
}

static uint64_t source_linear(struct cpu *cpu, const struct uop *u, unsigned size)
{
    uint64_t offset = index_value(cpu, u, RSI);
    return cpu->code64 ? offset + cpu->seg_base[u->in.segment] : access_segment(cpu, u, u->in.segment, offset, size, false);
}

static uint64_t destination_linear(struct cpu *cpu, const struct uop *u, unsigned size, bool write)
{
    uint64_t offset = index_value(cpu, u, RDI);
    return cpu->code64 ? offset : access_segment(cpu, u, ES, offset, size, write);
}

/* Between iterations: give way to requests, with the instruction to be resumed. */
static inline void poll(struct cpu *cpu, const struct uop *u)
{
    if (unlikely((atomic_load_explicit(&cpu->requests, memory_order_relaxed) & cpu->request_mask) | cpu->trap)) {
        cpu->rip = cpu_this_rip(cpu, u) & cpu_rip_mask(cpu);
        leave_block(cpu, u, false);
    }
}

static void movs_one(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    uint64_t from = source_linear(cpu, u, size), to = destination_linear(cpu, u, size, true);
    mem_write(cpu, u, to, size, mem_read(cpu, u, from, size));
    int64_t step = step_of(cpu, size);
    index_advance(cpu, u, RSI, step);
    index_advance(cpu, u, RDI, step);
}

static void stos_one(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    mem_write(cpu, u, destination_linear(cpu, u, size, true), size, cpu->gpr[RAX]);
    index_advance(cpu, u, RDI, step_of(cpu, size));
}

static void lods_one(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    reg_write(cpu, RAX, size, mem_read(cpu, u, source_linear(cpu, u, size), size));
    index_advance(cpu, u, RSI, step_of(cpu, size));
}

static void compare(struct cpu *cpu, unsigned size, uint64_t a, uint64_t b)
{
    switch (size) {
    case 1: alu_sub_8((uint8_t)a, (uint8_t)b, &cpu->cc); break;
    case 2: alu_sub_16((uint16_t)a, (uint16_t)b, &cpu->cc); break;
    case 4: alu_sub_32((uint32_t)a, (uint32_t)b, &cpu->cc); break;
    default: alu_sub_64(a, b, &cpu->cc); break;
    }
}

static void cmps_one(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    uint64_t a = mem_read(cpu, u, source_linear(cpu, u, size), size);
    uint64_t b = mem_read(cpu, u, destination_linear(cpu, u, size, false), size);
    compare(cpu, size, a, b);
    int64_t step = step_of(cpu, size);
    index_advance(cpu, u, RSI, step);
    index_advance(cpu, u, RDI, step);
}

static void scas_one(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    compare(cpu, size, cpu->gpr[RAX], mem_read(cpu, u, destination_linear(cpu, u, size, false), size));
    index_advance(cpu, u, RDI, step_of(cpu, size));
}

/* 8 to 127 bytes that do not overlap; the last step meets the one before. */
static void copy_words(uint8_t *to, const uint8_t *from, uint64_t bytes)
{
    for (uint64_t i = 0; i + 8 < bytes; i += 8)
        store_le64(to + i, load_le64(from + i));
    store_le64(to + bytes - 8, load_le64(from + bytes - 8));
}

#define VECTORS_BYTES 128u
/* The same of 128 bytes and more, with vector registers, which hold the guest's state before and after. */
static void copy_vectors(uint8_t *to, const uint8_t *from, uint64_t bytes)
{
    uint8_t kept[VECTORS_BYTES];
    const uint8_t *last = from + bytes - VECTORS_BYTES;
    uint8_t *last_to = to + bytes - VECTORS_BYTES;
    __asm__ volatile("vmovdqu %%ymm0, (%[kept])\n vmovdqu %%ymm1, 32(%[kept])\n"
                     "vmovdqu %%ymm2, 64(%[kept])\n vmovdqu %%ymm3, 96(%[kept])\n"
                     "1: vmovdqu (%[from]), %%ymm0\n vmovdqu 32(%[from]), %%ymm1\n"
                     "vmovdqu 64(%[from]), %%ymm2\n vmovdqu 96(%[from]), %%ymm3\n"
                     "vmovdqu %%ymm0, (%[to])\n vmovdqu %%ymm1, 32(%[to])\n"
                     "vmovdqu %%ymm2, 64(%[to])\n vmovdqu %%ymm3, 96(%[to])\n"
                     "sub $-128, %[from]\n sub $-128, %[to]\n"
                     "cmp %[last], %[from]\n jb 1b\n"
                     "vmovdqu (%[last]), %%ymm0\n vmovdqu 32(%[last]), %%ymm1\n"
                     "vmovdqu 64(%[last]), %%ymm2\n vmovdqu 96(%[last]), %%ymm3\n"
                     "vmovdqu %%ymm0, (%[last_to])\n vmovdqu %%ymm1, 32(%[last_to])\n"
                     "vmovdqu %%ymm2, 64(%[last_to])\n vmovdqu %%ymm3, 96(%[last_to])\n"
                     "vmovdqu (%[kept]), %%ymm0\n vmovdqu 32(%[kept]), %%ymm1\n"
                     "vmovdqu 64(%[kept]), %%ymm2\n vmovdqu 96(%[kept]), %%ymm3"
                     : [from] "+&r"(from), [to] "+&r"(to)
                     : [last] "r"(last), [last_to] "r"(last_to), [kept] "r"(kept)
                     : "memory", "cc");
}

/* Zen's REP MOVS takes 30 times as long where source and destination lie differently in their lines, but it mixes halves of
 * vector registers at no cost, unlike others, whose REP MOVS is good. */
static void host_movs(const struct cpu *cpu, void *to, const void *from, uint64_t count, unsigned size)
{
    uint64_t bytes = count * size, distance = (uint64_t)to - (uint64_t)from;
    if (cpu->copies_by_vectors && bytes >= 8 && distance >= bytes && -distance >= bytes) {
        (bytes < VECTORS_BYTES ? copy_words : copy_vectors)(to, from, bytes);
        return;
    }
    switch (size) {
    case 1: __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory"); break;
    case 2: __asm__ volatile("rep movsw" : "+D"(to), "+S"(from), "+c"(count) : : "memory"); break;
    case 4: __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(count) : : "memory"); break;
    default: __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count) : : "memory"); break;
    }
}

static void host_stos(void *to, uint64_t value, uint64_t count, unsigned size)
{
    switch (size) {
    case 1: __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
    case 2: __asm__ volatile("rep stosw" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
    case 4: __asm__ volatile("rep stosl" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
    default: __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
    }
}

static uint64_t room_in_page(uint64_t linear, unsigned size)
{
    return (GUEST_PAGE_SIZE - linear % GUEST_PAGE_SIZE) / size;
}

/* Elements that one chunk may hold; 0 when it must go by elements (backwards, segmented, page-straddling). */
static uint64_t movs_chunk(struct cpu *cpu, const struct uop *u, uint64_t count)
{
    unsigned size = u->in.osize;
    if (!cpu->code64 || (cpu->eflags & (EFLAGS_DF | EFLAGS_TF)))
        return 0;
    uint64_t from = source_linear(cpu, u, size), to = destination_linear(cpu, u, size, true);
    uint64_t n = MIN(MIN(room_in_page(from, size), room_in_page(to, size)), count);
    if (n < 2)
        return 0;
    const void *p = access_page_ptr(cpu, u, from, (unsigned)n * size, false);
    void *q = p ? access_page_ptr(cpu, u, to, (unsigned)n * size, true) : NULL;
    if (!q)
        return 0;
    host_movs(cpu, q, p, n, size);
    index_advance(cpu, u, RSI, (int64_t)(n * size));
    index_advance(cpu, u, RDI, (int64_t)(n * size));
    return n;
}

static uint64_t stos_chunk(struct cpu *cpu, const struct uop *u, uint64_t count)
{
    unsigned size = u->in.osize;
    if (!cpu->code64 || (cpu->eflags & (EFLAGS_DF | EFLAGS_TF)))
        return 0;
    uint64_t to = destination_linear(cpu, u, size, true);
    uint64_t n = MIN(room_in_page(to, size), count);
    if (n < 2)
        return 0;
    void *q = access_page_ptr(cpu, u, to, (unsigned)n * size, true);
    if (!q)
        return 0;
    host_stos(q, cpu->gpr[RAX], n, size);
    index_advance(cpu, u, RDI, (int64_t)(n * size));
    return n;
}

static uint64_t no_chunk(struct cpu *cpu, const struct uop *u, uint64_t count)
{
    (void)cpu, (void)u, (void)count;
    return 0;
}

/* `until`: CMPS and SCAS stop by ZF as well */
static inline void repeat(struct cpu *cpu, const struct uop *u, void (*one)(struct cpu *, const struct uop *),
                          uint64_t (*chunk)(struct cpu *, const struct uop *, uint64_t), bool until)
{
    if (!REPEATED(u)) {
        one(cpu, u);
        return;
    }
    uint64_t count;
    uint16_t before = cpu->cc;
    while ((count = index_value(cpu, u, RCX)) != 0) {
        if (until)
            cpu->cc = before; /* a fault finds the flags as the instruction did (SDM vol. 2, REP) */
        uint64_t done = chunk(cpu, u, count);
        if (!done) {
            one(cpu, u);
            done = 1;
        }
        index_advance(cpu, u, RCX, -(int64_t)done);
        if (until && !!(cpu->cc & CC_ZF) != !!(u->in.flags & INSN_REP))
            return;
        if (count != done)
            poll(cpu, u);
    }
}

static void movs(struct cpu *cpu, const struct uop *u)
{
    repeat(cpu, u, movs_one, movs_chunk, false);
    NEXT;
}

static void stos(struct cpu *cpu, const struct uop *u)
{
    repeat(cpu, u, stos_one, stos_chunk, false);
    NEXT;
}

static void lods(struct cpu *cpu, const struct uop *u)
{
    repeat(cpu, u, lods_one, no_chunk, false);
    NEXT;
}

static void cmps(struct cpu *cpu, const struct uop *u)
{
    repeat(cpu, u, cmps_one, no_chunk, true);
    NEXT;
}

static void scas(struct cpu *cpu, const struct uop *u)
{
    repeat(cpu, u, scas_one, no_chunk, true);
    NEXT;
}

const struct exec_def exec_string[] = {
    {OP_MOVS, EXEC_ANY_FORM, NULL, movs},
    {OP_STOS, EXEC_ANY_FORM, NULL, stos},
    {OP_LODS, EXEC_ANY_FORM, NULL, lods},
    {OP_CMPS, EXEC_ANY_FORM, NULL, cmps},
    {OP_SCAS, EXEC_ANY_FORM, NULL, scas},
    {0, 0, NULL, NULL},
};
