/* SPDX-License-Identifier: MIT */
/* The native tests' whole framework: CHECK counts and reports, main returns check_report(). */
#ifndef IMGVM_TEST_CHECK_H
#define IMGVM_TEST_CHECK_H

#include <inttypes.h>
#include <stdio.h>

static int check_count, check_failures;

#define CHECK(condition)                                                                 \
    do {                                                                                 \
        check_count++;                                                                   \
        if (!(condition)) {                                                              \
            check_failures++;                                                            \
            printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);               \
        }                                                                                \
    } while (0)

#define CHECK_EQ(actual, expected)                                                       \
    do {                                                                                 \
        uint64_t actual_ = (uint64_t)(actual), expected_ = (uint64_t)(expected);         \
        check_count++;                                                                   \
        if (actual_ != expected_) {                                                      \
            check_failures++;                                                            \
            printf("%s:%d: %s is %#" PRIx64 ", expected %#" PRIx64 "\n", __FILE__,       \
                   __LINE__, #actual, actual_, expected_);                               \
        }                                                                                \
    } while (0)

static inline int check_report(void)
{
    printf("%d checks, %d failed\n", check_count, check_failures);
    return check_failures || !check_count;
}

#endif
