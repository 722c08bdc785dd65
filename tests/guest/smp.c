/* SPDX-License-Identifier: MIT */
/* A 64-bit kernel for tests of several processors: entered as Linux is, its command line says how many there are and how
 * many rounds each test shall take. Each test is run by all processors at once. It ends through the debug exit port: 0
 * when all was as it should be, else the line of the check that failed. Linked at 16 MiB. */
#pragma GCC target("general-regs-only")
#include <stdbool.h>
#include <stdint.h>

#define DEBUG_EXIT 0xf4
#define LAPIC 0xfee00000u
#define TRAMPOLINE 0x60000u /* a page below 1 MiB; the boot protocol's page tables end below */
#define PROCESSORS_MAX 64
#define STACK_BYTES 8192
#define VECTOR 0x40
#define TIMER_VECTOR 0x41
#define PAGE 4096

#define STRING(x) #x
#define VALUE(x) STRING(x)

__asm__(".text\n"
        ".globl start, on_interrupt, on_timer, wait_for_interrupt, run_until_interrupt, trampoline, trampoline_end\n"
        ".globl patched, wait_and_call_patched\n"
        "start:\n"
        "    leaq stacks + " VALUE(STACK_BYTES) "(%rip), %rsp\n"
        "    movq %rsi, %rdi\n"
        "    call run\n"
        "on_interrupt:\n"
        "    pushq %rax\n"
        "    movl $" VALUE(LAPIC) ", %eax\n"
        "    movl $0, 0xb0(%rax)\n"
        "    popq %rax\n"
        "    iretq\n"
        "on_timer:\n"
        "    pushq %rax\n"
        "    pushq %rdx\n"
        "    movl $" VALUE(LAPIC) ", %edx\n"
        "    movl 0x20(%rdx), %eax\n"
        "    shrl $24, %eax\n"
        "    incl ticks(, %rax, 4)\n"
        "    movl $0, 0xb0(%rdx)\n"
        "    popq %rdx\n"
        "    popq %rax\n"
        "    iretq\n"
        /* interrupts are enabled here alone, so that none finds a function's red zone */
        "wait_for_interrupt:\n"
        "    sti\n"
        "    hlt\n"
        "    cli\n"
        "    ret\n"
        "run_until_interrupt:\n" /* until the number at rdi is no longer esi; executing all the time */
        "    sti\n"
        "1:  cmpl %esi, (%rdi)\n"
        "    je 1b\n"
        "    cli\n"
        "    ret\n"
        "wait_and_call_patched:\n" /* until the number at rdi is esi; nothing but CPUID lies between that and the call */
        "    pushq %rbx\n"
        "    xorl %eax, %eax\n"
        "    xorl %ecx, %ecx\n"
        "1:  cmpl %esi, (%rdi)\n"
        "    jne 1b\n"
        "    cpuid\n"
        "    call patched\n"
        "    popq %rbx\n"
        "    ret\n"
        ".balign 4096\n"
        "    .skip 125\n"
        "patched:\n"
        "    nop; nop\n"
        "    movl $-1, %eax\n" /* the number is aligned, and a granule's first */
        "    ret\n"
        ".balign 4096\n"
        ".code16\n"
        "trampoline:\n"
        "    cli\n"
        "    movw %cs, %ax\n"
        "    movw %ax, %ds\n"
        "    lgdtl trampoline_gdtr - trampoline\n"
        "    movl $0x20, %eax\n" /* PAE */
        "    movl %eax, %cr4\n"
        "    movl trampoline_cr3 - trampoline, %eax\n"
        "    movl %eax, %cr3\n"
        "    movl $0xc0000080, %ecx\n"
        "    rdmsr\n"
        "    orl $0x100, %eax\n" /* LME */
        "    wrmsr\n"
        "    movl $0x80000001, %eax\n" /* PG, PE */
        "    movl %eax, %cr0\n"
        "    ljmpl $0x10, $processor_start\n" /* the selector that the boot protocol gives the first */
        ".balign 8\n"
        "trampoline_gdt: .quad 0, 0, 0x00af9a000000ffff, 0x00cf92000000ffff\n"
        "trampoline_gdtr: .word 31\n"
        "    .long " VALUE(TRAMPOLINE) " + trampoline_gdt - trampoline\n"
        ".globl trampoline_cr3\n"
        "trampoline_cr3: .long 0\n"
        "trampoline_end:\n"
        ".code64\n"
        "processor_start:\n"
        "    movl $1, %edi\n"
        "    lock xaddl %edi, arrived(%rip)\n"
        "    leal 1(%rdi), %eax\n" /* a stack for each, in the order of arrival */
        "    imull $" VALUE(STACK_BYTES) ", %eax, %eax\n"
        "    leaq stacks(%rip), %rsp\n"
        "    addq %rax, %rsp\n"
        "    call processor_main\n"
        ".bss\n"
        ".balign 16\n"
        "stacks: .skip " VALUE(STACK_BYTES) " * 64\n"
        ".text\n");

