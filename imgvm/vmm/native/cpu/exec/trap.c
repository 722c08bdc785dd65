/* SPDX-License-Identifier: MIT */
/* Signals that an instruction of a thunk raises, turned into exceptions of the guest; all others go where they went
 * before, so that a host program keeps its own crash handlers. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>

#include "../../arch/x86.h"
#include "../../base/bits.h"
#include "../cpu.h"
#include "native.h"

static const int trap_signals[] = {SIGFPE, SIGSEGV, SIGBUS, SIGILL};

/* Signal dispositions belong to the process, and so do these: written once, before any thunk runs. */
static struct sigaction previous[ARRAY_LEN(trap_signals)];
static int install_error;
static pthread_once_t installed = PTHREAD_ONCE_INIT;

/* Hand the signal to the handler that was there before us. */
static void chain(int signal, siginfo_t *info, void *context)
{
    for (unsigned i = 0; i < ARRAY_LEN(trap_signals); i++) {
        const struct sigaction *action = &previous[i];
        if (trap_signals[i] != signal)
            continue;
        if (action->sa_flags & SA_SIGINFO) {
            action->sa_sigaction(signal, info, context);
        } else if (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN) {
            action->sa_handler(signal);
        } else if (action->sa_handler == SIG_DFL || info->si_code > 0) {
            /* what the kernel does: a trap of the CPU is never ignored. Returning repeats the instruction, or, for
             * a signal that was sent, the raise below stays pending until this handler is left. */
            struct sigaction standard = {.sa_handler = SIG_DFL};
            sigaction(signal, &standard, NULL);
            if (info->si_code <= 0)
                raise(signal);
        }
        return;
    }
}

/* The exceptions a computational instruction can have, memory aside: its operand was checked and mapped before. */
static bool is_guest_exception(int64_t trapno)
{
    return trapno == EXC_DE || trapno == EXC_UD || trapno == EXC_GP || trapno == EXC_MF || trapno == EXC_XM;
}

static void on_trap(int signal, siginfo_t *info, void *context)
{
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    const struct native_cache *cache = native_cache_active();
    uint64_t rip = regs[REG_RIP];

    if (cache && cache->resume_elsewhere && info->si_code > 0 && is_guest_exception(regs[REG_TRAPNO])) {
        uint64_t resume = cache->resume_elsewhere(cache->elsewhere, rip);
        if (resume) {
            regs[REG_RIP] = (greg_t)resume;
            regs[REG_EFL] &= ~(greg_t)(EFLAGS_TF | EFLAGS_DF);
            return;
        }
    }
    if (!cache || rip - (uintptr_t)cache->code.executable >= cache->code.bytes || info->si_code <= 0 ||
        !is_guest_exception(regs[REG_TRAPNO])) {
        chain(signal, info, context);
        return;
    }
    /* Continue as if the thunk had called native_trap(cpu, vector): RDI still is `cpu`. The return from this handler
     * restores the vector state as the instruction left it. Below RSP nothing is live (thunks use no stack). */
    regs[REG_RSI] = regs[REG_TRAPNO];
    regs[REG_RSP] = (greg_t)align_down((uint64_t)regs[REG_RSP], 16) - 8;
    regs[REG_RIP] = (greg_t)(uintptr_t)native_trap;
    regs[REG_EFL] &= ~(greg_t)(EFLAGS_TF | EFLAGS_DF);
}

static void install(void)
{
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    for (unsigned i = 0; i < ARRAY_LEN(trap_signals); i++)
        if (sigaction(trap_signals[i], &action, &previous[i]) < 0)
            install_error = errno;
}

int cpu_install_trap_handlers(imgvm_error *err)
{
    pthread_once(&installed, install);
    if (install_error)
        return error_set(err, install_error, "cannot install signal handlers for the guest's exceptions: %s",
                         strerror(install_error));
    return 0;
}
