/* SPDX-License-Identifier: MIT */
/* Decoded blocks, cached by guest physical address and mode. A block never crosses a page, but for a single instruction that
 * does. */
#include <stdlib.h>
#include <string.h>

#include "../decode/isa.h"
#include "cache_growth.h"
#include "coverage.h"
#include "exec.h"
#include "exec_select.h"

#ifndef SEGMENTS
#define SEGMENTS 256u
#endif
#define SEGMENT_BYTES (512u << 10) /* an eviction costs all links of interpreted blocks: not too often */
/* Of segments, at first and at most: each processor's, and what all of a machine share in. */
static const struct cache_room room = {.first = 32, .first_machine = 32, .first_least = 4, .most = SEGMENTS, .most_machine = 2 * SEGMENTS,
                                       .most_least = 64, .ticks = 50000000};
#define EVICTED_WORDS 4096u
#define BLOCKS_A_CHAIN 1u /* at most, as a rule: each is a line that the host's cache is not likely to have */
#define BLOCK_BYTES_USUAL 512u

/* Blocks lie in segments, which are filled one after another and emptied as a whole: by CLOCK, an approximation of LRU. */
struct segment {
    uint8_t *blocks; /* touched as it fills */
    size_t used;
    uint8_t seen;    /* one of its blocks was entered, as far as anybody saw, since the hand passed */
};

struct block_cache {
    struct block **hash;
    unsigned hash_bits;
    uint8_t *arena;
    size_t segment_bytes;
    struct segment segments[SEGMENTS], *filling;
    struct cache_growth growth; /* in segments */
    /* Blocks that were, in this round (struct cache_growth) and the one before: filters of one hash. */
    uint64_t evicted[2][EVICTED_WORDS];
    unsigned evicting; /* into which of them */
    struct block *scratch; /* for block_single */
    uint64_t flushes;      /* times that blocks went */
    uint8_t *coverage; /* NULL but in builds that ask which rows are executed */
};

static size_t block_bytes(unsigned count)
{
    return align_up(sizeof(struct block) + count * sizeof(struct uop), 64);
}

struct block_cache *block_cache_create(unsigned processors, size_t bytes)
{
    struct block_cache *cache = calloc(1, sizeof *cache);
    if (!cache)
        return NULL;
    cache->segment_bytes = SEGMENT_BYTES;
    cache->growth = cache_growth_of(&room, processors);
    if (bytes) { /* that and no more */
        unsigned count = (unsigned)MIN(MAX(bytes / SEGMENT_BYTES, 4u), SEGMENTS);
        cache->segment_bytes = align_up(MAX(bytes / count, 2 * block_bytes(BLOCK_MAX_INSNS + 1)), 64);
        cache->growth = (struct cache_growth){.count = count, .most = count};
    }
    size_t arena_bytes = cache->growth.most * cache->segment_bytes;
    cache->hash_bits = 63u - (unsigned)__builtin_clzll(arena_bytes / BLOCK_BYTES_USUAL / BLOCKS_A_CHAIN | 1024);
    cache->hash = calloc(1u << cache->hash_bits, sizeof *cache->hash);
    cache->arena = aligned_alloc(64, arena_bytes);
    for (unsigned i = 0; cache->arena && i < cache->growth.most; i++)
        cache->segments[i].blocks = cache->arena + i * cache->segment_bytes;
    cache->filling = cache->segments;
    cache_growth_restart(&cache->growth);
    cache->scratch = aligned_alloc(64, block_bytes(2));
    if (!cache->hash || !cache->arena || !cache->scratch) {
        block_cache_destroy(cache);
        return NULL;
    }
    cache->coverage = coverage_open();
    return cache;
}

void block_cache_destroy(struct block_cache *cache)
{
    if (!cache)
        return;
    coverage_close(cache->coverage);
    free(cache->hash);
    free(cache->arena);
    free(cache->scratch);
    free(cache);
}

/* Everything cached goes; linear-address caches notice by the epoch. */
static void cache_flush(struct cpu *cpu)
{
    struct block_cache *cache = cpu->blocks;
    if (cpu->translator)
        cpu->translator_ops->forget(cpu, cpu->translator);
    for (unsigned i = 0; i < 1u << cache->hash_bits; i++)
        cache->hash[i] = NULL;
    for (unsigned i = 0; i < cache->growth.count; i++)
        cache->segments[i].used = cache->segments[i].seen = 0;
    cache->filling = cache->segments;
    cache_growth_restart(&cache->growth);
    cpu->block = NULL;
    cache->flushes++;
    cpu->counts.blocks_emptied++;
    mmu_forget_blocks(&cpu->mmu);
}

