/* SPDX-License-Identifier: MIT */
/* Addresses and GSIs: here and nowhere else (docs/memory-map.md). */
#include "board.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "../dev/virtio/rng.h"
#include "../firmware/board_info.h"
#include "acpi.h"

#define LOW_MEMORY 0xa0000u
#define ROM_BASE 0xe0000u
#define SMBIOS_TABLES 0xe1000u
#define SHADOW_BASE 0xc0000u /* what chip sets can turn into RAM, and firmware of others counts on */
#define ONE_MIB 0x100000u
#define LOW_LIMIT UINT64_C(0xc0000000) /* RAM ends here and goes on at 4 GiB */
#define PCI_MEMORY_BASE UINT64_C(0xc0000000)
#define PCI_MEMORY_LIMIT UINT64_C(0xe0000000)
#define ECAM_BASE UINT64_C(0xe0000000)
#define IOAPIC_BASE UINT64_C(0xfec00000)
#define LAPIC_BASE UINT64_C(0xfee00000)
#define ROM_TOP_BASE UINT64_C(0xfffc0000)
#define HIGH_MEMORY UINT64_C(0x100000000)
#define MEMORY_MIN (2 * ONE_MIB)
#define MEMORY_MAX (UINT64_C(1) << 40)

#define PORT_PIC_MASTER 0x20
#define PORT_PIT 0x40
#define PORT_I8042_DATA 0x60
#define PORT_PIT_61 0x61
#define PORT_I8042_COMMAND 0x64
#define PORT_RTC 0x70
#define PORT_92 0x92
#define PORT_PIC_SLAVE 0xa0
#define PORT_SMI 0xb2
#define PORT_COM1 0x3f8
#define PORT_ELCR 0x4d0
#define PORT_PVPANIC 0x505
#define PORT_EXEC_STATUS 0x5f4
#define PORT_ACPI_PM 0x600
#define PCI_IO_BASE 0xc000
#define PCI_IO_LIMIT 0x10000

#define IRQ_PIT 0
#define IRQ_KEYBOARD 1
#define IRQ_COM1 4
#define IRQ_RTC 8
#define IRQ_SCI 9
#define IRQ_MOUSE 12
#define PIT_GSI 2

static struct irq_line gsi(struct board *board, unsigned pin)
{
    return (struct irq_line){interrupts_set_gsi, board, pin};
}

/* ---- memory ---- */

static void add_range(struct memory_map *map, uint64_t base, uint64_t end, uint32_t type)
{
    if (end > base)
        map->range[map->count++] = (struct memory_range){base, end - base, type};
}

static int add_memory(struct board *board, uint64_t bytes, bool shadow, imgvm_error *err)
{
    struct guest_mem *mem = &board->mem;
    struct memory_map *map = &board->map;
    uint64_t low = MIN(bytes, LOW_LIMIT), high = bytes - low, rom = shadow ? SHADOW_BASE : ROM_BASE;
    int result;
    if ((result = guest_mem_init(mem, err)) < 0 || (result = guest_mem_add(mem, 0, LOW_MEMORY, false, err)) < 0 ||
        (result = guest_mem_add(mem, rom, ONE_MIB - rom, !shadow, err)) < 0 ||
        (result = guest_mem_add(mem, ONE_MIB, low - ONE_MIB, false, err)) < 0 ||
        (result = guest_mem_add(mem, ROM_TOP_BASE, HIGH_MEMORY - ROM_TOP_BASE, true, err)) < 0)
        return result;
    if (high && (result = guest_mem_add(mem, HIGH_MEMORY, high, false, err)) < 0)
        return result;
    map->low_top = low - ACPI_TABLES_BYTES;
    map->rsdp = shadow ? 0 : ROM_BASE;
    add_range(map, 0, LOW_MEMORY, MEMORY_USABLE);
    add_range(map, rom, ONE_MIB, MEMORY_RESERVED);
    add_range(map, ONE_MIB, map->low_top, MEMORY_USABLE);
    add_range(map, map->low_top, low, MEMORY_ACPI_NVS); /* not reclaimable: the FACS lies there too */
    add_range(map, ECAM_BASE, ECAM_BASE + PCI_ECAM_BYTES, MEMORY_RESERVED);
    add_range(map, IOAPIC_BASE, LAPIC_BASE + 0x1000, MEMORY_RESERVED);
    add_range(map, ROM_TOP_BASE, HIGH_MEMORY, MEMORY_RESERVED);
    add_range(map, HIGH_MEMORY, HIGH_MEMORY + high, MEMORY_USABLE);
    return 0;
}

