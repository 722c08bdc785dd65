/* SPDX-License-Identifier: MIT */
/* differential [--seed N] [--count N] [--case N] [--op NAME] [--row N] [--reports N] [--coverage]
 *              [--any-opcode] [--translate] [--bits 16|32|64]
 *
 * Runs `count` cases on both processors, prints what disagrees (at most `reports` an operation), a line of totals, and
 * exits with 1 if anything did (77: this host cannot). --case runs one case of the seed again. --coverage lists rows that never completed, and
 * how often each known difference was met.
 * --any-opcode draws opcodes instead of rows: what is undefined here must be undefined there.
 * --translate runs ours translated.
 * --bits: of the code segment; below 64 the host runs it in compatibility mode. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include "cpu/decode/plan.h"
#include "differential.h"

struct options {
    uint64_t seed, count, first;
    int row;
    const char *op;
    unsigned reports;
    bool coverage, verbose, any_opcode, translate;
    enum insn_mode mode;
};

#define REASONS 64

struct totals {
    uint64_t cases, completed, faulted, undefined, wrong, excused, unsteady;
    uint64_t row_done[PLAN_MAX_ROWS], row_run[PLAN_MAX_ROWS];
    unsigned op_wrong[OP_COUNT + 1];
    struct {
        const char *why;
        uint64_t cases;
    } reason[REASONS];
};

static uint16_t rows[PLAN_MAX_ROWS];
static unsigned row_total;

/* One of "cbw/cwde/cdqe". */
static bool mnemonic_is(const char *alternatives, const char *wanted)
{
    size_t length = strlen(wanted);
    for (const char *name = alternatives; name; name = strchr(name, '/') ? strchr(name, '/') + 1 : NULL)
        if (!strncasecmp(name, wanted, length) && strchr("/%", name[length]))
            return true;
    return false;
}

static void choose_rows(const struct options *o, const struct guest *guest)
{
    if (o->any_opcode) {
        rows[row_total++] = ANY_OPCODE;
        return;
    }
    for (unsigned i = 0; i < isa_row_count; i++) {
        if (row_excluded(i, o->mode, guest) || (o->row >= 0 && (unsigned)o->row != i))
            continue;
        const char *mnemonic = op_infos[isa_rows[i].op].mnemonic;
        if (o->op && !mnemonic_is(mnemonic, o->op))
            continue;
        rows[row_total++] = (uint16_t)i;
    }
}

/* Does the host say the same when it is asked again? An interrupt of its own, or a hypervisor below it, may have shown in
 * RF or in how far a repeated instruction got. `spare`: the batch for it. */
static bool is_steady(struct host *host, struct batch *spare, const struct diff_case *c, const struct diff_result *guest)
{
    for (unsigned i = 0; i < 3; i++) {
        spare->count = 1;
        spare->cases[0] = *c;
        spare->results[0].ran = false;
        host_begin(host, 1);
        if (!host_wait(host))
            return true;
        if (!compare(c, &spare->results[0], guest))
            return false;
    }
    return true;
}

static void judge(const struct options *o, struct totals *t, struct host *runs, struct batch *spare, const struct diff_case *c,
                  const struct diff_result *host, const struct diff_result *guest)
{
    unsigned op = c->decoded > 0 ? c->insn.op : OP_COUNT, row = c->decoded > 0 ? c->insn.row : c->row;
    bool completed = host->vector == EXC_BP || host->vector == EXC_DB;
    t->cases++;
    t->completed += completed;
    t->faulted += !completed;
    t->undefined += c->decoded <= 0;
    if (row != ANY_OPCODE) {
        t->row_run[row]++;
        t->row_done[row] += completed;
    }
    if (!compare(c, host, guest)) {
        if (o->verbose)
            report(stdout, c, host, guest);
        return;
    }
    const char *why = known_difference(c, host, guest);
    if (why) {
        unsigned i = 0;
        while (i < REASONS - 1 && t->reason[i].why && t->reason[i].why != why)
            i++;
        t->reason[i].why = why;
        t->reason[i].cases++;
        t->excused++;
        return;
    }
    if (host->ran && !is_steady(runs, spare, c, guest)) {
        t->unsteady++;
        return;
    }
    t->wrong++;
    if (t->op_wrong[op]++ < o->reports)
        report(stdout, c, host, guest);
}

/* Rows that an excluded row's bytes become by prefixes are left out too. */
static void fill(struct batch *batch, const struct options *o, uint64_t number, uint64_t count,
                 const struct guest *guest)
{
    batch->count = 0;
    while (batch->count < count) {
        struct diff_case *c = &batch->cases[batch->count];
        uint64_t at = number + batch->count, attempt = 0;
        uint16_t row = rows[at % row_total];
        do
            generate(c, o->seed + attempt++ * UINT64_C(0x9e3779b97f4a7c15), at, row, o->mode);
        while ((c->decoded > 0 && row_excluded(c->insn.row, o->mode, guest)) || opcode_excluded(c));
        batch->results[batch->count].ran = false;
        batch->count++;
    }
}

