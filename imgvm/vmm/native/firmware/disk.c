/* SPDX-License-Identifier: MIT */
/* INT 13h, with the extensions for linear addresses (EDD 3.0, 41h to 48h) and El Torito's 4Bh. */
#include "disk.h"

#define HEADS_MAX 255
#define TRACK 63
#define CYLINDERS_MAX 1024
#define EDD_VERSION 0x30
#define EDD_ACCESS 0x01 /* 42h to 44h, 47h, 48h */

struct drive drives[DRIVES_MAX];
u8 drive_count, disk_count;
static u8 cd_count;

struct drive *find_drive(u8 number)
{
    for (u8 i = 0; i < drive_count; i++)
        if (drives[i].number == number)
            return &drives[i];
    return NULL;
}

u8 transfer(struct drive *d, u64 sector, u32 count, u64 address, bool write)
{
    if (count == 0)
        return DISK_OK;
    if (sector >= d->sectors || count > d->sectors - sector)
        return DISK_NOT_FOUND;
    if (write && d->read_only)
        return DISK_WRITE_PROTECTED;
    return virtio_blk_request(d, sector, count, address, write);
}

u8 read_sector(struct drive *d, u64 sector, void *data)
{
    return transfer(d, sector, 1, EBDA_ADDRESS + (u32)(uintptr_t)data, false);
}

/* ---- finding them ---- */

/* The usual translation: as many heads as bring the cylinders below 1024 (as "LBA-assisted" BIOSes have it). */
static void choose_geometry(struct drive *d)
{
    u32 sectors = d->sectors > 0xffffffff ? 0xffffffff : (u32)d->sectors;
    u32 heads = 16;
    while (heads < 256 && sectors / (heads * TRACK) > CYLINDERS_MAX)
        heads *= 2;
    d->heads = (u8)(heads < 256 ? heads : HEADS_MAX);
    d->sectors_per_track = TRACK;
    u32 cylinders = sectors / ((u32)d->heads * TRACK);
    d->cylinders = (u16)(cylinders > CYLINDERS_MAX ? CYLINDERS_MAX : cylinders ? cylinders : 1);
}

static bool is_cd(struct drive *d)
{
    u8 sector[SECTOR];
    if (read_sector(d, 16 * (CD_SECTOR / SECTOR), sector) != DISK_OK || memcmp(sector + 1, "CD001", 5))
        return false;
    if (d->read_only)
        return true;
    return read_sector(d, 0, sector) == DISK_OK && (sector[510] != 0x55 || sector[511] != 0xaa);
}

void disks_init(void)
{
    for (unsigned slot = 0; slot < 32 && drive_count < DRIVES_MAX; slot++) {
        struct drive *d = &drives[drive_count];
        if (!virtio_blk_init(d, (u8)(slot << 3)))
            continue;
        drive_count++;
        d->is_cd = is_cd(d);
        d->number = d->is_cd ? FIRST_CDROM + cd_count++ : FIRST_DISK + disk_count++;
        choose_geometry(d);
    }
    poke8(BDA_SEG, BDA_DISK_COUNT, disk_count);
}

/* ---- services ---- */

static void finish(struct regs *r, u8 status)
{
    r->ah = status;
    poke8(BDA_SEG, BDA_DISK_STATUS, status);
    set_carry(r, status != DISK_OK);
}

static u32 linear(u16 segment, u16 offset)
{
    return ((u32)segment << 4) + offset;
}

/* 02h, 03h, 04h. Cylinder in CH and CL's upper bits, sector from 1 in CL's lower ones, head in DH. */
static u8 transfer_chs(struct drive *d, struct regs *r)
{
    u16 cylinder = (u16)(r->ch | (r->cl & 0xc0) << 2);
    u8 sector = r->cl & 0x3f;
    if (d->is_cd || r->al == 0)
        return DISK_BAD_COMMAND;
    if (sector == 0 || sector > d->sectors_per_track || r->dh >= d->heads || cylinder >= CYLINDERS_MAX)
        return DISK_NOT_FOUND;
    u32 first = ((u32)cylinder * d->heads + r->dh) * d->sectors_per_track + sector - 1;
    if (r->ah == 0x04)
        return first < d->sectors && r->al <= d->sectors - first ? DISK_OK : DISK_NOT_FOUND;
    return transfer(d, first, r->al, linear(r->es, r->bx), r->ah == 0x03);
}

static void tell_geometry(struct drive *d, struct regs *r)
{
    if (d->is_cd) {
        finish(r, DISK_BAD_COMMAND);
        return;
    }
    u16 last = (u16)(d->cylinders - 1);
    r->ch = (u8)last;
    r->cl = (u8)(d->sectors_per_track | (last >> 2 & 0xc0));
    r->dh = (u8)(d->heads - 1);
    r->dl = disk_count;
    r->al = r->bl = 0;
    finish(r, DISK_OK);
}

/* ---- EDD ---- */

struct address_packet {
    u8 bytes, reserved;
    u16 count;
    u16 offset, segment; /* FFFF:FFFF: see `flat` */
    u64 sector;
    u64 flat;
} __attribute__((packed));

struct drive_parameters {
    u16 bytes, flags;
    u32 cylinders, heads, sectors_per_track;
    u64 sectors;
    u16 bytes_per_sector;
    u32 configuration; /* none */
} __attribute__((packed));

#define PARAMETERS_SHORT 0x1a
#define PARAMETERS_REMOVABLE 0x74 /* removable, lockable, no geometry: what CD-ROMs say */
#define PARAMETERS_GEOMETRY 0x02