static struct block **hash_slot(struct block_cache *cache, uint64_t gpa)
{
    return &cache->hash[(gpa ^ gpa >> cache->hash_bits) & ((1u << cache->hash_bits) - 1)];
}

static unsigned evicted_place(uint64_t gpa, uint64_t *bit)
{
    uint64_t hash = gpa * UINT64_C(0x9e3779b97f4a7c15) >> 32;
    *bit = UINT64_C(1) << hash % 64;
    return hash / 64 % EVICTED_WORDS;
}

static void note_evicted(struct block_cache *cache, uint64_t gpa)
{
    uint64_t bit;
    unsigned word = evicted_place(gpa, &bit);
    cache->evicted[cache->evicting][word] |= bit;
}

static void begin_evicting(struct block_cache *cache)
{
    cache->evicting ^= 1;
    for (unsigned i = 0; i < EVICTED_WORDS; i++)
        cache->evicted[cache->evicting][i] = 0;
}

static bool was_evicted(const struct block_cache *cache, uint64_t gpa)
{
    uint64_t bit;
    unsigned word = evicted_place(gpa, &bit);
    return (cache->evicted[0][word] | cache->evicted[1][word]) & bit;
}

static void hash_remove(struct block_cache *cache, const struct block *block)
{
    struct block **link = hash_slot(cache, block->gpa);
    while (*link && *link != block)
        link = &(*link)->hash_next;
    if (*link) /* else it was stale, and has left already */
        *link = block->hash_next;
}

/* Links to its blocks are known by the number of evictions to be old (block_key). */
static void segment_evict(struct cpu *cpu, struct segment *segment)
{
    struct block_cache *cache = cpu->blocks;
    for (size_t at = 0; at < segment->used;) {
        struct block *block = (struct block *)(segment->blocks + at);
        at += block_bytes(block->count + 1);
        hash_remove(cache, block);
        if (block_is_current(block)) /* else what comes there is something else */
            note_evicted(cache, block->gpa);
        if (block->translated)
            cpu->translator_ops->forget_block(cpu, cpu->translator, block);
        if (cpu->block == block)
            cpu->block = NULL;
    }
    segment->used = 0;
    cache->flushes++;
    cpu->blocks_evicted++;
    cpu->counts.blocks_emptied++;
}

/* One that was never filled, or the next whose blocks seem not to have been entered since the hand came by. */
static void segment_next(struct cpu *cpu)
{
    struct block_cache *cache = cpu->blocks;
    bool fresh = cache_growth_next(&cache->growth);
    if (!cache->growth.segments)
        begin_evicting(cache);
    if (fresh) {
        cache->filling = &cache->segments[cache->growth.begun - 1];
        return;
    }
    for (;;) {
        if (++cache->filling == &cache->segments[cache->growth.count])
            cache->filling = cache->segments;
        if (!cache->filling->seen)
            break;
        cache->filling->seen = false;
    }
    segment_evict(cpu, cache->filling);
}

static void block_end(struct cpu *cpu, const struct uop *u)
{
    /* the pseudo-instruction behind the last one: u->offset is the block's length */
    cpu->rip = (cpu->gpr[GPR_BLOCK_RIP] + u->offset) & cpu_rip_mask(cpu);
}

static void raise_undefined(struct cpu *cpu, const struct uop *u)
{
    raise_ud(cpu, u);
}

static void raise_too_long(struct cpu *cpu, const struct uop *u)
{
    raise_gp(cpu, u, 0);
}

