/* SPDX-License-Identifier: MIT */
/* Masked moves and gathers: the same code on the software processor and on the host, memory ending at a page that is
 * not there, so that some elements must fault and masked ones must not. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "arch/x86.h"
#include "base/bits.h"
#include "check.h"
#include "flat_state.h"
#include "quiet_world.h"
#include "world_translator.h"

#define CODE 0x10000u
#define TABLES 0x20000u
#define IDT 0x30000u
#define GDT 0x31000u
#define PAGE_FAULT 0x32000u /* its handler */
#define DATA 0x40000u       /* three inputs, two outputs, 32 bytes each */
#define MEMORY 0x50000u     /* one page, then none */

static struct guest_mem mem;
static struct cpu *cpu;
static uint8_t *host_code, *host_memory;
static _Alignas(64) uint8_t host_data[160];
static uint64_t now;

static void put64(uint64_t gpa, uint64_t value)
{
    CHECK(guest_mem_write(&mem, gpa, &value, 8));
}

/* Ring 0, 64-bit, the first 2 MiB in 4 KiB pages except the one behind MEMORY. */
static void prepare(void)
{
    imgvm_error err;
    struct cpu_options options = {.count = 1, .translator = WORLD_TRANSLATOR};
    CHECK_EQ(guest_mem_init(&mem, &err), 0);
    CHECK_EQ(guest_mem_add(&mem, 0, 2 << 20, false, &err), 0);
    cpu = cpu_create(&quiet_callbacks, &now, &mem, &options, &err);
    CHECK(cpu != NULL);
    CHECK_EQ(cpu_install_trap_handlers(&err), 0);
    for (unsigned level = 0; level < 3; level++)
        put64(TABLES + 0x1000 * level, (TABLES + 0x1000 * (level + 1)) | 7);
    for (uint64_t page = 0; page < 512; page++)
        put64(TABLES + 0x3000 + 8 * page, page * 4096 == MEMORY + 4096 ? 0 : page * 4096 | 7);
    put64(GDT + 8, UINT64_C(0x00af9b000000ffff));
    put64(GDT + 16, UINT64_C(0x00cf93000000ffff));
    put64(IDT + 16 * EXC_PF,
          (PAGE_FAULT & 0xffff) | 8 << 16 | UINT64_C(0x8e00) << 32 | (uint64_t)(PAGE_FAULT >> 16) << 48);
    put64(PAGE_FAULT, 0xf4); /* hlt */
    host_code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    host_memory = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(host_memory + 4096, 4096, PROT_NONE);
}

/* True when the code reached its end. rsi: data, rdi: memory. */
static bool run_guest(const uint8_t *code, unsigned bytes, uint64_t offset)
{
    struct x86_state s;
    static const uint8_t halt = 0xf4;
    flat_long_mode(&s, TABLES);
    s.gdtr = (struct x86_table){GDT, 0x17};
    s.idtr = (struct x86_table){IDT, 0xfff};
    s.gpr[RSP] = 0x8000;
    s.gpr[RSI] = DATA;
    s.gpr[RDI] = MEMORY + offset;
    s.rip = CODE;
    CHECK(guest_mem_write(&mem, CODE, code, bytes));
    CHECK(guest_mem_write(&mem, CODE + bytes, &halt, 1));
    cpu_set_state(cpu, &s);
    CHECK_EQ(cpu_run(cpu), CPU_EXIT_HALT);
    cpu_get_state(cpu, &s);
    if (s.rip == CODE + bytes + 1)
        return true;
    CHECK_EQ(s.rip, PAGE_FAULT + 1);
    CHECK_EQ(s.cr2 & ~UINT64_C(4095), MEMORY + 4096);
    return false;
}

static sigjmp_buf landing;
static void on_fault(int signal)
{
    (void)signal;
    siglongjmp(landing, 1);
}

static bool run_host(const uint8_t *code, unsigned bytes, uint64_t offset)
{
    memcpy(host_code, code, bytes);
    host_code[bytes] = 0xc3;
    if (sigsetjmp(landing, 1)) {
        __asm__ volatile("emms; vzeroupper");
        return false;
    }
    uint8_t *data = host_data, *memory = host_memory + offset;
    __asm__ volatile("sub $128, %%rsp; call *%2; add $128, %%rsp; emms; vzeroupper"
                     : "+S"(data), "+D"(memory) : "r"(host_code) : "memory", "cc", "xmm0", "xmm1", "xmm2");
    return true;
}

struct program {
    const uint8_t *begin, *end;
    unsigned element;   /* bytes of a mask element */
    unsigned index;     /* of an index element; 0: no gather */
    const char *name;
};

#define PROGRAM(name, text)                                                                                          \
    __asm__(".pushsection .rodata\n" #name "_begin: vmovdqu (%rsi), %ymm0; vmovdqu 32(%rsi), %ymm1;"                 \
            "vmovdqu 64(%rsi), %ymm2;" text "; vmovdqu %ymm0, 96(%rsi); vmovdqu %ymm1, 128(%rsi)\n" #name "_end:\n"  \
            ".popsection\n");                                                                                        \
    extern const uint8_t name##_begin[], name##_end[]
#define ENTRY(name, element, index) {name##_begin, name##_end, element, index, #name}

