/* SPDX-License-Identifier: MIT */
/* needs: machine/boot.c machine/boot_multiboot.c machine/elf.c arch/state.c mem/guest_mem.c base/error.c */
/* Multiboot 1: kernels with address fields and as ELF32, the information structure, and bad kernels. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "check.h"
#include "machine/boot.h"

#include <elf.h>

#define LOW_TOP UINT64_C(0x1000000)

static struct guest_mem mem;
static struct memory_map map;
static struct x86_state state;
static imgvm_error err;

static void setup(void)
{
    CHECK_EQ(guest_mem_init(&mem, &err), 0);
    CHECK_EQ(guest_mem_add(&mem, 0, 0xa0000, false, &err), 0);
    CHECK_EQ(guest_mem_add(&mem, 0x100000, LOW_TOP - 0x100000, false, &err), 0);
    map = (struct memory_map){.range = {{0, 0xa0000, MEMORY_USABLE}, {0x100000, LOW_TOP - 0x100000, MEMORY_USABLE}},
                              .count = 2, .low_top = LOW_TOP, .rsdp = 0xe0000};
}

static uint32_t guest32(uint64_t gpa)
{
    uint32_t value = 0;
    CHECK(guest_mem_read(&mem, gpa, &value, 4));
    return value;
}

static bool guest_text_is(uint64_t gpa, const char *text)
{
    char data[64] = {0};
    return guest_mem_read(&mem, gpa, data, strlen(text) + 1) && !strcmp(data, text);
}

/* header_addr .. entry_addr follow the checksum when flag 16 is set. */
static void put_header(uint8_t *at, uint32_t flags, const uint32_t addresses[5])
{
    store_le32(at, 0x1badb002);
    store_le32(at + 4, flags);
    store_le32(at + 8, -(0x1badb002u + flags));
    for (unsigned i = 0; addresses && i < 5; i++)
        store_le32(at + 12 + 4 * i, addresses[i]);
}

static int boot(const void *kernel, size_t size, const struct boot_module *modules, unsigned count)
{
    return boot_multiboot(&mem, &map, (struct boot_blob){kernel, size}, "the command line", modules, count, &state, &err);
}

static void test_addresses(void)
{
    uint8_t k[512];
    memset(k, 0x90, sizeof k);
    put_header(k + 64, 0x10003, (uint32_t[]){0x200040 - 32, 0x200000, 0, 0x201000, 0x200123});
    CHECK_EQ(boot(k, sizeof k, NULL, 0), 0); /* what is loaded begins 32 bytes into the file */
    CHECK_EQ(guest32(0x200020), 0x1badb002);
    CHECK_EQ(guest32(0x200000 + 480), 0); /* bss */
    CHECK_EQ(state.rip, 0x200123);
    CHECK_EQ(state.gpr[RAX], 0x2badb002);
    CHECK_EQ(state.cr0, CR0_PE | CR0_ET);
    CHECK_EQ(state.segment[CS].limit, 0xffffffff);
    CHECK(state.segment[CS].attributes & SEG_DB);
    CHECK(!(state.rflags & EFLAGS_IF));
}

static void test_information(void)
{
    uint8_t k[64] = {0};
    put_header(k, 0x10003, (uint32_t[]){0x200000, 0x200000, 0, 0, 0x200020});
    const struct boot_module modules[] = {{{(const uint8_t *)"one", 3}, "first"}, {{(const uint8_t *)"", 0}, ""}};
    CHECK_EQ(boot(k, sizeof k, modules, 2), 0);
    uint64_t info = state.gpr[RBX];
    CHECK_EQ(guest32(info), 0x24d);
    CHECK_EQ(guest32(info + 4), 640);
    CHECK_EQ(guest32(info + 8), (LOW_TOP - 0x100000) / 1024);
    CHECK(guest_text_is(guest32(info + 16), "the command line"));
    CHECK_EQ(guest32(info + 20), 2);
    uint32_t list = guest32(info + 24);
    CHECK_EQ(guest32(list), 0x201000); /* the first page after the kernel */
    CHECK_EQ(guest32(list + 4), 0x201003);
    CHECK(guest_text_is(guest32(list), "one"));
    CHECK(guest_text_is(guest32(list + 8), "first"));
    CHECK_EQ(guest32(list + 16 + 4), guest32(list + 16));
    CHECK_EQ(guest32(info + 44), 2 * 24);
    uint32_t ranges = guest32(info + 48);
    CHECK_EQ(guest32(ranges), 20);
    CHECK_EQ(guest32(ranges + 24 + 4), 0x100000);
    CHECK_EQ(guest32(ranges + 24 + 20), 1);
    CHECK(guest_text_is(guest32(info + 64), "imgvm"));
}