static int write_acpi(struct board *board, imgvm_error *err)
{
    const struct acpi_config config = {
        .cpus = board->cpus, .lapic_address = LAPIC_BASE, .ioapic_address = IOAPIC_BASE, .ioapic_id = 0,
        .sci_irq = IRQ_SCI, .pit_gsi = PIT_GSI, .pm_base = PORT_ACPI_PM, .smi_port = PORT_SMI,
        .smi_enable = ACPI_PM_ENABLE, .smi_disable = ACPI_PM_DISABLE, .reset_port = RESET_CONTROL_PORT,
        .reset_value = RESET_CONTROL_VALUE, .serial_base = PORT_COM1, .serial_irq = IRQ_COM1,
        .panic_port = PORT_PVPANIC, .pirq_gsi = BOARD_PIRQ_GSI, .pci_memory_first = PCI_MEMORY_BASE,
        .pci_memory_last = PCI_MEMORY_LIMIT - 1, .ecam_base = ECAM_BASE, .ecam_bytes = PCI_ECAM_BYTES,
        .century_index = RTC_CENTURY,
    };
    uint8_t *tables = malloc(ACPI_TABLES_BYTES), rsdp[ACPI_RSDP_BYTES];
    if (!tables)
        return error_set(err, ENOMEM, "out of memory for the ACPI tables");
    int result = acpi_build(&config, (uint32_t)board->map.low_top, tables, rsdp, err);
    if (!result && (!guest_mem_load(&board->mem, board->map.low_top, tables, ACPI_TABLES_BYTES) ||
                    (board->map.rsdp && !guest_mem_load(&board->mem, board->map.rsdp, rsdp, sizeof rsdp))))
        result = error_set(err, EFAULT, "the ACPI tables do not fit in guest memory");
    free(tables);
    return result;
}

_Static_assert(SMBIOS_TABLES + SMBIOS_TABLES_MAX <= 0xf0000 && SMBIOS_ENTRY_BYTES == BOARD_SMBIOS_ENTRY_BYTES,
               "SMBIOS fits into the ROM");

/* The tables lie in ROM, where they stay; a firmware that is not ours has all of that for itself. */
static int write_smbios(struct board *board, const struct board_config *config, imgvm_error *err)
{
    static const imgvm_smbios nothing;
    uint64_t low = MIN(config->memory_bytes, LOW_LIMIT);
    const struct smbios_config wish = {
        .texts = config->smbios ? config->smbios : &nothing, .cpus = config->cpus, .low_bytes = low,
        .high_base = HIGH_MEMORY, .high_bytes = config->memory_bytes - low,
    };
    struct smbios_tables *tables = config->shadow ? NULL : malloc(sizeof *tables);
    if (!tables)
        return config->shadow ? 0 : error_set(err, ENOMEM, "out of memory for the SMBIOS tables");
    int result = smbios_build(&wish, tables, err);
    if (!result) {
        smbios_entry(tables, SMBIOS_TABLES, board->smbios_entry);
        if (!guest_mem_load(&board->mem, SMBIOS_TABLES, tables->data, tables->bytes))
            result = error_set(err, EFAULT, "the SMBIOS tables do not fit in guest memory");
    }
    free(tables);
    return result;
}