extern char on_interrupt[], trampoline[], trampoline_end[];
extern uint32_t trampoline_cr3;
extern char on_timer[];
extern uint8_t patched[];
uint32_t wait_and_call_patched(volatile uint32_t *number, uint32_t value);
void wait_for_interrupt(void);
void run_until_interrupt(volatile uint32_t *number, uint32_t old);
volatile uint32_t ticks[PROCESSORS_MAX];

volatile uint32_t arrived = 1; /* the bootstrap processor is number 0 */
static uint32_t processors, rounds;
static uint64_t idt[512];

static inline volatile uint32_t *mem32(uint64_t address) { return (volatile uint32_t *)address; }
static inline void relax(void) { __asm__ volatile("pause"); }

static void __attribute__((noreturn)) leave(uint32_t status)
{
    __asm__ volatile("outl %0, %w1" : : "a"(status), "d"(DEBUG_EXIT));
    for (;;)
        __asm__ volatile("hlt");
}

#define EXPECT(condition)      \
    do {                       \
        if (!(condition))      \
            leave(__LINE__);   \
    } while (0)

/* All processors meet here, as often as they like. */
static void meet(void)
{
    static volatile uint32_t waiting, meetings;
    uint32_t now = meetings;
    if (__atomic_add_fetch(&waiting, 1, __ATOMIC_SEQ_CST) == processors) {
        waiting = 0;
        __atomic_store_n(&meetings, now + 1, __ATOMIC_SEQ_CST);
    }
    while (__atomic_load_n(&meetings, __ATOMIC_SEQ_CST) == now)
        relax();
}

/* When all are done with a number, it is 0 again. */
static void settle(uint32_t self, volatile uint32_t *number)
{
    meet();
    if (self == 0)
        *number = 0;
    meet();
}

/* ---- order ---- */

static struct {
    _Alignas(64) volatile uint64_t x;
    _Alignas(64) volatile uint64_t y;
    _Alignas(64) volatile uint64_t seen[PROCESSORS_MAX][8];
} order;

/* Stores are seen in their order, and loads are made in theirs (SDM vol. 3, 9.2.3.2). */
static void test_message_passing(uint32_t self)
{
    if (self == 0) {
        for (uint64_t i = 1; i <= rounds; i++) {
            order.x = i;
            order.y = i;
        }
        return;
    }
    for (uint64_t flag = 0; flag < rounds;) {
        flag = order.y;
        EXPECT(order.x >= flag);
    }
}

/* A locked instruction or MFENCE keeps a load behind an earlier store (9.2.3.9): not both read the old value. */
static void test_store_buffering(uint32_t self)
{
    for (uint32_t i = 0; i < rounds / 64; i++) {
        if (self == 0)
            order.x = order.y = 0;
        meet();
        uint64_t seen = 1;
        if (self < 2) {
            volatile uint64_t *mine = self ? &order.y : &order.x, *other = self ? &order.x : &order.y;
            *mine = 1;
            if (i & 1)
                __asm__ volatile("mfence" : : : "memory");
            else
                __asm__ volatile("lock orl $0, -4(%%rsp)" : : : "memory", "cc");
            seen = *other;
        }
        order.seen[self][0] = seen;
        meet();
        EXPECT(order.seen[0][0] || order.seen[1][0]);
        meet();
    }
}

