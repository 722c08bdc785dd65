/* SPDX-License-Identifier: MIT */
/* Debuggers of the software processor. */
#include <errno.h>
#include <stdlib.h>

#include "soft.h"

int soft_set_points(struct engine *base, const struct engine_point *points, unsigned count, imgvm_error *err)
{
    struct soft_engine *engine = soft_of(base);
    _Static_assert(ENGINE_POINT_EXECUTE == CPU_POINT_EXECUTE && ENGINE_POINT_WRITE == CPU_POINT_WRITE &&
                       ENGINE_POINT_READ == CPU_POINT_READ, "kinds of points");
    struct cpu_point *list = calloc(count ? count : 1, sizeof *list);
    if (!list)
        return error_set(err, ENOMEM, "out of memory for %u breakpoints", count);
    for (unsigned i = 0; i < count; i++)
        list[i] = (struct cpu_point){points[i].linear, points[i].size, points[i].kinds};
    int result = 0;
    for (unsigned i = 0; i < engine->count && !result; i++)
        result = cpu_set_points(engine->cpus[i].cpu, list, count, err);
    free(list);
    return result;
}

void soft_set_steps(struct engine *base, unsigned index, uint64_t steps, uint32_t go)
{
    struct soft_cpu *c = &soft_of(base)->cpus[index];
    c->steps = steps;
    c->wait = go & ENGINE_GO_WAIT;
    cpu_hold_interrupts(c->cpu, go & ENGINE_GO_QUIET);
    if (go & ENGINE_GO_PASS)
        cpu_pass_point(c->cpu);
}

struct engine_stop soft_stop_of(struct engine *base, unsigned index)
{
    return soft_of(base)->cpus[index].stop;
}

void soft_report_exceptions(struct engine *base, unsigned index, bool report)
{
    cpu_report_exceptions(soft_of(base)->cpus[index].cpu, report);
}

bool soft_translate(struct engine *base, unsigned index, uint64_t linear, uint64_t *gpa)
{
    return cpu_probe(soft_of(base)->cpus[index].cpu, linear, gpa);
}

bool soft_debugger_stops(struct soft_cpu *c, enum cpu_exit exit, uint64_t done)
{
    struct cpu_hit hit;
    if (cpu_take_hit(c->cpu, &hit)) {
        const struct engine_point point = {hit.point.linear, hit.point.size, hit.point.kinds};
        c->stop = (struct engine_stop){.reason = ENGINE_STOP_POINT, .point = point, .linear = hit.linear, .kinds = hit.kinds};
        return true;
    }
    struct cpu_exception exception;
    if (cpu_take_exception(c->cpu, &exception)) {
        c->stop = (struct engine_stop){.reason = ENGINE_STOP_EXCEPTION, .vector = exception.vector,
                                       .has_error_code = exception.has_error_code, .error_code = exception.error_code};
        return true;
    }
    if (!c->steps)
        return false;
    if (done >= c->steps || (exit == CPU_EXIT_HALT && !c->wait)) {
        c->stop = (struct engine_stop){.reason = done >= c->steps ? ENGINE_STOP_STEPS : ENGINE_STOP_HALT};
        return true;
    }
    c->steps -= done;
    return false;
}
