/* SPDX-License-Identifier: MIT */
/* Several processors at once on every engine in software: tests/guest/smp.c, a boot for each number of processors.
 * IMGVM_SMP_ROUNDS in the environment makes it longer. */
#ifndef IMGVM_TEST_SMP_CASES_H
#define IMGVM_TEST_SMP_CASES_H

#include <unistd.h>

#define GUEST_TIMEOUT_MS 120000 /* a host with fewer processors, and busy with other things */
#include "guest_run.h"

static struct guest_run run;

static inline int smp_cases(uint32_t engine, unsigned rounds)
{
    static const unsigned processors[] = {2, 3, 8};
    const char *wish = getenv("IMGVM_SMP_ROUNDS");
    size_t size;
    guest_begin();
    void *kernel = guest_build("tests/guest/smp.c", true, &size);
    for (unsigned i = 0; i < sizeof processors / sizeof processors[0]; i++) {
        imgvm_vm_config config = guest_config(engine);
        char cmdline[32];
        config.cpus = processors[i];
        snprintf(cmdline, sizeof cmdline, "%u %u", processors[i], wish ? (unsigned)atoi(wish) : rounds);
        guest_run_as(GUEST_LINUX, &config, kernel, size, cmdline, NULL, &run);
        CHECK(run.ended);
        CHECK_EQ(run.result.reason, IMGVM_REASON_DEBUG_EXIT);
        CHECK_EQ(run.result.status, 0); /* the line of tests/guest/smp.c */
        if (run.result.reason != IMGVM_REASON_DEBUG_EXIT || run.result.status)
            printf("%u processors: reason %u: %s\n", processors[i], run.result.reason, run.result.message);
    }
    free(kernel);
    guest_end();
    return check_report();
}

#endif