/* ymm0 value or destination, ymm1 mask, ymm2 index */
PROGRAM(maskmovdqu, "maskmovdqu %xmm1, %xmm0");
PROGRAM(vmaskmovdqu, "vmaskmovdqu %xmm1, %xmm0");
PROGRAM(maskmovq, "movdq2q %xmm0, %mm3; movdq2q %xmm1, %mm4; maskmovq %mm4, %mm3; movq2dq %mm3, %xmm0; emms");
PROGRAM(load_ps, "vmaskmovps (%rdi), %ymm1, %ymm0");
PROGRAM(load_ps_128, "vmaskmovps (%rdi), %xmm1, %xmm0");
PROGRAM(load_pd, "vmaskmovpd (%rdi), %ymm1, %ymm0");
PROGRAM(store_ps, "vmaskmovps %ymm0, %ymm1, (%rdi)");
PROGRAM(store_pd_128, "vmaskmovpd %xmm0, %xmm1, (%rdi)");
PROGRAM(load_d, "vpmaskmovd (%rdi), %ymm1, %ymm0");
PROGRAM(load_q_disp, "vpmaskmovq -8(%rdi), %ymm1, %ymm0");
PROGRAM(store_d, "vpmaskmovd %ymm0, %ymm1, (%rdi)");
PROGRAM(store_q, "vpmaskmovq %ymm0, %ymm1, (%rdi)");
PROGRAM(gather_dd, "vpgatherdd %ymm1, (%rdi,%ymm2,4), %ymm0");
PROGRAM(gather_dd_128, "vpgatherdd %xmm1, (%rdi,%xmm2,4), %xmm0");
PROGRAM(gather_dq, "vpgatherdq %ymm1, (%rdi,%xmm2,8), %ymm0");
PROGRAM(gather_dq_128, "vpgatherdq %xmm1, (%rdi,%xmm2,1), %xmm0");
PROGRAM(gather_qd, "vpgatherqd %xmm1, (%rdi,%ymm2,2), %xmm0");
PROGRAM(gather_qd_128, "vpgatherqd %xmm1, (%rdi,%xmm2,2), %xmm0");
PROGRAM(gather_qq, "vpgatherqq %ymm1, 8(%rdi,%ymm2,8), %ymm0");
PROGRAM(gather_dps, "vgatherdps %ymm1, (%rdi,%ymm2,4), %ymm0");
PROGRAM(gather_dpd, "vgatherdpd %ymm1, (%rdi,%xmm2,8), %ymm0");
PROGRAM(gather_qps, "vgatherqps %xmm1, (%rdi,%ymm2,4), %xmm0");
PROGRAM(gather_qpd, "vgatherqpd %xmm1, -16(%rdi,%xmm2,8), %xmm0");

static const struct program programs[] = {
    ENTRY(maskmovdqu, 1, 0), ENTRY(vmaskmovdqu, 1, 0), ENTRY(maskmovq, 1, 0), ENTRY(load_ps, 4, 0),
    ENTRY(load_ps_128, 4, 0), ENTRY(load_pd, 8, 0), ENTRY(store_ps, 4, 0), ENTRY(store_pd_128, 8, 0),
    ENTRY(load_d, 4, 0), ENTRY(load_q_disp, 8, 0), ENTRY(store_d, 4, 0), ENTRY(store_q, 8, 0),
    ENTRY(gather_dd, 4, 4), ENTRY(gather_dd_128, 4, 4), ENTRY(gather_dq, 8, 4), ENTRY(gather_dq_128, 8, 4),
    ENTRY(gather_qd, 4, 8), ENTRY(gather_qd_128, 4, 8), ENTRY(gather_qq, 8, 8), ENTRY(gather_dps, 4, 4),
    ENTRY(gather_dpd, 8, 4), ENTRY(gather_qps, 4, 8), ENTRY(gather_qpd, 8, 8),
};

static void noise(uint8_t *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        p[i] = (uint8_t)(random() >> 8);
}

static void test_program(const struct program *p, unsigned *finished, unsigned *faulted)
{
    static uint8_t after[4096], guest_data[160];
    uint64_t offset = p->index ? 4096 - 280 : 4096 - 3 - (uint64_t)(random() & 15);
    noise(host_data, sizeof host_data);
    noise(host_memory, 4096);
    for (unsigned i = 0; i < 32; i += p->element) /* many masked off, or nearly everything would fault */
        if (random() & 1)
            host_data[32 + i + p->element - 1] &= 0x7f;
    for (unsigned i = 0; p->index && i < 32; i += p->index) {
        int64_t index = (random() & 63) - 32 + (random() % 12 == 0 ? 400 : 0);
        memcpy(host_data + 64 + i, &index, p->index);
    }
    CHECK(guest_mem_write(&mem, DATA, host_data, sizeof host_data));
    CHECK(guest_mem_write(&mem, MEMORY, host_memory, 4096));

    bool host = run_host(p->begin, p->end - p->begin, offset);
    bool guest = run_guest(p->begin, p->end - p->begin, offset);
    /* of bytes masked off, processors may look at the page all the same (SDM vol. 2, MASKMOVDQU) */
    bool agree = p->element == 1 ? guest >= host : guest == host;
    CHECK(agree);
    ++*(guest ? finished : faulted);
    CHECK(guest_mem_read(&mem, MEMORY, after, 4096));
    CHECK(guest_mem_read(&mem, DATA, guest_data, sizeof guest_data));
    if (host)
        CHECK(!memcmp(after, host_memory, 4096));
    if (!agree || (host && memcmp(guest_data, host_data, sizeof host_data))) {
        check_failures++;
        printf("%s: differs from the host\n", p->name);
    }
}

int main(void)
{
    if (!__builtin_cpu_supports("avx2"))
        return printf("1 checks, 0 failed\n"), 0; /* the guest would have no such instructions */
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    prepare();
    for (unsigned i = 0; i < ARRAY_LEN(programs); i++) {
        unsigned finished = 0, faulted = 0;
        for (unsigned round = 0; round < 200; round++)
            test_program(&programs[i], &finished, &faulted);
        CHECK(finished > 5);
        CHECK(faulted > 5);
    }
    cpu_destroy(cpu);
    guest_mem_destroy(&mem);
    return check_report();
}
