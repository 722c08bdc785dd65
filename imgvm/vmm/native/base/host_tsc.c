/* SPDX-License-Identifier: MIT */
#include "host_tsc.h"

#include <cpuid.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define CLOCK_SOURCE "/sys/devices/system/clocksource/clocksource0/current_clocksource"
#define INVARIANT_TSC 0x100u /* CPUID.80000007h:EDX (SDM vol. 3, "Invariant TSC") */

bool host_tsc_is_clock(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(0x80000007, &eax, &ebx, &ecx, &edx) || !(edx & INVARIANT_TSC))
        return false;
    char name[16] = "";
    int fd = open(CLOCK_SOURCE, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t bytes = read(fd, name, sizeof name - 1);
    close(fd);
    return bytes > 0 && !strcmp(name, "tsc\n");
}
