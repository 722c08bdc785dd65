/* SPDX-License-Identifier: MIT */
/* What of the host's CPUID a guest under KVM gets to see. */
/* needs: backend/kvm_cpuid.c arch/*.c base/error.c cpu/exec/cpuid.c cpu/exec/fpu.c cpu/decode/isa.c */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "backend/kvm.h"
#include "base/bits.h"
#include "check.h"
#include "cpu/exec/cpuid.h"

#define ENTRIES 256

struct table {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[ENTRIES];
};

static struct kvm_cpuid_entry2 *put(struct table *t, uint32_t leaf, uint32_t subleaf, uint32_t value)
{
    struct kvm_cpuid_entry2 *entry = &t->entries[t->head.nent++];
    *entry = (struct kvm_cpuid_entry2){.function = leaf, .index = subleaf, .eax = value, .ebx = value, .ecx = value, .edx = value};
    return entry;
}

static struct kvm_cpuid_entry2 *get(struct table *t, uint32_t leaf, uint32_t subleaf)
{
    for (unsigned i = 0; i < t->head.nent; i++)
        if (t->entries[i].function == leaf && t->entries[i].index == subleaf)
            return &t->entries[i];
    CHECK(!"there is no such leaf");
    exit(1);
}

/* A host that has everything, AVX-512 and what is not invented yet included. */
static void everything(struct table *t)
{
    static const uint32_t all[][2] = {{1, 0}, {6, 0}, {7, 0}, {7, 1}, {0xd, 1}, {0x14, 0}, {0x1d, 0},
                                      {0x80000001, 0}, {0x80000007, 0}};
    memset(t, 0, sizeof *t);
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        put(t, all[i][0], all[i][1], ~0u);
    struct kvm_cpuid_entry2 *entry = put(t, 0xd, 0, 0);
    entry->eax = 0x2e7;
    entry->ebx = 576;
    entry->ecx = 2696;
    static const uint32_t components[][3] = {{2, 256, 576}, {5, 64, 1088}, {6, 512, 1152}, {7, 1024, 1664}, {9, 8, 2688}};
    for (size_t i = 0; i < ARRAY_LEN(components); i++) {
        entry = put(t, 0xd, components[i][0], 0);
        entry->eax = components[i][1];
        entry->ebx = components[i][2];
    }
}

static int limit(struct table *t, const char *model, const char *features)
{
    struct cpu_wish wish;
    struct feature_set set;
    imgvm_error err;
    CHECK_EQ(cpu_wish_parse(&wish, model, features, NULL, &err), 0);
    kvm_cpuid_features(&t->head, &set);
    int result = cpu_wish_grant(&wish, &set, &set, &err);
    if (result == 0)
        kvm_cpuid_limit(&t->head, &set, wish.model != CPU_MODEL_HOST);
    return result;
}

static void test_vendor(void)
{
    static struct table t;
    everything(&t);
    memcpy(&put(&t, 0, 0, 0)->ebx, "Genu", 4);
    CHECK_EQ(kvm_cpuid_vendor(&t.head), CPU_VENDOR_INTEL);
    kvm_cpuid_set_vendor(&t.head, CPU_VENDOR_AUTO);
    kvm_cpuid_set_vendor(&t.head, CPU_VENDOR_INTEL); /* which it is */
    CHECK_EQ(get(&t, 1, 0)->eax, ~0u);
    kvm_cpuid_set_vendor(&t.head, CPU_VENDOR_AMD);
    CHECK_EQ(kvm_cpuid_vendor(&t.head), CPU_VENDOR_AMD);
    CHECK_EQ(get(&t, 1, 0)->eax, 0x00b00f21);
}

