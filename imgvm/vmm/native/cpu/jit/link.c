/* SPDX-License-Identifier: MIT */
/* Ways from block to block, and the end of blocks whose code was written. */
#include <string.h>

#include "translate.h"

#define NO_EPOCH 0u

static struct block **page_bucket(struct translator *jit, uint64_t gpa)
{
    return &jit->pages[(gpa / GUEST_PAGE_SIZE) % JIT_PAGE_BUCKETS];
}

void jit_register(struct translator *jit, struct block *block)
{
    struct block **bucket = page_bucket(jit, block->gpa);
    block->page_next = *bucket;
    *bucket = block;
    struct block **segment = &jit->segments[block->translated_segment].blocks;
    block->segment_next = *segment;
    block->segment_link = segment;
    if (*segment)
        (*segment)->segment_link = &block->segment_next;
    *segment = block;
    if (block->across_now) {
        block->across_next = jit->across;
        jit->across = block;
    }
}

static void unregister(struct translator *jit, struct block *block)
{
    struct block **link = page_bucket(jit, block->gpa);
    while (*link != block)
        link = &(*link)->page_next;
    *link = block->page_next;
    *block->segment_link = block->segment_next;
    if (block->segment_next)
        block->segment_next->segment_link = block->segment_link;
    if (!block->across_now)
        return;
    for (link = &jit->across; *link != block;)
        link = &(*link)->across_next;
    *link = block->across_next;
}

/* ---- links ---- */

/* `code` as the writable mapping has it: distances are the same in both. */
static const uint8_t *writable_code(const struct translator *jit, const struct block *block)
{
    return jit->writable + ((const uint8_t *)block->translated - jit->executable);
}

static void unlink_exit(struct translator *jit, uint32_t number)
{
    struct jit_exit *exit = &jit->exits[number];
    if (!exit->to)
        return;
    if (exit->previous)
        jit->exits[exit->previous].next = exit->next;
    else
        exit->to->incoming = exit->next;
    if (exit->next)
        jit->exits[exit->next].previous = exit->previous;
    exit->to = NULL;
    exit->next = exit->previous = 0;
}

/* What an exit's check expects, and where it goes otherwise. */
static void set_check(struct jit_exit *exit, uint32_t epoch, const uint8_t *stale)
{
    memcpy(exit->expected, &epoch, 4);
    patch_jump(exit->expected + 4 + 2, stale); /* jne */
}

/* Where it goes if only the epoch is another. */
static void set_again(struct jit_exit *exit, uint32_t page, const uint8_t *code)
{
    if (!exit->again_page)
        return;
    memcpy(exit->again_page, &page, 4);
    patch_jump(exit->again_jump, code);
}

void jit_exit_unlinked(struct jit_exit *exit)
{
    set_check(exit, NO_EPOCH, exit->tail);
    set_again(exit, JIT_NO_PAGE, exit->tail);
}

static void point_to_tail(struct jit_exit *exit)
{
    if (exit->hot)
        patch_jump(exit->hot, exit->stub);
    patch_jump(exit->stub_jump, exit->tail);
    if (exit->expected)
        jit_exit_unlinked(exit);
}

void jit_link(struct cpu *cpu, struct translator *jit, uint32_t number, struct block *block)
{
    struct jit_exit *exit = &jit->exits[number];
    if (jit_exit_target(cpu, exit) != cpu->rip || exit->mode != block->translated_mode)
        return;
    if (!exit->expected && exit->floats != block->floats)
        return; /* one would be where the other cannot */
    unlink_exit(jit, number);
    if (exit->floats && exit->expected && !mmu_pages_are_single(&cpu->mmu)) {
        set_check(exit, NO_EPOCH, exit->tail + JIT_TAIL_BYTES); /* the table knows */
        set_again(exit, JIT_NO_PAGE, exit->tail);
        return;
    }
    jit->counts->linked++;
    exit->to = block;
    exit->next = block->incoming;
    if (exit->next)
        jit->exits[exit->next].previous = number;
    block->incoming = number;
    if (exit->expected)
        set_check(exit, cpu->mmu.epoch, exit->tail + JIT_TAIL_BYTES);
    if (exit->crosses && !exit->listed) {
        exit->listed = true;
        exit->next_crossing = jit->crossing;
        jit->crossing = number;
    }
    const uint8_t *code = writable_code(jit, block);
    /* a block that does not float is at one address, and so must be what leads there */
    bool by_page = !block->across_now && (block->floats || !exit->floats) && block->gpa / GUEST_PAGE_SIZE < JIT_NO_PAGE;
    set_again(exit, by_page ? (uint32_t)(block->gpa / GUEST_PAGE_SIZE) : JIT_NO_PAGE, code);
    patch_jump(exit->stub_jump, code);
    if (exit->hot && !exit->expected && (!exit->saves_flags || block->flags_dead))
        patch_jump(exit->hot, code);
}

