/* SPDX-License-Identifier: MIT */
#include <signal.h>
#include <sys/time.h>

#include "cpu/jit/jit.h"
#include "blocks.h"
#include "isa/kvm/callbacks.h"

static void note(struct side *side, uint64_t a, uint64_t b, uint64_t c)
{
    side->outside = (side->outside ^ a ^ b << 20 ^ c << 40) * UINT64_C(0x9e3779b97f4a7c15) + 1;
}

static void count_mmio(struct side *side)
{
    if (++side->mmio >= MMIO_MOST)
        cpu_request(side->cpu, CPU_REQUEST_EXIT);
}

static uint32_t port_read(void *opaque, uint16_t port, unsigned size)
{
    note(opaque, 1, port, size);
    return port * 0x01010101u + 0x12345678u;
}
static void port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct side *side = opaque;
    note(side, 2 + port, size, value);
    if (side->interrupt_on_out) {
        side->interrupt_on_out = false;
        side->vector = 29;
        cpu_request(side->cpu, CPU_REQUEST_INTR);
    }
}
static uint64_t mmio_read(void *opaque, uint64_t gpa, unsigned size)
{
    note(opaque, 3, gpa, size);
    count_mmio(opaque);
    return gpa * UINT64_C(0x123456789abcdef);
}
static void mmio_write(void *opaque, uint64_t gpa, unsigned size, uint64_t value)
{
    note(opaque, gpa, size, value);
    count_mmio(opaque);
}
static int acknowledge(void *opaque)
{
    struct side *side = opaque;
    int vector = side->vector;
    if (vector >= 0)
        side->taken_at = cpu_instructions(side->cpu);
    side->vector = -1;
    return vector;
}
static uint64_t cr8_read(void *opaque)
{
    return ((struct side *)opaque)->cr8;
}
static void cr8_write(void *opaque, uint64_t value)
{
    ((struct side *)opaque)->cr8 = value;
}
static uint64_t time_ns(void *opaque)
{
    return ((struct side *)opaque)->now++;
}

/* Translated code looks at no clock: an endless loop ends because somebody says so, by this process's own time. */
static struct cpu *volatile running;
static volatile bool rang;
static void on_alarm(int signal)
{
    (void)signal;
    rang = true;
    if (running)
        cpu_request(running, CPU_REQUEST_EXIT);
}

static void set_alarm(struct cpu *cpu, unsigned microseconds)
{
    const struct itimerval timer = {.it_interval = {0, 100000}, .it_value = {0, microseconds}}, off = {0};
    running = cpu;
    setitimer(ITIMER_PROF, cpu ? &timer : &off, NULL);
}

bool side_start(struct side *side, const struct translator_ops *translator, const struct feature_set *features)
{
    static const struct cpu_callbacks callbacks = CALLBACKS;
    imgvm_error err;
    memset(side, 0, sizeof *side);
    struct cpu_options options = {.id = 0, .count = 1, .features = features, .translator = translator,
                                  .count_instructions = true};
    signal(SIGPROF, on_alarm);
    return cpu_install_trap_handlers(&err) == 0 && guest_mem_init(&side->mem, &err) == 0 &&
           guest_mem_add(&side->mem, 0, MEMORY_BYTES, false, &err) == 0 &&
           (side->cpu = cpu_create(&callbacks, side, &side->mem, &options, &err)) != NULL;
}

uint8_t *side_memory(struct side *side)
{
    return side->mem.regions[0].host;
}

/* Only pages that differ are written, so that code which is the same stays decoded, and translated, and linked. */
void side_begin(struct side *side, const uint8_t *image, const struct x86_state *state)
{
    for (uint32_t page = 0; page < MEMORY_BYTES; page += 4096) {
        if (!memcmp(side_memory(side) + page, image + page, 4096))
            continue;
        memcpy(side_memory(side) + page, image + page, 4096);
        guest_mem_written(&side->mem, page, 4096);
    }
    side->outside = side->cr8 = 0;
    side->vector = -1;
    side->interrupt_on_out = false;
    side->taken_at = side->mmio = 0;
    cpu_withdraw(side->cpu, ~0u);
    cpu_set_state(side->cpu, state);
}

