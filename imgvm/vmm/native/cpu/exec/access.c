/* SPDX-License-Identifier: MIT */
/* Memory operands that the inline TLB check does not serve: misses, faults, page crossings,
 * MMIO, ROM, and writes to pages that hold decoded code. */
#include "debug.h"
#include "exec.h"
#include "undo.h"

/* How one page's worth of an access was resolved. */
struct span {
    uint64_t gpa;
    const struct guest_region *region; /* NULL: MMIO */
    uint8_t *host;
};

/* Is this access of 64-bit code one to the stack: by an instruction that implies it, or with rSP or rBP as base? Then a
 * non-canonical address is #SS (SDM vol. 2, 3.1.1.18 and the instructions' own pages). */
static bool is_stack_access(const struct uop *u, bool write)
{
    if (!u)
        return false;
    const struct insn *in = &u->in;
    switch (in->op) {
    case OP_PUSH: case OP_CALL: case OP_CALL_FAR: /* a memory operand is only read, the stack only written */
        if (write)
            return true;
        break;
    case OP_POP:
        if (!write)
            return true;
        break;
    case OP_PUSHF: case OP_POPF: case OP_ENTER: case OP_LEAVE: case OP_RET: case OP_RETF: case OP_IRET:
    case OP_PUSH_SREG: case OP_POP_SREG: case OP_PUSHA: case OP_POPA:
        return true;
    default:
        break;
    }
    bool stack_base = in->segment == INSN_SEG_FLAT && (in->base == RSP || in->base == RBP);
    return (in->flags & INSN_MEM) && (in->segment == SS || stack_base);
}

static _Noreturn void raise_fault(struct cpu *cpu, const struct uop *u, uint64_t linear, bool write,
                                  const struct mmu_fault *fault)
{
    if (fault->general_protection)
        raise_error(cpu, u, is_stack_access(u, write) ? EXC_SS : EXC_GP, 0);
    cpu->s.cr2 = linear;
    raise_error(cpu, u, EXC_PF, fault->error_code);
}

/* Debuggers' watchpoints; none of the access has happened yet. */
static inline void meet_points(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, uint32_t kinds)
{
    if (unlikely(cpu->points.data))
        points_meet_data(cpu, u, linear, size, kinds);
}

static struct span resolve(struct cpu *cpu, const struct uop *u, uint64_t linear, bool write, enum mmu_who who)
{
    struct mmu_fault fault;
    struct mmu_page page;
    struct span span;
    if (!mmu_translate(&cpu->mmu, linear, write ? MMU_WRITE : MMU_READ, who, &page, &fault))
        raise_fault(cpu, u, linear, write, &fault);
    span.gpa = page.gpa;
    span.region = guest_mem_find(cpu->mmu.mem, span.gpa);
    span.host = NULL;
    if (span.region) {
        span.host = span.region->host + (span.gpa - span.region->gpa);
        if (likely(!cpu->undo))
            mmu_fill(&cpu->mmu, linear, &page, span.region, who);
        if (write && span.region->read_only)
            span.region = NULL;
    }
    return span;
}

static inline void note_write(struct cpu *cpu, uint8_t *host, unsigned size)
{
    if (unlikely(cpu->undo))
        undo_note(cpu, host, size);
}

static uint64_t load_bytes(const void *p, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)((const uint8_t *)p)[i] << (8 * i);
    return value;
}

static uint64_t load_sized(const void *p, unsigned size)
{
    switch (size) {
    case 1: return *(const uint8_t *)p;
    case 2: return *(const uint16_t *)p;
    case 4: return *(const uint32_t *)p;
    case 8: return *(const uint64_t *)p;
    default: return load_bytes(p, size);
    }
}

static void store_sized(void *p, unsigned size, uint64_t value)
{
    switch (size) {
    case 1: *(uint8_t *)p = (uint8_t)value; break;
    case 2: *(uint16_t *)p = (uint16_t)value; break;
    case 4: *(uint32_t *)p = (uint32_t)value; break;
    case 8: *(uint64_t *)p = value; break;
    default:
        for (unsigned i = 0; i < size; i++)
            ((uint8_t *)p)[i] = (uint8_t)(value >> (8 * i));
    }
}