static exec_fn *exec_select(struct cpu *cpu, const struct insn *in, bool ea_slow)
{
    switch (in->op) {
    case OP_MOVZX:
    case OP_MOVSX:
    case OP_MOVSXD:
        return exec_select_widen(in, insn_operand_size(in, 1));
    case OP_LEA:
        return exec_select_lea(in, ea_slow);
    case OP_JCC:
        return exec_select_jcc(in, cpu->code64);
    }
    uint16_t feature = op_infos[in->op].feature;
    /* hints are no-operations where they are not known; LAHF and SAHF are a feature in 64-bit mode alone */
    if (in->op == OP_LAHF || in->op == OP_SAHF)
        feature = cpu->code64 ? FEATURE_LAHF64 : FEATURE_BASE;
    else if (op_infos[in->op].attributes & OPA_NO_MEM)
        feature = FEATURE_BASE;
    if (feature != FEATURE_BASE && !cpuid_has(&cpu->cpuid, (enum cpu_feature)feature))
        return NULL;
    const struct exec_def *def = cpu->exec_table[in->op][in->form];
    static const uint8_t log2_size[9] = {[1] = 0, [2] = 1, [4] = 2, [8] = 3};
    if (!def)
        return NULL;
    if (def->any)
        return def->any;
    return (*def->set)[in->flags & INSN_MEM ? 1 : 0][in->osize <= 8 ? log2_size[in->osize] : 0];
}

static void uop_prepare(struct cpu *cpu, struct uop *u, unsigned offset, unsigned index)
{
    struct insn *in = &u->in;
    u->offset = (uint16_t)offset;
    u->next = (uint16_t)(offset + in->length);
    u->index = (uint16_t)index;
    u->native = NULL;
    u->unit = 0;
    u->mem_size = 0;
    u->pages = 0;
    bool moffs = (in->flags & INSN_MEM) && !in->modrm && in->base == INSN_REG_NONE && in->index == INSN_REG_NONE;
    u->ea_slow = !cpu->code64 || in->asize != 8 || moffs;
    if (in->base == INSN_REG_RIP && !u->ea_slow) {
        int32_t disp;
        if (__builtin_add_overflow(in->disp, (int32_t)u->next, &disp))
            u->ea_slow = true;
        else
            in->disp = disp; /* from now on relative to the block, which gpr[17] holds */
    }
    /* F3 before BSF and BSR means nothing to a processor without TZCNT and LZCNT, and compilers count on it */
    if (in->op == OP_TZCNT && !cpuid_has(&cpu->cpuid, FEATURE_BMI1))
        in->op = OP_BSF;
    else if (in->op == OP_LZCNT && !cpuid_has(&cpu->cpuid, FEATURE_LZCNT))
        in->op = OP_BSR;
    if (op_infos[in->op].kind == OPK_NATIVE)
        exec_select_native(cpu, u);
    else
        u->fn = exec_select(cpu, in, u->ea_slow);
    if (!u->fn)
        u->fn = raise_undefined;
}

static bool exec_is_undefined(const struct uop *u)
{
    return u->fn == raise_undefined || (op_infos[u->in.op].kind == OPK_NATIVE && !u->native);
}

/* Does the block go on behind this instruction? Behind a jump forward it does, for when it is not taken; what jumps back
 * goes round in a circle, whose head is then a block's head. */
static bool block_goes_on(const struct insn *in)
{
    if (in->op == OP_JCC)
        return (int64_t)in->imm > 0;
    return !(op_infos[in->op].attributes & OPA_ENDS_BLOCK);
}

/* What a block is decoded from: others may write it meanwhile, so each byte is read once. */
struct code_bytes {
    const volatile uint8_t *low, *high; /* as far as the page goes, and where it goes on */
    unsigned low_bytes, available;
    unsigned have;
    uint8_t bytes[BLOCK_MAX_INSNS * INSN_MAX_BYTES];
};

static uint8_t guest_byte(const struct code_bytes *code, unsigned i)
{
    return i < code->low_bytes ? code->low[i] : code->high[i - code->low_bytes];
}

static void have_bytes(struct code_bytes *code, unsigned count)
{
    for (; code->have < MIN(count, code->available); code->have++)
        code->bytes[code->have] = guest_byte(code, code->have);
}

/* Decodes until the block must end. */
static void block_decode(struct cpu *cpu, struct block *block, struct code_bytes *code, unsigned most)
{
    unsigned offset = 0, count = 0;
    while (count < most) {
        struct uop *u = &block->uops[count];
        have_bytes(code, offset + INSN_MAX_BYTES);
        int length = insn_decode(&u->in, code->bytes + offset, code->have - offset, (enum insn_mode)cpu->mode);
        if (length == INSN_ERR_TRUNCATED)
            break;
        if (length < 0) {
            *u = (struct uop){.fn = length == INSN_ERR_UNDEFINED ? raise_undefined : raise_too_long,
                              .offset = (uint16_t)offset, .next = (uint16_t)(offset + 1), .index = (uint16_t)count};
            count++;
            offset++;
            break;
        }
        uop_prepare(cpu, u, offset, count);
        coverage_note(cpu->blocks->coverage, u->in.row, exec_is_undefined(u));
        offset += (unsigned)length;
        count++;
        if (!block_goes_on(&u->in))
            break;
    }
    block->count = (uint16_t)count;
    block->bytes = (uint16_t)offset;
    block->uops[count] = (struct uop){.fn = block_end, .offset = (uint16_t)offset, .index = (uint16_t)count};
}

