/* SPDX-License-Identifier: MIT */
/* needs: machine/boot.c machine/boot_linux.c machine/elf.c arch/state.c mem/guest_mem.c base/error.c */
/* Linux's boot protocol: what is placed where, and what is no kernel. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "check.h"
#include "machine/boot.h"

#include <elf.h>

#define LOW_TOP UINT64_C(0x4000000)

static struct guest_mem mem;
static struct memory_map map;
static struct x86_state state;
static imgvm_error err;

static void setup(void)
{
    CHECK_EQ(guest_mem_init(&mem, &err), 0);
    CHECK_EQ(guest_mem_add(&mem, 0, 0xa0000, false, &err), 0);
    CHECK_EQ(guest_mem_add(&mem, 0x100000, LOW_TOP - 0x100000, false, &err), 0);
    map = (struct memory_map){.range = {{0, 0xa0000, MEMORY_USABLE}, {0xe0000, 0x20000, MEMORY_RESERVED},
                                        {0x100000, LOW_TOP - 0x100000, MEMORY_USABLE}},
                              .count = 3, .low_top = LOW_TOP, .rsdp = 0xe0000};
}

static uint32_t guest32(uint64_t gpa)
{
    uint32_t value = 0;
    CHECK(guest_mem_read(&mem, gpa, &value, 4));
    return value;
}

/* A vmlinux of one segment: 64 bytes at 16 MiB, with 4 KiB more of zeros. */
struct vmlinux {
    Elf64_Ehdr head;
    Elf64_Phdr segment;
    uint8_t code[64];
};

static struct vmlinux vmlinux(void)
{
    struct vmlinux k = {
        .head = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, 1}, .e_type = ET_EXEC, .e_machine = EM_X86_64,
                 .e_entry = 0x1000010, .e_phoff = sizeof(Elf64_Ehdr), .e_phentsize = sizeof(Elf64_Phdr), .e_phnum = 1},
        .segment = {.p_type = PT_LOAD, .p_offset = offsetof(struct vmlinux, code), .p_vaddr = 0xffffffff81000000,
                    .p_paddr = 0x1000000, .p_filesz = 64, .p_memsz = 0x1040},
    };
    memset(k.code, 0xcc, sizeof k.code);
    return k;
}

static int boot(const void *kernel, size_t size, const void *initrd, size_t initrd_size, const char *cmdline)
{
    return boot_linux(&mem, &map, (struct boot_blob){kernel, size}, (struct boot_blob){initrd, initrd_size}, cmdline,
                      &state, &err);
}

static void test_vmlinux(void)
{
    struct vmlinux k = vmlinux();
    uint8_t dirty = 0xff;
    guest_mem_write(&mem, 0x1000800, &dirty, 1);
    CHECK_EQ(boot(&k, sizeof k, "initrd data", 11, "console=ttyS0"), 0);
    CHECK_EQ(guest32(0x1000000), 0xcccccccc);
    CHECK_EQ(guest32(0x1000800), 0); /* what the file does not fill is zero */
    CHECK_EQ(state.rip, 0x1000010);
    CHECK_EQ(state.cr0 & (CR0_PE | CR0_PG), CR0_PE | CR0_PG);
    CHECK_EQ(state.efer, EFER_LME | EFER_LMA);
    CHECK(state.segment[CS].attributes & SEG_L);
    CHECK_EQ(state.segment[CS].selector, 0x10);
    CHECK_EQ(state.segment[DS].selector, 0x18);

    uint64_t zero_page = state.gpr[RSI];
    CHECK_EQ(guest32(zero_page + 0x202), 0x53726448); /* HdrS */
    char cmdline[16];
    CHECK(guest_mem_read(&mem, guest32(zero_page + 0x228), cmdline, 14));
    CHECK(!strcmp(cmdline, "console=ttyS0"));
    uint32_t initrd = guest32(zero_page + 0x218);
    CHECK_EQ(guest32(zero_page + 0x21c), 11);
    CHECK_EQ(initrd % 4096, 0);
    CHECK(initrd + 11 <= LOW_TOP && initrd > LOW_TOP - 8192);
    CHECK_EQ(guest32(initrd), 0x74696e69);
    CHECK_EQ(guest32(zero_page + 0x70), 0xe0000);
    CHECK_EQ(guest32(zero_page + 0x1e8) & 0xff, 3);
    CHECK_EQ(guest32(zero_page + 0x2d0 + 2 * 20), 0x100000);
    CHECK_EQ(guest32(zero_page + 0x2d0 + 20 + 16), MEMORY_RESERVED);
}

/* The page tables map the first 4 GiB one to one. */
static void test_page_tables(void)
{
    static const uint64_t addresses[] = {0, 0x1000000, 0xbfffffff, 0xfee00000};
    for (unsigned i = 0; i < ARRAY_LEN(addresses); i++) {
        uint64_t a = addresses[i], entry;
        CHECK(guest_mem_read(&mem, state.cr3 + (a >> 39) * 8, &entry, 8));
        CHECK(guest_mem_read(&mem, (entry & ~UINT64_C(0xfff)) + ((a >> 30) & 511) * 8, &entry, 8));
        CHECK(guest_mem_read(&mem, (entry & ~UINT64_C(0xfff)) + ((a >> 21) & 511) * 8, &entry, 8));
        CHECK_EQ(entry & ~UINT64_C(0x1fffff), a & ~UINT64_C(0x1fffff));
        CHECK_EQ(entry & (PTE_P | PTE_W | PTE_PS), PTE_P | PTE_W | PTE_PS);
    }
}

