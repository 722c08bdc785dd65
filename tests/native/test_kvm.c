/* SPDX-License-Identifier: MIT */
/* needs: machine/*.c backend/kvm.c backend/kvm_state.c arch/state.c base/*.c mem/*.c dev/*.c dev/pci/*.c dev/virtio/*.c block/*.c */
/* libs: z zstd */
/* Small guests under KVM: the whole path from a Multiboot file to a status. Skipped where KVM cannot be used. */
#include "guest_run.h"

#include "backend/backend.h"

/* This program links no software processor. */
const struct engine_ops *engine_find(uint32_t id)
{
    return id == IMGVM_ENGINE_KVM ? &engine_kvm_ops : NULL;
}

static struct guest_run run;

static void test_hello(void)
{
    size_t size;
    void *kernel = guest_build("imgvm/vmm/guest/hello.c", &size);
    imgvm_vm_config config = guest_config(IMGVM_ENGINE_KVM);
    config.cpus = 2;
    guest_run(&config, kernel, size, "name=first status=7", NULL, &run);
    printf("%s\n%s\n", run.console, run.result.message);
    CHECK(run.ended);
    CHECK_EQ(run.result.reason, IMGVM_REASON_DEBUG_EXIT);
    CHECK_EQ(run.result.status, 7);
    CHECK(strstr(run.console, "Hello from first!\r\n"));
    CHECK(strstr(run.console, "processors  2 ("));
    CHECK(strstr(run.console, "memory      64 MiB"));
    free(kernel);
}

int main(void)
{
    imgvm_error err;
    if (imgvm_engine_probe(IMGVM_ENGINE_KVM, &err) < 0) {
        printf("skipped: test_kvm (%s)\n1 checks, 0 failed\n", err.message);
        return 0;
    }
    guest_begin();
    test_hello();
    guest_end();
    return check_report();
}
