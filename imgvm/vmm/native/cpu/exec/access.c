/* SPDX-License-Identifier: MIT */
/* Memory operands that the inline TLB check does not serve: misses, faults, page crossings,
 * MMIO, ROM, and writes to pages that hold decoded code. */
#include "exec.h"

/* How one page's worth of an access was resolved. */
struct span {
    uint64_t gpa;
    const struct guest_region *region; /* NULL: MMIO */
    uint8_t *host;
};

static _Noreturn void raise_fault(struct cpu *cpu, const struct uop *u, uint64_t linear, const struct mmu_fault *fault)
{
    if (fault->general_protection) {
        bool stack = u && u->in.segment == SS && (u->in.flags & INSN_MEM);
        raise_error(cpu, u, stack ? EXC_SS : EXC_GP, 0);
    }
    cpu->s.cr2 = linear;
    raise_error(cpu, u, EXC_PF, fault->error_code);
}

/* Debuggers' watchpoints; none of the access has happened yet. */
static inline void meet_points(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, uint32_t kinds)
{
    if (unlikely(cpu->points.data))
        points_meet_data(cpu, u, linear, size, kinds);
}

static struct span resolve(struct cpu *cpu, const struct uop *u, uint64_t linear, bool write, bool user)
{
    struct mmu_fault fault;
    struct span span;
    bool writable;
    if (!mmu_translate(&cpu->mmu, linear, write ? MMU_WRITE : MMU_READ, user, &span.gpa, &writable, &fault))
        raise_fault(cpu, u, linear, &fault);
    span.region = guest_mem_find(cpu->mmu.mem, span.gpa);
    span.host = NULL;
    if (span.region) {
        span.host = span.region->host + (span.gpa - span.region->gpa);
        mmu_fill(&cpu->mmu, linear, span.gpa, span.region, user, writable);
        if (write && span.region->read_only)
            span.region = NULL;
    }
    return span;
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

static uint64_t read_mmio(struct cpu *cpu, uint64_t gpa, unsigned size)
{
    cpu_fpu_leave(cpu);
    if (size == 1 || size == 2 || size == 4 || size == 8)
        return cpu->callbacks.mmio_read(cpu->opaque, gpa, size);
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= cpu->callbacks.mmio_read(cpu->opaque, gpa + i, 1) << (8 * i);
    return value;
}

static void write_mmio(struct cpu *cpu, uint64_t gpa, unsigned size, uint64_t value)
{
    cpu_fpu_leave(cpu);
    if (size == 1 || size == 2 || size == 4 || size == 8) {
        cpu->callbacks.mmio_write(cpu->opaque, gpa, size, value);
        return;
    }
    for (unsigned i = 0; i < size; i++)
        cpu->callbacks.mmio_write(cpu->opaque, gpa + i, 1, (value >> (8 * i)) & 0xff);
}

/* A store that may hit decoded code. When it hits the running block, the instruction is started over as a block
 * of its own, so that nothing stale can follow it (engine.md 4.5). */
static void check_code_write(struct cpu *cpu, const struct uop *u, const struct span *span, unsigned size)
{
    size_t page = (span->gpa - span->region->gpa) / GUEST_PAGE_SIZE;
    if (likely(!atomic_load_explicit(&span->region->code_granules[page], memory_order_relaxed)))
        return;
    struct block *block = cpu->block;
    if (u && block && !(block->mode & MODE_SINGLE) && block->gpa / GUEST_PAGE_SIZE == span->gpa / GUEST_PAGE_SIZE &&
        span->gpa + size + GUEST_CODE_GRANULE > block->gpa && span->gpa < block->gpa + block->bytes + GUEST_CODE_GRANULE) {
        cpu->rip = cpu_this_rip(cpu, u);
        cpu->event = EVENT_SINGLE;
        leave_block(cpu, u, false);
    }
    guest_mem_written(cpu->mmu.mem, span->gpa, size);
}

static unsigned first_part(uint64_t linear, unsigned size)
{
    unsigned room = GUEST_PAGE_SIZE - (unsigned)(linear % GUEST_PAGE_SIZE);
    return MIN(room, size);
}

static uint64_t next_page(const struct cpu *cpu, uint64_t linear)
{
    uint64_t next = align_down(linear, GUEST_PAGE_SIZE) + GUEST_PAGE_SIZE;
    return cpu->s.efer & EFER_LMA && cpu->code64 ? next : (uint32_t)next;
}

static uint64_t read_value(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool user)
{
    meet_points(cpu, u, linear, size, CPU_POINT_READ);
    unsigned n = first_part(linear, size);
    struct span low = resolve(cpu, u, linear, false, user);
    if (likely(n == size))
        return low.host ? load_sized(low.host, size) : read_mmio(cpu, low.gpa, size);
    struct span high = resolve(cpu, u, next_page(cpu, linear), false, user);
    uint64_t value = low.host ? load_bytes(low.host, n) : read_mmio(cpu, low.gpa, n);
    uint64_t rest = high.host ? load_bytes(high.host, size - n) : read_mmio(cpu, high.gpa, size - n);
    return value | rest << (8 * n);
}

static void write_span(struct cpu *cpu, const struct span *span, unsigned size, uint64_t value)
{
    if (span->region)
        store_sized(span->host, size, value);
    else
        write_mmio(cpu, span->gpa, size, value);
}

static void write_value(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, uint64_t value, bool user)
{
    meet_points(cpu, u, linear, size, CPU_POINT_WRITE);
    unsigned n = first_part(linear, size);
    struct span low = resolve(cpu, u, linear, true, user);
    if (likely(n == size)) {
        if (low.region)
            check_code_write(cpu, u, &low, size);
        write_span(cpu, &low, size, value);
        return;
    }
    struct span high = resolve(cpu, u, next_page(cpu, linear), true, user);
    if (low.region)
        check_code_write(cpu, u, &low, n);
    if (high.region)
        check_code_write(cpu, u, &high, size - n);
    write_span(cpu, &low, n, value & bits_mask_bytes(n));
    write_span(cpu, &high, size - n, value >> (8 * n));
}

uint64_t access_read_slow(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size)
{
    return read_value(cpu, u, linear, size, cpu->cpl == 3);
}

void access_write_slow(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, uint64_t value)
{
    write_value(cpu, u, linear, size, value, cpu->cpl == 3);
}

uint64_t access_system_read(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size)
{
    if (!(cpu->s.efer & EFER_LMA))
        linear = (uint32_t)linear;
    return read_value(cpu, u, linear, size, false);
}

void access_system_write(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, uint64_t value)
{
    if (!(cpu->s.efer & EFER_LMA))
        linear = (uint32_t)linear;
    write_value(cpu, u, linear, size, value, false);
}

void *access_page_ptr(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool write)
{
    struct tlb_entry *e = tlb_at(cpu, linear);
    if (likely((linear ^ (write ? e->write_tag : e->read_tag)) <= GUEST_PAGE_SIZE - size))
        return (void *)(linear + e->addend);
    if (unlikely(cpu->points.data) && points_watch(&cpu->points, linear, size))
        return NULL;
    struct span span = resolve(cpu, u, linear, write, cpu->cpl == 3);
    if (!write)
        return span.host;
    if (!span.region)
        return NULL;
    check_code_write(cpu, u, &span, size);
    return span.host;
}

void access_probe_write(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size)
{
    resolve(cpu, u, linear, true, cpu->cpl == 3);
    if (first_part(linear, size) != size)
        resolve(cpu, u, next_page(cpu, linear), true, cpu->cpl == 3);
}

static void copy_in(struct cpu *cpu, const struct span *span, uint8_t *to, unsigned size)
{
    for (unsigned i = 0; i < size;) {
        unsigned n = span->host ? 1 : MIN(size - i, 8u);
        if (span->host)
            to[i] = span->host[i];
        else
            store_sized(to + i, n, read_mmio(cpu, span->gpa + i, n));
        i += n;
    }
}

void *access_load_slow(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size)
{
    bool user = cpu->cpl == 3;
    unsigned n = first_part(linear, size);
    meet_points(cpu, u, linear, size, CPU_POINT_READ);
    struct span low = resolve(cpu, u, linear, false, user);
    if (n == size && low.host)
        return low.host;
    uint8_t *p = cpu->bounce + (linear & 63);
    if (n == size) {
        copy_in(cpu, &low, p, size);
        return p;
    }
    struct span high = resolve(cpu, u, next_page(cpu, linear), false, user);
    copy_in(cpu, &low, p, n);
    copy_in(cpu, &high, p + n, size - n);
    return p;
}

void *access_rmw_slow(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool read)
{
    bool user = cpu->cpl == 3;
    unsigned n = first_part(linear, size);
    meet_points(cpu, u, linear, size, CPU_POINT_WRITE | (read ? CPU_POINT_READ : 0));
    struct span low = resolve(cpu, u, linear, true, user);
    if (low.region)
        check_code_write(cpu, u, &low, n);
    if (n == size && low.region)
        return low.host;
    uint8_t *p = cpu->bounce + (linear & 63);
    cpu->bounce_linear = linear;
    if (n != size) {
        struct span high = resolve(cpu, u, next_page(cpu, linear), true, user);
        if (high.region)
            check_code_write(cpu, u, &high, size - n);
        if (read) {
            copy_in(cpu, &low, p, n);
            copy_in(cpu, &high, p + n, size - n);
        }
    } else if (read) {
        copy_in(cpu, &low, p, size);
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
        struct span span = resolve(cpu, u, linear, true, cpu->cpl == 3);
        write_span(cpu, &span, n, load_bytes(p, n));
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
        bad |= write ? code || !(type & SEG_WRITE_READ) : code && !(type & SEG_WRITE_READ);
    }
    if (bad || !limit_ok(segment, offset, size))
        raise_error(cpu, u, index == SS ? EXC_SS : EXC_GP, 0);
    return (uint32_t)(segment->base + offset);
}

uint64_t access_ea_slow(struct cpu *cpu, const struct uop *u, unsigned size, bool write)
{
    const struct insn *in = &u->in;
    uint64_t base = in->base == INSN_REG_RIP ? cpu_next_rip(cpu, u) : cpu->gpr[in->base];
    uint64_t offset = base + (cpu->gpr[in->index] << in->scale) + (uint64_t)(int64_t)in->disp;
    if (in->base == INSN_REG_NONE && in->index == INSN_REG_NONE && !in->disp && !in->modrm)
        offset = in->imm; /* moffs */
    if (in->asize == 4)
        offset = (uint32_t)offset;
    else if (in->asize == 2)
        offset = (uint16_t)offset;
    if (cpu->code64)
        return offset + cpu->seg_base[in->segment];
    return access_segment(cpu, u, in->segment, offset, size, write);
}