/* ---- atomic read-modify-write ---- */

static _Alignas(PAGE) uint8_t pages[3 * PAGE];
#define CROSSES_LINE (pages + 64 - 3)
#define CROSSES_PAGE (pages + PAGE - 3)
#define WITHIN (pages + 2 * PAGE)

static uint64_t load64(const uint8_t *p)
{
    return *(const uint64_t *)p;
}

static void clear(void)
{
    for (unsigned i = 0; i < sizeof pages / 8; i++)
        ((volatile uint64_t *)pages)[i] = 0;
}

/* Each way of adding, to eight bytes at p; none may be lost. */
static void count_at(uint32_t self, uint8_t *p, uint32_t times)
{
    if (self == 0)
        clear();
    meet();
    for (uint32_t i = 0; i < times; i++) {
        uint64_t one = 1, old;
        __asm__ volatile("lock incq %0" : "+m"(*(uint64_t *)p) : : "cc");
        __asm__ volatile("lock addq %1, %0" : "+m"(*(uint64_t *)p) : "r"(one) : "cc");
        __asm__ volatile("lock subq $-1, %0" : "+m"(*(uint64_t *)p) : : "cc");
        __asm__ volatile("lock xaddq %1, %0" : "+m"(*(uint64_t *)p), "+r"(one) : : "cc");
        __asm__ volatile("lock incl %0" : "+m"(*(uint32_t *)p) : : "cc");
        do
            old = load64(p); /* which may be torn, where p is not aligned: then it compares unequal */
        while (!__sync_bool_compare_and_swap((uint64_t *)p, old, old + 1));
    }
    meet();
    EXPECT(load64(p) == UINT64_C(6) * processors * times);
    meet();
}

/* BTS and XCHG as locks, around what is not atomic itself. */
static void lock_at(uint32_t self, uint8_t *p, uint32_t times)
{
    static volatile uint64_t guarded;
    uint32_t *word = (uint32_t *)p;
    if (self == 0) {
        clear();
        guarded = 0;
    }
    meet();
    for (uint32_t i = 0; i < times; i++) {
        bool taken;
        do {
            __asm__ volatile("lock btsl $17, %1" : "=@ccc"(taken), "+m"(*word) : : "memory");
            if (taken)
                relax();
        } while (taken);
        guarded++;
        __asm__ volatile("lock btrl $17, %0" : "+m"(*word) : : "memory", "cc");
    }
    meet();
    EXPECT(guarded == (uint64_t)processors * times && *word == 0);
    meet();
    for (uint32_t i = 0; i < times; i++) {
        uint32_t taken = 1;
        for (;;) {
            __asm__ volatile("xchgl %0, %1" : "+r"(taken), "+m"(*word) : : "memory");
            if (!taken)
                break;
            relax();
        }
        guarded++;
        __asm__ volatile("xchgl %0, %1" : "+r"(taken), "+m"(*word) : : "memory");
    }
    meet();
    EXPECT(guarded == UINT64_C(2) * processors * times && *word == 0);
    meet();
}

static void test_atomics(uint32_t self)
{
    count_at(self, WITHIN, rounds);
    lock_at(self, WITHIN, rounds / 16);
}

static void test_atomics_across_a_line(uint32_t self)
{
    count_at(self, CROSSES_LINE, rounds / 64);
    lock_at(self, CROSSES_LINE, rounds / 256);
}

static void test_atomics_across_a_page(uint32_t self)
{
    count_at(self, CROSSES_PAGE, rounds / 64);
    lock_at(self, CROSSES_PAGE, rounds / 256);
}

