/* SPDX-License-Identifier: MIT */
/* The fixed hardware of ACPI (ACPI specification, "ACPI Hardware Specification"): PM1a event and control registers,
 * the PM timer, a GPE0 block, and the SMI command port that switches between legacy and ACPI mode.
 *
 * The board registers acpi_pm_ops (ACPI_PM_BYTES ports anywhere; the FADT says where) and acpi_pm_smi_ops (2 ports
 * at B2h), connects sci (level-triggered). Everything runs under the board lock. */
#ifndef IMGVM_DEV_ACPI_PM_H
#define IMGVM_DEV_ACPI_PM_H

#include <stdbool.h>
#include <stdint.h>

#include "../base/timer.h"
#include "../mem/bus.h"
#include "../mem/irq.h"

/* Offsets of the blocks, for the FADT. */
#define ACPI_PM_BYTES 0x10
#define ACPI_PM_EVT 0x0 /* 4 bytes: status, enable */
#define ACPI_PM_CNT 0x4 /* 2 bytes */
#define ACPI_PM_TMR 0x8 /* 4 bytes */
#define ACPI_PM_GPE 0xc /* 4 bytes: 16 status bits, 16 enable bits */

#define ACPI_PM_ENABLE 0xf1  /* values for SMI_CMD */
#define ACPI_PM_DISABLE 0xf0

#define ACPI_PM_TIMER_HZ 3579545u

struct acpi_pm_state {
    uint64_t timer_offset;  /* PM timer ticks at the clock's zero */
    uint64_t timer_toggles; /* how often the timer's top bit had flipped when TMR_STS was brought up to date */
    uint16_t pm1_status, pm1_enable, pm1_control;
    uint16_t gpe_status, gpe_enable;
    uint16_t gpe_levels;   /* sources that still stand */
    uint8_t smi_command, smi_status;
    uint8_t pad[6];
};

struct acpi_pm_host {
    void (*sleep)(void *opaque, unsigned type); /* SLP_EN was written with this SLP_TYP (3 bits) */
    void *opaque;
};

struct acpi_pm {
    struct acpi_pm_state state;
    struct timer_queue *timers;
    struct timer timer; /* runs only while the timer's status bit is enabled */
    struct irq_line sci;
    struct acpi_pm_host host;
    bool timer_32bit;
};

extern const struct bus_ops acpi_pm_ops, acpi_pm_smi_ops;

/* timer_32bit: as the FADT's TMR_VAL_EXT says. */
void acpi_pm_init(struct acpi_pm *pm, struct timer_queue *timers, struct irq_line sci, bool timer_32bit,
                  const struct acpi_pm_host *host);
void acpi_pm_reset(struct acpi_pm *pm);
void acpi_pm_loaded(struct acpi_pm *pm);
void acpi_pm_power_button(struct acpi_pm *pm);
void acpi_pm_sleep_button(struct acpi_pm *pm);
/* A general-purpose event, 0..15: an edge is latched, a level is latched for as long as it stands. */
void acpi_pm_raise_gpe(struct acpi_pm *pm, unsigned event);
void acpi_pm_set_gpe(struct acpi_pm *pm, unsigned event, bool level);
/* Woken from a sleep: sets WAK_STS. */
void acpi_pm_wake(struct acpi_pm *pm);

#endif
