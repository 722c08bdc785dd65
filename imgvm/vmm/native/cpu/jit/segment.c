/* SPDX-License-Identifier: MIT */
/* The code cache is filled a segment after another, and a segment is emptied as a whole: by CLOCK, an approximation of LRU.
 * Each has a part for what is run often and one for what is not, exits and traps of its own. */
#include <stdlib.h>

#include "translate.h"

/* Enough for any code, in proportion to its bytes. */
#define BYTES_PER_EXIT 64u
#define BYTES_PER_TRAP 128u
#define SEGMENTS_FIXED 8u /* when somebody says how much code there may be */

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

size_t jit_segments_plan(struct translator *jit, unsigned processors, size_t wanted)
{
    static const struct cache_room room = {.first = 32, .first_machine = 24, .first_least = 3, .most = JIT_SEGMENTS,
                                           .most_machine = 2 * JIT_SEGMENTS, .most_least = 32, .ticks = 300000000};
    jit->growth = cache_growth_of(&room, processors);
    if (!wanted)
        return (size_t)jit->growth.most * JIT_SEGMENT_BYTES;
    unsigned count = MIN(SEGMENTS_FIXED, JIT_SEGMENTS);
    jit->growth = (struct cache_growth){.count = count, .most = count};
    return align_up(MAX(wanted, (size_t)count * 6 * JIT_INSN_BYTES * (BLOCK_MAX_INSNS + 1)), 4096);
}

bool jit_segments_create(struct translator *jit)
{
    unsigned most = jit->growth.most;
    size_t bytes = (jit->memory.bytes - jit->first_free) / most, hot = align_down(bytes * 3 / 8, 64);
    size_t cold = align_down(bytes - hot, 64), cold_at = jit->first_free + most * hot;
    uint32_t exits = (uint32_t)(bytes / BYTES_PER_EXIT), traps = (uint32_t)(bytes / BYTES_PER_TRAP);
    jit->exits_a_segment = exits;
    jit->traps_a_segment = traps;
    jit->exits = malloc((1 + most * (size_t)exits) * sizeof *jit->exits); /* touched as they are used */
    jit->all_traps = malloc(most * (size_t)traps * sizeof *jit->all_traps);
    if (!jit->exits || !jit->all_traps)
        return false;
    for (unsigned i = 0; i < most; i++)
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
    for (unsigned i = 0; i < jit->growth.most; i++) {
        jit->segments[i].trap_count = 0;
        jit->segments[i].blocks = NULL;
        jit->segments[i].seen = false;
    }
    jit->filling = 0;
    cache_growth_restart(&jit->growth);
    begin(jit);
}

bool jit_segment_has_room(const struct translator *jit, unsigned instructions)
{
    const struct jit_segment *segment = &jit->segments[jit->filling];
    size_t bytes = JIT_INSN_BYTES * (instructions + 1);
    return jit->trap_count + 2 * BLOCK_MAX_INSNS <= jit->traps_a_segment && jit->used + bytes <= segment->hot_end &&
           jit->cold_used + bytes <= segment->cold_end &&
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
    while (segment->blocks) {
        struct block *block = segment->blocks;
        jit_kill(jit, block);
        block->lost = true;
    }
    for (unsigned i = 0; i < JIT_JUMPS; i++)
        if (jit->jumps[i].code && lies_in(jit, segment, jit->jumps[i].code))
            jit->jumps[i].code = NULL, jit->jumps[i].key = UINT64_MAX;
    drop_crossing(jit, segment);
    if (cpu->link_from - segment->first_exit < jit->exits_a_segment)
        cpu->link_from = 0;
    segment->trap_count = 0;
    jit->counts->translator_emptied++;
}

void jit_segment_next(struct cpu *cpu, struct translator *jit)
{
    filling(jit)->trap_count = jit->trap_count;
    if (cache_growth_next(&jit->growth)) {
        jit->filling = jit->growth.begun - 1;
        begin(jit);
        return;
    }
    for (;;) {
        jit->filling = (jit->filling + 1) % jit->growth.count;
        if (!filling(jit)->seen)
            break;
        filling(jit)->seen = false;
    }
    evict(cpu, jit, filling(jit));
    begin(jit);
}

const struct jit_trap *jit_segment_traps(const struct translator *jit, uint64_t pc, unsigned *count)
{
    for (unsigned i = 0; i < jit->growth.count; i++) {
        const struct jit_segment *segment = &jit->segments[i];
        if (pc >= segment->hot && pc < segment->hot_end) {
            *count = i == jit->filling ? jit->trap_count : segment->trap_count;
            return segment->traps;
        }
    }
    *count = 0;
    return NULL;
}