static uint8_t *bzimage(size_t *size)
{
    *size = 0x3000;
    uint8_t *k = calloc(1, *size);
    k[0x1f1] = 3; /* setup sectors */
    store_le16(k + 0x1fe, 0xaa55);
    k[0x200] = 0xeb;
    k[0x201] = 0x66;
    memcpy(k + 0x202, "HdrS", 4);
    store_le16(k + 0x206, 0x020f);
    k[0x211] = 1;
    store_le32(k + 0x22c, 0x7fffffff);
    store_le32(k + 0x230, 0x200000);
    k[0x234] = 1;
    store_le16(k + 0x236, 1);
    store_le32(k + 0x238, 2047);
    store_le64(k + 0x258, 0x1000000);
    store_le32(k + 0x260, 0x100000);
    k[4 * 512] = 0x42; /* first byte of the protected-mode part */
    return k;
}

static void test_bzimage(void)
{
    size_t size;
    uint8_t *k = bzimage(&size);
    CHECK_EQ(boot(k, size, NULL, 0, "quiet"), 0);
    CHECK_EQ(guest32(0x1000000) & 0xff, 0x42);
    CHECK_EQ(state.rip, 0x1000200);
    CHECK_EQ(guest32(state.gpr[RSI] + 0x214), 0x1000000);
    CHECK_EQ(guest32(state.gpr[RSI] + 0x218), 0);
    store_le64(k + 0x258, 0x40000000); /* beyond memory, but it can be moved */
    CHECK_EQ(boot(k, size, NULL, 0, ""), 0);
    CHECK_EQ(state.rip, 0x200200);
    k[0x234] = 0;
    CHECK_EQ(boot(k, size, NULL, 0, ""), -ENOMEM);
    CHECK(strstr(err.hint, "more memory"));
    free(k);
}

static void test_bad_bzimage(void)
{
    size_t size;
    uint8_t *k = bzimage(&size);
    k[0x236] = 0;
    CHECK_EQ(boot(k, size, NULL, 0, ""), -ENOEXEC);
    CHECK(strstr(err.message, "64-bit entry"));
    k[0x236] = 1;
    store_le16(k + 0x206, 0x0204);
    CHECK_EQ(boot(k, size, NULL, 0, ""), -ENOEXEC);
    store_le16(k + 0x206, 0x020f);
    k[0x1f1] = 200;
    CHECK_EQ(boot(k, size, NULL, 0, ""), -ENOEXEC);
    CHECK(strstr(err.message, "cut off"));
    free(k);
}

static void test_bad_kernels(void)
{
    struct vmlinux k = vmlinux();
    CHECK_EQ(boot("not a kernel", 12, NULL, 0, ""), -ENOEXEC);
    CHECK(strstr(err.message, "neither"));
    CHECK(err.hint[0]);
    CHECK_EQ(boot("", 0, NULL, 0, ""), -ENOEXEC);
    for (size_t size = 0; size < sizeof k; size++) /* cut off anywhere */
        CHECK_EQ(boot(&k, size, NULL, 0, ""), -ENOEXEC);
    k.head.e_ident[EI_CLASS] = ELFCLASS32;
    CHECK(boot(&k, sizeof k, NULL, 0, "") < 0);
    k = vmlinux();
    k.head.e_machine = EM_AARCH64;
    CHECK_EQ(boot(&k, sizeof k, NULL, 0, ""), -ENOEXEC);
    CHECK(strstr(err.message, "another processor"));
    k = vmlinux();
    k.head.e_entry = 0x5000000;
    CHECK_EQ(boot(&k, sizeof k, NULL, 0, ""), -ENOEXEC);
    k = vmlinux();
    k.segment.p_memsz = UINT64_MAX - 16;
    CHECK_EQ(boot(&k, sizeof k, NULL, 0, ""), -ENOEXEC);
    k = vmlinux();
    k.segment.p_filesz = UINT64_MAX;
    CHECK_EQ(boot(&k, sizeof k, NULL, 0, ""), -ENOEXEC);
    k = vmlinux();
    k.head.e_phoff = UINT64_MAX - 8;
    CHECK_EQ(boot(&k, sizeof k, NULL, 0, ""), -ENOEXEC);
    k = vmlinux();
    k.segment.p_memsz = LOW_TOP;
    CHECK_EQ(boot(&k, sizeof k, NULL, 0, ""), -ENOMEM);
    k = vmlinux();
    k.head.e_entry = 0x8000;
    k.segment.p_paddr = 0x8000;
    CHECK_EQ(boot(&k, sizeof k, NULL, 0, ""), -ENOEXEC); /* it would overwrite the page tables */
}

static void test_what_does_not_fit(void)
{
    struct vmlinux k = vmlinux();
    char *big = calloc(1, LOW_TOP);
    CHECK_EQ(boot(&k, sizeof k, big, LOW_TOP, ""), -ENOMEM);
    CHECK(strstr(err.message, "initrd"));
    CHECK_EQ(boot(&k, sizeof k, big, LOW_TOP - 0x1000000, ""), -ENOMEM); /* it would lie on the kernel */
    memset(big, 'x', 2048);
    CHECK_EQ(boot(&k, sizeof k, NULL, 0, big), -E2BIG);
    big[2047] = 0;
    CHECK_EQ(boot(&k, sizeof k, NULL, 0, big), 0);
    free(big);
}

int main(void)
{
    setup();
    test_vmlinux();
    test_page_tables();
    test_bzimage();
    test_bad_bzimage();
    test_bad_kernels();
    test_what_does_not_fit();
    guest_mem_destroy(&mem);
    return check_report();
}