static const struct fetch_entry *fetch_page(struct cpu *cpu, uint64_t linear)
{
    struct mmu_fault fault;
    const struct fetch_entry *entry = mmu_fetch(&cpu->mmu, linear, cpu->cpl == 3, &fault);
    if (likely(entry != NULL))
        return entry;
    if (fault.general_protection)
        raise_error(cpu, NULL, EXC_GP, 0);
    cpu->s.cr2 = linear;
    raise_error(cpu, NULL, EXC_PF, fault.error_code);
}

static uint64_t code_linear(struct cpu *cpu)
{
    if (likely(cpu->code64))
        return cpu->rip;
    if (cpu->rip > cpu->s.segment[CS].limit)
        raise_error(cpu, NULL, EXC_GP, 0);
    return (uint32_t)(cpu->seg_base[CS] + cpu->rip);
}

/* Fetches up to 15 bytes at rip, across a page and from MMIO, and decodes one instruction. */
struct block *block_single(struct cpu *cpu)
{
    struct block *block = cpu->blocks->scratch;
    uint8_t bytes[INSN_MAX_BYTES];
    unsigned have = 0;
    struct code_bytes code;
    uint64_t linear = code_linear(cpu);
    if (unlikely(cpu->points.code))
        points_meet_code(cpu, linear);
    const struct fetch_entry *entry = fetch_page(cpu, linear);
    for (;;) {
        unsigned offset = (unsigned)(linear % GUEST_PAGE_SIZE);
        unsigned n = MIN(INSN_MAX_BYTES - have, GUEST_PAGE_SIZE - offset);
        if (!cpu->code64)
            n = (unsigned)MIN(n, cpu->s.segment[CS].limit - cpu->rip + 1 - have);
        for (unsigned i = 0; i < n; i++) {
            uint64_t gpa = entry->gpa + offset + i;
            if (entry->region) {
                bytes[have++] = entry->region->host[gpa - entry->region->gpa];
            } else {
                cpu_fpu_leave(cpu);
                bytes[have++] = (uint8_t)cpu->callbacks.mmio_read(cpu->opaque, gpa, 1);
            }
        }
        /* The second page is touched only when the instruction reaches it: its fault must not come early. */
        struct insn in;
        if (have == INSN_MAX_BYTES || insn_decode(&in, bytes, have, (enum insn_mode)cpu->mode) != INSN_ERR_TRUNCATED)
            break;
        linear += n;
        if (!cpu->code64) {
            if (cpu->rip + have > cpu->s.segment[CS].limit) /* before the next page is asked for */
                raise_error(cpu, NULL, EXC_GP, 0);
            linear = (uint32_t)linear;
        }
        if (linear % GUEST_PAGE_SIZE)
            continue;
        entry = fetch_page(cpu, linear);
    }
    block->mode = (uint8_t)(cpu->mode | MODE_SINGLE);
    block->user = cpu->cpl == 3;
    block->links[0] = block->links[1] = (struct block_link){0};
    block->translated = NULL;
    block->gpa = 0;
    block->across_now = NULL;
    code.low = bytes;
    code.low_bytes = code.available = have;
    code.have = 0;
    block_decode(cpu, block, &code, 1);
    return block;
}

static size_t page_index(const struct guest_region *region, uint64_t gpa)
{
    return (gpa - region->gpa) / GUEST_PAGE_SIZE;
}

/* Where the next block goes, and what is true of it already. */
static struct block *block_begin(struct cpu *cpu, const struct guest_region *region, uint64_t gpa)
{
    struct block_cache *cache = cpu->blocks;
    if (cache->filling->used + block_bytes(BLOCK_MAX_INSNS + 1) > cache->segment_bytes)
        segment_next(cpu);
    struct block *block = (struct block *)(cache->filling->blocks + cache->filling->used);
    block->seen = &cache->filling->seen;
    block->links[0] = block->links[1] = (struct block_link){0};
    block->translated = NULL;
    block->runs = block->incoming = 0;
    block->interpret = block->lost = false;
    block->gpa = gpa;
    block->mode = cpu->mode;
    block->user = cpu->cpl == 3;
    block->across_now = NULL;
    block->generation_now = &region->code_generation[page_index(region, gpa)];
    block->generation = atomic_load(block->generation_now);
    return block;
}

