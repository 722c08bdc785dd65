/* SPDX-License-Identifier: MIT */
/* The code cache is filled a segment after another, and a segment is emptied as a whole: by CLOCK, an approximation of LRU.
 * Each has a part for what is run often and one for what is not, exits and traps of its own. */
#include <stdlib.h>

#include "translate.h"

/* Enough for any code, in proportion to its bytes. */
#define BYTES_PER_EXIT 64u
#define BYTES_PER_TRAP 128u

static struct jit_segment *filling(struct translator *jit)
{
    return &jit->segments[jit->filling];
}

static void begin(struct translator *jit)
{
    const struct jit_segment *segment = filling(jit);
    jit->used = segment->hot;
    jit->cold_used = segment->cold;
    jit->exit_count = segment->first_exit - 1;
    jit->traps = segment->traps;
    jit->trap_count = 0;
}

size_t jit_code_bytes(unsigned processors, size_t wanted)
{
    if (wanted) /* parts of segments must have room for a block and more */
        return align_up(MAX(wanted, (size_t)JIT_SEGMENTS * 6 * JIT_BLOCK_BYTES), 4096);
    return MAX(MIN(JIT_CODE_BYTES_MACHINE / MAX(processors, 1u), JIT_CODE_BYTES_MAX), JIT_CODE_BYTES_MIN) & ~(size_t)4095;
}

bool jit_segments_create(struct translator *jit)
{
    size_t bytes = (jit->memory.bytes - jit->first_free) / JIT_SEGMENTS, hot = align_down(bytes * 3 / 8, 64);
    size_t cold = align_down(bytes - hot, 64), cold_at = jit->first_free + JIT_SEGMENTS * hot;
    uint32_t exits = (uint32_t)(bytes / BYTES_PER_EXIT), traps = (uint32_t)(bytes / BYTES_PER_TRAP);
    jit->exits_a_segment = exits;
    jit->traps_a_segment = traps;
    jit->exits = malloc((1 + JIT_SEGMENTS * (size_t)exits) * sizeof *jit->exits); /* touched as they are used */
    jit->all_traps = malloc(JIT_SEGMENTS * (size_t)traps * sizeof *jit->all_traps);
    if (!jit->exits || !jit->all_traps)
        return false;
    for (unsigned i = 0; i < JIT_SEGMENTS; i++)
        jit->segments[i] = (struct jit_segment){
            .hot = jit->first_free + i * hot, .hot_end = jit->first_free + (i + 1) * hot,
            .cold = cold_at + i * cold, .cold_end = cold_at + (i + 1) * cold,
            .first_exit = 1 + i * exits, .traps = jit->all_traps + i * (size_t)traps,
        };
    jit_segments_reset(jit);
    return true;
}

void jit_segments_reset(struct translator *jit)
{
    for (unsigned i = 0; i < JIT_SEGMENTS; i++) {
        jit->segments[i].trap_count = 0;
        jit->segments[i].seen = jit->segments[i].full = false;
    }
    jit->filling = 0;
    begin(jit);
}

bool jit_segment_has_room(const struct translator *jit)
{
    const struct jit_segment *segment = &jit->segments[jit->filling];
    return jit->trap_count + 2 * BLOCK_MAX_INSNS <= jit->traps_a_segment && jit->used + JIT_BLOCK_BYTES <= segment->hot_end &&
           jit->cold_used + JIT_BLOCK_BYTES <= segment->cold_end &&
           jit->exit_count + 4 * BLOCK_MAX_INSNS < segment->first_exit + jit->exits_a_segment;
}

static bool lies_in(const struct translator *jit, const struct jit_segment *segment, const void *code)
{
    size_t at = (size_t)((const uint8_t *)code - jit->executable);
    return at >= segment->hot && at < segment->hot_end;
}

/* Its exits leave the list of links from page to page. */
static void drop_crossing(struct translator *jit, const struct jit_segment *segment)
{
    for (uint32_t *link = &jit->crossing; *link;) {
        struct jit_exit *exit = &jit->exits[*link];
        if (*link - segment->first_exit < jit->exits_a_segment)
            *link = exit->next_crossing;
        else
            link = &exit->next_crossing;
    }
}

static void evict(struct cpu *cpu, struct translator *jit, struct jit_segment *segment)
{
    for (unsigned i = 0; i < JIT_PAGE_BUCKETS; i++)
        for (struct block *block = jit->pages[i], *next; block; block = next) {
            next = block->page_next;
            if (lies_in(jit, segment, block->translated))
                jit_kill(jit, block);
        }
    for (unsigned i = 0; i < JIT_JUMPS; i++)
        if (jit->jumps[i].code && lies_in(jit, segment, jit->jumps[i].code))
            jit->jumps[i].code = NULL, jit->jumps[i].key = UINT64_MAX;
    drop_crossing(jit, segment);
    if (cpu->link_from - segment->first_exit < jit->exits_a_segment)
        cpu->link_from = 0;
    segment->trap_count = 0;
    segment->full = false;
    jit->counts->translator_emptied++;
}

void jit_segment_next(struct cpu *cpu, struct translator *jit)
{
    filling(jit)->trap_count = jit->trap_count;
    filling(jit)->full = true;
    for (;;) {
        jit->filling = (jit->filling + 1) % JIT_SEGMENTS;
        if (!filling(jit)->seen)
            break;
        filling(jit)->seen = false;
    }
    if (filling(jit)->full)
        evict(cpu, jit, filling(jit));
    begin(jit);
}

const struct jit_trap *jit_segment_traps(const struct translator *jit, uint64_t pc, unsigned *count)
{
    for (unsigned i = 0; i < JIT_SEGMENTS; i++) {
        const struct jit_segment *segment = &jit->segments[i];
        if (pc >= segment->hot && pc < segment->hot_end) {
            *count = i == jit->filling ? jit->trap_count : segment->trap_count;
            return segment->traps;
        }
    }
    *count = 0;
    return NULL;
}