/* Small operands beside each other, a processor's own each: writing one must not write back its neighbours. */
static void test_neighbours(uint32_t self)
{
    uint8_t *p = WITHIN;
    if (self == 0)
        clear();
    meet();
    for (uint32_t i = 0; i < rounds; i++) {
        __asm__ volatile("incb %0" : "+m"(p[self]) : : "cc");
        __asm__ volatile("lock incw %0" : "+m"(*(uint16_t *)(p + 64 + 2 * self)) : : "cc");
        EXPECT(p[self] == (uint8_t)(i + 1));
    }
    meet();
    for (uint32_t i = 0; i < processors; i++)
        EXPECT(p[i] == (uint8_t)rounds && *(uint16_t *)(p + 64 + 2 * i) == (uint16_t)rounds);
    meet();
}

static bool exchange16(uint64_t *p, uint64_t *low, uint64_t *high, uint64_t new_low, uint64_t new_high)
{
    bool equal;
    __asm__ volatile("lock cmpxchg16b %1"
                     : "=@ccz"(equal), "+m"(*(unsigned __int128 *)p), "+a"(*low), "+d"(*high)
                     : "b"(new_low), "c"(new_high)
                     : "memory");
    return equal;
}

/* Both halves change together or not at all, and what is seen of them belongs together. */
static void test_cmpxchg16b(uint32_t self)
{
    uint64_t *p = (uint64_t *)WITHIN;
    if (self == 0) {
        clear();
        p[1] = ~p[0];
    }
    meet();
    for (uint32_t i = 0; i < rounds; i++) {
        uint64_t low = 0, high = 0;
        while (!exchange16(p, &low, &high, low + 1, ~(low + 1)))
            EXPECT(high == ~low);
    }
    meet();
    EXPECT(p[0] == (uint64_t)processors * rounds && p[1] == ~p[0]);
    meet();
}

/* An aligned access is not torn (9.1.1), wherever it goes: here to a page that holds code, which has a way of its own. */
static void test_aligned_stores(uint32_t self)
{
    static _Alignas(PAGE) uint8_t code[PAGE] = {0xc3};
    volatile uint64_t *p = (volatile uint64_t *)(code + 2048);
    ((void (*)(void))code)();
    meet();
    for (uint32_t i = 0; i < rounds; i++) {
        if (self == 0)
            *p = i & 1 ? ~UINT64_C(0) : 0;
        uint64_t seen = *p;
        EXPECT(seen == 0 || seen == ~UINT64_C(0));
    }
    meet();
}

/* ---- code that another processor writes (9.1.3, "cross-modifying code") ---- */

static void serialize(void)
{
    uint32_t a = 0, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d) : : "memory");
}

static void test_cross_modifying_code(uint32_t self)
{
    static _Alignas(PAGE) uint8_t code[PAGE];
    static volatile uint32_t done;
    uint32_t (*function)(void) = (uint32_t (*)(void))code;
    for (uint32_t i = 0; i < rounds / 64; i++) {
        if (self == i % processors) { /* each writes in its turn: b8 imm32 c3, mov eax, imm32; ret */
            code[0] = 0xb8;
            *(volatile uint32_t *)(code + 1) = i;
            code[5] = 0xc3;
            __atomic_store_n(&done, i + 1, __ATOMIC_SEQ_CST);
        }
        while (__atomic_load_n(&done, __ATOMIC_SEQ_CST) != i + 1)
            relax();
        serialize();
        EXPECT(function() == i);
        meet();
    }
    settle(self, &done);
}

/* The manual's own example: the code was run before, and is called directly. */
static void test_code_behind_a_serializing_instruction(uint32_t self)
{
    static volatile uint32_t done;
    for (uint32_t i = 0; i < rounds / 64; i++) {
        if (self == i % processors) {
            *(volatile uint32_t *)(patched + 3) = i;
            done = i + 1;
        }
        EXPECT(wait_and_call_patched(&done, i + 1) == i);
        meet();
    }
    settle(self, &done);
}

static void wait_turns(uint32_t turns)
{
    for (volatile uint32_t i = 0; i < turns; i++)
        relax();
}

/* A page always has some code, and more of it becomes code just as it is written: one that runs it meanwhile may find the old
 * or the new, and once it knows, nothing but the new. */
