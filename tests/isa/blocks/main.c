/* SPDX-License-Identifier: MIT */
/* blocks [--seed N] [--count N] [--case N] [--mode NAME] [--reports N] [--lockstep 1]
 *
 * Runs `count` programs by the interpreter and by the translator, prints where they differ, a line of totals, and exits
 * with 1 if they did. --case runs one again and shows it; --lockstep says in which block they part. */
#include <stdlib.h>

#include "cpu/jit/jit.h"
#include "cpu/jit/lockstep.h"
#include "blocks.h"

struct options {
    uint64_t seed, count, first;
    int mode;
    unsigned reports;
    bool verbose, lockstep;
};

struct totals {
    uint64_t programs, runs, halted, faulted, operand_faults, cut_short, by_scenario[16], differ;
};

struct session {
    struct options options;
    struct totals totals;
    struct side interpreter, translator;
    struct program program;
    struct rng rng; /* of what is done to the program */
    uint8_t *image; /* memory as it begins */
    bool differs;
};

static bool long_mode(const struct session *s)
{
    return mode_infos[s->program.mode].long_mode;
}

static bool stopped_by_exception(const struct ending *e)
{
    uint64_t linear = e->state.segment[CS].base + e->state.rip - 1;
    return linear >= HANDLERS && linear < HANDLERS + 0x2000;
}

static void check(struct session *s, const char *scenario, const struct ending *a, const struct ending *b)
{
    char text[200] = "";
    if (a->late || b->late || s->interpreter.mmio >= MMIO_MOST || s->translator.mmio >= MMIO_MOST) {
        s->totals.cut_short++;
        return;
    }
    s->totals.runs++;
    const char *what = side_compare(&s->interpreter, a, &s->translator, b, text);
    if (!what || s->differs)
        return;
    s->differs = true;
    if (s->totals.differ++ >= s->options.reports)
        return;
    printf("case %llu, %s, %s: %s\n", (unsigned long long)(s->options.first + s->totals.programs),
           mode_infos[s->program.mode].name, scenario, text);
    if (b->exit == CPU_EXIT_INTERNAL)
        printf("%s\n", cpu_message(s->translator.cpu));
    print_program(&s->program);
}

static void begin(struct session *s, const uint8_t *image, const struct x86_state *state)
{
    side_begin(&s->interpreter, image, state);
    side_begin(&s->translator, image, state);
}

/* Both to the end. Where one is in an endless loop, both run the same number of instructions. */
static struct ending run_both(struct session *s, const char *scenario, const uint8_t *image, const struct x86_state *state)
{
    struct ending a, b;
    begin(s, image, state);
    side_run(&s->interpreter, UINT64_MAX, &a);
    side_run(&s->translator, UINT64_MAX, &b);
    if ((a.exit == CPU_EXIT_REQUEST && !a.hit) || (b.exit == CPU_EXIT_REQUEST && !b.hit)) {
        s->totals.cut_short++;
        begin(s, image, state);
        side_run(&s->interpreter, 700, &a);
        side_run(&s->translator, 700, &b);
    }
    check(s, scenario, &a, &b);
    return a;
}

/* ---- what is done to a program ---- */

static uint32_t entry_of(const struct session *s, unsigned page)
{
    uint32_t number = DATA / 4096 + page;
    return long_mode(s) ? TABLES + 0x3000 + 8 * number : TABLES + 0x1000 + 4 * number;
}

/* Each page of data that the program touches is taken away, and then made read-only. */
static void fault_pages(struct session *s)
{
    static uint8_t touched[DATA_PAGES];
    for (unsigned page = 0; page < DATA_PAGES; page++)
        touched[page] = (side_memory(&s->interpreter)[entry_of(s, page)] & PTE_A) != 0;
    for (unsigned page = 0; page < DATA_PAGES; page++) {
        uint8_t *entry = s->image + entry_of(s, page), kept = *entry;
        if (!touched[page])
            continue;
        *entry = (uint8_t)(kept & ~PTE_P);
        run_both(s, "page not present", s->image, &s->program.state);
        *entry = (uint8_t)(kept & ~PTE_W);
        run_both(s, "page read-only", s->image, &s->program.state);
        *entry = kept;
    }
}

