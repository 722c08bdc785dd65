/* SPDX-License-Identifier: MIT */
/* needs: block/[a-z]*.c base/error.c base/sha256*.c */
/* libs: z zstd */
/* Several disks in one file, used by several threads at once, against plain memory. */
#include "check.h"
#include "include/imgvm_api.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DISKS 3
#define HALVES 2
#define DISK_BYTES (UINT64_C(2) << 20)
#define STEPS 300
#define PART_MAX 20000u

static imgvm_image *disks[DISKS];
static uint8_t model[DISKS][DISK_BYTES];
static unsigned wrong[DISKS * HALVES];

static void *work(void *opaque)
{
    unsigned me = *(unsigned *)opaque, disk = me / HALVES, seed = me + 1;
    uint64_t from = me % HALVES * (DISK_BYTES / HALVES);
    uint8_t *data = malloc(PART_MAX);
    for (unsigned i = 0; i < STEPS; i++) {
        uint64_t bytes = 1 + (uint64_t)rand_r(&seed) % PART_MAX;
        uint64_t at = from + (uint64_t)rand_r(&seed) % (DISK_BYTES / HALVES - bytes);
        int result = 0;
        switch (rand_r(&seed) % 8) {
        case 0:
            result = imgvm_image_zero(disks[disk], at, bytes, i & 1, NULL);
            memset(model[disk] + at, 0, bytes);
            break;
        case 1:
            result = imgvm_image_flush(disks[disk], NULL);
            break;
        case 2:
        case 3:
        case 4:
            for (uint64_t j = 0; j < bytes; j++)
                data[j] = (uint8_t)(rand_r(&seed) | 1);
            result = imgvm_image_write(disks[disk], at, data, bytes, NULL);
            memcpy(model[disk] + at, data, bytes);
            break;
        default:
            result = imgvm_image_read(disks[disk], at, data, bytes, NULL);
            wrong[me] += memcmp(data, model[disk] + at, bytes) != 0;
        }
        wrong[me] += result != 0;
    }
    free(data);
    return NULL;
}

static void test_at_once(const char *path, uint32_t cluster_bytes)
{
    pthread_t threads[DISKS * HALVES];
    unsigned numbers[DISKS * HALVES];
    uint64_t leaks, corruptions;
    uint8_t *data = malloc(DISK_BYTES);
    memset(model, 0, sizeof model);
    memset(wrong, 0, sizeof wrong);
    CHECK_EQ(imgvm_image_create(path, DISK_BYTES, cluster_bytes, NULL), 0);
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &disks[0], NULL), 0);
    CHECK_EQ(imgvm_image_add_disk(disks[0], "one", DISK_BYTES, 0, NULL), 0);
    CHECK_EQ(imgvm_image_add_disk(disks[0], "two", DISK_BYTES, 0, NULL), 0);
    CHECK_EQ(imgvm_image_open_disk(disks[0], "one", &disks[1], NULL), 0);
    CHECK_EQ(imgvm_image_open_disk(disks[0], "two", &disks[2], NULL), 0);
    for (unsigned i = 0; i < DISKS * HALVES; i++) {
        numbers[i] = i;
        pthread_create(&threads[i], NULL, work, &numbers[i]);
    }
    for (unsigned i = 0; i < DISKS * HALVES; i++) {
        pthread_join(threads[i], NULL);
        CHECK_EQ(wrong[i], 0);
    }
    for (unsigned i = 0; i < DISKS; i++) {
        CHECK_EQ(imgvm_image_read(disks[i], 0, data, DISK_BYTES, NULL), 0);
        CHECK(!memcmp(data, model[i], DISK_BYTES));
    }
    CHECK_EQ(imgvm_image_check(disks[0], &leaks, &corruptions, NULL), 0);
    for (unsigned i = DISKS; i--;)
        CHECK_EQ(imgvm_image_close(disks[i], NULL), 0);
    unlink(path);
    free(data);
}

int main(void)
{
    char folder[] = "/tmp/imgvm-disks-XXXXXX", path[64];
    if (!mkdtemp(folder))
        return 2;
    snprintf(path, sizeof path, "%s/a.img", folder);
    test_at_once(path, 512);
    test_at_once(path, 65536);
    rmdir(folder);
    return check_report();
}
