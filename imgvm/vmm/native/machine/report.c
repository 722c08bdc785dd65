/* SPDX-License-Identifier: MIT */
#include "report.h"

#include <stdio.h>
#include <string.h>

#define PVPANIC_PANICKED 0x01

static uint64_t panic_read(void *device, uint64_t offset, unsigned size)
{
    (void)device;
    (void)offset;
    (void)size;
    return PVPANIC_PANICKED;
}

static void panic_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct report *report = device;
    (void)offset;
    (void)size;
    if (value & PVPANIC_PANICKED)
        report->host.panic(report->host.opaque);
}

static uint64_t exec_read(void *device, uint64_t offset, unsigned size)
{
    (void)device;
    (void)offset;
    (void)size;
    return 0;
}

static void exec_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct report *report = device;
    (void)size;
    if (!offset)
        report->host.exec_status(report->host.opaque, (uint32_t)value);
}

const struct bus_ops report_panic_ops = {panic_read, panic_write};
const struct bus_ops report_exec_ops = {exec_read, exec_write};

void report_init(struct report *report, const struct report_host *host)
{
    memset(report, 0, sizeof *report);
    report->host = *host;
}

void report_reset(struct report *report)
{
    report->line_bytes = 0;
    report->panic_line[0] = 0;
}

/* A kernel's line is "[    1.234567] text" or "text". */
static const char *after_time(const char *line)
{
    if (*line != '[')
        return line;
    size_t stamp = strspn(line + 1, " 0123456789.");
    return line[1 + stamp] == ']' && line[2 + stamp] == ' ' ? line + stamp + 3 : line;
}

static void take_line(struct report *report)
{
    static const char panic[] = "Kernel panic - not syncing", end[] = "---[ end Kernel panic - not syncing";
    static const char firmware[] = "No bootable device"; /* the built-in BIOS's last words, and SeaBIOS's */
    report->line[report->line_bytes] = 0;
    const char *text = after_time(report->line);
    bool given_up = !strncmp(text, firmware, sizeof firmware - 1);
    if ((given_up || !strncmp(text, panic, sizeof panic - 1)) && !report->panic_line[0])
        snprintf(report->panic_line, sizeof report->panic_line, "%s", text);
    else if (!strncmp(text, end, sizeof end - 1) && report->panic_line[0])
        report->host.panic(report->host.opaque); /* Linux prints this where it stops for ever */
    report->line_bytes = 0;
}

void report_watch(struct report *report, const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (data[i] == '\n' || data[i] == '\r')
            take_line(report);
        else if (report->line_bytes < sizeof report->line - 1)
            report->line[report->line_bytes++] = (char)data[i];
    }
}