int board_announce_smbios(struct board *board, imgvm_error *err)
{
    if (!board->smbios_entry[0] || guest_mem_load(&board->mem, BOARD_SMBIOS_ENTRY, board->smbios_entry, SMBIOS_ENTRY_BYTES))
        return 0;
    return error_set(err, EFAULT, "SMBIOS does not fit in guest memory");
}

/* What firmware leaves in the CMOS RAM about memory, in the places that everybody agrees on. */
static void write_cmos(struct board *board)
{
    uint64_t low = board->map.low_top + ACPI_TABLES_BYTES;
    uint64_t extended_kib = MIN((low - ONE_MIB) >> 10, UINT64_C(0xffff));
    uint64_t above_16_64kib = low > 16 * ONE_MIB ? MIN((low - 16 * ONE_MIB) >> 16, UINT64_C(0xffff)) : 0;
    const struct {
        uint8_t index;
        uint64_t value;
    } words[] = {{0x15, LOW_MEMORY >> 10}, {0x17, extended_kib}, {0x30, extended_kib}, {0x34, above_16_64kib}};
    for (unsigned i = 0; i < ARRAY_LEN(words); i++) {
        rtc_set_cmos(&board->rtc, words[i].index, (uint8_t)words[i].value);
        rtc_set_cmos(&board->rtc, words[i].index + 1, (uint8_t)(words[i].value >> 8));
    }
}

/* ---- what the chips ask of the board ---- */

static void reset_machine(void *opaque)
{
    struct board *board = opaque;
    board->host.reset(board->host.opaque);
}

static void sleep_state(void *opaque, unsigned type)
{
    struct board *board = opaque;
    if (type == ACPI_SLEEP_TYPE_OFF)
        board->host.power_off(board->host.opaque);
}

/* One gate with two handles, the keyboard controller's and port 92h's: the last one moved counts, as on chip sets
 * since the PS/2. */
static void set_a20(void *opaque, bool enabled)
{
    struct board *board = opaque;
    if (board->engine)
        board->engine->ops->set_a20(board->engine, enabled);
}

static void transmit(void *opaque, const uint8_t *data, size_t size)
{
    struct board *board = opaque;
    board->host.serial_output(board->host.opaque, data, size);
    report_watch(&board->report, data, size);
}

static void receive_ready(void *opaque)
{
    struct board *board = opaque;
    board->host.serial_ready(board->host.opaque);
}

/* ---- building ---- */

struct port_device {
    uint16_t port, size;
    const struct bus_ops *ops;
    void *device;
    const char *name;
};

static int add_ports(struct board *board, const struct port_device *rows, unsigned count, imgvm_error *err)
{
    for (unsigned i = 0; i < count; i++) {
        int result = bus_add(&board->ports, rows[i].port, rows[i].size, rows[i].ops, rows[i].device, rows[i].name, err);
        if (result < 0)
            return result;
    }
    return 0;
}

