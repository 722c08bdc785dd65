/* SPDX-License-Identifier: MIT */
/* hostile [--seed N] [--count N] [--case N]
 *
 * A guest that does what it should not: random 64-bit programs of ring 0 and 3 whose registers point at the ends of
 * memory, at page tables, at code, at nothing; page tables that lead anywhere, also while translated code runs, by the
 * guest and by another thread; jumps into the midst of instructions. An exception's handler goes on with other registers
 * somewhere else, so that what the processor remembers of one life meets the next. All memory of the processor lies
 * between guards (guards.c).
 *
 * Where the guest left its code and its page tables alone, the interpreter must have come to the same. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "cpu/jit/jit.h"
#include "guards.h"
#include "isa/blocks/blocks.h"

#define HANDLER (HANDLERS + 0x1000u) /* of all exceptions */
#define LIVES_LEFT 0x5000u           /* dword: exceptions until it halts */
#define NEXT_LIFE 0x5008u            /* qword: struct life */
#define LIVES 0x5100u
#define LIVES_MOST 24u

struct life {
    uint64_t gpr[16], rip, rflags, cs, ss;
};

/* Begins the next life; at its own stack, which is the TSS's IST1. */
__asm__(".pushsection .rodata\n"
        "handler_begin:\n"
        "decl 0x5000\n jz 9f\n"
        "mov 0x5008, %r15\n lea 160(%r15), %r14\n mov %r14, 0x5008\n"
        "pushq 152(%r15)\n pushq 32(%r15)\n pushq 136(%r15)\n pushq 144(%r15)\n pushq 128(%r15)\n"
        "mov (%r15), %rax\n mov 8(%r15), %rcx\n mov 16(%r15), %rdx\n mov 24(%r15), %rbx\n mov 40(%r15), %rbp\n"
        "mov 48(%r15), %rsi\n mov 56(%r15), %rdi\n mov 64(%r15), %r8\n mov 72(%r15), %r9\n mov 80(%r15), %r10\n"
        "mov 88(%r15), %r11\n mov 96(%r15), %r12\n mov 104(%r15), %r13\n mov 112(%r15), %r14\n mov 120(%r15), %r15\n"
        "iretq\n 9: hlt\n"
        "handler_end:\n.popsection\n");
extern const uint8_t handler_begin[], handler_end[];

struct totals {
    uint64_t cases, lives, compared, differ, translated;
};

struct session {
    uint64_t seed, count, first;
    bool verbose;
    struct side interpreter, translator;
    struct program program;
    struct rng rng;
    uint8_t *image;
    struct totals totals;
    /* the other thread */
    pthread_t meddler;
    _Atomic bool meddles;
    uint64_t meddling;
};

/* ---- what registers and page tables hold ---- */

static uint64_t some_address(struct rng *rng, bool wild)
{
    uint64_t offset = rng_below(rng, 0x1000), edge = (uint64_t)rng_below(rng, 160) - 80;
    switch (rng_below(rng, wild ? 12 : 8)) {
    case 0: return MEMORY_BYTES + edge;                                /* the end of memory */
    case 1: return UINT64_C(0) + edge;                                 /* its beginning, and the top of the address space */
    case 2: return UINT64_C(0x800000000000) + edge;                    /* no longer canonical */
    case 3: return UINT64_C(0xffff800000000000) + edge;
    case 4: return UINT64_C(0x7f0000000000) + (rng_next(rng) & 0xffffffffff); /* where the host has its own */
    case 5: return 0xfee00000u + offset;                               /* a device */
    case 6: return DATA + DATA_BYTES + edge;
    case 7: return DATA + rng_below(rng, DATA_BYTES);
    case 8: return UINT64_C(0x5a1f93c6b7e2d000) + edge; /* what empty slots hold: no fault there, but no memory either */
    case 9: return TABLES + 0x1000 * rng_below(rng, 4) + (offset & ~7u);
    case 10: return CODE + rng_below(rng, 0x1400);
    default: return rng_next(rng);
    }
}

static uint64_t some_entry(struct rng *rng)
{
    static const uint64_t frames[] = {0, DATA, CODE, TABLES, TABLES + 0x3000, MEMORY_BYTES - 0x1000, MEMORY_BYTES, 0x200000,
                                      0xfee00000, UINT64_C(0x7fff00000000), UINT64_C(0xfffffffff000)};
    uint64_t frame = PICK(rng, frames), flags = rng_next(rng) & (PTE_W | PTE_U | PTE_A | PTE_D | PTE_PS | PTE_G | PTE_NX);
    return frame | flags | (rng_percent(rng, 90) ? PTE_P : 0);
}

/* Not those of the first pages, through which handlers and tables are reached, most of the time. */
static uint32_t some_entry_address(struct rng *rng)
{
    if (rng_percent(rng, 4))
        return TABLES + 8 * rng_below(rng, 4 * 512);
    static const uint32_t levels[] = {0, 0x1000, 0x2000, 0x3000, 0x3000, 0x3000};
    unsigned level = PICK(rng, levels), first = level == 0x3000 ? DATA / 4096 : 1;
    return TABLES + level + 8 * (first + rng_below(rng, 512 - first));
}

