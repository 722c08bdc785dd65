/* SPDX-License-Identifier: MIT */
/* A 64-bit kernel (Linux boot protocol) full of what a host's KVM may be unable to emulate. It ends through the
 * debug-exit port with 0, or with the number of the check that failed. */
typedef unsigned char u8;
typedef unsigned long u64;

static void out8(unsigned short port, u8 value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void quit(u8 status)
{
    for (;;)
        out8(0xf4, status);
}

static u64 rdtsc(void)
{
    unsigned low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

static __attribute__((aligned(16))) u64 pair[2];

static int exchange(u64 old_low, u64 old_high, u64 new_low, u64 new_high)
{
    u8 equal;
    __asm__ volatile("lock cmpxchg16b %1; sete %0"
                     : "=q"(equal), "+m"(pair), "+a"(old_low), "+d"(old_high)
                     : "b"(new_low), "c"(new_high)
                     : "memory", "cc");
    return equal;
}

void start(void)
{
    u64 last = rdtsc();
    u64 r15 = 0x123456789abcdef0;
    double sum = 0;
    unsigned mxcsr = 0x1f80;
    u64 cr0, cr4;
    __asm__ volatile("mov %%cr0, %0; mov %%cr4, %1" : "=r"(cr0), "=r"(cr4));
    __asm__ volatile("mov %0, %%cr0; mov %1, %%cr4" : : "r"((cr0 & ~12ul) | 2), "r"(cr4 | 0x600));
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
    register u64 kept __asm__("r15") = r15;
    register double live __asm__("xmm9") = 1.5;
    for (u64 i = 0; i < 50; i++) {
        __asm__ volatile("" : "+r"(kept), "+x"(live));
        if (!exchange(i, 2 * i, i + 1, 2 * (i + 1)))
            quit(1);
        if (exchange(i, 2 * i, 7, 7))
            quit(2);
        u64 now = rdtsc();
        if (now < last)
            quit(3);
        last = now;
        __asm__ volatile("" : "+r"(kept), "+x"(live));
        sum += live;
    }
    if (pair[0] != 50 || pair[1] != 100)
        quit(4);
    if (kept != r15)
        quit(5);
    if (sum != 75)
        quit(6);
    quit(0);
}
