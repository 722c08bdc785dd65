/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "trace.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER_BYTES (1u << 16)

struct trace {
    uint32_t kinds; /* a bit each */
    FILE *out;
    int failed; /* errno of the first write that did; 0: none. With the stream's lock */
};

static const char *const names[] = {
#define KIND(kind, name, what) name,
    TRACE_KINDS(KIND)
#undef KIND
};

static int add_kind(uint32_t *kinds, const char *word, size_t length, imgvm_error *err)
{
    if (length == 3 && !memcmp(word, "all", 3)) {
        *kinds = ~0u;
        return 0;
    }
    for (unsigned i = 0; i < TRACE_KIND_COUNT; i++) {
        if (strlen(names[i]) == length && !memcmp(word, names[i], length)) {
            *kinds |= 1u << i;
            return 0;
        }
    }
    error_set(err, EINVAL, "cannot trace \"%.*s\"", (int)(length < 40 ? length : 40), word);
    return error_hint(err, "there are all%s",
#define KIND(kind, name, what) ", " name
                      TRACE_KINDS(KIND)
#undef KIND
    );
}

static int parse(const char *words, uint32_t *kinds, imgvm_error *err)
{
    int result;
    for (const char *word = words;; word++) {
        size_t length = strcspn(word, ",");
        if ((result = add_kind(kinds, word, length, err)) < 0)
            return result;
        word += length;
        if (!*word)
            return 0;
    }
}

int trace_check(const char *kinds, imgvm_error *err)
{
    uint32_t ignored = 0;
    return parse(kinds, &ignored, err);
}

int trace_open(struct trace **out, const char *kinds, int fd, imgvm_error *err)
{
    struct trace *trace = calloc(1, sizeof *trace);
    if (!trace)
        return error_set(err, ENOMEM, "out of memory for the trace");
    int result = parse(kinds, &trace->kinds, err);
    if (result < 0) {
        free(trace);
        return result;
    }
    struct stat info;
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    trace->out = copy < 0 ? NULL : fdopen(copy, "a");
    if (!trace->out || fstat(copy, &info) < 0) {
        result = error_set(err, errno, "cannot write the trace: %s", strerror(errno));
        if (copy >= 0)
            close(copy);
        free(trace);
        return result;
    }
    setvbuf(trace->out, NULL, S_ISREG(info.st_mode) ? _IOFBF : _IOLBF, BUFFER_BYTES);
    *out = trace;
    return 0;
}

void trace_close(struct trace *trace)
{
    if (!trace)
        return;
    fclose(trace->out);
    free(trace);
}

int trace_flush(struct trace *trace)
{
    if (!trace)
        return 0;
    flockfile(trace->out);
    if (fflush(trace->out) && !trace->failed)
        trace->failed = errno;
    int failed = trace->failed;
    funlockfile(trace->out);
    return -failed;
}

uint32_t trace_kinds(const struct trace *trace)
{
    return trace ? trace->kinds : 0;
}

bool trace_wants(const struct trace *trace, enum trace_kind kind)
{
    return __builtin_expect(trace != NULL, 0) && (trace->kinds >> kind & 1);
}

void trace_line(struct trace *trace, uint64_t time_ns, unsigned cpu, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    flockfile(trace->out);
    fprintf(trace->out, "%5llu.%06llu %u ", (unsigned long long)(time_ns / 1000000000u),
            (unsigned long long)(time_ns / 1000u % 1000000u), cpu);
    vfprintf(trace->out, format, arguments);
    putc_unlocked('\n', trace->out);
    if (ferror_unlocked(trace->out) && !trace->failed)
        trace->failed = errno;
    funlockfile(trace->out);
    va_end(arguments);
}