/* Thunks it points to may be gone: the cache of thunks has started over. Then so do all blocks. */
static bool lost_its_thunks(struct cpu *cpu)
{
    if (likely(cpu->native->generation == cpu->native_generation))
        return false;
    cpu->native_generation = cpu->native->generation;
    cache_flush(cpu);
    return true;
}

/* The bytes at gpa are code from now on, and whoever writes them after this has returned sees that. If the page had none
 * before, write translations of it must go, here and on every processor; while another processor sees to that, what was
 * decoded may be written unseen as well. `settled`: that was seen to for this block. If it had some, a store that looked
 * before the mark may still come. */
static void mark_code(struct cpu *cpu, const struct guest_region *region, uint64_t gpa, uint32_t size, bool settled)
{
    struct guest_mem *mem = cpu->mmu.mem;
    bool first = guest_mem_settle_code(mem, region, gpa, size);
    bool more = !first && (settled || !atomic_load(&mem->code_settling));
    if (unlikely(!more))
        mmu_drop_writes(&cpu->mmu, gpa);
    if (cpu->callbacks.code_added)
        cpu->callbacks.code_added(cpu->opaque, gpa, more);
    if (first)
        guest_mem_code_settled(mem);
}

/* Was it written between being read and being marked? If not by somebody who saw the mark it must be decoded again; else
 * it will not be found again, and may run once, should it be written all the time. */
static bool written_meanwhile(const struct block *block, const struct code_bytes *code, bool settled)
{
    if (!block_is_current(block))
        return !settled;
    for (unsigned i = 0; i < block->bytes; i++)
        if (code->bytes[i] != guest_byte(code, i))
            return true;
    return false;
}

static struct block *block_enter(struct cpu *cpu, struct block *block)
{
    struct block_cache *cache = cpu->blocks;
    struct block **slot = hash_slot(cache, block->gpa);
    block->hash_next = *slot;
    *slot = block;
    cache->filling->used += block_bytes(block->count + 1);
    cache_growth_note(&cache->growth, was_evicted(cache, block->gpa));
    cpu->counts.blocks_decoded++;
    return block;
}

static struct block *block_build(struct cpu *cpu, const struct fetch_entry *entry, uint64_t gpa, bool settled)
{
    const struct guest_region *region = entry->region;
    struct block *block = block_begin(cpu, region, gpa);
    unsigned room = GUEST_PAGE_SIZE - (unsigned)(gpa % GUEST_PAGE_SIZE);
    if (!cpu->code64) {
        /* code beyond the segment's limit must fault there, not here */
        uint64_t left = (uint64_t)cpu->s.segment[CS].limit - cpu->rip + 1;
        room = (unsigned)MIN(left, room);
    }
    struct code_bytes code;
    code.low = region->host + (gpa - region->gpa);
    code.low_bytes = code.available = room;
    code.have = 0;
    block_decode(cpu, block, &code, COVERAGE_MOST_INSNS);
    if (unlikely(lost_its_thunks(cpu)))
        return block_build(cpu, entry, gpa, settled);
    if (!block->count)
        return NULL;
    mark_code(cpu, region, gpa, block->bytes, settled);
    return unlikely(written_meanwhile(block, &code, settled)) ? block_build(cpu, entry, gpa, true) : block_enter(cpu, block);
}

/* Neither the segment's limit nor the end of the linear addresses is met on the way into the next page. */
static bool may_cross(const struct cpu *cpu, uint64_t linear)
{
    return cpu->code64 || (cpu->rip + INSN_MAX_BYTES - 1 <= cpu->s.segment[CS].limit && linear < align_down(UINT32_MAX, GUEST_PAGE_SIZE));
}

