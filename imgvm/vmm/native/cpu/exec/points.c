/* SPDX-License-Identifier: MIT */
#include "points.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "exec.h"

bool points_on_page(const struct points *points, uint64_t linear)
{
    for (unsigned i = 0; i < points->count; i++)
        if ((points->point[i].kinds & CPU_POINT_EXECUTE) && (points->point[i].linear ^ linear) < GUEST_PAGE_SIZE)
            return true;
    return false;
}

static bool overlaps(const struct cpu_point *point, uint64_t linear, unsigned size)
{
    return linear + size - 1 >= point->linear && point->linear + point->size - 1 >= linear;
}

bool points_watch(const struct points *points, uint64_t linear, unsigned size)
{
    for (unsigned i = 0; i < points->count; i++)
        if ((points->point[i].kinds & ~CPU_POINT_EXECUTE) && overlaps(&points->point[i], linear, size))
            return true;
    return false;
}

static void hit(struct cpu *cpu, const struct cpu_point *point, uint64_t linear, uint32_t kinds)
{
    cpu->points.is_hit = true;
    cpu->points.hit = (struct cpu_hit){*point, linear, kinds};
}

void points_meet_code(struct cpu *cpu, uint64_t linear)
{
    struct points *points = &cpu->points;
    for (unsigned i = 0; i < points->count; i++) {
        if (!(points->point[i].kinds & CPU_POINT_EXECUTE) || points->point[i].linear != linear)
            continue;
        if (points->pass && points->pass_linear == linear) {
            points->pass = false;
            return;
        }
        hit(cpu, &points->point[i], linear, CPU_POINT_EXECUTE);
        cpu->event = EVENT_STOP;
        __builtin_longjmp(cpu->landing, 1);
    }
}

void points_meet_data(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, uint32_t kinds)
{
    struct points *points = &cpu->points;
    for (unsigned i = 0; i < points->count; i++) {
        const struct cpu_point *point = &points->point[i];
        if (!(point->kinds & kinds) || !overlaps(point, linear, size))
            continue;
        if (u && cpu->block && !(cpu->block->mode & MODE_SINGLE)) {
            /* again, in a block of its own: it must be the last one before the stop */
            cpu->rip = cpu_this_rip(cpu, u) & cpu_rip_mask(cpu);
            cpu->event = EVENT_SINGLE;
            leave_block(cpu, u, false);
        }
        hit(cpu, point, MAX(linear, point->linear), kinds & point->kinds);
        cpu_request(cpu, CPU_REQUEST_EXIT);
        return;
    }
}

/* ---- the outside's calls ---- */

/* Of the pages that are watched, or -errno: a point that begins and ends within pages has two more than its size says. */
static int room_for(const struct cpu_point *list, unsigned count, imgvm_error *err)
{
    uint64_t room = 0;
    for (unsigned i = 0; i < count; i++) {
        if (!list[i].size || list[i].linear + list[i].size - 1 < list[i].linear)
            return error_set(err, EINVAL, "no addresses are %#" PRIx64 " and the %" PRIu64 " bytes from there on",
                             list[i].linear, list[i].size);
        if (list[i].kinds & ~CPU_POINT_EXECUTE)
            room += MIN(list[i].size / GUEST_PAGE_SIZE + 2, (uint64_t)CPU_WATCHED_PAGES_MAX + 1);
        if (room > CPU_WATCHED_PAGES_MAX)
            return error_set(err, ENOSPC, "the software processor can watch %u MiB, not more",
                             CPU_WATCHED_PAGES_MAX / (1024 * 1024 / GUEST_PAGE_SIZE));
    }
    return (int)room;
}

int cpu_set_points(struct cpu *cpu, const struct cpu_point *list, unsigned count, imgvm_error *err)
{
    struct points *points = &cpu->points;
    struct cpu_point *copy = NULL;
    uint64_t *pages = NULL;
    unsigned page_count = 0, code = 0, data = 0;
    int room = room_for(list, count, err);
    if (room < 0)
        return room;
    for (unsigned i = 0; i < count; i++) {
        code += (list[i].kinds & CPU_POINT_EXECUTE) != 0;
        data += (list[i].kinds & ~CPU_POINT_EXECUTE) != 0;
    }
    if (count && !(copy = malloc(count * sizeof *copy)))
        return error_set(err, ENOMEM, "out of memory for %u breakpoints", count);
    if (room && !(pages = malloc((size_t)room * sizeof *pages))) {
        free(copy);
        return error_set(err, ENOMEM, "out of memory for %u breakpoints", count);
    }
    for (unsigned i = 0; i < count; i++) {
        copy[i] = list[i];
        if (!(list[i].kinds & ~CPU_POINT_EXECUTE))
            continue;
        uint64_t last = align_down(list[i].linear + list[i].size - 1, GUEST_PAGE_SIZE);
        for (uint64_t page = align_down(list[i].linear, GUEST_PAGE_SIZE);; page += GUEST_PAGE_SIZE) {
            pages[page_count++] = page;
            if (page == last)
                break;
        }
    }
    free(points->point);
    free(cpu->mmu.held_page);
    points->point = copy;
    points->count = count;
    points->code = code;
    points->data = data;
    cpu->mmu.held_page = pages;
    cpu->mmu.held_count = page_count;
    cpu->mmu.looks_at_code = code != 0;
    mmu_flush(&cpu->mmu); /* what was cached by linear address was cached without them */
    return 0;
}

void cpu_pass_point(struct cpu *cpu)
{
    cpu->points.pass = cpu->points.code != 0;
    cpu->points.pass_linear = cpu->code64 ? cpu->rip : (uint32_t)(cpu->seg_base[CS] + cpu->rip);
}

bool cpu_take_hit(struct cpu *cpu, struct cpu_hit *out)
{
    bool is_hit = cpu->points.is_hit;
    cpu->points.is_hit = false;
    if (is_hit) {
        *out = cpu->points.hit;
        cpu_withdraw(cpu, CPU_REQUEST_EXIT);
    }
    return is_hit;
}

void cpu_hold_interrupts(struct cpu *cpu, bool hold)
{
    cpu->hold_interrupts = hold;
    cpu_update_requests(cpu);
}

bool cpu_probe(struct cpu *cpu, uint64_t linear, uint64_t *gpa)
{
    return mmu_probe(&cpu->mmu, linear, gpa);
}
