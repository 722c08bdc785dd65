/* SPDX-License-Identifier: MIT */
/* Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"; zero-page.rst).
 *
 * Low memory as the kernel finds it:
 *     00500  GDT: __BOOT_CS 10h, __BOOT_DS 18h
 *     07000  struct boot_params, the "zero page"
 *     08000  page tables: PML4, PDPT, four page directories of 2 MiB pages: the first 4 GiB mapped one to one
 *     0f000  end of a small stack
 *     20000  command line
 * The initrd goes as high as the kernel and the memory below 4 GiB allow. */
#include "boot.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "../base/bits.h"
#include "elf.h"

#define ZERO_PAGE 0x7000u
#define PAGE_TABLES 0x8000u
#define STACK_TOP 0xf000u
#define CMDLINE 0x20000u
#define CMDLINE_MAX 0x10000u
#define BOOT_CS 0x10
#define BOOT_DS 0x18

/* Offsets in the zero page; the setup header keeps its offsets in the file. */
#define ZP_ACPI_RSDP_ADDR 0x070
#define ZP_E820_ENTRIES 0x1e8
#define ZP_SENTINEL 0x1ef
#define ZP_SETUP_HEADER 0x1f1
#define ZP_E820_TABLE 0x2d0
#define HDR_SETUP_SECTS 0x1f1
#define HDR_BOOT_FLAG 0x1fe
#define HDR_JUMP 0x201 /* its operand: the header ends at 202h + this */
#define HDR_MAGIC 0x202
#define HDR_VERSION 0x206
#define HDR_TYPE_OF_LOADER 0x210
#define HDR_LOADFLAGS 0x211
#define HDR_CODE32_START 0x214
#define HDR_RAMDISK_IMAGE 0x218
#define HDR_RAMDISK_SIZE 0x21c
#define HDR_CMD_LINE_PTR 0x228
#define HDR_INITRD_ADDR_MAX 0x22c
#define HDR_KERNEL_ALIGNMENT 0x230
#define HDR_RELOCATABLE 0x234
#define HDR_XLOADFLAGS 0x236
#define HDR_CMDLINE_SIZE 0x238
#define HDR_PREF_ADDRESS 0x258
#define HDR_INIT_SIZE 0x260

#define LOADED_HIGH 0x01
#define XLF_KERNEL_64 0x01
#define SECTOR 512u

struct kernel_place {
    uint64_t entry, low, high; /* physical */
    uint64_t initrd_max;       /* highest address of the initrd's last byte */
    uint64_t cmdline_max;
};

static int load_vmlinux(struct guest_mem *mem, const struct memory_map *map, struct boot_blob kernel, uint8_t *zero_page,
                        struct kernel_place *place, imgvm_error *err)
{
    struct elf_image image;
    int result = elf_parse(kernel, &image, err);
    if (result < 0)
        return result;
    if (!image.is64) {
        error_set(err, ENOEXEC, "the kernel is a 32-bit ELF file, not a 64-bit Linux");
        return error_hint(err, "for a Multiboot kernel say boot.protocol: multiboot");
    }
    if ((result = elf_load(mem, map, kernel, err)) < 0)
        return result;
    *place = (struct kernel_place){image.entry, image.low, image.high, 0x7fffffff, 2047};
    store_le16(zero_page + HDR_BOOT_FLAG, 0xaa55);
    memcpy(zero_page + HDR_MAGIC, "HdrS", 4);
    store_le16(zero_page + HDR_VERSION, 0x020f);
    store_le32(zero_page + HDR_KERNEL_ALIGNMENT, 0x1000000);
    store_le32(zero_page + HDR_INITRD_ADDR_MAX, 0x7fffffff);
    store_le32(zero_page + HDR_CMDLINE_SIZE, 2047);
    return 0;
}

static int bad_bzimage(imgvm_error *err, const char *why)
{
    error_set(err, ENOEXEC, "the kernel is no bzImage that can be booted: %s", why);
    return error_hint(err, "boot.kernel wants a 64-bit Linux: an ELF vmlinux or a bzImage of version 2.12 or later");
}