struct elf32 {
    Elf32_Ehdr head;
    Elf32_Phdr segment;
    uint8_t code[64];
};

/* Linked at C0100000h, loaded at 1 MiB: the entry point is translated. */
static void test_elf(void)
{
    struct elf32 k = {
        .head = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS32, ELFDATA2LSB, 1}, .e_type = ET_EXEC, .e_machine = EM_386,
                 .e_entry = 0xc0100030, .e_phoff = sizeof(Elf32_Ehdr), .e_phentsize = sizeof(Elf32_Phdr), .e_phnum = 1},
        .segment = {.p_type = PT_LOAD, .p_offset = offsetof(struct elf32, code), .p_vaddr = 0xc0100000, .p_paddr = 0x100000,
                    .p_filesz = 64, .p_memsz = 0x2000},
    };
    put_header(k.code, 3, NULL);
    CHECK_EQ(boot(&k, sizeof k, NULL, 0), 0);
    CHECK_EQ(state.rip, 0x100030);
    CHECK_EQ(guest32(0x100000), 0x1badb002);
    for (size_t size = 0; size < sizeof k; size++)
        CHECK_EQ(boot(&k, size, NULL, 0), -ENOEXEC);
    k.segment.p_paddr = 0xa0000;
    CHECK_EQ(boot(&k, sizeof k, NULL, 0), -ENOMEM);
    CHECK(strstr(err.message, "0xa0000"));
    k.head.e_ident[EI_CLASS] = ELFCLASS64;
    CHECK_EQ(boot(&k, sizeof k, NULL, 0), -ENOEXEC);
}

static void test_bad_headers(void)
{
    uint8_t k[256] = {0}, *late = calloc(1, 10000);
    CHECK_EQ(boot(k, sizeof k, NULL, 0), -ENOEXEC);
    CHECK(strstr(err.message, "no Multiboot header"));
    put_header(k, 0x10003, (uint32_t[]){0x200000, 0x200000, 0, 0, 0x200020});
    k[8] ^= 1; /* the checksum is wrong */
    CHECK_EQ(boot(k, sizeof k, NULL, 0), -ENOEXEC);
    put_header(k, 0x10013, (uint32_t[]){0x200000, 0x200000, 0, 0, 0x200020});
    CHECK_EQ(boot(k, sizeof k, NULL, 0), -ENOTSUP);
    put_header(k, 0x10003, (uint32_t[]){0x1000, 0x200000, 0, 0, 0x200020});
    CHECK_EQ(boot(k, sizeof k, NULL, 0), -ENOEXEC);
    put_header(k, 0x10003, (uint32_t[]){0x200000, 0x200000, 0x200101, 0, 0x200020});
    CHECK_EQ(boot(k, sizeof k, NULL, 0), -ENOEXEC); /* one byte more than the file has */
    put_header(k, 0x10003, (uint32_t[]){0x200000, 0x200000, 0x1ff000, 0, 0x200020});
    CHECK_EQ(boot(k, sizeof k, NULL, 0), -ENOEXEC);
    put_header(k, 0x10003, (uint32_t[]){0x200000, 0x200000, 0, 0xffffffff, 0x200020});
    CHECK_EQ(boot(k, sizeof k, NULL, 0), -ENOMEM);
    put_header(k, 0x10003, (uint32_t[]){0x200000, 0x200000, 0, 0, 0x200020});
    CHECK_EQ(boot(k, 20, NULL, 0), -ENOEXEC); /* ends inside the header */
    put_header(late + 8192, 0x10003, (uint32_t[]){0x202000, 0x200000, 0, 0, 0x200020});
    CHECK_EQ(boot(late, 10000, NULL, 0), -ENOEXEC);
    put_header(late + 8180, 3, NULL);
    CHECK_EQ(boot(late, 10000, NULL, 0), -ENOEXEC); /* neither ELF nor addresses */
    CHECK(strstr(err.message, "ELF"));
    free(late);
}

static void test_modules_that_do_not_fit(void)
{
    uint8_t k[64] = {0};
    put_header(k, 0x10003, (uint32_t[]){0x200000, 0x200000, 0, 0, 0x200020});
    uint8_t *big = calloc(1, LOW_TOP);
    const struct boot_module module = {{big, LOW_TOP}, ""};
    CHECK_EQ(boot(k, sizeof k, &module, 1), -ENOMEM);
    CHECK(strstr(err.message, "module"));
    free(big);
}

int main(void)
{
    setup();
    test_addresses();
    test_information();
    test_elf();
    test_bad_headers();
    test_modules_that_do_not_fit();
    guest_mem_destroy(&mem);
    return check_report();
}