static uint64_t read_mmio(struct cpu *cpu, const struct uop *u, uint64_t gpa, unsigned size)
{
    cpu_check_access(cpu, u, false, gpa);
    cpu_fpu_leave(cpu);
    if (size == 1 || size == 2 || size == 4 || size == 8)
        return cpu->callbacks.mmio_read(cpu->opaque, gpa, size);
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= cpu->callbacks.mmio_read(cpu->opaque, gpa + i, 1) << (8 * i);
    return value;
}

static void write_mmio(struct cpu *cpu, const struct uop *u, uint64_t gpa, unsigned size, uint64_t value)
{
    cpu_check_access(cpu, u, false, gpa);
    cpu_fpu_leave(cpu);
    if (size == 1 || size == 2 || size == 4 || size == 8) {
        cpu->callbacks.mmio_write(cpu->opaque, gpa, size, value);
        return;
    }
    for (unsigned i = 0; i < size; i++)
        cpu->callbacks.mmio_write(cpu->opaque, gpa + i, 1, (value >> (8 * i)) & 0xff);
}

/* Others see where this store goes before it looks what is code there. Where they have seen it already, that costs nothing.
 * A store has at most two pages. */
static void announce_store(struct cpu *cpu, uint64_t gpa)
{
    uint64_t page = align_down(gpa, GUEST_PAGE_SIZE);
    if (likely(atomic_load_explicit(&cpu->store_pages[cpu->store_page], memory_order_relaxed) == page))
        return;
    cpu->store_page ^= 1;
    if (atomic_load_explicit(&cpu->store_pages[cpu->store_page], memory_order_relaxed) != page)
        atomic_store(&cpu->store_pages[cpu->store_page], page);
}

/* A store that may hit decoded code. When it hits the running block, the instruction is started over as a block
 * of its own, so that nothing stale can follow it (engine.md, "Code that is written"). */
static void check_code_write(struct cpu *cpu, const struct uop *u, const struct span *span, unsigned size)
{
    size_t page = (span->gpa - span->region->gpa) / GUEST_PAGE_SIZE;
    if (likely(!atomic_load_explicit(&span->region->code_granules[page], memory_order_relaxed)))
        return;
    if (unlikely(cpu->undo))
        undo_abandon(cpu); /* that code is stale cannot be taken back */
    struct block *block = cpu->block;
    if (u && block && !(block->mode & MODE_SINGLE) && block->gpa / GUEST_PAGE_SIZE == span->gpa / GUEST_PAGE_SIZE &&
        span->gpa + size + GUEST_CODE_GRANULE > block->gpa && span->gpa < block->gpa + block->bytes + GUEST_CODE_GRANULE) {
        cpu->rip = cpu_this_rip(cpu, u);
        cpu->event = EVENT_SINGLE;
        leave_block(cpu, u, false);
    }
    announce_store(cpu, span->gpa);
    if (likely(!guest_mem_drop_code(cpu->mmu.mem, span->region, span->gpa, size)))
        return;
    cpu->counts.code_writes++;
    if (cpu->translator)
        cpu->translator_ops->code_written(cpu, cpu->translator, span->gpa);
}

static unsigned first_part(uint64_t linear, unsigned size)
{
    unsigned room = GUEST_PAGE_SIZE - (unsigned)(linear % GUEST_PAGE_SIZE);
    return MIN(room, size);
}

static uint64_t next_page(const struct cpu *cpu, uint64_t linear)
{
    uint64_t next = align_down(linear, GUEST_PAGE_SIZE) + GUEST_PAGE_SIZE;
    /* a 64-bit address of other code's is an implicit access: to a table, a TSS, a stack */
    return cpu->code64 || next >> 33 ? next : (uint32_t)next;
}

void access_check_canonical(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool write)
{
    uint64_t last = linear + size - 1;
    if (likely(mmu_canonical(&cpu->mmu, last) || !cpu->code64))
        return;
    static const struct mmu_fault fault = {.general_protection = true};
    raise_fault(cpu, u, last, write, &fault);
}

/* How much of the operand is in its first page. One that goes on where no address is canonical faults for that, whatever
 * its first page; x87's ten bytes are two operands, of eight and of two. */