/* An instruction, at gpa, that goes on in the next page. */
static struct block *block_build_across(struct cpu *cpu, struct fetch_entry low, uint64_t linear, bool settled)
{
    const struct fetch_entry high = *fetch_page(cpu, align_down(linear, GUEST_PAGE_SIZE) + GUEST_PAGE_SIZE);
    if (!high.region)
        return block_single(cpu);
    uint64_t gpa = low.gpa + linear % GUEST_PAGE_SIZE;
    unsigned have = GUEST_PAGE_SIZE - (unsigned)(linear % GUEST_PAGE_SIZE);
    struct block *block = block_begin(cpu, low.region, gpa);
    block->across_gpa = high.gpa;
    block->across_now = &high.region->code_generation[page_index(high.region, high.gpa)];
    block->across_generation = atomic_load(block->across_now);
    struct code_bytes code;
    code.low = low.region->host + (gpa - low.region->gpa);
    code.high = high.region->host + (high.gpa - high.region->gpa);
    code.low_bytes = have;
    code.available = INSN_MAX_BYTES;
    code.have = 0;
    block_decode(cpu, block, &code, 1);
    if (unlikely(lost_its_thunks(cpu)))
        return block_build_across(cpu, low, linear, settled);
    if (block->bytes <= have)
        return block_single(cpu); /* written in the meantime */
    mark_code(cpu, low.region, gpa, have, settled);
    mark_code(cpu, high.region, high.gpa, block->bytes - have, settled);
    return unlikely(written_meanwhile(block, &code, settled)) ? block_build_across(cpu, low, linear, true) : block_enter(cpu, block);
}

/* The page in which it goes on is still that. */
static bool across_holds(struct cpu *cpu, const struct block *block, uint64_t linear)
{
    return !block->across_now ||
           fetch_page(cpu, align_down(linear, GUEST_PAGE_SIZE) + GUEST_PAGE_SIZE)->gpa == block->across_gpa;
}

static struct block *block_lookup(struct cpu *cpu, uint64_t linear)
{
    cpu->counts.blocks_looked_up++;
    const struct fetch_entry found = *fetch_page(cpu, linear), *entry = &found;
    if (unlikely(!entry->region) || unlikely(cpu->points.code && points_on_page(&cpu->points, linear)))
        return block_single(cpu);
    uint64_t gpa = entry->gpa + linear % GUEST_PAGE_SIZE;
    struct block **link = hash_slot(cpu->blocks, gpa);
    while (*link) {
        struct block *block = *link;
        if (block->gpa == gpa && block->mode == cpu->mode && block->user == (cpu->cpl == 3)) {
            if (!block_is_current(block)) {
                *link = block->hash_next; /* its bytes were written */
                cpu->counts.blocks_stale++;
                continue;
            }
            if (across_holds(cpu, block, linear))
                return block;
        }
        link = &block->hash_next;
    }
    struct block *block = block_build(cpu, entry, gpa, false);
    if (block)
        return block;
    return may_cross(cpu, linear) ? block_build_across(cpu, found, linear, false) : block_single(cpu);
}

/* linear UINT64_MAX: to be computed, with the segment's base and limit. */
struct block *block_find_slow(struct cpu *cpu, uint64_t linear, uint64_t key)
{
    if (linear == UINT64_MAX) {
        linear = code_linear(cpu);
        key = block_key(cpu);
    }
    struct block_link *jump = &cpu->jump[(linear ^ linear >> 12) % JUMP_CACHE_ENTRIES];
    struct block *from = cpu->block, *block;
    uint64_t decoded = cpu->counts.blocks_decoded;
    if (likely(jump->linear == linear && jump->key == key)) {
        block = jump->block;
    } else {
        uint64_t flushes = cpu->blocks->flushes;
        uint32_t written = code_written(cpu); /* before it is found current: what comes later makes the key another */
        block = block_lookup(cpu, linear);
        if (block->mode & MODE_SINGLE)
            return block;
        key = block_key_at(cpu, written); /* decoding may have emptied the cache */
        *jump = (struct block_link){linear, key, block};
        if (flushes != cpu->blocks->flushes)
            return block; /* `from` is gone */
    }
    if (decoded == cpu->counts.blocks_decoded) /* once is not yet use */
        *block->seen = true;
    if (!cpu->code64 && unlikely(cpu->rip + block->bytes - 1 > cpu->s.segment[CS].limit))
        return block_single(cpu); /* decoded when the segment was longer */
    if (from && cpu->code64) {
        from->links[1] = from->links[0];
        from->links[0] = (struct block_link){linear, key, block};
    }
    return block;
}