void side_run(struct side *side, uint64_t count, struct ending *out)
{
    uint64_t before = cpu_instructions(side->cpu);
    rang = false;
    if (count == UINT64_MAX)
        set_alarm(side->cpu, 30000); /* what is counted ends anyway, and at the same instruction on a busy host too */
    out->exit = cpu_run_count(side->cpu, count);
    set_alarm(NULL, 0);
    out->late = rang;
    out->instructions = cpu_instructions(side->cpu) - before;
    out->outside = side->outside;
    memset(&out->point, 0, sizeof out->point);
    out->hit = cpu_take_hit(side->cpu, &out->point);
    cpu_get_state(side->cpu, &out->state);
    out->state.cr8 = side->cr8;
}

/* ---- comparing ---- */

static const char *const gpr_names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

static bool segments_differ(const struct x86_segment *a, const struct x86_segment *b)
{
    return a->selector != b->selector || a->attributes != b->attributes || a->limit != b->limit || a->base != b->base;
}

/* Components that the header calls initial, spelled out. */
static void spell_out(uint8_t *to, const uint8_t *from)
{
    uint64_t features = load_le64(from + 512);
    memset(to, 0, 832);
    store_le16(to, 0x37f);
    if (features & XCR0_X87)
        memcpy(to, from, 5), memcpy(to + 32, from + 32, 128);
    memcpy(to + 24, from + 24, 4);
    if (features & XCR0_SSE)
        memcpy(to + 160, from + 160, 256);
    if (features & XCR0_AVX)
        memcpy(to + 576, from + 576, 256);
}

static const char *differing(const char *name, uint64_t a, uint64_t b, char text[200])
{
    snprintf(text, 200, "%s: interpreted %#llx translated %#llx", name, (unsigned long long)a, (unsigned long long)b);
    return name;
}

static const char *compare_vectors(const uint8_t *a, const uint8_t *b, char text[200])
{
    uint8_t x[832], y[832];
    spell_out(x, a);
    spell_out(y, b);
    for (unsigned i = 0; i < 832; i += 8)
        if (load_le64(x + i) != load_le64(y + i)) {
            static const char *const names[] = {"x87 control, MXCSR", "st", "xmm", "ymm"};
            const char *name = names[i < 32 ? 0 : i < 160 ? 1 : i < 416 ? 2 : 3];
            differing(name, load_le64(x + i), load_le64(y + i), text);
            return name;
        }
    return NULL;
}

/* Operands that are checked together are looked up together, so that a page may be marked although the instruction that
 * would have touched it did not run any more. */
static bool marked_early(uint32_t page, uint64_t interpreted, uint64_t translated)
{
    const uint64_t marks = PTE_A | PTE_D | (uint64_t)(PTE_A | PTE_D) << 32; /* one entry, or two of 32-bit paging */
    return page >= TABLES && page < WINDOW_TABLE + 0x1000 && !(interpreted & ~translated) && !((interpreted ^ translated) & ~marks);
}

#define FIELD(name) \
    if (x->name != y->name) \
        return differing(#name, x->name, y->name, text)

const char *side_compare(struct side *a, const struct ending *x, struct side *b, const struct ending *y, char text[200])
{
    FIELD(exit);
    FIELD(state.rip);
    for (unsigned i = 0; i < 16; i++)
        if (x->state.gpr[i] != y->state.gpr[i])
            return differing(gpr_names[i], x->state.gpr[i], y->state.gpr[i], text);
    FIELD(state.rflags);
    for (unsigned i = 0; i < 6; i++)
        if (segments_differ(&x->state.segment[i], &y->state.segment[i]))
            return differing("segment", i, i, text);
    FIELD(state.cr0);
    FIELD(state.cr2);
    FIELD(state.dr[6]);
    FIELD(state.activity);
    FIELD(state.nmi_blocked);
    FIELD(state.interrupt_shadow);
    FIELD(outside);
    FIELD(hit);
    FIELD(point.linear);
    FIELD(point.kinds);
    for (uint32_t page = 0; page < MEMORY_BYTES; page += 4096) {
        const uint8_t *p = side_memory(a) + page, *q = side_memory(b) + page;
        for (unsigned i = 0; memcmp(p, q, 4096) && i < 4096; i += 8)
            if (load_le64(p + i) != load_le64(q + i) && !marked_early(page, load_le64(p + i), load_le64(q + i))) {
                char name[32];
                snprintf(name, sizeof name, "[%x]", page + i);
                differing(name, load_le64(p + i), load_le64(q + i), text);
                return "memory";
            }
    }
    return compare_vectors(x->state.xsave, y->state.xsave, text);
}
