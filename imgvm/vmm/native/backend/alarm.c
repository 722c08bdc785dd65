/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "alarm.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../cpu/cpu.h"

static int alarm_signal(void)
{
    return SIGRTMIN + 5; /* not that of kvm_run.c */
}

static void on_alarm(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)context;
    if (info->si_code == SI_TIMER)
        cpu_clock_due(info->si_value.sival_ptr);
}

static void install(void)
{
    struct sigaction action = {.sa_sigaction = on_alarm, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
    sigaction(alarm_signal(), &action, NULL);
}

/* Signal dispositions belong to the process. */
static pthread_once_t installed = PTHREAD_ONCE_INIT;

int alarm_start(struct alarm *alarm, struct cpu *cpu)
{
    pthread_once(&installed, install);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = alarm_signal(), .sigev_value.sival_ptr = cpu};
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    sigset_t mine;
    sigemptyset(&mine);
    sigaddset(&mine, alarm_signal());
    pthread_sigmask(SIG_UNBLOCK, &mine, NULL);
    alarm->due_ns = UINT64_MAX;
    alarm->started = timer_create(CLOCK_MONOTONIC, &event, &alarm->timer) == 0;
    return alarm->started ? 0 : -errno;
}

void alarm_stop(struct alarm *alarm)
{
    if (alarm->started)
        timer_delete(alarm->timer);
    alarm->started = false;
}

void alarm_set(struct alarm *alarm, uint64_t deadline_ns, uint64_t now_ns)
{
    bool set = alarm->due_ns <= deadline_ns && alarm->due_ns > now_ns;
    if (!alarm->started || deadline_ns == UINT64_MAX || set)
        return;
    uint64_t delta = deadline_ns > now_ns ? deadline_ns - now_ns : 1;
    struct itimerspec spec = {.it_value = {(time_t)(delta / 1000000000u), (long)(delta % 1000000000u)}};
    timer_settime(alarm->timer, 0, &spec, NULL);
    alarm->due_ns = deadline_ns;
}
