/* SPDX-License-Identifier: MIT */
/* gdb's `monitor` commands. */
#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../base/bits.h"
#include "gdb_internal.h"

#define LINE_BYTES 256

static void say(struct gdb *gdb, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* One piece of output: `O` and the text in hexadecimal. */
static void say(struct gdb *gdb, const char *format, ...)
{
    char text[LINE_BYTES], packet[2 * LINE_BYTES + 2];
    va_list args;
    va_start(args, format);
    int size = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size = MIN(size, LINE_BYTES - 1);
    packet[0] = 'O';
    for (int i = 0; i < size; i++)
        snprintf(packet + 1 + 2 * i, 3, "%02x", (uint8_t)text[i]);
    gdb_send(gdb, packet, 1 + 2 * (size_t)size);
}

static void help(struct gdb *gdb, const char *words)
{
    (void)words;
    say(gdb, "info registers          every register of the chosen processor\n");
    say(gdb, "info mtree              memory, ports and who answers there\n");
    say(gdb, "info cpus               the processors and what they do\n");
    say(gdb, "xp ADDRESS [COUNT]      bytes by physical address\n");
    say(gdb, "translate ADDRESS       the physical address behind a linear one\n");
    say(gdb, "architecture 16|32|64|auto   what the next connection is told about registers\n");
    say(gdb, "quit                    end the machine\n");
}

static void info_registers(struct gdb *gdb, const char *words)
{
    (void)words;
    struct engine *engine = gdb->vm->board.engine;
    struct x86_state state;
    imgvm_error err = {0};
    if (engine->ops->get_state(engine, gdb->cpu, &state, &err) < 0) {
        say(gdb, "%s\n", err.message);
        return;
    }
    const struct register_row *row;
    for (unsigned i = 0; (row = register_at(i)); i++) {
        uint8_t value[REGISTER_BYTES_MAX] = {0};
        char hex[2 * REGISTER_BYTES_MAX + 1];
        register_read(&state, row, value);
        for (unsigned byte = 0; byte < row->bytes; byte++)
            snprintf(hex + 2 * byte, 3, "%02x", value[row->bytes - 1 - byte]);
        say(gdb, "%-14s %s\n", row->name, hex);
    }
}

static void list_bus(struct gdb *gdb, const struct bus *bus, int width)
{
    for (unsigned i = 0; i < bus->count; i++)
        say(gdb, "  %0*" PRIx64 "-%0*" PRIx64 "  %s\n", width, bus->ranges[i].base, width,
            bus->ranges[i].base + bus->ranges[i].size - 1, bus->ranges[i].name);
}

static void info_mtree(struct gdb *gdb, const char *words)
{
    (void)words;
    struct board *board = &gdb->vm->board;
    say(gdb, "memory\n");
    for (unsigned i = 0; i < board->mem.count; i++) {
        const struct guest_region *region = &board->mem.regions[i];
        say(gdb, "  %012" PRIx64 "-%012" PRIx64 "  %s\n", region->gpa, region->gpa + region->size - 1,
            region->read_only ? "ROM" : "RAM");
    }
    pthread_mutex_lock(&board->lock);
    list_bus(gdb, &board->mmio, 12);
    say(gdb, "ports\n");
    list_bus(gdb, &board->ports, 4);
    pthread_mutex_unlock(&board->lock);
}

static void info_cpus(struct gdb *gdb, const char *words)
{
    (void)words;
    struct engine *engine = gdb->vm->board.engine;
    for (unsigned i = 0; i < gdb->vm->board.cpus; i++) {
        struct x86_state state;
        if (engine->ops->get_state(engine, i, &state, NULL) < 0)
            continue;
        say(gdb, "%c %u  %u-bit at %04x:%" PRIx64 "%s\n", i == gdb->cpu ? '*' : ' ', i, register_code_bits(&state),
            state.segment[CS].selector, state.rip, state.activity == X86_RUNNING ? "" : "  (not running)");
    }
}

static void physical(struct gdb *gdb, const char *words)
{
    char *end;
    uint64_t address = strtoull(words, &end, 0), count = strtoull(end, NULL, 0);
    count = count ? MIN(count, UINT64_C(4096)) : 16;
    const struct inspect inspect = {gdb->vm->board.engine, &gdb->vm->board.mem, gdb->cpu, true};
    for (uint64_t at = 0; at < count; at += 16) {
        uint8_t bytes[16];
        char line[64] = "";
        uint64_t size = inspect_read(&inspect, address + at, bytes, MIN(count - at, UINT64_C(16)));
        for (unsigned i = 0; i < size; i++)
            snprintf(line + 3 * i, 4, " %02x", bytes[i]);
        say(gdb, "%012" PRIx64 ":%s\n", address + at, size ? line : " no memory");
    }
}

static void translate(struct gdb *gdb, const char *words)
{
    struct engine *engine = gdb->vm->board.engine;
    uint64_t linear = strtoull(words, NULL, 0), gpa;
    if (engine->ops->translate(engine, gdb->cpu, linear, &gpa))
        say(gdb, "%#" PRIx64 "\n", gpa);
    else
        say(gdb, "not mapped\n");
}

static void architecture(struct gdb *gdb, const char *words)
{
    unsigned bits = (unsigned)strtoul(words, NULL, 10);
    if (bits == 16 || bits == 32 || bits == 64 || !strcmp(words, "auto"))
        gdb->forced_bits = bits;
    else
        say(gdb, "architecture is 16, 32, 64 or auto\n");
}

static void quit(struct gdb *gdb, const char *words)
{
    (void)words;
    vm_finish(gdb->vm, IMGVM_REASON_STOPPED, 0, "ended by the debugger");
}

static const struct {
    const char *words;
    void (*run)(struct gdb *gdb, const char *words);
} commands[] = {
    {"help", help}, {"info registers", info_registers}, {"info mtree", info_mtree}, {"info cpus", info_cpus},
    {"xp", physical}, {"translate", translate}, {"architecture", architecture}, {"quit", quit},
};

void gdb_monitor(struct gdb *gdb, const char *command)
{
    for (unsigned i = 0; i < ARRAY_LEN(commands); i++) {
        size_t size = strlen(commands[i].words);
        if (strncmp(command, commands[i].words, size) || (command[size] && !isspace((unsigned char)command[size])))
            continue;
        commands[i].run(gdb, command + size + strspn(command + size, " \t"));
        gdb_send_text(gdb, "OK");
        return;
    }
    say(gdb, "there is no command `%.100s`; `monitor help` lists them\n", command);
    gdb_send_text(gdb, "OK");
}
