/* SPDX-License-Identifier: MIT */
#include "learn.h"

#include "translate.h"

#define OFTEN_TICKS 400u   /* a refill: more often than that, it costs 5 % and more of the time */
#define WINDOW 2048u       /* accesses that are timed */
#define ROUNDS LEARN_ROUNDS /* through all checks, for what a program does changes; each has a window to warm up and one that counts */
#define WINDOW_TICKS (UINT64_C(8) * WINDOW * OFTEN_TICKS) /* if it takes longer, the operand is not used so much any more */

uint64_t learn_refilled(struct cpu *cpu, uint64_t host, uint64_t slot_offset)
{
    (void)host;
    struct learner *learner = &cpu->translator->learner;
    unsigned slot = (unsigned)(slot_offset - offsetof(struct cpu, mmu.slots)) / sizeof(struct access_slot);
    uint64_t now = __builtin_ia32_rdtsc(), since = learner->refilled_since[slot];
    cpu->slot_refills[slot] = LEARN_REFILLS;
    learner->refilled_since[slot] = now;
    bool busy = learner->block && now - learner->began < WINDOW_TICKS;
    learner->asked = !busy && now - since < (uint64_t)LEARN_REFILLS * OFTEN_TICKS;
    return !learner->asked;
}

static void begin_window(struct cpu *cpu, uint64_t now)
{
    cpu->trial_left = WINDOW;
    cpu->translator->learner.began = now;
}

static bool begin_trial(struct cpu *cpu, struct block *block, struct uop *u)
{
    struct learner *learner = &cpu->translator->learner;
    learner->block = block;
    learner->index = u->index;
    learner->window = 0;
    learner->tried = ONE_PAGE;
    u->pages = ONE_PAGE | PAGES_TRIAL;
    begin_window(cpu, __builtin_ia32_rdtsc());
    return true;
}

/* Neither the round that an interrupt fell into nor a lucky one. */
static uint64_t median(const uint64_t ticks[ROUNDS])
{
    uint64_t a = MIN(ticks[0], ticks[1]), b = MAX(ticks[0], ticks[1]);
    return MAX(a, MIN(b, ticks[2]));
}

static enum pages best_of(const struct learner *learner)
{
    enum pages best = ONE_PAGE;
    for (enum pages check = FEW_PAGES; check < CHECKS; check++)
        if (median(learner->ticks[check]) < median(learner->ticks[best]))
            best = check;
    return best;
}

static bool end_window(struct cpu *cpu, struct uop *u)
{
    struct learner *learner = &cpu->translator->learner;
    uint64_t now = __builtin_ia32_rdtsc(), ticks = now - learner->began;
    bool counts = learner->window % 2;
    learner->ticks[learner->tried][learner->window / 2 / CHECKS] = ticks;
    learner->window++;
    begin_window(cpu, now);
    if (!counts)
        return false;
    if (learner->window == ROUNDS * CHECKS * 2) {
        u->pages = (uint8_t)(best_of(learner) | PAGES_SETTLED);
        learner->block = NULL;
    } else {
        learner->tried = (learner->tried + 1) % CHECKS;
        u->pages = (uint8_t)(learner->tried | PAGES_TRIAL);
    }
    return true;
}

bool learn_look(struct cpu *cpu, struct block *block, const struct uop *called)
{
    struct learner *learner = &cpu->translator->learner;
    struct uop *u = &block->uops[called->index];
    bool refilled = learner->asked;
    learner->asked = false;
    if (u->pages & PAGES_TRIAL) {
        if (learner->block == block && learner->index == u->index)
            return refilled ? false : end_window(cpu, u);
        u->pages = ONE_PAGE; /* given up */
        return true;
    }
    if (!refilled || (u->pages & PAGES_SETTLED))
        return false;
    cpu->counts.relearned++;
    return begin_trial(cpu, block, u);
}
