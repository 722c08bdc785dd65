/* SPDX-License-Identifier: MIT */
/* Runs instructions on this very processor, for test_decoder_hardware.py: a line of hex bytes each, answered with
 * what happened ("done", "undefined", "fault") and the length it had (0 unless done).
 *
 * The bytes are followed by INT3s, so the address of the breakpoint tells the length. General registers point into a
 * page of their own; the instructions must neither branch nor move the stack. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define CODE ((uint8_t *)0x10000000)
#define DATA ((uint8_t *)0x20000000)
#define DATA_BYTES (1u << 20)

static sigjmp_buf after;
static volatile int signal_number;
static volatile long length;

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)info;
    signal_number = number;
    length = (long)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] - (long)CODE - 1;
    siglongjmp(after, 1);
}

static void run(void)
{
    __asm__ volatile("cld\n emms\n mov %0, %%rax\n mov %%rax, %%rbx\n xor %%ecx, %%ecx\n mov %%rax, %%rdx\n"
                     "mov %%rax, %%rsi\n mov %%rax, %%rdi\n mov %%rax, %%r8\n mov %%rax, %%r9\n mov %%rax, %%r10\n"
                     "mov %%rax, %%r12\n mov %%rax, %%r13\n mov %%rax, %%r14\n mov %%rax, %%r15\n mov %1, %%r11\n"
                     "mov %%rax, %%rbp\n jmp *%%r11"
                     :
                     : "r"(DATA + DATA_BYTES / 2), "r"(CODE)
                     : "memory");
}

int main(void)
{
    char line[256];
    static const int signals[] = {SIGILL, SIGTRAP, SIGSEGV, SIGBUS, SIGFPE};
    stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    if (mmap(CODE, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, flags, -1, 0) != CODE ||
        mmap(DATA, DATA_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0) != DATA || sigaltstack(&stack, NULL))
        return 1;
    for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        sigaction(signals[i], &action, NULL);
    while (fgets(line, sizeof(line), stdin)) {
        static const uint32_t mxcsr = 0x1f80;
        unsigned count = 0, byte;
        memset(CODE, 0xcc, 64);
        for (const char *c = line; count < 16 && sscanf(c, "%2x", &byte) == 1; c += 2)
            CODE[count++] = byte;
        if (!sigsetjmp(after, 1))
            run();
        __asm__ volatile("cld\n fninit\n ldmxcsr %0" : : "m"(mxcsr));
        printf("%s %ld\n", signal_number == SIGTRAP ? "done" : signal_number == SIGILL ? "undefined" : "fault",
               signal_number == SIGTRAP ? length : 0);
        fflush(stdout);
    }
    return 0;
}
