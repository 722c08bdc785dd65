/* SPDX-License-Identifier: MIT */
/* INT 19h and INT 18h: from which drive, and how. A disk boots by its first sector, a CD-ROM by El Torito ("El Torito"
 * Bootable CD-ROM Format Specification 1.0) without emulation. */
#include "board_info.h"
#include "disk.h"

#define LOAD_SEGMENT 0x7c0
#define PORT_PVPANIC 0x505
#define PANICKED 0x01

#define BOOT_RECORD_SECTOR 17
#define RECORD_ID "\0CD001\1EL TORITO SPECIFICATION"
#define RECORD_CATALOG 0x47
#define CATALOG_BOOTABLE 0x88
#define CATALOG_NO_EMULATION 0

struct el_torito emulation;
static u8 next_kind, next_drive; /* what is tried next: kind in the board's order, and drive */

static u8 sector[SECTOR];

static void say(const struct drive *d, const char *words)
{
    print(d->is_cd ? "CD-ROM " : "Disk ");
    print_hex(d->number, 2);
    print("h: ");
    print(words);
    print("\n");
}

static void boot_disk(struct drive *d)
{
    if (read_sector(d, 0, sector) != DISK_OK) {
        say(d, "cannot be read");
    } else if (sector[510] != 0x55 || sector[511] != 0xaa) {
        say(d, "has no boot sector");
    } else if (sector[0] == 0 && sector[1] == 0) { /* a partition table alone */
        say(d, "has no program in its boot sector");
    } else if (transfer(d, 0, 1, LOAD_SEGMENT << 4, false) == DISK_OK) {
        run_boot_code(LOAD_SEGMENT << 4, d->number);
    }
}

static u32 word32(const u8 *at)
{
    return at[0] | at[1] << 8 | at[2] << 16 | (u32)at[3] << 24;
}

static u16 word16(const u8 *at)
{
    return (u16)(at[0] | at[1] << 8);
}

static void boot_cd(struct drive *d)
{
    const u32 scale = CD_SECTOR / SECTOR;
    if (read_sector(d, BOOT_RECORD_SECTOR * scale, sector) != DISK_OK || memcmp(sector, RECORD_ID, sizeof RECORD_ID - 1)) {
        say(d, "has no El Torito boot record");
        return;
    }
    if (read_sector(d, (u64)word32(sector + RECORD_CATALOG) * scale, sector) != DISK_OK || sector[0] != 1 || sector[30] != 0x55 ||
        sector[31] != 0xaa) {
        say(d, "has a boot record without a catalog");
        return;
    }
    const u8 *entry = sector + 32;
    if (entry[0] != CATALOG_BOOTABLE || sector[1] != 0) { /* platform 0: this kind of machine */
        say(d, "is not made for a BIOS to boot");
        return;
    }
    if (entry[1] != CATALOG_NO_EMULATION) {
        say(d, "asks for an emulated disk, which is not supported");
        return;
    }
    u16 segment = word16(entry + 2), count = word16(entry + 6);
    emulation = (struct el_torito){
        .drive = d->number, .lba = word32(entry + 8), .segment = segment ? segment : LOAD_SEGMENT, .sectors = count ? count : 1,
    };
    u32 address = (u32)emulation.segment << 4, end = address + emulation.sectors * SECTOR;
    if (address < 0x500 || end > EBDA_ADDRESS) {
        say(d, "has a boot program that does not fit into low memory");
        return;
    }
    if (transfer(d, (u64)emulation.lba * scale, emulation.sectors, address, false) != DISK_OK) {
        say(d, "cannot be read");
        return;
    }
    run_boot_code(emulation.segment == LOAD_SEGMENT ? LOAD_SEGMENT << 4 : (u32)emulation.segment << 16, d->number);
}

/* The machine ends here: nobody may be there to press a key. */
static __attribute__((noreturn)) void give_up(void)
{
    if (drive_count == 0)
        print("There are no disks.\n");
    print("No bootable device\n");
    for (;;) {
        out8(PORT_PVPANIC, PANICKED);
        interrupts_off();
        __asm__ volatile("hlt");
    }
}

void boot(void)
{
    u8 kinds = peek8(INFO_SEG, offsetof(struct board_info, boot_count));
    for (; next_kind < kinds && next_kind < BOARD_INFO_BOOT_MAX; next_kind++, next_drive = 0) {
        u8 kind = peek8(INFO_SEG, offsetof(struct board_info, boot) + next_kind);
        while (next_drive < drive_count) {
            struct drive *d = &drives[next_drive++];
            if (d->is_cd != (kind == BOOT_CDROM))
                continue;
            emulation.drive = 0;
            if (d->is_cd)
                boot_cd(d);
            else
                boot_disk(d);
        }
    }
    give_up();
}

/* 18h: the program that was started has found nothing to boot. */
void boot_failed_service(struct regs *r)
{
    (void)r;
    interrupts_on();
    restart_boot();
}

/* 19h: from the first one again. */
void bootstrap_service(struct regs *r)
{
    (void)r;
    next_kind = next_drive = 0;
    interrupts_on();
    restart_boot();
}
