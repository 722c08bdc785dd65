/* SPDX-License-Identifier: MIT */
/* Cases run natively. One signal handler does it all: it stores what came of a case and returns from the signal into
 * the next one, so that the kernel loads every register at once. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "differential.h"

struct host {
    struct batch *batches;
    pid_t child;
    int command, answer;
    unsigned current;
};

/* The child's own. A signal handler has no other way to its data. */
static struct {
    struct batch *batch;
    unsigned next;
    bool inside;
    uint8_t *code; /* the code pages, writable */
    gregset_t saved;
    uint8_t saved_fpu[XSAVE_BYTES];
} run;

static const uint8_t greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

uint64_t data_pristine(unsigned index)
{
    struct rng rng = {index};
    return rng_next(&rng);
}

static inline uint64_t read_fs(void)
{
    uint64_t base;
    __asm__ volatile("rdfsbase %0" : "=r"(base));
    return base;
}
static inline uint64_t read_gs(void)
{
    uint64_t base;
    __asm__ volatile("rdgsbase %0" : "=r"(base));
    return base;
}
static inline void write_fs(uint64_t base)
{
    __asm__ volatile("wrfsbase %0" : : "r"(base));
}
static inline void write_gs(uint64_t base)
{
    __asm__ volatile("wrgsbase %0" : : "r"(base));
}

/* Bytes 464..511 of the legacy region are the kernel's. */
static void copy_fpu(uint8_t *to, const uint8_t *from)
{
    memcpy(to, from, 464);
    memcpy(to + 576, from + 576, 256);
}

static uint64_t pristine[DATA_BYTES / 8];

static void restore_data(const struct diff_result *r)
{
    uint64_t *data = (uint64_t *)DATA_BASE;
    if (r->words > DIFF_WORDS) {
        for (unsigned i = 0; i < DATA_BYTES / 8; i++)
            if (i / (PAGE / 8) != READ_ONLY_PAGE)
                data[i] = pristine[i];
        return;
    }
    for (unsigned i = 0; i < r->words; i++)
        data[r->word[i].index] = pristine[r->word[i].index];
}

static void capture_data(struct diff_result *r)
{
    const uint64_t *data = (const uint64_t *)DATA_BASE;
    r->words = 0;
    for (unsigned page = 0; page < DATA_PAGES; page++) {
        if (page == READ_ONLY_PAGE)
            continue;
        for (unsigned block = page * (PAGE / 8); block < (page + 1) * (PAGE / 8); block += 32) {
            if (!memcmp(&data[block], &pristine[block], 256))
                continue;
            for (unsigned i = block; i < block + 32; i++) {
                if (data[i] == pristine[i])
                    continue;
                if (r->words >= DIFF_WORDS) {
                    r->words = DIFF_WORDS + 1;
                    return;
                }
                r->word[r->words++] = (struct diff_word){i, data[i]};
            }
        }
    }
}

static void capture(struct diff_result *r, const ucontext_t *context)
{
    const greg_t *gregs = context->uc_mcontext.gregs;
    const uint8_t *fpu = (const uint8_t *)context->uc_mcontext.fpregs;
    for (unsigned i = 0; i < 16; i++)
        r->gpr[i] = (uint64_t)gregs[greg_of[i]];
    r->rip = (uint64_t)gregs[REG_RIP];
    r->rflags = (uint64_t)gregs[REG_EFL];
    r->vector = (uint8_t)gregs[REG_TRAPNO];
    r->error = (uint32_t)gregs[REG_ERR];
    r->cr2 = (uint64_t)gregs[REG_CR2];
    r->cs = (uint16_t)gregs[REG_CSGSFS];
    r->ss = (uint16_t)((uint64_t)gregs[REG_CSGSFS] >> 48);
    r->fs_base = read_fs();
    r->gs_base = read_gs();
    __asm__ volatile("mov %%ds, %0\n mov %%es, %1\n mov %%fs, %2\n mov %%gs, %3" : "=r"(r->ds), "=r"(r->es), "=r"(r->fs), "=r"(r->gs));
    if (r->ds | r->es | r->fs | r->gs)
        __asm__ volatile("mov %0, %%ds\n mov %0, %%es\n mov %0, %%fs\n mov %0, %%gs" : : "r"(0));
    copy_fpu(r->xsave, fpu);
    memcpy(r->xsave + 512, fpu + 512, 8);
    capture_data(r);
    r->ran = true;
}

/* The bytes of the case's instruction that lie in the code pages. */
static uint8_t *code_of(const struct diff_case *c, size_t *size)
{
    uint64_t at = code_linear(c) - CODE_BASE;
    *size = MIN(c->length, CODE_BYTES - at);
    return run.code + at;
}