/* Each unit's operand is taken away, and then made read-only. */
static void fault_operands(struct session *s)
{
    for (unsigned unit = 0; unit < s->program.units; unit++) {
        uint8_t *entries = s->image + WINDOW_TABLE + 8 * DATA_PAGES * unit;
        for (unsigned pass = 0; pass < 2; pass++) {
            uint8_t without = pass ? PTE_W : PTE_P;
            for (unsigned page = 0; page < DATA_PAGES; page++)
                entries[8 * page] &= (uint8_t)~without;
            struct ending end = run_both(s, pass ? "operand read-only" : "operand not present", s->image, &s->program.state);
            for (unsigned page = 0; page < DATA_PAGES; page++)
                entries[8 * page] |= without;
            s->totals.operand_faults += stopped_by_exception(&end) && (end.state.cr2 - WINDOWS) / DATA_BYTES == unit;
        }
    }
}

/* A segment ends in the middle of an operand, or anywhere. */
static void cut_segments(struct session *s)
{
    struct x86_state state = s->program.state;
    static const uint8_t pointers[] = {RBX, RBP, RSI, RDI};
    for (unsigned i = 0; i < ARRAY_LEN(pointers); i++) {
        state = s->program.state;
        unsigned index = i == 1 ? SS : rng_percent(&s->rng, 70) ? DS : ES;
        state.segment[index].limit = (uint32_t)(state.gpr[pointers[i]] + rng_below(&s->rng, 0x90) - 0x20);
        run_both(s, "segment cut short", s->image, &state);
    }
}

/* After a random number of instructions both are the same, and then an interrupt comes. */
static void interrupt_anywhere(struct session *s, uint64_t instructions)
{
    struct ending a, b;
    uint64_t count = rng_below(&s->rng, (unsigned)MIN(instructions, 2000) + 1);
    begin(s, s->image, &s->program.state);
    side_run(&s->interpreter, count, &a);
    side_run(&s->translator, count, &b);
    check(s, "some instructions", &a, &b);
    uint32_t request = rng_percent(&s->rng, 50) ? CPU_REQUEST_NMI : CPU_REQUEST_INTR;
    s->interpreter.vector = s->translator.vector = 28;
    cpu_request(s->interpreter.cpu, request);
    cpu_request(s->translator.cpu, request);
    side_run(&s->interpreter, 100000, &a);
    side_run(&s->translator, 100000, &b);
    check(s, "interrupt", &a, &b);
}

/* An interrupt that waits until the program lets it in. */
static void interrupt_waits(struct session *s)
{
    struct x86_state state = s->program.state;
    struct ending a, b;
    state.rflags &= ~(uint64_t)EFLAGS_IF;
    begin(s, s->image, &state);
    s->interpreter.vector = s->translator.vector = 27;
    cpu_request(s->interpreter.cpu, CPU_REQUEST_INTR);
    cpu_request(s->translator.cpu, CPU_REQUEST_INTR);
    side_run(&s->interpreter, UINT64_MAX, &a);
    side_run(&s->translator, UINT64_MAX, &b);
    if (a.exit == CPU_EXIT_HALT && b.exit == CPU_EXIT_HALT)
        check(s, "interrupt that waits", &a, &b);
}

/* An interrupt while translated code runs is taken where it pleases; the interpreter must be where it was taken after
 * as many instructions. */
static void interrupt_from_outside(struct session *s)
{
    struct ending a, b;
    begin(s, s->image, &s->program.state);
    uint64_t before = cpu_instructions(s->translator.cpu);
    s->translator.interrupt_on_out = true;
    side_run(&s->translator, UINT64_MAX, &b);
    if (!s->translator.taken_at || b.exit != CPU_EXIT_HALT)
        return;
    side_begin(&s->interpreter, s->image, &s->program.state);
    side_run(&s->interpreter, s->translator.taken_at - before, &a);
    s->interpreter.vector = 29;
    cpu_request(s->interpreter.cpu, CPU_REQUEST_INTR);
    side_run(&s->interpreter, UINT64_MAX, &a);
    check(s, "interrupt from outside", &a, &b);
}

static void trap_flag(struct session *s)
{
    struct x86_state state = s->program.state;
    state.rflags |= EFLAGS_TF;
    run_both(s, "trap flag", s->image, &state);
}