/* 42h, 43h, 44h. The packet's count becomes that of the sectors moved. */
static u8 transfer_lba(struct drive *d, struct regs *r)
{
    struct address_packet packet;
    copy_in(&packet, r->ds, r->si, sizeof packet);
    if (packet.bytes < 16)
        return DISK_BAD_COMMAND;
    u64 address = linear(packet.segment, packet.offset);
    if (packet.segment == 0xffff && packet.offset == 0xffff && packet.bytes >= 24)
        address = packet.flat;
    u32 scale = d->is_cd ? CD_SECTOR / SECTOR : 1;
    u8 status;
    if (packet.sector >> 60)
        status = DISK_NOT_FOUND;
    else if (r->ah == 0x44)
        status = packet.sector * scale < d->sectors ? DISK_OK : DISK_NOT_FOUND;
    else
        status = transfer(d, packet.sector * scale, packet.count * scale, address, r->ah == 0x43);
    if (status != DISK_OK)
        poke16(r->ds, (u16)(r->si + offsetof(struct address_packet, count)), 0);
    return status;
}

static u8 tell_parameters(struct drive *d, struct regs *r)
{
    u16 room = peek16(r->ds, r->si);
    if (room < PARAMETERS_SHORT)
        return DISK_BAD_COMMAND;
    struct drive_parameters p = {
        .bytes = room < sizeof p ? PARAMETERS_SHORT : sizeof p, .flags = PARAMETERS_GEOMETRY, .cylinders = d->cylinders,
        .heads = d->heads, .sectors_per_track = d->sectors_per_track, .sectors = d->sectors, .bytes_per_sector = SECTOR,
        .configuration = 0xffffffff,
    };
    if (d->is_cd) {
        p.flags = PARAMETERS_REMOVABLE;
        p.cylinders = p.heads = p.sectors_per_track = 0xffffffff;
        p.sectors = d->sectors / (CD_SECTOR / SECTOR);
        p.bytes_per_sector = CD_SECTOR;
    }
    copy_out(r->ds, r->si, &p, p.bytes);
    return DISK_OK;
}

/* 4Bh: 00h ends an emulation, 01h says what there is. */
static u8 tell_emulation(struct drive *d, struct regs *r)
{
    struct {
        u8 bytes, media, drive, controller;
        u32 lba;
        u16 device, buffer_segment, load_segment, sectors;
        u8 cylinder, sector, head;
    } __attribute__((packed)) packet = {
        .bytes = 0x13, .drive = d->number, .lba = emulation.lba, .load_segment = emulation.segment, .sectors = emulation.sectors,
    };
    if (r->al > 1 || emulation.drive != d->number)
        return DISK_BAD_COMMAND;
    copy_out(r->ds, r->si, &packet, sizeof packet);
    return DISK_OK;
}

static void serve(struct drive *d, struct regs *r)
{
    u8 status = DISK_OK;
    switch (r->ah) {
    case 0x00: /* reset, and others that move heads */
    case 0x05:
    case 0x09:
    case 0x0c:
    case 0x0d:
    case 0x10:
    case 0x11:
    case 0x14:
    case 0x47:
        if (r->ah == 0x05)
            status = DISK_BAD_COMMAND; /* nothing is formatted */
        break;
    case 0x01:
        status = peek8(BDA_SEG, BDA_DISK_STATUS);
        r->al = status;
        break;
    case 0x02:
    case 0x03:
    case 0x04:
        status = transfer_chs(d, r);
        if (status != DISK_OK)
            r->al = 0;
        break;
    case 0x08:
        tell_geometry(d, r);
        return;
    case 0x15: { /* the kind of drive, and how many sectors its geometry has */
        u32 sectors = d->sectors > 0xffffffff ? 0xffffffff : (u32)d->sectors;
        if (d->is_cd) {
            status = DISK_BAD_COMMAND;
            break;
        }
        r->cx = (u16)(sectors >> 16);
        r->dx = (u16)sectors;
        finish(r, DISK_OK);
        r->ah = 0x03; /* a hard disk */
        return;
    }
    case 0x41:
        if (r->bx != 0x55aa) {
            status = DISK_BAD_COMMAND;
            break;
        }
        r->bx = 0xaa55;
        r->cx = EDD_ACCESS | (d->is_cd ? 0x02 : 0); /* 45h, 46h: of removable drives */
        finish(r, DISK_OK);
        r->ah = EDD_VERSION;
        return;
    case 0x42:
    case 0x43:
    case 0x44:
        status = transfer_lba(d, r);
        break;
    case 0x45: /* lock: never is */
        r->al = 0;
        break;
    case 0x46:
        status = DISK_LOCK_STATE; /* cannot be ejected */
        break;
    case 0x48:
        status = tell_parameters(d, r);
        break;
    case 0x49: /* medium changed: never */
        status = d->is_cd ? DISK_OK : DISK_NO_CHANGE_LINE;
        break;
    case 0x4b:
        status = tell_emulation(d, r);
        break;
    default:
        status = DISK_BAD_COMMAND;
    }
    finish(r, status);
}

void disk_service(struct regs *r)
{
    struct drive *d = find_drive(r->dl);
    if (r->flags & FLAG_INTERRUPT)
        interrupts_on();
    if (d) {
        serve(d, r);
    } else if (r->ah == 0x15) { /* no such drive: not an error of this call */
        r->cx = r->dx = 0;
        finish(r, DISK_OK);
    } else if (r->ah == 0x08 && r->dl < FIRST_DISK) {
        r->ax = r->bx = r->cx = r->dx = 0; /* no diskette drives */
        finish(r, DISK_OK);
    } else {
        finish(r, DISK_BAD_COMMAND);
    }
}