static unsigned part_of(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool write)
{
    unsigned n = first_part(linear, size);
    if (unlikely(n != size))
        access_check_canonical(cpu, u, linear, size == 10 ? 8 : size, write);
    return n;
}

static uint64_t read_value(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, enum mmu_who who)
{
    meet_points(cpu, u, linear, size, CPU_POINT_READ);
    unsigned n = part_of(cpu, u, linear, size, false);
    struct span low = resolve(cpu, u, linear, false, who);
    if (likely(n == size))
        return low.host ? load_sized(low.host, size) : read_mmio(cpu, u, low.gpa, size);
    struct span high = resolve(cpu, u, next_page(cpu, linear), false, who);
    uint64_t value = low.host ? load_bytes(low.host, n) : read_mmio(cpu, u, low.gpa, n);
    uint64_t rest = high.host ? load_bytes(high.host, size - n) : read_mmio(cpu, u, high.gpa, size - n);
    return value | rest << (8 * n);
}

static void write_span(struct cpu *cpu, const struct uop *u, const struct span *span, unsigned size, uint64_t value)
{
    if (span->region) {
        note_write(cpu, span->host, size);
        store_sized(span->host, size, value);
    } else {
        write_mmio(cpu, u, span->gpa, size, value);
    }
}

static void write_value(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, uint64_t value,
                        enum mmu_who who)
{
    meet_points(cpu, u, linear, size, CPU_POINT_WRITE);
    unsigned n = part_of(cpu, u, linear, size, true);
    struct span low = resolve(cpu, u, linear, true, who);
    if (likely(n == size)) {
        if (low.region)
            check_code_write(cpu, u, &low, size);
        write_span(cpu, u, &low, size, value);
        return;
    }
    struct span high = resolve(cpu, u, next_page(cpu, linear), true, who);
    if (low.region)
        check_code_write(cpu, u, &low, n);
    if (high.region)
        check_code_write(cpu, u, &high, size - n);
    write_span(cpu, u, &low, n, value & bits_mask_bytes(n));
    write_span(cpu, u, &high, size - n, value >> (8 * n));
}

static enum mmu_who who_is(const struct cpu *cpu)
{
    return cpu->cpl == 3 ? MMU_USER : MMU_SUPERVISOR;
}

/* What only matters while alignment is checked or data breakpoints are set. */
static void check_unusual(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool write)
{
    /* SDM vol. 3, table 6-7; larger operands have rules of their own (#GP) or none */
    unsigned alignment = size == 10 ? 8 : size <= 8 && !(size & (size - 1)) ? size : 1;
    if (cpu->alignment_checked && linear % alignment) {
        unsigned n = part_of(cpu, u, linear, size, write);
        resolve(cpu, u, linear, write, who_is(cpu)); /* a page fault comes first */
        if (n != size)
            resolve(cpu, u, next_page(cpu, linear), write, who_is(cpu));
        raise_error(cpu, u, EXC_AC, 0);
    }
    debug_check_data(cpu, u, linear, size, write);
}

static inline void check_access(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool write)
{
    if (unlikely(cpu->alignment_checked || cpu->mmu.watch_count))
        check_unusual(cpu, u, linear, size, write);
}

uint64_t access_read_slow(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size)
{
    check_access(cpu, u, linear, size, false);
    return read_value(cpu, u, linear, size, who_is(cpu));
}

void access_write_slow(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, uint64_t value)
{
    check_access(cpu, u, linear, size, true);
    write_value(cpu, u, linear, size, value, who_is(cpu));
}

uint64_t access_system_read(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size)
{
    if (!(cpu->s.efer & EFER_LMA))
        linear = (uint32_t)linear;
    return read_value(cpu, u, linear, size, MMU_IMPLICIT);
}

void access_system_write(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, uint64_t value)
{
    if (!(cpu->s.efer & EFER_LMA))
        linear = (uint32_t)linear;
    write_value(cpu, u, linear, size, value, MMU_IMPLICIT);
}

void access_system_probe(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool write)
{
    linear = cpu->s.efer & EFER_LMA ? linear : (uint32_t)linear;
    resolve(cpu, u, linear, write, MMU_IMPLICIT);
    if (first_part(linear, size) != size)
        resolve(cpu, u, next_page(cpu, linear), write, MMU_IMPLICIT);
}