static int load_bzimage(struct guest_mem *mem, const struct memory_map *map, struct boot_blob kernel, uint8_t *zero_page,
                        struct kernel_place *place, imgvm_error *err)
{
    const uint8_t *file = kernel.data;
    if (load_le16(file + HDR_VERSION) < 0x020c)
        return bad_bzimage(err, "its boot protocol is older than 2.12");
    if (!(load_le16(file + HDR_XLOADFLAGS) & XLF_KERNEL_64))
        return bad_bzimage(err, "it has no 64-bit entry point");
    if (!(file[HDR_LOADFLAGS] & LOADED_HIGH))
        return bad_bzimage(err, "it is a zImage, for low memory");
    uint64_t setup_bytes = (uint64_t)((file[HDR_SETUP_SECTS] ? file[HDR_SETUP_SECTS] : 4) + 1) * SECTOR;
    if (setup_bytes >= kernel.size)
        return bad_bzimage(err, "it is cut off after its setup sectors");
    uint64_t size = kernel.size - setup_bytes;
    uint64_t address = load_le64(file + HDR_PREF_ADDRESS), needed = load_le32(file + HDR_INIT_SIZE);
    needed = MAX(needed, size);
    if (!boot_range_usable(map, address, needed) && file[HDR_RELOCATABLE]) {
        uint32_t alignment = load_le32(file + HDR_KERNEL_ALIGNMENT);
        if (!alignment || (alignment & (alignment - 1)))
            return bad_bzimage(err, "its alignment is no power of two");
        address = align_up(0x100000, alignment);
    }
    if (!boot_range_usable(map, address, needed)) {
        error_set(err, ENOMEM, "the kernel needs %" PRIu64 " MiB of memory at %#" PRIx64 ", and the machine has less",
                  (needed + 0xfffff) >> 20, address);
        return error_hint(err, "give the machine more memory");
    }
    if (!guest_mem_write(mem, address, file + setup_bytes, size))
        return error_set(err, ENOMEM, "the kernel does not fit in guest memory");
    /* The header is copied as it stands in the file, up to where its own jump says it ends. */
    uint64_t end = MIN((uint64_t)HDR_MAGIC + file[HDR_JUMP], (uint64_t)ZP_E820_TABLE - 0x40);
    memcpy(zero_page + ZP_SETUP_HEADER, file + ZP_SETUP_HEADER, end - ZP_SETUP_HEADER);
    store_le32(zero_page + HDR_CODE32_START, (uint32_t)address);
    *place = (struct kernel_place){.entry = address + 0x200, .low = address, .high = address + needed,
                                   .initrd_max = load_le32(file + HDR_INITRD_ADDR_MAX),
                                   .cmdline_max = load_le32(file + HDR_CMDLINE_SIZE)};
    return 0;
}

static int place_initrd(struct guest_mem *mem, const struct memory_map *map, struct boot_blob initrd,
                        const struct kernel_place *place, uint8_t *zero_page, imgvm_error *err)
{
    if (!initrd.size)
        return 0;
    uint64_t top = MIN(map->low_top, place->initrd_max + 1);
    uint64_t address = initrd.size <= top ? align_down(top - initrd.size, GUEST_PAGE_SIZE) : 0;
    if (address < place->high || !boot_range_usable(map, address, initrd.size) ||
        !guest_mem_write(mem, address, initrd.data, initrd.size)) {
        error_set(err, ENOMEM, "the initrd (%" PRIu64 " MiB) does not fit in memory beside the kernel",
                  (initrd.size + 0xfffff) >> 20);
        return error_hint(err, "give the machine more memory");
    }
    store_le32(zero_page + HDR_RAMDISK_IMAGE, (uint32_t)address);
    store_le32(zero_page + HDR_RAMDISK_SIZE, (uint32_t)initrd.size);
    return 0;
}