static void load(const struct diff_case *c, ucontext_t *context)
{
    greg_t *gregs = context->uc_mcontext.gregs;
    uint8_t *fpu = (uint8_t *)context->uc_mcontext.fpregs, *bytes = (uint8_t *)DATA_BASE;
    uint64_t features;
    size_t size;
    for (unsigned i = 0; i < 16; i++)
        gregs[greg_of[i]] = (greg_t)c->gpr[i];
    gregs[REG_RIP] = (greg_t)c->rip;
    gregs[REG_EFL] = (greg_t)c->rflags;
    gregs[REG_CSGSFS] = (greg_t)((uint64_t)c->selector[CS] | (uint64_t)c->selector[SS] << 48);
    copy_fpu(fpu, c->xsave);
    memcpy(&features, fpu + 512, 8);
    features |= XCR0_X87 | XCR0_SSE | XCR0_AVX;
    memcpy(fpu + 512, &features, 8);
    uint8_t *code = code_of(c, &size);
    memcpy(code, c->code, size);
    for (unsigned i = 0, at = 0; i < c->patches; at += c->patch[i++].size)
        memcpy(bytes + c->patch[i].offset, c->patch_bytes + at, c->patch[i].size);
    if (c->mode != INSN_MODE_64) {
        /* nothing here uses them, and neither a signal nor the return from it changes them */
        __asm__ volatile("mov %0, %%ds\n mov %1, %%es\n mov %2, %%fs\n mov %3, %%gs"
                         : : "r"(c->selector[DS]), "r"(c->selector[ES]), "r"(c->selector[FS]), "r"(c->selector[GS]));
        return;
    }
    if (read_fs() != FS_BASE)
        write_fs(FS_BASE);
    if (read_gs() != GS_BASE)
        write_gs(GS_BASE);
}

static void on_signal(int number, siginfo_t *info, void *opaque)
{
    ucontext_t *context = opaque;
    (void)number, (void)info;
    /* Linux leaves AC, NT and ID as the case had them, and returning from the signal does not change the last two */
    __asm__ volatile("pushfq\n andl $~0x244000, (%%rsp)\n popfq" : : : "memory", "cc");
    if (run.inside) {
        const struct diff_case *c = &run.batch->cases[run.next];
        struct diff_result *r = &run.batch->results[run.next];
        capture(r, context);
        restore_data(r);
        size_t size;
        uint8_t *code = code_of(c, &size);
        memset(code, 0xcc, size);
        run.next++;
    } else {
        memcpy(run.saved, context->uc_mcontext.gregs, sizeof run.saved);
        copy_fpu(run.saved_fpu, (uint8_t *)context->uc_mcontext.fpregs);
        run.inside = true;
    }
    if (run.next < run.batch->count) {
        run.batch->running = run.next;
        load(&run.batch->cases[run.next], context);
        return;
    }
    run.inside = false;
    memcpy(context->uc_mcontext.gregs, run.saved, sizeof run.saved);
    copy_fpu((uint8_t *)context->uc_mcontext.fpregs, run.saved_fpu);
}

static void run_batch(struct batch *batch)
{
    uint64_t fs = read_fs(), gs = read_gs();
    run.batch = batch;
    run.next = 0;
    __asm__ volatile("int3" : : : "memory");
    write_fs(fs);
    write_gs(gs);
}

static bool map_memory(void)
{
    int flags = MAP_FIXED_NOREPLACE, code = memfd_create("code", 0);
    if (code < 0 || ftruncate(code, CODE_BYTES))
        return false;
    run.code = mmap(NULL, CODE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, code, 0);
    void *executable = mmap((void *)CODE_BASE, CODE_BYTES, PROT_READ | PROT_EXEC, MAP_SHARED | flags, code, 0);
    uint64_t *data = mmap((void *)DATA_BASE, DATA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    if (run.code == MAP_FAILED || executable != (void *)CODE_BASE || data != (void *)DATA_BASE)
        return false;
    memset(run.code, 0xcc, CODE_BYTES);
    for (unsigned i = 0; i < DATA_BYTES / 8; i++)
        data[i] = pristine[i] = data_pristine(i);
    return mprotect((uint8_t *)data + READ_ONLY_PAGE * PAGE, PAGE, PROT_READ) == 0;
}

static _Noreturn void child_main(struct batch *batches, int command, int answer)
{
    static const int signals[] = {SIGILL, SIGTRAP, SIGSEGV, SIGBUS, SIGFPE};
    stack_t stack = {.ss_sp = malloc(1 << 18), .ss_size = 1 << 18};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    uint8_t index;
    sigfillset(&action.sa_mask);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!map_memory() || sigaltstack(&stack, NULL))
        _exit(2);
    for (unsigned i = 0; i < ARRAY_LEN(signals); i++)
        sigaction(signals[i], &action, NULL);
    /* from here on: read, write, exit, sigreturn */
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
        _exit(3);
    while (read(command, &index, 1) == 1) {
        run_batch(&batches[index]);
        if (write(answer, &index, 1) != 1)
            break;
    }
    syscall(SYS_exit, 0);
    __builtin_unreachable();
}

struct host *host_start(struct batch *shared, unsigned batches)
{
    int command[2], answer[2];
    struct host *host = calloc(1, sizeof *host);
    (void)batches;
    if (!host || pipe(command) || pipe(answer))
        return NULL;
    fflush(NULL);
    host->child = fork();
    if (host->child == 0) {
        close(command[1]);
        close(answer[0]);
        child_main(shared, command[0], answer[1]);
    }
    close(command[0]);
    close(answer[1]);
    *host = (struct host){shared, host->child, command[1], answer[0], 0};
    return host;
}

void host_begin(struct host *host, unsigned batch)
{
    uint8_t index = (uint8_t)batch;
    host->current = batch;
    ssize_t written = write(host->command, &index, 1);
    (void)written; /* a dead child shows in host_wait */
}

/* Ten seconds for a batch that takes milliseconds. */
bool host_wait(struct host *host)
{
    uint8_t index;
    struct pollfd ready = {.fd = host->answer, .events = POLLIN};
    return poll(&ready, 1, 10000) == 1 && read(host->answer, &index, 1) == 1;
}

void host_stop(struct host *host)
{
    close(host->command);
    close(host->answer);
    kill(host->child, SIGKILL);
    waitpid(host->child, NULL, 0);
    free(host);
}
