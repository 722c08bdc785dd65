/* SPDX-License-Identifier: MIT */
/* Generated code in the process's memory: no mapping that can be written and executed, and names for Linux perf. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c cpu/jit/*.c
#include <stdio.h>

#include "cpu/jit/jit.h"

#define WORLD_TRANSLATOR &jit_translator
#define WORLD_NAME_CODE name_code

static void name_code(void *opaque, const void *start, size_t bytes, const char *name);
#include "mode_world.h"

struct mapping {
    unsigned long long start, end, inode;
    char rights[5], path[256];
};

static bool next_mapping(FILE *maps, struct mapping *m)
{
    char line[512];
    if (!fgets(line, sizeof line, maps))
        return false;
    m->path[0] = 0;
    return sscanf(line, "%llx-%llx %4s %*s %*s %llu %255[^\n]", &m->start, &m->end, m->rights, &m->inode, m->path) >= 4;
}

static bool is_mapped(uint64_t address, const char *rights, const char *path)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    struct mapping m;
    bool found = false;
    while (next_mapping(maps, &m))
        found |= address - m.start < m.end - m.start && !strcmp(m.rights, rights) && strstr(m.path, path);
    fclose(maps);
    return found;
}

/* Of what the guest's code became: thunks (a file without a name) and translations (anonymous to perf, which wants names). */
static void look_at_mappings(struct world *w)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    struct mapping m;
    unsigned executable = 0, writable = 0;
    while (next_mapping(maps, &m)) {
        bool generated = strstr(m.path, "memfd:imgvm-code") || strstr(m.path, "/dev/zero");
        CHECK(!(m.rights[1] == 'w' && m.rights[2] == 'x'));
        if (generated) {
            CHECK(!strcmp(m.rights, "rw-s") || !strcmp(m.rights, "r-xs"));
            executable += m.rights[2] == 'x';
            writable += m.rights[1] == 'w';
        }
    }
    fclose(maps);
    CHECK_EQ(executable, 2);
    CHECK_EQ(writable, 2);
    (void)w;
}

/* Translated, with a thunk's instruction in it; looks from the midst of its run. */
GUEST(busy, 64, "mov $100, %ecx\n 1: paddd %xmm0, %xmm1\n mov %eax, (%rsi)\n dec %ecx\n jnz 1b\n out %al, $0x80\n hlt");

static struct {
    uint64_t start, bytes;
    char name[40];
} symbols[100];
static unsigned symbol_count;

static void name_code(void *opaque, const void *start, size_t bytes, const char *name)
{
    (void)opaque;
    CHECK(symbol_count < ARRAY_LEN(symbols));
    symbols[symbol_count].start = (uint64_t)start;
    symbols[symbol_count].bytes = bytes;
    snprintf(symbols[symbol_count++].name, sizeof symbols[0].name, "%s", name);
}

/* 0: there is none */
static uint64_t symbol(const char *name)
{
    for (unsigned i = 0; i < symbol_count; i++)
        if (!strcmp(symbols[i].name, name))
            return symbols[i].start;
    return 0;
}

int main(void)
{
    static const char *const stubs[] = {"jit:leave", "jit:enter", "jit:dispatch", "jit:callout", "jit:enter_unit",
                                        "jit:refill_read", "jit:refill_write"};
    static struct x86_state s;
    struct world w;
    char name[40];
    world_main_begin();
    world_init(&w);
    w.on_port_write = look_at_mappings;
    long_mode(&w, &s);
    s.gpr[RSI] = DATA;
    CHECK_EQ(RUN(&w, &s, busy), CPU_EXIT_HALT);
    CHECK_EQ(w.port_writes, 1);

    snprintf(name, sizeof name, "ring0-64:%x", CODE);
    CHECK(is_mapped(symbol(name), "r-xs", "/dev/zero"));
    snprintf(name, sizeof name, "ring0-64:%x", CODE + 5);
    CHECK(is_mapped(symbol(name), "r-xs", "/dev/zero"));
    CHECK_EQ(symbol("ring0-64:1234"), 0);
    snprintf(name, sizeof name, "ring0-64:%x:cold", CODE);
    CHECK(is_mapped(symbol(name), "r-xs", "/dev/zero"));
    for (unsigned i = 0; i < ARRAY_LEN(stubs); i++)
        CHECK(is_mapped(symbol(stubs[i]), "r-xs", "/dev/zero"));
    for (unsigned i = 0; i < symbol_count; i++) /* none overlaps another */
        for (unsigned j = 0; j < i; j++)
            CHECK(symbols[i].start + symbols[i].bytes <= symbols[j].start || symbols[j].start + symbols[j].bytes <= symbols[i].start);
    world_destroy(&w);
    return check_report();
}