static int add_chips(struct board *board, const struct board_config *config, imgvm_error *err)
{
    const struct i8042_host keyboard = {set_a20, reset_machine, board};
    const struct serial_host serial = {transmit, receive_ready, board};
    const struct acpi_pm_host power = {sleep_state, board};
    const struct report_host report = {config->host.panic, config->host.exec_status, config->host.opaque};
    rtc_init(&board->rtc, &board->timers, config->utc_base_ns, gsi(board, IRQ_RTC));
    serial_init(&board->serial, &board->timers, gsi(board, IRQ_COM1), &serial);
    i8042_init(&board->i8042, gsi(board, IRQ_KEYBOARD), gsi(board, IRQ_MOUSE), &keyboard);
    port92_init(&board->port92, set_a20, reset_machine, board);
    reset_control_init(&board->reset_control, reset_machine, board);
    acpi_pm_init(&board->acpi_pm, &board->timers, gsi(board, IRQ_SCI), true, &power);
    report_init(&board->report, &report);
    const struct port_device rows[] = {
        {PORT_I8042_DATA, 1, &i8042_data_ops, &board->i8042, "keyboard controller"},
        {PORT_I8042_COMMAND, 1, &i8042_command_ops, &board->i8042, "keyboard controller"},
        {PORT_RTC, 2, &rtc_ops, &board->rtc, "real-time clock"},
        {PORT_92, 1, &port92_ops, &board->port92, "port 92h"},
        {PORT_SMI, 2, &acpi_pm_smi_ops, &board->acpi_pm, "SMI command port"},
        {PORT_COM1, 8, &serial_ops, &board->serial, "serial port"},
        {PORT_PVPANIC, 1, &report_panic_ops, &board->report, "pvpanic"},
        {PORT_EXEC_STATUS, 4, &report_exec_ops, &board->report, "exec status"},
        {PORT_ACPI_PM, ACPI_PM_BYTES, &acpi_pm_ops, &board->acpi_pm, "ACPI power management"},
    };
    int result = add_ports(board, rows, ARRAY_LEN(rows), err);
    if (result < 0 || config->engine->irqchip)
        return result;

    const struct msi_sink msi = {interrupts_send_msi, board};
    pit_init(&board->pit, &board->timers, gsi(board, IRQ_PIT));
    ioapic_init(&board->ioapic, 0, msi);
    const struct port_device chips[] = {
        {PORT_PIC_MASTER, 2, &pic_master_ops, &board->pic, "interrupt controller"},
        {PORT_PIC_SLAVE, 2, &pic_slave_ops, &board->pic, "interrupt controller"},
        {PORT_ELCR, 2, &pic_elcr_ops, &board->pic, "interrupt controller"},
        {PORT_PIT, 4, &pit_ops, &board->pit, "interval timer"},
        {PORT_PIT_61, 1, &pit_port61_ops, &board->pit, "port 61h"},
    };
    if ((result = interrupts_init(board, err)) < 0 || (result = add_ports(board, chips, ARRAY_LEN(chips), err)) < 0)
        return result;
    return bus_add(&board->mmio, IOAPIC_BASE, 0x1000, &ioapic_ops, &board->ioapic, "I/O APIC", err);
}

static int add_pci(struct board *board, imgvm_error *err)
{
    struct pci_host_config config = {
        .ports = &board->ports, .mmio = &board->mmio, .msi = {interrupts_send_msi, board},
        .cf9_ops = &reset_control_ops, .cf9_device = &board->reset_control,
    };
    for (unsigned i = 0; i < PCI_PIRQS; i++) {
        config.pirq[i] = (struct irq_line){interrupts_set_pirq, board, i};
        config.pirq_interrupt[i] = board_pirq_isa[i];
    }
    int result = pci_host_init(&board->pci, &config, err);
    if (result < 0)
        return result;
    board->has_pci = true;
    return pci_host_map_ecam(&board->pci, ECAM_BASE, err);
}

static int check_config(const struct board_config *config, imgvm_error *err)
{
    if (!config->cpus || config->cpus > ENGINE_CPUS_MAX)
        return error_set(err, EINVAL, "a machine has 1 to %u processors, not %u", ENGINE_CPUS_MAX, config->cpus);
    if (config->memory_bytes % GUEST_PAGE_SIZE)
        return error_set(err, EINVAL, "memory of %" PRIu64 " bytes is no multiple of 4096", config->memory_bytes);
    if (config->memory_bytes < MEMORY_MIN || config->memory_bytes > MEMORY_MAX)
        return error_set(err, EINVAL, "a machine has 2 MiB to 1 TiB of memory, not %" PRIu64 " bytes", config->memory_bytes);
    return 0;
}

