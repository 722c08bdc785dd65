/* SPDX-License-Identifier: MIT */
/* A run of a processor by itself, and the watchdog that ends it in time. */
#include <stdio.h>
#include <string.h>

#include "processor_internal.h"

void processor_begin_watch(struct imgvm_processor *p)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed_state, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

void processor_end_watch(struct imgvm_processor *p)
{
    if (p->has_watchdog) {
        pthread_mutex_lock(&p->lock);
        p->closing = true;
        pthread_cond_signal(&p->changed_state);
        pthread_mutex_unlock(&p->lock);
        pthread_join(p->watchdog, NULL);
    }
    pthread_cond_destroy(&p->changed_state);
    pthread_mutex_destroy(&p->lock);
}

static bool is_before(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec != b->tv_sec ? a->tv_sec < b->tv_sec : a->tv_nsec < b->tv_nsec;
}

static void *watchdog(void *opaque)
{
    struct imgvm_processor *p = opaque;
    pthread_mutex_lock(&p->lock);
    while (!p->closing) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        bool over = p->running && !is_before(&now, &p->until);
        if (over && !p->expired) {
            p->expired = true;
            p->engine->ops->kick(p->engine, 0);
        }
        p->idle = !p->running || over;
        p->wakes = p->until;
        if (p->idle)
            pthread_cond_wait(&p->changed_state, &p->lock);
        else
            pthread_cond_timedwait(&p->changed_state, &p->lock, &p->wakes);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static void set_deadline(struct imgvm_processor *p, int timeout_ms)
{
    clock_gettime(CLOCK_MONOTONIC, &p->until);
    p->until.tv_sec += timeout_ms < 0 ? 1000000000 : timeout_ms / 1000;
    p->until.tv_nsec += timeout_ms < 0 ? 0 : timeout_ms % 1000 * 1000000L;
    p->until.tv_sec += p->until.tv_nsec / 1000000000;
    p->until.tv_nsec %= 1000000000;
}

static int begin_run(struct imgvm_processor *p, int timeout_ms, imgvm_error *err)
{
    pthread_mutex_lock(&p->lock);
    set_deadline(p, timeout_ms);
    p->running = true;
    p->expired = false;
    if (p->has_watchdog && (p->idle || is_before(&p->until, &p->wakes)))
        pthread_cond_signal(&p->changed_state);
    pthread_mutex_unlock(&p->lock);
    if (p->has_watchdog)
        return 0;
    int code = pthread_create(&p->watchdog, NULL, watchdog, p);
    p->has_watchdog = !code;
    p->running = !code;
    return code ? error_set(err, code, "cannot start a thread: %s", strerror(code)) : 0;
}

static void explain(struct imgvm_processor *p, enum engine_exit exit, bool expired, imgvm_stop *out)
{
    struct engine_stop stop;
    switch (exit) {
    case ENGINE_EXIT_DEBUG:
        stop = p->engine->ops->stop_of(p->engine, 0);
        out->reason = stop.reason == ENGINE_STOP_STEPS       ? IMGVM_STOP_STEPS
                      : stop.reason == ENGINE_STOP_HALT      ? IMGVM_STOP_HALT
                      : stop.reason == ENGINE_STOP_EXCEPTION ? IMGVM_STOP_EXCEPTION
                      : stop.kinds & ENGINE_POINT_EXECUTE ? IMGVM_STOP_BREAKPOINT : IMGVM_STOP_WATCHPOINT;
        out->address = stop.linear;
        out->kinds = stop.kinds;
        out->vector = stop.vector;
        out->error_code = stop.error_code;
        out->has_error_code = stop.has_error_code;
        break;
    case ENGINE_EXIT_SHUTDOWN:
        out->reason = IMGVM_STOP_SHUTDOWN;
        snprintf(out->message, sizeof out->message, "%s", p->engine->ops->message(p->engine, 0));
        break;
    case ENGINE_EXIT_KICKED:
        /* KVM keeps a halted processor to itself */
        out->reason = p->state.activity == X86_HALTED ? IMGVM_STOP_HALT : expired ? IMGVM_STOP_TIMEOUT : IMGVM_STOP_ASKED;
        break;
    default:
        out->reason = IMGVM_STOP_INTERNAL;
        snprintf(out->message, sizeof out->message, "%s", p->engine->ops->message(p->engine, 0));
    }
}

int imgvm_processor_run(imgvm_processor *p, uint64_t instructions, int timeout_ms, imgvm_stop *out, imgvm_error *err)
{
    const struct engine_ops *ops = p->engine->ops;
    int result = processor_return_state(p, err);
    if (result < 0)
        return result;
    memset(out, 0, sizeof *out);
    /* A breakpoint where the last run stopped was told then. */
    ops->set_steps(p->engine, 0, instructions ? instructions : ENGINE_STEPS_TO_HALT, p->stopped_before ? ENGINE_GO_PASS : 0);
    uint64_t before = ops->instructions(p->engine);
    if ((result = begin_run(p, timeout_ms, err)) < 0)
        return result;
    enum engine_exit exit;
    bool over;
    do { /* a kick may be left from the end of an earlier run */
        exit = ops->run(p->engine, 0);
        pthread_mutex_lock(&p->lock);
        over = exit != ENGINE_EXIT_KICKED || p->expired || p->asked;
        pthread_mutex_unlock(&p->lock);
    } while (!over);
    pthread_mutex_lock(&p->lock);
    p->running = p->asked = false;
    bool expired = p->expired;
    pthread_mutex_unlock(&p->lock);
    p->fresh = false;
    if ((result = processor_fetch_state(p, err)) < 0)
        return result;
    out->instructions = ops->instructions(p->engine) - before;
    explain(p, exit, expired, out);
    if (out->reason == IMGVM_STOP_STEPS)
        out->instructions = instructions; /* KVM does not count */
    p->stopped_before = true;
    return 0;
}

void imgvm_processor_stop(imgvm_processor *p)
{
    pthread_mutex_lock(&p->lock);
    p->asked = p->running;
    if (p->asked)
        p->engine->ops->kick(p->engine, 0);
    pthread_mutex_unlock(&p->lock);
}
