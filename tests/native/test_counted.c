/* SPDX-License-Identifier: MIT */
/* LOOP, LOOPE, LOOPNE and JCXZ in code of every width, counting in CX, ECX and RCX: how often, where to, and that the flags
 * stay what they were (SDM vol. 2). */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

/* EDI counts the rounds; the flags are the caller's, or those of a comparison of EDI, or of the counter itself. */
#define ROW(body, op) "1: lea 1(%edi), %edi; " body op " 1b; hlt"
#define LOOPS(name, bits, prefix, jcxz)                                      \
    GUEST(name##_loop, bits, ROW("", prefix "loop"));                        \
    GUEST(name##_loope, bits, ROW("", prefix "loope"));                      \
    GUEST(name##_loopne, bits, ROW("", prefix "loopne"));                    \
    GUEST(name##_by_edi, bits, ROW("cmp %edx, %edi; ", prefix "loop"));      \
    GUEST(name##_e_by_edi, bits, ROW("cmp %edx, %edi; ", prefix "loope"));   \
    GUEST(name##_ne_by_edi, bits, ROW("cmp %edx, %edi; ", prefix "loopne")); \
    GUEST(name##_by_ecx, bits, ROW("cmp %edx, %ecx; ", prefix "loop"));      \
    GUEST(name##_ne_by_ecx, bits, ROW("cmp %edx, %ecx; ", prefix "loopne")); \
    GUEST(name##_jcxz, bits, jcxz " 1f; lea 1(%edi), %edi; 1: hlt")

LOOPS(rcx64, 64, "", "jrcxz");
LOOPS(ecx64, 64, "addr32 ", "jecxz");
LOOPS(ecx32, 32, "", "jecxz");
LOOPS(cx32, 32, "addr16 ", "jcxz");
LOOPS(cx16, 16, "", "jcxz");
LOOPS(ecx16, 16, "addr32 ", "jecxz");

enum compared { NOTHING, EDI, ECX };
enum while_ { ALWAYS, EQUAL, UNEQUAL, ONCE };

struct row {
    const char *name;
    const uint8_t *begin, *end;
    unsigned bits, counter; /* bytes */
    enum compared compared;
    enum while_ goes_on; /* ONCE: JCXZ */
};
#define ROWS(name, bits, counter)                                                            \
    {#name " loop", name##_loop_begin, name##_loop_end, bits, counter, NOTHING, ALWAYS},     \
    {#name " loope", name##_loope_begin, name##_loope_end, bits, counter, NOTHING, EQUAL},   \
    {#name " loopne", name##_loopne_begin, name##_loopne_end, bits, counter, NOTHING, UNEQUAL}, \
    {#name " by edi", name##_by_edi_begin, name##_by_edi_end, bits, counter, EDI, ALWAYS},   \
    {#name " loope by edi", name##_e_by_edi_begin, name##_e_by_edi_end, bits, counter, EDI, EQUAL}, \
    {#name " loopne by edi", name##_ne_by_edi_begin, name##_ne_by_edi_end, bits, counter, EDI, UNEQUAL}, \
    {#name " by ecx", name##_by_ecx_begin, name##_by_ecx_end, bits, counter, ECX, ALWAYS},   \
    {#name " loopne by ecx", name##_ne_by_ecx_begin, name##_ne_by_ecx_end, bits, counter, ECX, UNEQUAL}, \
    {#name " jcxz", name##_jcxz_begin, name##_jcxz_end, bits, counter, NOTHING, ONCE}

static uint64_t compare(uint64_t rflags, uint32_t a, uint32_t b)
{
    uint64_t flags;
    __asm__("cmp %2, %1; pushfq; pop %0" : "=r"(flags) : "r"(a), "r"(b) : "cc");
    return (rflags & ~(uint64_t)EFLAGS_STATUS) | (flags & EFLAGS_STATUS);
}

static void try(struct world *w, const struct row *row, uint64_t rcx, uint32_t edx, uint64_t flags)
{
    struct x86_state s;
    if (row->bits == 64)
        long_mode(w, &s);
    else
        protected_mode(w, &s);
    if (row->bits == 16) {
        s.segment[CS] = (struct x86_segment){CODE16, 0x809b, 0xffff, CODE};
        s.rip = 0;
    }
    s.gpr[RCX] = rcx;
    s.gpr[RDX] = edx;
    s.gpr[RDI] = 0;
    s.rflags |= flags;

    uint64_t mask = bits_mask_bytes(row->counter), seen = row->bits == 64 ? ~UINT64_C(0) : bits_mask_bytes(4);
    uint64_t expected = rcx, rflags = s.rflags;
    uint32_t rounds = 0;
    for (bool again = row->goes_on != ONCE || rcx & mask; again;) {
        rounds++;
        if (row->goes_on == ONCE)
            break;
        if (row->compared != NOTHING)
            rflags = compare(rflags, row->compared == EDI ? rounds : (uint32_t)expected, edx);
        uint64_t left = (expected - 1) & mask;
        expected = row->counter == 4 ? left : (expected & ~mask) | left;
        bool zero = rflags & EFLAGS_ZF;
        again = left && (row->goes_on == ALWAYS || zero == (row->goes_on == EQUAL));
    }

    CHECK_EQ(run(w, &s, row->begin, row->end), CPU_EXIT_HALT);
    unsigned before = check_failures;
    CHECK_EQ(s.segment[CS].base + s.rip, CODE + (uint64_t)(row->end - row->begin));
    CHECK_EQ((uint32_t)s.gpr[RDI], rounds);
    CHECK_EQ(s.gpr[RCX] & seen, expected & seen);
    CHECK_EQ(s.rflags & EFLAGS_STATUS, rflags & EFLAGS_STATUS);
    if (check_failures != before)
        printf("%s: rcx %#llx, edx %u, flags %#llx\n", row->name, (unsigned long long)rcx, edx, (unsigned long long)flags);
}

int main(void)
{
    static const struct row rows[] = {ROWS(rcx64, 64, 8), ROWS(ecx64, 64, 4), ROWS(ecx32, 32, 4),
                                      ROWS(cx32, 32, 2),  ROWS(cx16, 16, 2),  ROWS(ecx16, 16, 4)};
    static const uint64_t flags[] = {0, EFLAGS_ZF, EFLAGS_STATUS, EFLAGS_STATUS & ~EFLAGS_ZF};
    static const uint16_t counts[] = {1, 2, 3, 40, 0};
    struct world w;
    world_main_begin();
    world_init(&w);
    for (unsigned r = 0; r < ARRAY_LEN(rows); r++)
        for (unsigned f = 0; f < ARRAY_LEN(flags); f++)
            for (unsigned c = 0; c < ARRAY_LEN(counts); c++) {
                const struct row *row = &rows[r];
                /* above the counter there may be anything; none left to begin with means all there are */
                uint64_t above = row->counter == 2 ? UINT64_C(0xaaaabbbbcccc0000) : row->counter == 4 ? UINT64_C(0xaaaabbbb00000000) : 0;
                if (!counts[c] && row->counter != 2 && row->goes_on != ONCE)
                    continue;
                try(&w, row, above | counts[c], 2, flags[f]);
            }
    world_destroy(&w);
    return check_report();
}
