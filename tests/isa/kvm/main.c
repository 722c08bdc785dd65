/* SPDX-License-Identifier: MIT */
/* against_kvm [--seed S] [--count N] [--seconds T] [--case N] [--mode NAME] [--op MNEMONIC] [--show N] [--summary]
 * Prints disagreements; ends with 1 when there is one that known.c does not explain. */
#include <stdlib.h>
#include <time.h>

#include "versus.h"

#define PAIRS_MAX (16 * 4096)

struct pair {
    uint16_t row;
    uint8_t mode;
};

struct session {
    struct ours *ours;
    struct theirs *theirs;
    uint8_t *pristine[2]; /* legacy, long mode */
    const uint8_t *now;   /* which of them the memories hold */
    struct pair *pairs[2];
    unsigned pair_count[2];
    uint16_t (*cannot)[MODES]; /* by row; 0xffff: it can */
    uint64_t seed, agreed, known, failed, unable, dropped, unsteady, shown, show;
    bool summary;
    struct kcase c;
    struct result a, b;
};

static bool exists(const struct isa_row *row, unsigned bits)
{
    unsigned mode = row->attributes & A_MODE;
    return mode == MODE_ANY || (mode == MODE_O64) == (bits == 64);
}

/* Rows that differ between modes get more of the cases. */
static unsigned weight(const struct isa_row *row)
{
    switch (op_infos[row->op].kind) {
    case OPK_SYS: case OPK_CTRL:
        return row->op == OP_JCC ? 1 : 6;
    case OPK_MEM:
        return 2;
    default:
        return 1;
    }
}

static void list_pairs(struct session *s, const char *only_mode, const char *only_op)
{
    for (unsigned row = 0; row < isa_row_count; row++) {
        if (row_excluded(row, s->ours) || (only_op && strcmp(op_infos[isa_rows[row].op].mnemonic, only_op)))
            continue;
        for (unsigned mode = 0; mode < MODES; mode++) {
            unsigned world = mode_infos[mode].long_mode;
            if ((only_mode && strcmp(only_mode, mode_infos[mode].name)) ||
                !exists(&isa_rows[row], mode_infos[mode].bits))
                continue;
            /* 64-bit mode's computing is held against the host itself; here it is its system instructions */
            if (mode_infos[mode].bits == 64 && op_infos[isa_rows[row].op].kind != OPK_SYS &&
                op_infos[isa_rows[row].op].kind != OPK_CTRL)
                continue;
            for (unsigned n = weight(&isa_rows[row]); n && s->pair_count[world] < PAIRS_MAX; n--)
                s->pairs[world][s->pair_count[world]++] = (struct pair){(uint16_t)row, (uint8_t)mode};
        }
    }
}

/* Makes a memory what it was; true: the page tables were changed. */
static bool restore(uint8_t *memory, const uint8_t *pristine)
{
    bool tables = false;
    for (uint32_t at = 0; at < MEMORY_BYTES; at += 4096)
        if (memcmp(memory + at, pristine + at, 4096)) {
            memcpy(memory + at, pristine + at, 4096);
            tables |= at >= TABLES && at < TABLES + 0x4000;
        }
    return tables;
}

static void apply(struct session *s)
{
    bool tables = false;
    for (unsigned i = 0; i < s->c.patches; i++) {
        const struct patch *p = &s->c.patch[i];
        memcpy(ours_memory(s->ours) + p->gpa, p->bytes, p->size);
        memcpy(theirs_memory(s->theirs) + p->gpa, p->bytes, p->size);
        tables |= p->gpa + p->size > TABLES && p->gpa < TABLES + 0x4000;
    }
    if (tables)
        theirs_forget_tables(s->theirs);
}

/* Runs the case in both; "" when one of them could not. */
static const char *both(struct session *s, const uint8_t *pristine)
{
    struct kcase *c = &s->c;
    restore(ours_memory(s->ours), pristine);
    if (restore(theirs_memory(s->theirs), pristine))
        theirs_forget_tables(s->theirs);
    apply(s);
    ours_run(s->ours, &c->state, &s->a);
    /* it went where no HLT is: what it met there is not the case */
    if (s->a.instructions > (op_infos[c->insn.op].kind == OPK_CTRL ? 3u : 4u) &&
        !(c->insn.flags & (INSN_REP | INSN_REPNE)))
        s->a.outcome = RUNS_ON;
    if (s->a.outcome == RUNS_ON)
        return "";
    theirs_run(s->theirs, &c->state, &s->b);
    if (s->b.outcome == RUNS_ON || kvm_cannot(c, &s->a, &s->b))
        s->b.outcome = CANNOT;
    if (s->b.outcome == CANNOT)
        return "";
    as_kvm_delivers(c, &s->a, &s->b, ours_memory(s->ours), theirs_memory(s->theirs));
    return compare(c, &s->a, &s->b, ours_memory(s->ours), theirs_memory(s->theirs));
}