static void test_code_beside_code(uint32_t self)
{
    enum { GRANULE = 128, FUNCTIONS = PAGE / GRANULE };
    static _Alignas(PAGE) uint8_t code[PAGE];
    static volatile uint32_t done;
    if (self == 0)
        for (uint32_t i = 0; i < FUNCTIONS; i++) {
            uint8_t *p = code + i * GRANULE;
            p[0] = p[1] = p[2] = 0x90; /* nop */
            p[3] = 0xb8;               /* mov eax, imm32 */
            p[8] = 0xc3;               /* ret */
            *(volatile uint32_t *)(p + 4) = ~0u;
        }
    meet();
    for (uint32_t i = 0; i < rounds / 16; i++) {
        uint8_t *p = code + (1 + i % (FUNCTIONS - 1)) * GRANULE;
        uint32_t (*function)(void) = (uint32_t (*)(void))p, old = *(volatile uint32_t *)(p + 4);
        EXPECT(((uint32_t (*)(void))code)() == ~0u);
        meet();
        if (self == i % processors) {
            wait_turns(i * 7 % 32);
            *(volatile uint32_t *)(p + 4) = i;
            __atomic_store_n(&done, i + 1, __ATOMIC_SEQ_CST);
        } else {
            wait_turns((i * 5 + self) % 32);
            uint32_t value = function();
            EXPECT(value == i || value == old);
            while (__atomic_load_n(&done, __ATOMIC_SEQ_CST) != i + 1)
                relax();
        }
        serialize();
        EXPECT(function() == i);
        meet();
    }
    settle(self, &done);
}

/* ---- accessed and dirty bits ---- */

#define WINDOW (UINT64_C(1) << 39)
#define PTE_ACCESSED 5
#define PTE_DIRTY 6
static _Alignas(PAGE) uint64_t pdpt[512], directory[512], table[512];

static void map_window(uint64_t cr3)
{
    table[0] = (uint64_t)WITHIN | 3;
    directory[0] = (uint64_t)table | 3;
    pdpt[0] = (uint64_t)directory | 3;
    ((uint64_t *)cr3)[1] = (uint64_t)pdpt | 3;
}

#define PTE_FREE 52 /* to 58 */
/* Processors set A and D by writing through an entry in which others toggle a free bit each, and clear D again. */
static void test_dirty_bits(uint32_t self)
{
    volatile uint32_t *through = mem32(WINDOW + 4 * self);
    if (self == 0) {
        clear();
        table[0] = (uint64_t)WITHIN | 3;
    }
    meet();
    for (uint32_t i = 0; i < rounds / 8; i++) {
        if (self & 1 && self < 14) {
            uint64_t bit = PTE_FREE + self / 2;
            __asm__ volatile("lock btcq %1, %0" : "+m"(table[0]) : "r"(bit) : "cc");
            __asm__ volatile("lock btrq %1, %0" : "+m"(table[0]) : "i"(PTE_DIRTY) : "cc");
            EXPECT((table[0] >> bit & 1) == (~i & 1));
        }
        __asm__ volatile("invlpg %0" : : "m"(*through) : "memory");
        ++*through;
    }
    meet();
    EXPECT(table[0] >> PTE_ACCESSED & 1);
    EXPECT(((volatile uint32_t *)WITHIN)[self] == rounds / 8);
    meet();
    EXPECT((table[0] & 0xffffffffff000) == (uint64_t)WITHIN);
    meet();
}

/* ---- interrupts between processors that halt ---- */

static void send(uint32_t destination)
{
    *mem32(LAPIC + 0x310) = destination << 24;
    *mem32(LAPIC + 0x300) = 0x4000 | VECTOR;
}

/* Round the ring: each waits halted until its turn has come, and wakes the next. No wake-up may be lost. */
static void test_wake_ups(uint32_t self)
{
    static volatile uint32_t turn;
    *mem32(LAPIC + 0xf0) = 0x1ff;
    meet();
    for (;;) {
        uint32_t now = __atomic_load_n(&turn, __ATOMIC_SEQ_CST);
        if (now >= rounds / 64 * processors)
            break;
        if (now % processors == self) {
            __atomic_store_n(&turn, now + 1, __ATOMIC_SEQ_CST);
            send((self + 1) % processors);
        } else {
            wait_for_interrupt();
        }
    }
    send((self + 1) % processors); /* the end, to whoever still waits */
    settle(self, &turn);
}