static void test_portable(void)
{
    static struct table t;
    everything(&t);
    CHECK_EQ(limit(&t, "portable", NULL), 0);
    struct kvm_cpuid_entry2 *leaf1 = get(&t, 1, 0), *leaf7 = get(&t, 7, 0);
    CHECK_EQ(leaf1->ecx >> 26 & 7, 0); /* XSAVE, OSXSAVE, AVX */
    CHECK(leaf1->ecx >> 20 & 1 && leaf1->ecx >> 23 & 1);
    CHECK(leaf1->edx & 1 << 26 && !(leaf1->edx & 1 << 10)); /* SSE2; a reserved bit */
    CHECK_EQ(leaf1->eax, ~0u);  /* not features */
    CHECK_EQ(leaf7->ebx & (1 << 3 | 1 << 5 | 1 << 16), 0); /* BMI1, AVX2, AVX512F */
    CHECK_EQ(get(&t, 7, 1)->eax, 0);
    CHECK_EQ(get(&t, 0xd, 0)->eax, 0);
    CHECK_EQ(get(&t, 0xd, 0)->ecx, 0);
    CHECK_EQ(get(&t, 0x1d, 0)->eax, 0);
    CHECK(get(&t, 0x80000001, 0)->edx & 1 << 29 && get(&t, 0x80000001, 0)->ecx & 1);
    CHECK_EQ(get(&t, 0x80000001, 0)->ecx & (1 << 5 | 1 << 16), 0); /* LZCNT, FMA4 */
}

static void test_level_3(void)
{
    static struct table t;
    everything(&t);
    CHECK_EQ(limit(&t, "x86-64-v3", "-pku"), 0);
    CHECK_EQ(get(&t, 0xd, 0)->eax, 7);
    CHECK_EQ(get(&t, 0xd, 0)->ecx, 832);
    CHECK_EQ(get(&t, 0xd, 2)->eax, 256);
    CHECK_EQ(get(&t, 0xd, 5)->eax, 0);
    CHECK_EQ(get(&t, 7, 0)->ebx & (1 << 5 | 1 << 16), 1 << 5);
    everything(&t);
    CHECK_EQ(limit(&t, "x86-64-v3", NULL), 0); /* with protection keys, whose component lies behind a gap */
    CHECK_EQ(get(&t, 0xd, 0)->eax, 0x207);
    CHECK_EQ(get(&t, 0xd, 0)->ecx, 2696);
}

static void test_host(void)
{
    static struct table t, before;
    everything(&t);
    before = t;
    CHECK_EQ(limit(&t, "host", NULL), 0);
    get(&before, 1, 0)->ecx &= ~(1u << 27); /* OSXSAVE and OSPKE are KVM's to set */
    get(&before, 7, 0)->ecx &= ~(1u << 4);
    CHECK(!memcmp(&t, &before, sizeof t));
    CHECK_EQ(limit(&t, "host", "-aes"), 0);
    CHECK_EQ(get(&before, 1, 0)->ecx & ~get(&t, 1, 0)->ecx, 1 << 25);
    CHECK_EQ(limit(&t, "host", "-avx"), 0); /* what has no row may stand on it */
    CHECK_EQ(get(&t, 7, 0)->ebx & (1 << 5 | 1 << 16 | 1u << 30), 0);
    CHECK_EQ(get(&t, 0xd, 0)->eax, 0x203);
}

static void test_what_the_host_lacks(void)
{
    static struct table t;
    everything(&t);
    get(&t, 1, 0)->ecx &= ~(1u << 23);
    CHECK_EQ(limit(&t, "portable", NULL), -95 /* ENOTSUP */);
}

/* The kernel takes what is left of its own table. */
static void test_the_kernel_takes_it(void)
{
    static const char *const models[] = {"portable", "x86-64", "x86-64-v2", "x86-64-v3", "host"};
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0) {
        printf("KVM cannot be used here\n");
        return;
    }
    for (unsigned i = 0; i < ARRAY_LEN(models); i++) {
        static struct table t;
        static struct kvm_engine engine;
        memset(&t, 0, sizeof t);
        t.head.nent = ENTRIES;
        CHECK_EQ(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &t), 0);
        engine.kvm_fd = kvm;
        engine.cpus = 2;
        kvm_cpuid_adapt(&t.head, &engine, i & 1);
        int cpu = ioctl(vm, KVM_CREATE_VCPU, i);
        CHECK(cpu >= 0);
        kvm_cpuid_add_plain(&t.head);
        int result = limit(&t, models[i], NULL);
        CHECK(result == 0 || i == 3 || !cpuid_host_has(FEATURE_SSE42)); /* hosts may be older than x86-64-v3 */
        CHECK_EQ(ioctl(cpu, KVM_SET_CPUID2, &t), 0);
        close(cpu);
    }
    close(vm);
    close(kvm);
}

int main(void)
{
    test_vendor();
    test_portable();
    test_level_3();
    test_host();
    test_what_the_host_lacks();
    test_the_kernel_takes_it();
    return check_report();
}
