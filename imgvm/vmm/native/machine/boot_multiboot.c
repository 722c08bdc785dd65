/* SPDX-License-Identifier: MIT */
/* Multiboot Specification 0.6.96. The kernel is an ELF32 file, or any file whose Multiboot header carries load
 * addresses (flag 16, "a.out kludge"). After it come the modules, each on a page of its own; the information
 * structure lies at 10000h, or behind the modules when the kernel itself occupies low memory. */
#include "boot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "../base/bits.h"
#include "elf.h"

#define HEADER_MAGIC 0x1badb002u
#define LOADER_MAGIC 0x2badb002u
#define HEADER_SEARCH 8192u

#define FLAG_PAGE_ALIGN 0x00001u
#define FLAG_MEMORY_INFO 0x00002u
#define FLAG_VIDEO_MODE 0x00004u
#define FLAG_ADDRESSES 0x10000u

#define INFO_MEMORY 0x001u
#define INFO_CMDLINE 0x004u
#define INFO_MODULES 0x008u
#define INFO_MEMORY_MAP 0x040u
#define INFO_LOADER_NAME 0x200u

#define INFO_BYTES 120u
#define INFO_LOW 0x10000u
#define LOADER_NAME "imgvm"

struct header {
    uint32_t offset, flags;
    uint32_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
};

static bool find_header(struct boot_blob file, struct header *h)
{
    uint64_t end = MIN(file.size, (uint64_t)HEADER_SEARCH);
    for (uint32_t at = 0; at + 12 <= end; at += 4) {
        uint32_t flags = load_le32(file.data + at + 4);
        if (load_le32(file.data + at) != HEADER_MAGIC || (uint32_t)(HEADER_MAGIC + flags + load_le32(file.data + at + 8)))
            continue;
        *h = (struct header){.offset = at, .flags = flags};
        if (!(flags & FLAG_ADDRESSES))
            return true;
        if (at + 32 > file.size)
            return false;
        h->header_addr = load_le32(file.data + at + 12);
        h->load_addr = load_le32(file.data + at + 16);
        h->load_end_addr = load_le32(file.data + at + 20);
        h->bss_end_addr = load_le32(file.data + at + 24);
        h->entry_addr = load_le32(file.data + at + 28);
        return true;
    }
    return false;
}

struct place {
    uint64_t low, high, entry;
};

static int no_room(imgvm_error *err, const char *what, uint64_t base, uint64_t size)
{
    error_set(err, ENOMEM, "%s needs memory at %#" PRIx64 "-%#" PRIx64 ", where the machine has none to give", what, base,
              base + size - 1);
    return error_hint(err, "give the machine more memory");
}

/* Section 3.1.3, "The address fields of Multiboot header". */
static int load_by_addresses(struct guest_mem *mem, const struct memory_map *map, struct boot_blob file,
                             const struct header *h, struct place *place, imgvm_error *err)
{
    if (h->load_addr > h->header_addr || h->header_addr - h->load_addr > h->offset)
        return error_set(err, ENOEXEC, "the kernel's Multiboot header contradicts itself: it is not inside what is loaded");
    uint64_t from = h->offset - (h->header_addr - h->load_addr);
    uint64_t size = h->load_end_addr ? (uint64_t)h->load_end_addr - h->load_addr : file.size - from;
    if ((h->load_end_addr && h->load_end_addr < h->load_addr) || size > file.size - from)
        return error_set(err, ENOEXEC, "the kernel's Multiboot header promises more bytes than the file has");
    uint64_t end = MAX(h->load_addr + size, (uint64_t)h->bss_end_addr);
    if (!boot_range_usable(map, h->load_addr, end - h->load_addr) ||
        !guest_mem_write(mem, h->load_addr, file.data + from, size))
        return no_room(err, "the kernel", h->load_addr, end - h->load_addr);
    static const uint8_t zeros[GUEST_PAGE_SIZE];
    for (uint64_t at = h->load_addr + size; at < end; at += sizeof zeros)
        guest_mem_write(mem, at, zeros, MIN(end - at, (uint64_t)sizeof zeros));
    *place = (struct place){h->load_addr, align_up(end, GUEST_PAGE_SIZE), h->entry_addr};
    return 0;
}