static void run_case(struct session *s, uint64_t number)
{
    struct kcase *c = &s->c;
    unsigned world = s->pair_count[0] && s->pair_count[1] ? number >> 9 & 1 : !s->pair_count[0];
    const uint8_t *pristine = s->pristine[world];
    struct rng rng = {s->seed ^ number * UINT64_C(0x9e3779b97f4a7c15)};
    struct pair pair = s->pairs[world][rng_below(&rng, s->pair_count[world])];
    uint16_t *cannot = &s->cannot[pair.row][pair.mode];

    if (*cannot >= 4 && *cannot != 0xffff) {
        s->unable++;
        return;
    }
    generate(c, s->seed, number, pair.row, pair.mode, pristine);
    if (!ours_has(s->ours, FEATURE_SMAP))
        c->state.cr4 &= ~(uint64_t)CR4_SMAP;
    if (!ours_has(s->ours, FEATURE_SMEP))
        c->state.cr4 &= ~(uint64_t)CR4_SMEP;
    const char *what = both(s, pristine);
    if (s->a.outcome == RUNS_ON) {
        s->dropped++;
        return;
    }
    if (s->b.outcome == CANNOT) {
        s->unable++;
        *cannot += *cannot != 0xffff;
        return;
    }
    *cannot = 0xffff;
    if (!what) {
        s->agreed++;
        return;
    }
    const char *reason = known_difference(c, &s->a, &s->b, what);
    if (reason) {
        s->known++;
        return;
    }
    /* this KVM sometimes keeps something of the cases before: what a new machine does not do was not the instruction's */
    theirs_stop(s->theirs);
    char why[256];
    if (!(s->theirs = theirs_start(why, sizeof why))) {
        fprintf(stderr, "no second machine: %s\n", why);
        exit(2);
    }
    what = both(s, pristine);
    if (!what || !*what) {
        s->unsteady++;
        return;
    }
    s->failed++;
    if (s->summary) {
        printf("differ %s %s %s %d,%d|%d,%d case %" PRIu64 "\n", mode_infos[c->mode].name,
               op_infos[isa_rows[c->row].op].mnemonic, what, s->a.outcome, stopped_in(&s->a), s->b.outcome,
               stopped_in(&s->b), number);
    } else if (s->shown++ < s->show) {
        printf("--- %s differs: --seed %" PRIu64 " --case %" PRIu64 "\n", what, s->seed, number);
        report(c, &s->a, &s->b, ours_memory(s->ours), theirs_memory(s->theirs), pristine);
    }
}

static int begin(struct session *s)
{
    char why[256];
    s->theirs = theirs_start(why, sizeof why);
    if (!s->theirs) {
        printf("skipped: %s\n", why);
        return 0;
    }
    s->ours = ours_start(theirs_features(s->theirs));
    s->cannot = calloc(isa_row_count, sizeof *s->cannot);
    for (unsigned i = 0; i < 2; i++) {
        s->pristine[i] = malloc(MEMORY_BYTES);
        s->pairs[i] = calloc(PAIRS_MAX, sizeof *s->pairs[i]);
        if (!s->pristine[i] || !s->pairs[i] || !s->cannot || !s->ours)
            return fprintf(stderr, "out of memory\n"), 2;
        world_memory(s->pristine[i], i);
    }
    return -1;
}

int main(int argc, char **argv)
{
    struct session *s = calloc(1, sizeof *s);
    uint64_t count = 10000, only = UINT64_MAX, seconds = 1000000;
    const char *mode = NULL, *op = NULL;
    s->seed = 1;
    s->show = 10;
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (!strcmp(argv[i], "--summary"))
            s->summary = true;
        else if (more && !strcmp(argv[i], "--seed"))
            s->seed = strtoull(argv[++i], NULL, 0);
        else if (more && !strcmp(argv[i], "--count"))
            count = strtoull(argv[++i], NULL, 0);
        else if (more && !strcmp(argv[i], "--seconds"))
            seconds = strtoull(argv[++i], NULL, 0);
        else if (more && !strcmp(argv[i], "--case"))
            only = strtoull(argv[++i], NULL, 0);
        else if (more && !strcmp(argv[i], "--show"))
            s->show = strtoull(argv[++i], NULL, 0);
        else if (more && !strcmp(argv[i], "--mode"))
            mode = argv[++i];
        else if (more && !strcmp(argv[i], "--op"))
            op = argv[++i];
        else
            return fprintf(stderr, "what is %s?\n", argv[i]), 2;
    }
    int code = begin(s);
    if (code >= 0)
        return code;
    for (unsigned f = 1; s->summary && f < FEATURE_COUNT; f++)
        if (!feature_set_has(theirs_features(s->theirs), f))
            printf("not here: %s\n", cpu_feature_rows[f].name);
    list_pairs(s, mode, op);
    if (!s->pair_count[0] && !s->pair_count[1])
        return fprintf(stderr, "no such mode or operation\n"), 2;
    time_t end = time(NULL) + (time_t)seconds;
    if (only != UINT64_MAX)
        run_case(s, only);
    for (uint64_t number = 0; only == UINT64_MAX && number < count && ((number & 63) || time(NULL) < end); number++)
        run_case(s, number);
    printf("%" PRIu64 " agree, %" PRIu64 " differ for a known reason, %" PRIu64 " KVM cannot, %" PRIu64
           " dropped, %" PRIu64 " once only, %" PRIu64 " failed\n",
           s->agreed, s->known, s->unable, s->dropped, s->unsteady, s->failed);
    theirs_stop(s->theirs);
    ours_stop(s->ours);
    return s->failed != 0;
}