static void write_page_tables(struct guest_mem *mem)
{
    uint64_t table[512] = {PAGE_TABLES + 0x1000 + (PTE_P | PTE_W)};
    guest_mem_write(mem, PAGE_TABLES, table, sizeof table);
    memset(table, 0, sizeof table);
    for (unsigned i = 0; i < 4; i++)
        table[i] = PAGE_TABLES + 0x2000 + i * 0x1000 + (PTE_P | PTE_W);
    guest_mem_write(mem, PAGE_TABLES + 0x1000, table, sizeof table);
    for (unsigned i = 0; i < 4; i++) {
        for (unsigned j = 0; j < 512; j++)
            table[j] = ((uint64_t)(i * 512 + j) << 21) | PTE_P | PTE_W | PTE_PS;
        guest_mem_write(mem, PAGE_TABLES + 0x2000 + i * 0x1000, table, sizeof table);
    }
}

int boot_linux(struct guest_mem *mem, const struct memory_map *map, struct boot_blob kernel, struct boot_blob initrd,
               const char *cmdline, struct x86_state *state, imgvm_error *err)
{
    uint8_t zero_page[GUEST_PAGE_SIZE] = {0};
    struct kernel_place place = {0};
    int result;
    if (elf_is(kernel))
        result = load_vmlinux(mem, map, kernel, zero_page, &place, err);
    else if (kernel.size > 0x1000 && load_le16(kernel.data + HDR_BOOT_FLAG) == 0xaa55 &&
             !memcmp(kernel.data + HDR_MAGIC, "HdrS", 4))
        result = load_bzimage(mem, map, kernel, zero_page, &place, err);
    else {
        error_set(err, ENOEXEC, "the kernel is neither an ELF vmlinux nor a bzImage");
        result = error_hint(err, "boot.kernel wants a 64-bit Linux kernel, such as Debian's /boot/vmlinuz-*");
    }
    if (result < 0)
        return result;
    if (place.low < CMDLINE + CMDLINE_MAX)
        return error_set(err, ENOEXEC, "the kernel wants to lie at %#" PRIx64 ", where the boot protocol's own data is", place.low);

    size_t cmdline_bytes = strlen(cmdline);
    uint64_t most = MIN(place.cmdline_max, (uint64_t)CMDLINE_MAX - 1);
    if (cmdline_bytes > most)
        return error_set(err, E2BIG, "the kernel's command line has %zu characters, and it takes at most %" PRIu64,
                         cmdline_bytes, most);
    guest_mem_write(mem, CMDLINE, cmdline, cmdline_bytes + 1);
    store_le32(zero_page + HDR_CMD_LINE_PTR, CMDLINE);
    if ((result = place_initrd(mem, map, initrd, &place, zero_page, err)) < 0)
        return result;

    zero_page[HDR_TYPE_OF_LOADER] = 0xff; /* "undefined loader" */
    zero_page[HDR_LOADFLAGS] |= LOADED_HIGH;
    zero_page[ZP_SENTINEL] = 0;
    store_le64(zero_page + ZP_ACPI_RSDP_ADDR, map->rsdp);
    zero_page[ZP_E820_ENTRIES] = (uint8_t)map->count;
    for (unsigned i = 0; i < map->count; i++) {
        uint8_t *entry = zero_page + ZP_E820_TABLE + i * 20;
        store_le64(entry, map->range[i].base);
        store_le64(entry + 8, map->range[i].size);
        store_le32(entry + 16, map->range[i].type);
    }
    guest_mem_write(mem, ZERO_PAGE, zero_page, sizeof zero_page);
    write_page_tables(mem);

    x86_state_reset(state, true);
    boot_flat_segments(mem, state, BOOT_CS, BOOT_DS, true);
    state->tr = (struct x86_segment){.attributes = SEG_P | 11, .limit = 0xffff};
    state->cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
    state->cr4 = CR4_PAE;
    state->cr3 = PAGE_TABLES;
    state->efer = EFER_LME | EFER_LMA;
    state->rip = place.entry;
    state->gpr[RSI] = ZERO_PAGE;
    state->gpr[RSP] = STACK_TOP;
    state->gpr[RDX] = 0;
    return 0;
}