/* A timer's interrupt comes to a processor that never halts, and to one that does. */
static void test_timers(uint32_t self)
{
    *mem32(LAPIC + 0x3e0) = 0xb; /* divide by 1 */
    *mem32(LAPIC + 0x320) = TIMER_VECTOR;
    for (uint32_t i = 0; i < 32; i++) {
        uint32_t before = ticks[self];
        *mem32(LAPIC + 0x380) = 20000 + 1000 * self;
        while (ticks[self] == before) { /* a wake-up may be left from the test before */
            if (i & 1)
                run_until_interrupt(&ticks[self], before);
            else
                wait_for_interrupt();
        }
        EXPECT(ticks[self] == before + 1);
    }
    *mem32(LAPIC + 0x320) = 0x10000 | TIMER_VECTOR;
    meet();
}

/* ---- */

static void (*const tests[])(uint32_t self) = {
    test_message_passing, test_store_buffering, test_atomics, test_atomics_across_a_line, test_atomics_across_a_page,
    test_neighbours, test_cmpxchg16b, test_aligned_stores, test_cross_modifying_code,
    test_code_behind_a_serializing_instruction, test_code_beside_code, test_dirty_bits, test_wake_ups,
    test_timers,
};

static void load_idt(void)
{
    const struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) idtr = {sizeof idt - 1, (uint64_t)idt};
    __asm__ volatile("lidt %0" : : "m"(idtr));
}

void __attribute__((noreturn, used)) processor_main(void)
{
    uint32_t self = *mem32(LAPIC + 0x20) >> 24;
    load_idt();
    meet();
    for (unsigned i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        tests[i](self);
        meet();
    }
    if (self == 0)
        leave(0);
    for (;;)
        __asm__ volatile("hlt");
}

static void set_gate(unsigned vector, const char *handler, uint16_t cs)
{
    uint64_t at = (uint64_t)handler;
    idt[2 * vector] = (at & 0xffff) | (uint64_t)cs << 16 | UINT64_C(0x8e00) << 32 | (at >> 16 & 0xffff) << 48;
    idt[2 * vector + 1] = at >> 32;
}

static void pause_ticks(uint64_t ticks)
{
    for (uint64_t begin = __builtin_ia32_rdtsc(); __builtin_ia32_rdtsc() - begin < ticks;)
        relax();
}

static uint32_t number(const char **text)
{
    uint32_t value = 0;
    while (**text == ' ')
        ++*text;
    for (; **text >= '0' && **text <= '9'; ++*text)
        value = value * 10 + (uint32_t)(**text - '0');
    return value;
}

void __attribute__((noreturn, used)) run(const uint8_t *boot_params)
{
    const char *cmdline = (const char *)(uint64_t)*(const uint32_t *)(boot_params + 0x228);
    uint64_t cr3;
    processors = number(&cmdline);
    rounds = number(&cmdline);
    EXPECT(processors >= 2 && processors <= PROCESSORS_MAX && rounds >= 256);
    __asm__ volatile("movq %%cr3, %0" : "=r"(cr3));
    map_window(cr3);
    uint16_t cs;
    __asm__ volatile("movw %%cs, %0" : "=r"(cs));
    EXPECT(cs == 0x10);
    trampoline_cr3 = (uint32_t)cr3;
    set_gate(VECTOR, on_interrupt, cs);
    set_gate(TIMER_VECTOR, on_timer, cs);
    for (char *from = trampoline, *to = (char *)(uint64_t)TRAMPOLINE; from < trampoline_end;)
        *to++ = *from++;
    *mem32(LAPIC + 0xf0) = 0x1ff;
    *mem32(LAPIC + 0x300) = 0xc4500; /* INIT to all but self */
    pause_ticks(10000000);
    *mem32(LAPIC + 0x300) = 0xc4600 | TRAMPOLINE >> 12;
    while (arrived < processors)
        relax();
    processor_main();
}