static void coverage(const struct options *o, const struct totals *t, const struct guest *guest)
{
    char text[64];
    for (unsigned i = 0; i < isa_row_count; i++) {
        const char *reason = row_excluded(i, o->mode, guest);
        const struct op_info *info = &op_infos[isa_rows[i].op];
        if (t->row_done[i])
            continue;
        snprintf(text, sizeof text, "%s", info->mnemonic);
        if (!reason)
            reason = info->attributes & OPA_CPL0 && t->row_run[i] ? "ran, and faulted: privileged" : t->row_run[i] ? "ran, and always faulted" : "never run";
        printf("row %u (%s, map %u opcode %02x): %s\n", i, text, isa_rows[i].map, isa_rows[i].opcode, reason);
    }
}

static bool parse(struct options *o, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(name, "--coverage")) {
            o->coverage = true;
            continue;
        }
        if (!strcmp(name, "--any-opcode")) {
            o->any_opcode = true;
            continue;
        }
        if (!strcmp(name, "--translate")) {
            o->translate = true;
            continue;
        }
        if (!value)
            return false;
        i++;
        if (!strcmp(name, "--seed"))
            o->seed = strtoull(value, NULL, 0);
        else if (!strcmp(name, "--count"))
            o->count = strtoull(value, NULL, 0);
        else if (!strcmp(name, "--case"))
            o->first = strtoull(value, NULL, 0), o->count = 1, o->verbose = true;
        else if (!strcmp(name, "--row"))
            o->row = atoi(value);
        else if (!strcmp(name, "--bits"))
            o->mode = !strcmp(value, "16") ? INSN_MODE_16 : !strcmp(value, "32") ? INSN_MODE_32 : INSN_MODE_64;
        else if (!strcmp(name, "--op"))
            o->op = value;
        else if (!strcmp(name, "--reports"))
            o->reports = (unsigned)atoi(value);
        else
            return false;
    }
    return true;
}

#define EXIT_CANNOT 77
#define HWCAP2_FSGSBASE 2

/* The child sets FS and GS by instructions, both sides keep YMM, and the kernel lets a process have an LDT, which the
 * child inherits. */
static bool host_will_do(void)
{
    return getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE && __builtin_cpu_supports("avx") && ldt_install();
}

int main(int argc, char **argv)
{
    struct options o = {.seed = 1, .count = 100000, .row = -1, .reports = 2, .mode = INSN_MODE_64};
    if (!parse(&o, argc, argv)) {
        fprintf(stderr, "usage: differential [--seed N] [--count N] [--case N] [--op NAME] [--row N] [--reports N] [--coverage] "
                        "[--any-opcode] [--translate] [--bits N]\n");
        return 2;
    }
    if (!host_will_do()) {
        fprintf(stderr, "this host lacks FSGSBASE or AVX, or its kernel modify_ldt\n");
        return EXIT_CANNOT;
    }
    struct totals *t = calloc(1, sizeof *t);
    struct diff_result *guest_result = aligned_alloc(64, sizeof *guest_result * BATCH);
    struct batch *batch = mmap(NULL, 2 * sizeof *batch, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct host *host = batch == MAP_FAILED ? NULL : host_start(batch, 2);
    struct guest *guest = guest_start(o.translate);
    if (!host || !guest) {
        fprintf(stderr, "cannot start\n");
        return 2;
    }
    choose_rows(&o, guest);
    if (!row_total) {
        fprintf(stderr, "no such row\n");
        return 2;
    }
    for (uint64_t done = 0; done < o.count;) {
        uint64_t n = MIN(o.count - done, BATCH);
        fill(batch, &o, o.first + done, n, guest);
        host_begin(host, 0);
        for (unsigned i = 0; i < n; i++)
            guest_run(guest, &batch->cases[i], &guest_result[i]);
        if (!host_wait(host)) {
            printf("the child died in case %" PRIu64 "\n", batch->cases[batch->running].number);
            n = batch->running + 1;
            host_stop(host);
            host = host_start(batch, 2);
        }
        for (unsigned i = 0; i < n; i++)
            judge(&o, t, host, &batch[1], &batch->cases[i], &batch->results[i], &guest_result[i]);
        done += n;
        fflush(stdout);
    }
    host_stop(host);
    if (o.coverage)
        coverage(&o, t, guest);
    guest_stop(guest);
    for (unsigned i = 0; o.coverage && i < REASONS && t->reason[i].why; i++)
        printf("known: %" PRIu64 " %s\n", t->reason[i].cases, t->reason[i].why);
    for (unsigned i = 0; i <= OP_COUNT; i++)
        if (t->op_wrong[i])
            printf("%s: %u\n", i < OP_COUNT ? op_infos[i].mnemonic : "(undefined)", t->op_wrong[i]);
    printf("%" PRIu64 " cases: %" PRIu64 " completed, %" PRIu64 " faulted (%" PRIu64 " undefined); %" PRIu64
           " disagree, %" PRIu64 " known differences, %" PRIu64 " not repeated\n",
           t->cases, t->completed, t->faulted, t->undefined, t->wrong, t->excused, t->unsteady);
    return t->wrong != 0;
}