int board_init(struct board *board, const struct board_config *config, imgvm_error *err)
{
    int result;
    pthread_mutex_init(&board->lock, NULL);
    board->cpus = config->cpus;
    board->host = config->host;
    clock_init_real(&board->clock);
    timer_queue_init(&board->timers, &board->clock);
    bus_init(&board->ports, &board->lock);
    bus_init(&board->mmio, &board->lock);
    if ((result = check_config(config, err)) < 0 || (result = add_memory(board, config->memory_bytes, config->shadow, err)) < 0 ||
        (result = write_smbios(board, config, err)) < 0 || (result = add_chips(board, config, err)) < 0 || (result = add_pci(board, err)) < 0)
        return result;
    if (config->debug_exit != IMGVM_DEBUG_EXIT_NONE) {
        debug_exit_init(&board->debug_exit, config->debug_exit, config->host.debug_exit, config->host.opaque);
        result = bus_add(&board->ports, config->debug_exit_port, 4, &debug_exit_ops, &board->debug_exit, "debug_exit", err);
        if (result < 0)
            return error_hint(err, "choose another devices.debug_exit.port");
    }
    struct engine_host host = interrupts_engine_host(board);
    host.wish = config->wish;
    host.lockstep = config->lockstep;
    host.count = config->count;
    host.perf_map_fd = config->perf_map_fd;
    host.trace = board->trace = config->trace;
    if ((result = config->engine->create(&host, config->cpus, &board->engine, err)) < 0)
        return result;
    if (config->entropy) {
        struct virtio_device *rng;
        if ((result = virtio_rng_create(&rng, &board->mem, &board->lock, err)) < 0)
            return result;
        if ((result = board_add_virtio(board, rng, err)) < 0) {
            rng->ops->destroy(rng);
            return result;
        }
    }
    return 0;
}

void board_destroy(struct board *board)
{
    doorbell_detach_all(board);
    if (board->has_pci)
        pci_host_destroy(&board->pci);
    if (board->engine)
        board->engine->ops->destroy(board->engine);
    interrupts_destroy(board);
    bus_destroy(&board->mmio);
    bus_destroy(&board->ports);
    guest_mem_destroy(&board->mem);
    pthread_mutex_destroy(&board->lock);
}

int board_add_virtio(struct board *board, struct virtio_device *device, imgvm_error *err)
{
    struct virtio_pci *pci;
    if (board->virtio_count == BOARD_VIRTIO_MAX)
        return error_set(err, ENOSPC, "the machine has room for %u disks and other virtio devices", BOARD_VIRTIO_MAX);
    int result = virtio_pci_create(&pci, device, err);
    if (result < 0)
        return result;
    if ((result = pci_host_add(&board->pci, &pci->function, -1, err)) < 0) {
        free(pci); /* the device stays the caller's */
        return result;
    }
    board->virtio_count++;
    doorbell_attach(board, pci);
    return 0;
}

int board_power_on(struct board *board, imgvm_error *err)
{
    static const struct pci_windows windows = {
        .mmio_base = PCI_MEMORY_BASE, .mmio_limit = PCI_MEMORY_LIMIT, .io_base = PCI_IO_BASE, .io_limit = PCI_IO_LIMIT,
    };
    int result;
    pthread_mutex_lock(&board->lock);
    if (board->cpu) {
        interrupts_reset(board);
        pit_reset(&board->pit);
    } else if ((result = board->engine->ops->reset_irqchip(board->engine, err)) < 0) {
        pthread_mutex_unlock(&board->lock);
        return result;
    }
    rtc_reset(&board->rtc);
    serial_reset(&board->serial);
    i8042_reset(&board->i8042);
    port92_reset(&board->port92);
    reset_control_reset(&board->reset_control);
    acpi_pm_reset(&board->acpi_pm);
    report_reset(&board->report);
    /* The loaders play the firmware, which opens the gate before it starts anything. */
    port92_ops.write(&board->port92, 0, 1, 2);
    set_a20(board, true);
    pci_host_reset(&board->pci);
    write_cmos(board);
    result = pci_assign_resources(&board->pci, &windows, err);
    if (!result)
        result = write_acpi(board, err);
    pthread_mutex_unlock(&board->lock);
    return result;
}