/* Other places for the same tables and pages, and large pages that go beyond memory. */
static void twist_tables(struct session *s)
{
    const uint64_t all = PTE_P | PTE_W | PTE_U | PTE_A;
    for (unsigned n = rng_below(&s->rng, 30); n; n--)
        store_le64(s->image + some_entry_address(&s->rng), some_entry(&s->rng));
    store_le64(s->image + TABLES + 8 * 256, TABLES + 0x1000 + all);       /* ffff800000000000: once more */
    store_le64(s->image + TABLES + 8 * 511, TABLES + all);                /* the tables themselves */
    store_le64(s->image + TABLES + 0x2000 + 8 * 1, PTE_PS | all);         /* 2 MiB at 2 MiB: beyond the end of memory */
    store_le64(s->image + TABLES + 0x1000 + 8 * 1, PTE_PS | all | PTE_G); /* 1 GiB */
}

/* ---- a case ---- */

static void place_lives(struct session *s, bool wild)
{
    const struct program *p = &s->program;
    for (unsigned i = 0; i < LIVES_MOST; i++) {
        struct life life = {.rip = program_linear(p) + p->unit[rng_below(&s->rng, p->units)], .rflags = EFLAGS_FIXED};
        bool user = rng_percent(&s->rng, 50);
        for (unsigned r = 0; r < 16; r++)
            life.gpr[r] = rng_percent(&s->rng, 60) ? some_address(&s->rng, wild) : p->state.gpr[r];
        if (rng_percent(&s->rng, 50))
            life.gpr[RSP] = (user ? STACK3 : STACK0) - 0x80;
        life.gpr[RCX] = rng_percent(&s->rng, 90) ? rng_below(&s->rng, 40) : rng_below(&s->rng, 0x10000);
        if (wild && rng_percent(&s->rng, 20))
            life.rip = rng_percent(&s->rng, 70) ? life.rip + rng_below(&s->rng, 20) : some_address(&s->rng, true);
        life.cs = user ? USER_CODE64 : CODE64;
        life.ss = user ? USER_DATA : DATA0;
        memcpy(s->image + LIVES + i * sizeof life, &life, sizeof life);
    }
    store_le32(s->image + LIVES_LEFT, LIVES_MOST);
    store_le64(s->image + NEXT_LIFE, LIVES);
}

/* Units that change what addresses mean, in ring 0: at RSI, which may point into the tables. */
static void place_system_units(struct session *s)
{
    static const uint8_t units[][10] = {
        {4, 0x0f, 0x01, 0x3e, 0x90},                     /* invlpg [rsi] */
        {7, 0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0x90},   /* mov rax, cr3; mov cr3, rax */
        {6, 0x48, 0x89, 0x3e, 0x48, 0x8b, 0x06},         /* mov [rsi], rdi; mov rax, [rsi] */
        {7, 0x48, 0x0f, 0xba, 0x2e, 0x01, 0x90, 0x90},   /* bts qword [rsi], 1 */
        {6, 0x48, 0x87, 0x06, 0x0f, 0x01, 0x3e},         /* xchg [rsi], rax; invlpg [rax] */
    };
    struct program *p = &s->program;
    for (unsigned n = rng_below(&s->rng, 4); n; n--) {
        const uint8_t *unit = units[rng_below(&s->rng, ARRAY_LEN(units))];
        unsigned at = p->unit[rng_below(&s->rng, p->units)];
        if (at + unit[0] <= p->length)
            memcpy(s->image + program_linear(p) + at, unit + 1, unit[0]);
    }
}

static void make_case(struct session *s, uint64_t number, bool wild, const struct feature_set *features)
{
    world_memory(s->image, true);
    make_program(&s->program, s->image, s->seed, number, number % 2 ? LONG3 : LONG0, features);
    memcpy(s->image + HANDLER, handler_begin, (size_t)(handler_end - handler_begin));
    for (unsigned v = 0; v < 256; v++) {
        store_le64(s->image + IDT + 16 * v, (HANDLER & 0xffff) | (uint64_t)CODE64 << 16 | UINT64_C(0xee01) << 32 |
                                                (uint64_t)(HANDLER >> 16) << 48);
        store_le64(s->image + IDT + 16 * v + 8, 0);
    }
    if (wild)
        place_system_units(s);
    twist_tables(s);
    place_lives(s, wild);
}

static void *meddle(void *opaque)
{
    struct session *s = opaque;
    struct rng rng = {s->meddling};
    uint8_t *memory = side_memory(&s->translator);
    while (atomic_load(&s->meddles)) {
        uint64_t *entry = (uint64_t *)(memory + some_entry_address(&rng));
        __atomic_store_n(entry, some_entry(&rng), __ATOMIC_RELAXED);
        if (rng_percent(&rng, 5)) {
            uint32_t code = CODE + 0x100 + rng_below(&rng, 0x300);
            __atomic_store_n(memory + code, (uint8_t)rng_next(&rng), __ATOMIC_RELAXED);
            guest_mem_written(&s->translator.mem, code, 1);
            cpu_look_up(s->translator.cpu);
        }
    }
    return NULL;
}

