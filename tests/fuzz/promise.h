/* SPDX-License-Identifier: MIT */
#ifndef IMGVM_FUZZ_PROMISE_H
#define IMGVM_FUZZ_PROMISE_H

#include <stdio.h>
#include <stdlib.h>

/* Only in a fuzzer: a broken promise ends the process, so that the input is kept. */
#define PROMISE(condition)                                                          \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                \
        }                                                                           \
    } while (0)

#endif