void jit_follow_epoch(const struct cpu *cpu, struct translator *jit)
{
    if (likely(jit->crossing_epoch == cpu->mmu.epoch))
        return;
    jit->crossing_epoch = cpu->mmu.epoch;
    for (uint32_t number = jit->crossing; number; number = jit->exits[number].next_crossing) {
        struct jit_exit *exit = &jit->exits[number];
        exit->listed = false;
        if (exit->to)
            point_to_tail(exit);
        unlink_exit(jit, number);
    }
    jit->crossing = 0;
}

void jit_expect_epoch(const struct cpu *cpu, const struct translator *jit, const struct block *block)
{
    memcpy((uint8_t *)writable_code(jit, block) + JIT_EPOCH_AT(jit), &cpu->mmu.epoch, 4);
}

/* ---- the end of a block ---- */

void jit_kill(struct translator *jit, struct block *block)
{
    if (!block->translated)
        return;
    for (uint32_t number = block->incoming; number;) {
        uint32_t next = jit->exits[number].next;
        point_to_tail(&jit->exits[number]);
        jit->exits[number].to = NULL;
        jit->exits[number].next = jit->exits[number].previous = 0;
        number = next;
    }
    block->incoming = 0;
    for (unsigned i = 0; i < block->exit_count; i++) {
        unlink_exit(jit, block->exits + i);
        jit->exits[block->exits + i].mode = UINT32_MAX; /* never to be linked again */
    }
    /* who has its address from the table of computed jumps finds the way out */
    struct assembler a = jit_assembler(jit, (uint8_t *)writable_code(jit, block));
    mov_imm64(&a, T0, block->floats ? block->gpa % GUEST_PAGE_SIZE : block->translated_rip);
    jit_put_jump(jit, &a, block->floats ? jit->leave_dead_floating : jit->leave_dead);
    block->translated = NULL;
    unregister(jit, block);
    jit->counts->killed++;
}

void jit_float_page(struct translator *jit, uint64_t gpa)
{
    if (gpa / GUEST_PAGE_SIZE >= jit->pages_known)
        return;
    jit->floating[gpa / GUEST_PAGE_SIZE / 64] |= BIT(gpa / GUEST_PAGE_SIZE % 64);
    for (struct block *block = *page_bucket(jit, gpa), *next; block; block = next) {
        next = block->page_next;
        if (block->gpa / GUEST_PAGE_SIZE == gpa / GUEST_PAGE_SIZE)
            jit_kill(jit, block);
    }
}

static void kill_stale_of(struct translator *jit, struct block *first, uint64_t page)
{
    for (struct block *block = first; block;) {
        struct block *next = block->page_next;
        if ((page == UINT64_MAX || block->gpa / GUEST_PAGE_SIZE == page) && !block_is_current(block))
            jit_kill(jit, block);
        block = next;
    }
}

void jit_kill_stale_page(struct translator *jit, uint64_t gpa)
{
    kill_stale_of(jit, *page_bucket(jit, gpa), gpa / GUEST_PAGE_SIZE);
    for (struct block *block = jit->across, *next; block; block = next) {
        next = block->across_next;
        if (!block_is_current(block))
            jit_kill(jit, block);
    }
}

void jit_kill_stale(struct translator *jit)
{
    for (unsigned i = 0; i < JIT_PAGE_BUCKETS; i++)
        kill_stale_of(jit, jit->pages[i], UINT64_MAX);
}

void jit_forget(struct cpu *cpu, struct translator *jit)
{
    for (unsigned i = 0; i < JIT_PAGE_BUCKETS; i++) {
        for (struct block *block = jit->pages[i]; block; block = block->page_next) {
            block->translated = NULL;
            block->incoming = 0;
        }
        jit->pages[i] = NULL;
    }
    jit->across = NULL;
    for (unsigned i = 0; i < JIT_JUMPS; i++)
        jit->jumps[i].code = NULL, jit->jumps[i].key = UINT64_MAX;
    jit_segments_reset(jit);
    jit->crossing = 0;
    jit->counts->translator_emptied++;
    cpu->link_from = 0;
}