void *access_page_ptr(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool write)
{
    struct tlb_entry *e = tlb_at(cpu, linear);
    if (likely((linear ^ (write ? e->write_tag : e->read_tag)) <= GUEST_PAGE_SIZE - size))
        return (void *)(linear + e->addend);
    if (unlikely(cpu->points.data) && points_watch(&cpu->points, linear, size))
        return NULL;
    if (unlikely(cpu->alignment_checked || cpu->mmu.watch_count))
        return NULL; /* each element is to be looked at */
    struct span span = resolve(cpu, u, linear, write, who_is(cpu));
    if (!write)
        return span.host;
    if (!span.region)
        return NULL;
    check_code_write(cpu, u, &span, size);
    note_write(cpu, span.host, size);
    return span.host;
}

void access_probe_write(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size)
{
    unsigned n = part_of(cpu, u, linear, size, true);
    resolve(cpu, u, linear, true, who_is(cpu));
    if (n != size)
        resolve(cpu, u, next_page(cpu, linear), true, who_is(cpu));
}

const struct tlb_entry *access_entry(struct cpu *cpu, uint64_t linear, bool write)
{
    struct tlb_entry *e = tlb_at(cpu, linear);
    uint64_t page = align_down(linear, GUEST_PAGE_SIZE);
    for (unsigned attempt = 0; attempt < 2; attempt++) {
        if ((write ? e->write_tag : e->read_tag) == page)
            return e;
        struct mmu_fault fault;
        struct mmu_page found;
        if (attempt || !mmu_translate(&cpu->mmu, linear, write ? MMU_WRITE : MMU_READ, who_is(cpu), &found, &fault))
            break;
        const struct guest_region *region = guest_mem_find(cpu->mmu.mem, found.gpa);
        if (!region)
            break;
        mmu_fill(&cpu->mmu, linear, &found, region, who_is(cpu));
    }
    return NULL;
}

static void copy_in(struct cpu *cpu, const struct uop *u, const struct span *span, uint8_t *to, unsigned size)
{
    for (unsigned i = 0; i < size;) {
        unsigned n = span->host ? 1 : MIN(size - i, 8u);
        if (span->host)
            to[i] = span->host[i];
        else
            store_sized(to + i, n, read_mmio(cpu, u, span->gpa + i, n));
        i += n;
    }
}

void *access_load_slow(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size)
{
    enum mmu_who who = who_is(cpu);
    check_access(cpu, u, linear, size, false);
    unsigned n = part_of(cpu, u, linear, size, false);
    meet_points(cpu, u, linear, size, CPU_POINT_READ);
    struct span low = resolve(cpu, u, linear, false, who);
    if (n == size && low.host)
        return low.host;
    uint8_t *p = cpu->bounce + (linear & 63);
    if (n == size) {
        copy_in(cpu, u, &low, p, size);
        return p;
    }
    struct span high = resolve(cpu, u, next_page(cpu, linear), false, who);
    copy_in(cpu, u, &low, p, n);
    copy_in(cpu, u, &high, p + n, size - n);
    return p;
}

/* A locked access that one host instruction cannot make is made while no other processor executes anything: the
 * instruction starts over as a block of its own. */
static void lock_bus(struct cpu *cpu, const struct uop *u)
{
    if (!(u->in.flags & INSN_LOCK || u->in.op == OP_XCHG) || cpu->exclusive || !cpu->callbacks.exclusive)
        return;
    cpu->rip = cpu_this_rip(cpu, u);
    cpu->event = EVENT_EXCLUSIVE;
    leave_block(cpu, u, false);
}

void *access_rmw_slow(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool read)
{
    enum mmu_who who = who_is(cpu);
    check_access(cpu, u, linear, size, true);
    unsigned n = part_of(cpu, u, linear, size, true);
    meet_points(cpu, u, linear, size, CPU_POINT_WRITE | (read ? CPU_POINT_READ : 0));
    struct span low = resolve(cpu, u, linear, true, who);
    if (low.region)
        check_code_write(cpu, u, &low, n);
    if (n == size && low.region) {
        note_write(cpu, low.host, size);
        return low.host;
    }
    uint8_t *p = cpu->bounce + (linear & 63);
    cpu->bounce_linear = linear;
    if (n != size) {
        struct span high = resolve(cpu, u, next_page(cpu, linear), true, who);
        lock_bus(cpu, u);
        if (high.region)
            check_code_write(cpu, u, &high, size - n);
        if (read) {
            copy_in(cpu, u, &low, p, n);
            copy_in(cpu, u, &high, p + n, size - n);
        }
    } else if (read) {
        copy_in(cpu, u, &low, p, size);
    }
    return p;
}