static int load_kernel(struct guest_mem *mem, const struct memory_map *map, struct boot_blob file, struct place *place,
                       imgvm_error *err)
{
    struct header h;
    if (!find_header(file, &h)) {
        error_set(err, ENOEXEC, "the kernel has no Multiboot header in its first %u bytes", HEADER_SEARCH);
        return error_hint(err, "the header begins with 1BADB002h at a multiple of 4; is its section linked first?");
    }
    uint32_t unknown = h.flags & 0xffff & ~(FLAG_PAGE_ALIGN | FLAG_MEMORY_INFO | FLAG_VIDEO_MODE);
    if (unknown)
        return error_set(err, ENOTSUP, "the kernel's Multiboot header requires features that do not exist (flags %#x)", unknown);
    if (h.flags & FLAG_ADDRESSES)
        return load_by_addresses(mem, map, file, &h, place, err);
    struct elf_image image;
    int result = elf_parse(file, &image, err);
    if (result < 0)
        return result;
    if (image.is64) {
        error_set(err, ENOEXEC, "the kernel is a 64-bit ELF file; Multiboot 1 starts 32-bit ones");
        return error_hint(err, "link it as elf32 (objcopy -O elf32-i386), or set flag 16 and the address fields");
    }
    if (image.high > UINT32_MAX)
        return error_set(err, ENOEXEC, "the kernel's segments lie above 4 GiB");
    if ((result = elf_load(mem, map, file, err)) < 0)
        return result;
    *place = (struct place){image.low, image.high, image.entry};
    return 0;
}

/* The information structure and what it points to, built as one block that will lie at `base`. */
struct block {
    uint8_t *data;
    uint32_t base, used;
};

static uint32_t block_add(struct block *block, const void *data, size_t size)
{
    uint32_t at = block->used;
    memcpy(block->data + at, data, size);
    block->used = (uint32_t)align_up(at + size, 8);
    return block->base + at;
}

static void fill_memory_map(struct block *block, const struct memory_map *map, uint8_t *info)
{
    uint32_t first = 0;
    for (unsigned i = 0; i < map->count; i++) {
        uint8_t entry[24];
        store_le32(entry, 20); /* the size does not count itself */
        store_le64(entry + 4, map->range[i].base);
        store_le64(entry + 12, map->range[i].size);
        store_le32(entry + 20, map->range[i].type == MEMORY_USABLE ? 1 : map->range[i].type);
        uint32_t at = block_add(block, entry, sizeof entry);
        first = first ? first : at;
    }
    store_le32(info + 44, map->count * 24);
    store_le32(info + 48, first);
}

int boot_multiboot(struct guest_mem *mem, const struct memory_map *map, struct boot_blob kernel, const char *cmdline,
                   const struct boot_module *modules, unsigned module_count, struct x86_state *state, imgvm_error *err)
{
    struct place place = {0};
    int result = load_kernel(mem, map, kernel, &place, err);
    if (result < 0)
        return result;

    size_t bytes = INFO_BYTES + strlen(cmdline) + sizeof LOADER_NAME + map->count * 24 + module_count * 16 + 64;
    for (unsigned i = 0; i < module_count; i++)
        bytes += strlen(modules[i].cmdline) + 1 + 8;
    uint8_t *list = calloc(module_count + 1, 16);
    struct block block = {.data = calloc(1, bytes)};
    if (!list || !block.data) {
        result = error_set(err, ENOMEM, "out of memory for the Multiboot information");
        goto out;
    }

    uint64_t at = MAX(place.high, UINT64_C(0x100000));
    for (unsigned i = 0; i < module_count; i++) {
        struct boot_blob blob = modules[i].blob;
        if (!boot_range_usable(map, at, blob.size ? blob.size : 1) || !guest_mem_write(mem, at, blob.data, blob.size)) {
            result = no_room(err, "a module", at, blob.size);
            goto out;
        }
        store_le32(list + i * 16, (uint32_t)at);
        store_le32(list + i * 16 + 4, (uint32_t)(at + blob.size));
        at = align_up(at + blob.size, GUEST_PAGE_SIZE);
    }
    block.base = place.low >= 0x100000 && bytes <= 0x80000 ? INFO_LOW : (uint32_t)at;

    uint8_t info[INFO_BYTES] = {0};
    block.used = INFO_BYTES;
    store_le32(info, INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME);
    store_le32(info + 4, 640);
    store_le32(info + 8, (uint32_t)((map->low_top - 0x100000) >> 10));
    store_le32(info + 16, block_add(&block, cmdline, strlen(cmdline) + 1));
    for (unsigned i = 0; i < module_count; i++)
        store_le32(list + i * 16 + 8, block_add(&block, modules[i].cmdline, strlen(modules[i].cmdline) + 1));
    store_le32(info + 20, module_count);
    store_le32(info + 24, block_add(&block, list, module_count * 16));
    fill_memory_map(&block, map, info);
    store_le32(info + 64, block_add(&block, LOADER_NAME, sizeof LOADER_NAME));
    memcpy(block.data, info, sizeof info);
    if (!boot_range_usable(map, block.base, block.used) || !guest_mem_write(mem, block.base, block.data, block.used)) {
        result = no_room(err, "the Multiboot information", block.base, block.used);
        goto out;
    }

    /* Section 3.2, "Machine state". The GDT is more than is promised. */
    x86_state_reset(state, true);
    boot_flat_segments(mem, state, 0x08, 0x10, false);
    state->cr0 = CR0_PE | CR0_ET;
    state->rip = place.entry;
    state->gpr[RAX] = LOADER_MAGIC;
    state->gpr[RBX] = block.base;
    state->gpr[RDX] = 0;
out:
    free(block.data);
    free(list);
    return result;
}
