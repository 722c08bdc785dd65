/* SPDX-License-Identifier: MIT */
/* What was counted during a run, told one by one to whoever asks. Names are words of [a-z0-9_ ]; several of the same
 * group and name are to be added. */
#ifndef IMGVM_BASE_COUNT_H
#define IMGVM_BASE_COUNT_H

#include <stdint.h>

struct count_sink {
    void (*take)(void *opaque, const char *group, const char *name, uint64_t value);
    void *opaque;
};

static inline void count_tell(const struct count_sink *sink, const char *group, const char *name, uint64_t value)
{
    sink->take(sink->opaque, group, name, value);
}

#endif
