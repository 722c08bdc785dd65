/* SPDX-License-Identifier: MIT */
#include "elf.h"

#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "../base/bits.h"

bool elf_is(struct boot_blob file)
{
    return file.size >= EI_NIDENT && !memcmp(file.data, ELFMAG, SELFMAG);
}

struct segment {
    uint32_t type;
    uint64_t offset, vaddr, paddr, file_bytes, mem_bytes;
};

struct header {
    uint64_t entry, phoff;
    uint16_t type, machine, phentsize, phnum;
    bool is64;
};

static int read_header(struct boot_blob file, struct header *h, imgvm_error *err)
{
    Elf64_Ehdr e64;
    Elf32_Ehdr e32;
    if (!elf_is(file))
        return error_set(err, ENOEXEC, "the kernel is not an ELF file");
    h->is64 = file.data[EI_CLASS] == ELFCLASS64;
    if ((!h->is64 && file.data[EI_CLASS] != ELFCLASS32) || file.data[EI_DATA] != ELFDATA2LSB)
        return error_set(err, ENOEXEC, "the kernel's ELF header is of no class that an x86 knows");
    if (file.size < (h->is64 ? sizeof e64 : sizeof e32))
        return error_set(err, ENOEXEC, "the kernel's ELF header is cut off");
    if (h->is64) {
        memcpy(&e64, file.data, sizeof e64);
        h->entry = e64.e_entry, h->phoff = e64.e_phoff, h->type = e64.e_type, h->machine = e64.e_machine;
        h->phentsize = e64.e_phentsize, h->phnum = e64.e_phnum;
    } else {
        memcpy(&e32, file.data, sizeof e32);
        h->entry = e32.e_entry, h->phoff = e32.e_phoff, h->type = e32.e_type, h->machine = e32.e_machine;
        h->phentsize = e32.e_phentsize, h->phnum = e32.e_phnum;
    }
    if (h->machine != EM_386 && h->machine != EM_X86_64)
        return error_set(err, ENOEXEC, "the kernel is an ELF file for another processor (machine %u)", h->machine);
    if (h->type != ET_EXEC && h->type != ET_DYN)
        return error_set(err, ENOEXEC, "the kernel is an ELF file that cannot be executed (type %u)", h->type);
    if (!h->phnum)
        return error_set(err, ENOEXEC, "the kernel's ELF file has nothing to load");
    if (h->phentsize != (h->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)) || h->phoff > file.size ||
        (uint64_t)h->phnum * h->phentsize > file.size - h->phoff)
        return error_set(err, ENOEXEC, "the kernel's ELF program headers are cut off");
    return 0;
}

static int read_segment(struct boot_blob file, const struct header *h, unsigned index, struct segment *s, imgvm_error *err)
{
    const uint8_t *at = file.data + h->phoff + (uint64_t)index * h->phentsize;
    if (h->is64) {
        Elf64_Phdr p;
        memcpy(&p, at, sizeof p);
        *s = (struct segment){p.p_type, p.p_offset, p.p_vaddr, p.p_paddr, p.p_filesz, p.p_memsz};
    } else {
        Elf32_Phdr p;
        memcpy(&p, at, sizeof p);
        *s = (struct segment){p.p_type, p.p_offset, p.p_vaddr, p.p_paddr, p.p_filesz, p.p_memsz};
    }
    if (s->type != PT_LOAD)
        return 0;
    if (s->offset > file.size || s->file_bytes > file.size - s->offset || s->file_bytes > s->mem_bytes)
        return error_set(err, ENOEXEC, "the kernel's ELF segment %u is cut off or contradicts itself", index);
    if (s->paddr + s->mem_bytes < s->paddr)
        return error_set(err, ENOEXEC, "the kernel's ELF segment %u wraps around the address space", index);
    return 0;
}

int elf_parse(struct boot_blob file, struct elf_image *image, imgvm_error *err)
{
    struct header h;
    struct segment s;
    int result = read_header(file, &h, err);
    if (result < 0)
        return result;
    *image = (struct elf_image){.is64 = h.is64, .machine = h.machine, .entry = h.entry, .low = UINT64_MAX};
    bool entry_is_physical = false, translated = false;
    uint64_t entry = 0;
    for (unsigned i = 0; i < h.phnum; i++) {
        if ((result = read_segment(file, &h, i, &s, err)) < 0)
            return result;
        if (s.type != PT_LOAD || !s.mem_bytes)
            continue;
        image->low = MIN(image->low, align_down(s.paddr, GUEST_PAGE_SIZE));
        image->high = MAX(image->high, align_up(s.paddr + s.mem_bytes, GUEST_PAGE_SIZE));
        if (h.entry - s.paddr < s.mem_bytes)
            entry_is_physical = true;
        if (!translated && h.entry - s.vaddr < s.mem_bytes) {
            entry = h.entry - s.vaddr + s.paddr;
            translated = true;
        }
    }
    if (!image->high)
        return error_set(err, ENOEXEC, "the kernel's ELF file has nothing to load");
    if (!entry_is_physical && !translated)
        return error_set(err, ENOEXEC, "the kernel's entry point %#" PRIx64 " lies in none of its segments", h.entry);
    if (translated) /* a segment at its own address translates to itself */
        image->entry = entry;
    return 0;
}

int elf_load(struct guest_mem *mem, const struct memory_map *map, struct boot_blob file, imgvm_error *err)
{
    static const uint8_t zeros[GUEST_PAGE_SIZE];
    struct header h;
    struct segment s;
    int result = read_header(file, &h, err);
    if (result < 0)
        return result;
    for (unsigned i = 0; i < h.phnum; i++) {
        if ((result = read_segment(file, &h, i, &s, err)) < 0)
            return result;
        if (s.type != PT_LOAD || !s.mem_bytes)
            continue;
        if (!boot_range_usable(map, s.paddr, s.mem_bytes) || !guest_mem_write(mem, s.paddr, file.data + s.offset, s.file_bytes)) {
            error_set(err, ENOMEM, "the kernel wants memory at %#" PRIx64 "-%#" PRIx64 ", where the machine has none to give",
                      s.paddr, s.paddr + s.mem_bytes - 1);
            return error_hint(err, "give the machine more memory");
        }
        for (uint64_t done = s.file_bytes; done < s.mem_bytes;) {
            uint64_t size = MIN(s.mem_bytes - done, (uint64_t)sizeof zeros);
            guest_mem_write(mem, s.paddr + done, zeros, size);
            done += size;
        }
    }
    return 0;
}