/* Writes the bounce buffer back; both pages were checked by access_rmw_slow. */
void access_commit(struct cpu *cpu, const struct uop *u, unsigned size)
{
    uint64_t linear = cpu->bounce_linear;
    const uint8_t *p = cpu->bounce + (linear & 63);
    while (size) {
        unsigned n = MIN(first_part(linear, size), 8u);
        struct span span = resolve(cpu, u, linear, true, who_is(cpu));
        write_span(cpu, u, &span, n, load_bytes(p, n));
        linear += n;
        p += n;
        size -= n;
    }
}

/* SDM vol. 3, 5.3 and 5.5. */
static bool limit_ok(const struct x86_segment *segment, uint64_t offset, unsigned size)
{
    uint64_t last = offset + size - 1;
    bool expand_down = (segment->attributes & (SEG_CODE | SEG_EXPAND_CONFORM)) == SEG_EXPAND_CONFORM;
    if (!expand_down)
        return last <= segment->limit;
    uint64_t top = segment->attributes & SEG_DB ? 0xffffffffu : 0xffffu;
    return offset > segment->limit && last <= top;
}

/* CLFLUSH and its kin may name a line of an execute-only segment (SDM vol. 2, CLFLUSH). */
static bool is_cache_line(const struct uop *u)
{
    return u && (u->in.op == OP_CLFLUSH || u->in.op == OP_CLFLUSHOPT || u->in.op == OP_CLWB);
}

uint64_t access_segment(struct cpu *cpu, const struct uop *u, unsigned index, uint64_t offset, unsigned size, bool write)
{
    const struct x86_segment *segment = &cpu->s.segment[index];
    if (cpu->code64)
        return cpu->seg_base[index >= FS ? index : INSN_SEG_FLAT] + offset;
    bool real = !(cpu->s.cr0 & CR0_PE) || (cpu->eflags & EFLAGS_VM);
    bool bad = segment->attributes & SEG_UNUSABLE;
    if (!real) {
        unsigned type = segment->attributes & SEG_TYPE;
        bool code = type & SEG_CODE;
        bad |= write ? code || !(type & SEG_WRITE_READ) : code && !(type & SEG_WRITE_READ) && !is_cache_line(u);
    }
    if (bad || !limit_ok(segment, offset, size))
        raise_error(cpu, u, index == SS ? EXC_SS : EXC_GP, 0);
    return (uint32_t)(segment->base + offset);
}

/* Offset within the segment. */
static uint64_t effective_offset(struct cpu *cpu, const struct uop *u)
{
    const struct insn *in = &u->in;
    uint64_t base = in->base == INSN_REG_RIP ? cpu_next_rip(cpu, u) : cpu->gpr[in->base];
    uint64_t offset = base + (cpu->gpr[in->index] << in->scale) + (uint64_t)(int64_t)in->disp;
    if (in->base == INSN_REG_NONE && in->index == INSN_REG_NONE && !in->disp && !in->modrm)
        offset = in->imm; /* moffs */
    return offset & bits_mask_bytes(in->asize);
}

uint64_t access_ea_slow(struct cpu *cpu, const struct uop *u, unsigned size, bool write)
{
    uint64_t offset = effective_offset(cpu, u);
    if (cpu->code64)
        return offset + cpu->seg_base[u->in.segment];
    return access_segment(cpu, u, u->in.segment, offset, size, write);
}

uint64_t access_ea_unchecked(struct cpu *cpu, const struct uop *u)
{
    if (!u->ea_slow)
        return operand_linear(cpu, u, 1, false);
    uint64_t linear = effective_offset(cpu, u) + cpu->seg_base[u->in.segment];
    return cpu->code64 ? linear : (uint32_t)linear;
}
