/* SPDX-License-Identifier: MIT */
/* What was counted during a run, gathered from the engine and the board. */
#include <stdio.h>
#include <string.h>

#include "vm.h"

struct list {
    imgvm_count *items;
    uint32_t count, most;
};

static void add(void *opaque, const char *group, const char *name, uint64_t value)
{
    struct list *list = opaque;
    for (uint32_t i = 0; i < MIN(list->count, list->most); i++) {
        if (!strcmp(list->items[i].name, name) && !strcmp(list->items[i].group, group)) {
            list->items[i].value += value;
            return;
        }
    }
    if (list->count++ >= list->most)
        return;
    imgvm_count *item = &list->items[list->count - 1];
    snprintf(item->group, sizeof item->group, "%s", group);
    snprintf(item->name, sizeof item->name, "%s", name);
    item->value = value;
}

uint32_t imgvm_vm_counts(imgvm_vm *vm, imgvm_count *out, uint32_t most)
{
    struct list list = {out, 0, most};
    const struct count_sink sink = {add, &list};
    struct engine *engine = vm->board.engine;
    pthread_mutex_lock(&vm->lock);
    bool ended = vm->ended;
    pthread_mutex_unlock(&vm->lock);
    if (!ended)
        return 0;
    if (engine->ops->tell_counts)
        engine->ops->tell_counts(engine, &sink);
    bus_tell_counts(&vm->board.ports, "ports", &sink);
    bus_tell_counts(&vm->board.mmio, "mmio", &sink);
    for (unsigned i = 0; vm->board.cpu && i < vm->board.cpus; i++) {
        count_tell(&sink, "mmio", "local APIC", vm->board.cpu[i].lapic_accesses);
        count_tell(&sink, "msr", "local APIC", vm->board.cpu[i].lapic_msr_accesses);
    }
    return list.count;
}