static void points(struct session *s)
{
    imgvm_error err;
    uint64_t unit = program_linear(&s->program) + s->program.unit[rng_below(&s->rng, s->program.units)];
    struct cpu_point point = {unit, 1, CPU_POINT_EXECUTE};
    if (rng_percent(&s->rng, 60))
        point = (struct cpu_point){DATA + rng_below(&s->rng, DATA_BYTES), 0x400, CPU_POINT_READ | CPU_POINT_WRITE};
    if (cpu_set_points(s->interpreter.cpu, &point, 1, &err) || cpu_set_points(s->translator.cpu, &point, 1, &err))
        abort();
    run_both(s, "break- or watchpoint", s->image, &s->program.state);
    cpu_set_points(s->interpreter.cpu, NULL, 0, &err);
    cpu_set_points(s->translator.cpu, NULL, 0, &err);
}

static void clear_accessed(struct session *s)
{
    for (unsigned page = 0; page < DATA_PAGES; page++)
        s->image[entry_of(s, page)] &= (uint8_t)~(PTE_A | PTE_D);
}

static void run_case(struct session *s, uint64_t number, const struct feature_set *features)
{
    enum mode mode = s->options.mode >= 0 ? (enum mode)s->options.mode : (enum mode)(number % MODES);
    bool paging = mode_infos[mode].paging;
    world_memory(s->image, mode_infos[mode].long_mode);
    s->rng = (struct rng){s->options.seed ^ number << 20};
    make_program(&s->program, s->image, s->options.seed, number, mode, features);
    if (paging)
        clear_accessed(s);
    s->differs = false;
    if (s->options.verbose)
        print_program(&s->program);
    struct ending end = run_both(s, "plain", s->image, &s->program.state);
    s->totals.halted += end.exit == CPU_EXIT_HALT && !stopped_by_exception(&end);
    s->totals.faulted += stopped_by_exception(&end);
    if (paging)
        fault_pages(s);
    if (s->program.windows)
        fault_operands(s);
    if (!paging)
        cut_segments(s);
    run_both(s, "again", s->image, &s->program.state); /* linked by now */
    interrupt_anywhere(s, end.instructions);
    interrupt_waits(s);
    if (s->program.writes_ports)
        interrupt_from_outside(s);
    if (rng_percent(&s->rng, 10))
        trap_flag(s);
    if (rng_percent(&s->rng, 30))
        points(s);
    s->totals.programs++;
}

static bool parse(struct options *o, int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (!strcmp(name, "--seed")) {
            o->seed = strtoull(value, NULL, 0);
        } else if (!strcmp(name, "--count")) {
            o->count = strtoull(value, NULL, 0);
        } else if (!strcmp(name, "--case")) {
            o->first = strtoull(value, NULL, 0), o->count = 1, o->verbose = true;
        } else if (!strcmp(name, "--reports")) {
            o->reports = (unsigned)atoi(value);
        } else if (!strcmp(name, "--lockstep")) {
            o->lockstep = atoi(value);
        } else if (!strcmp(name, "--mode")) {
            for (o->mode = 0; o->mode < MODES && strcmp(mode_infos[o->mode].name, value);)
                o->mode++;
        } else {
            return false;
        }
    }
    return argc % 2 == 1 && o->mode < MODES;
}

int main(int argc, char **argv)
{
    static struct session s = {.options = {.seed = 1, .count = 10000, .mode = -1, .reports = 3}};
    struct feature_set features;
    if (!parse(&s.options, argc, argv)) {
        fprintf(stderr, "usage: blocks [--seed N] [--count N] [--case N] [--mode NAME] [--reports N] [--lockstep 1]\n");
        return 2;
    }
    cpu_offered_features(1, &features);
    s.image = malloc(MEMORY_BYTES);
    const struct translator_ops *translator = s.options.lockstep ? &lockstep_translator : &jit_translator;
    if (!s.image || !side_start(&s.interpreter, NULL, &features) || !side_start(&s.translator, translator, &features)) {
        fprintf(stderr, "cannot start\n");
        return 2;
    }
    for (uint64_t i = 0; i < s.options.count; i++)
        run_case(&s, s.options.first + i, &features);
    const struct totals *t = &s.totals;
    printf("%llu programs: %llu reached their end, %llu an exception; %llu runs, %llu cut short; %llu at an operand alone; %llu differ\n",
           (unsigned long long)t->programs, (unsigned long long)t->halted, (unsigned long long)t->faulted,
           (unsigned long long)t->runs, (unsigned long long)t->cut_short, (unsigned long long)t->operand_faults,
           (unsigned long long)t->differ);
    return t->differ != 0;
}
