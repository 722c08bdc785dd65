/* SPDX-License-Identifier: MIT */
/* A cache of code grows when what it lost is wanted again, soon; not otherwise, and not beyond what it may. */
// needs: base/error.c
#include "cpu/exec/cache_growth.h"

#include "check.h"

#define ENDLESS (UINT64_C(1) << 40)
static const struct cache_room room = {.first = 32, .first_machine = 32, .first_least = 4, .most = 256, .most_machine = 512,
                                       .most_least = 64, .ticks = ENDLESS};

static void test_rooms(void)
{
    static const struct { unsigned processors, first, most; } cases[] = {
        {0, 32, 256}, {1, 32, 256}, {2, 16, 256}, {4, 8, 128}, {8, 4, 64}, {64, 4, 64}};
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        struct cache_growth growth = cache_growth_of(&room, cases[i].processors);
        CHECK_EQ(growth.count, cases[i].first);
        CHECK_EQ(growth.most, cases[i].most);
    }
}

/* Segments of 100 blocks each, of which so many were there before, as soon as there can be any. Returned: how many segments
 * were never begun before. */
static unsigned fill(struct cache_growth *growth, unsigned segments, unsigned again)
{
    unsigned fresh = 0;
    bool all = growth->begun == growth->count;
    for (unsigned segment = 0; segment < segments; segment++) {
        all |= growth->begun == growth->count;
        for (unsigned block = 0; block < 100; block++)
            cache_growth_note(growth, all && block < again);
        fresh += cache_growth_next(growth);
        CHECK(growth->begun <= growth->count && growth->count <= growth->most);
    }
    return fresh;
}

static void test_growth(void)
{
    struct cache_growth growth = cache_growth_of(&room, 8);
    cache_growth_restart(&growth);
    CHECK_EQ(fill(&growth, 100, 0), 3); /* those that there were; the first was begun */
    CHECK_EQ(growth.count, 4);
    CHECK_EQ(fill(&growth, 100, 20), 0); /* most of it is new */
    CHECK_EQ(growth.count, 4);
    fill(&growth, 8, 90);
    CHECK_EQ(growth.count, 8);
    fill(&growth, 1000, 90);
    CHECK_EQ(growth.count, 64);
    CHECK_EQ(growth.begun, 64);

    cache_growth_restart(&growth); /* all is empty, and stays as large */
    CHECK_EQ(growth.count, 64);
    CHECK_EQ(fill(&growth, 63, 0), 63);

    struct cache_growth slow = cache_growth_of(&room, 8);
    slow.ticks = 0;
    cache_growth_restart(&slow);
    fill(&slow, 1000, 90);
    CHECK_EQ(slow.count, 4);
}

int main(void)
{
    test_rooms();
    test_growth();
    return check_report();
}