static void run_meddled(struct session *s, struct ending *end)
{
    s->meddling = rng_next(&s->rng);
    atomic_store(&s->meddles, true);
    bool begun = !pthread_create(&s->meddler, NULL, meddle, s);
    side_run(&s->translator, UINT64_MAX, end);
    atomic_store(&s->meddles, false);
    if (begun)
        pthread_join(s->meddler, NULL);
}

/* The interpreter's guest has written neither its program nor, but for marks, its page tables. */
static bool left_alone(struct session *s)
{
    const uint8_t *memory = side_memory(&s->interpreter);
    uint64_t program = program_linear(&s->program), marks = PTE_A | PTE_D;
    if (memcmp(memory + program, s->image + program, s->program.length))
        return false;
    for (uint32_t at = TABLES; at < TABLES + 0x4000; at += 8)
        if ((load_le64(memory + at) ^ load_le64(s->image + at)) & ~marks)
            return false;
    return true;
}

static void run_compared(struct session *s, uint64_t number)
{
    struct ending a, b;
    char text[200] = "";
    side_begin(&s->interpreter, s->image, &s->program.state);
    side_begin(&s->translator, s->image, &s->program.state);
    side_run(&s->interpreter, UINT64_MAX, &a);
    side_run(&s->translator, UINT64_MAX, &b);
    bool ended = a.exit != CPU_EXIT_REQUEST && b.exit != CPU_EXIT_REQUEST;
    if (!ended || !left_alone(s) || s->interpreter.mmio >= MMIO_MOST || s->translator.mmio >= MMIO_MOST)
        return;
    s->totals.compared++;
    if (side_compare(&s->interpreter, &a, &s->translator, &b, text) && s->totals.differ++ < 3)
        printf("case %llu differs: %s\n", (unsigned long long)number, text);
}

static void run_case(struct session *s, uint64_t number, const struct feature_set *features)
{
    bool wild = number % 4 >= 2;
    struct ending end;
    s->rng = (struct rng){s->seed ^ number << 20};
    make_case(s, number, wild, features);
    snprintf(guard_story, sizeof guard_story, "seed %llu case %llu", (unsigned long long)s->seed, (unsigned long long)number);
    if (s->verbose)
        print_program(&s->program);
    for (unsigned again = 0; again < 2; again++) { /* the second time, translated code is linked */
        if (!wild) {
            run_compared(s, number);
            continue;
        }
        side_begin(&s->translator, s->image, &s->program.state);
        if (number % 8 >= 6)
            run_meddled(s, &end);
        else
            side_run(&s->translator, UINT64_MAX, &end);
    }
    s->totals.lives += LIVES_MOST - MIN(load_le32(side_memory(&s->translator) + LIVES_LEFT), LIVES_MOST);
    s->totals.cases++;
}

static void take_translated(void *opaque, const char *group, const char *name, uint64_t value)
{
    if (!strcmp(group, "translator") && !strcmp(name, "translated"))
        *(uint64_t *)opaque += value;
}

static bool parse(struct session *s, int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        uint64_t value = strtoull(argv[i + 1], NULL, 0);
        if (!strcmp(argv[i], "--seed"))
            s->seed = value;
        else if (!strcmp(argv[i], "--count"))
            s->count = value;
        else if (!strcmp(argv[i], "--case"))
            s->first = value, s->count = 1, s->verbose = true;
        else
            return false;
    }
    return argc % 2 == 1;
}

int main(int argc, char **argv)
{
    static struct session s = {.seed = 1, .count = 1000};
    struct feature_set features;
    if (!parse(&s, argc, argv)) {
        fprintf(stderr, "usage: hostile [--seed N] [--count N] [--case N]\n");
        return 2;
    }
    cpu_offered_features(1, &features);
    s.image = malloc(MEMORY_BYTES);
    if (!s.image || !side_start(&s.interpreter, NULL, &features) || !side_start(&s.translator, &jit_translator, &features)) {
        fprintf(stderr, "cannot start\n");
        return 2;
    }
    guard_memory(&s.interpreter.mem);
    guard_memory(&s.translator.mem);
    guard_faults();
    for (uint64_t i = 0; i < s.count; i++)
        run_case(&s, s.first + i, &features);
    const struct totals *t = &s.totals;
    cpu_tell_counts(s.translator.cpu, &(struct count_sink){take_translated, &s.totals.translated});
    printf("%llu cases, %llu lives, %llu blocks translated; %llu compared, %llu differ\n", (unsigned long long)t->cases,
           (unsigned long long)t->lives, (unsigned long long)t->translated, (unsigned long long)t->compared,
           (unsigned long long)t->differ);
    return t->differ != 0;
}
