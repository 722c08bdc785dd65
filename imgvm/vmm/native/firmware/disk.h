/* SPDX-License-Identifier: MIT */
/* The drives: virtio-blk devices in the order of their PCI slots. One that carries an ISO 9660 file system and cannot be
 * written, or has no boot sector, is a CD-ROM. */
#ifndef IMGVM_FIRMWARE_DISK_H
#define IMGVM_FIRMWARE_DISK_H

#include "bios.h"

#define DRIVES_MAX 16
#define SECTOR 512u
#define CD_SECTOR 2048u
#define FIRST_DISK 0x80
#define FIRST_CDROM 0xe0

/* A split virtqueue (virtio 1.2, 2.7) of four descriptors, and the one request that is in it. */
#define QUEUE_SIZE 4
struct virtio_ring {
    struct {
        u64 address;
        u32 bytes;
        u16 flags, next;
    } descriptor[QUEUE_SIZE];
    struct {
        u16 flags, index, ring[QUEUE_SIZE], used_event;
    } available;
    struct {
        u16 flags;
        volatile u16 index;
        struct {
            u32 id, bytes;
        } ring[QUEUE_SIZE];
        u16 available_event;
    } __attribute__((aligned(4))) used;
    struct {
        u32 type, reserved;
        u64 sector;
    } request;
    volatile u8 status;
} __attribute__((aligned(16)));

/* Where a part of the device's registers lies. */
struct virtio_region {
    u8 bar;
    u32 offset;
};

struct drive {
    u8 number; /* as INT 13h has it */
    u8 devfn;
    u8 window; /* of the capability that reaches the device's registers through configuration space */
    bool is_cd, read_only;
    struct virtio_region common, doorbell;
    u64 sectors; /* of 512 bytes */
    u16 cylinders;
    u8 heads, sectors_per_track; /* heads - 1 fits the register, 256 does not occur */
    struct virtio_ring ring;
};

extern struct drive drives[DRIVES_MAX];
extern u8 drive_count, disk_count;

/* What INT 13h calls a status. */
#define DISK_OK 0x00
#define DISK_BAD_COMMAND 0x01
#define DISK_WRITE_PROTECTED 0x03
#define DISK_NOT_FOUND 0x04
#define DISK_NO_CHANGE_LINE 0x06
#define DISK_CONTROLLER_FAILED 0x20
#define DISK_LOCK_STATE 0xb4

void disks_init(void);
struct drive *find_drive(u8 number);
/* `count` sectors of 512 bytes; `address` is physical. Returns a status. */
u8 transfer(struct drive *drive, u64 sector, u32 count, u64 address, bool write);
/* The same into the EBDA, one sector. */
u8 read_sector(struct drive *drive, u64 sector, void *data);

/* virtio.c: finds the device's registers and sets it up; false when it is none, or fails. */
bool virtio_blk_init(struct drive *drive, u8 devfn);
u8 virtio_blk_request(struct drive *drive, u64 sector, u32 count, u64 address, bool write);

/* boot.c: what El Torito started, for INT 13h, 4Bh */
struct el_torito {
    u8 drive; /* 0: none */
    u32 lba;
    u16 segment, sectors;
};
extern struct el_torito emulation;

#endif
