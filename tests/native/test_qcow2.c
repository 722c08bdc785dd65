/* SPDX-License-Identifier: MIT */
/* needs: block/[a-z]*.c base/error.c base/sha256*.c */
/* libs: z zstd */
#include "base/bits.h"
#include "base/sha256.h"
#include "check.h"
#include "include/imgvm_api.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)

static char folder[] = "/tmp/imgvm-qcow2-XXXXXX";
static char path_room[4][64];

static const char *path_of(unsigned slot, const char *name)
{
    snprintf(path_room[slot], sizeof path_room[slot], "%s/%s", folder, name);
    return path_room[slot];
}

static imgvm_image *open_image(const char *path, int mode)
{
    imgvm_error err = {0};
    imgvm_image *image = NULL;
    int result = imgvm_image_open(path, mode, &image, &err);
    if (result)
        printf("%s (%s)\n", err.message, err.hint);
    CHECK_EQ(result, 0);
    return image;
}

static void check_clean(imgvm_image *image)
{
    uint64_t leaks = 9, corruptions = 9;
    CHECK_EQ(imgvm_image_check(image, &leaks, &corruptions, NULL), 0);
    CHECK_EQ(leaks, 0);
    CHECK_EQ(corruptions, 0);
}

static void test_sha256(void)
{
    /* FIPS 180-2, appendix B */
    static const uint8_t abc[4] = {0xba, 0x78, 0x16, 0xbf}, two[4] = {0x24, 0x8d, 0x6a, 0x61};
    static const uint8_t million[4] = {0xcd, 0xc7, 0x6e, 0x5c}, empty[4] = {0xe3, 0xb0, 0xc4, 0x42};
    uint8_t digest[32];
    sha256("", 0, digest);
    CHECK(!memcmp(digest, empty, 4));
    sha256("abc", 3, digest);
    CHECK(!memcmp(digest, abc, 4));
    sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, digest);
    CHECK(!memcmp(digest, two, 4));
    struct sha256 sha;
    sha256_init(&sha);
    for (unsigned i = 0; i < 1000000 / 125; i++) {
        char part[125];
        memset(part, 'a', sizeof part);
        sha256_update(&sha, part, 60);
        sha256_update(&sha, part, 65);
    }
    sha256_final(&sha, digest);
    CHECK(!memcmp(digest, million, 4));
}

/* Random writes and reads against a plain array, over reopening. */
static void test_model(uint32_t cluster_bytes)
{
    const uint64_t bytes = 4 * MIB + 512;
    uint8_t *model = calloc(1, bytes), *data = malloc(bytes);
    const char *path = path_of(0, "model.img");
    imgvm_error err = {0};
    CHECK_EQ(imgvm_image_create(path, bytes, cluster_bytes, &err), 0);
    CHECK_EQ(imgvm_image_create(path, bytes, cluster_bytes, &err), (uint64_t)-EEXIST);
    imgvm_image *image = open_image(path, IMGVM_IMAGE_READ_WRITE);
    unsigned seed = cluster_bytes;
    for (unsigned step = 0; step < 300 && image; step++) {
        uint64_t offset = ((uint64_t)rand_r(&seed) << 8 ^ (uint64_t)rand_r(&seed)) % bytes;
        uint64_t part = (uint64_t)rand_r(&seed) % (step % 16 ? 3 * (uint64_t)cluster_bytes : MIB);
        part = MIN(part, bytes - offset);
        switch (rand_r(&seed) % 8) {
        case 0:
            CHECK_EQ(imgvm_image_flush(image, NULL), 0);
            break;
        case 1:
            CHECK_EQ(imgvm_image_close(image, NULL), 0);
            image = open_image(path, IMGVM_IMAGE_READ_WRITE);
            break;
        case 2:
        case 3:
            CHECK_EQ(imgvm_image_read(image, offset, data, part, &err), 0);
            CHECK(!memcmp(data, model + offset, part));
            break;
        default:
            for (uint64_t i = 0; i < part; i++)
                model[offset + i] = (uint8_t)rand_r(&seed);
            CHECK_EQ(imgvm_image_write(image, offset, model + offset, part, &err), 0);
        }
    }
    CHECK_EQ(imgvm_image_read(image, 0, data, bytes, &err), 0);
    CHECK(!memcmp(data, model, bytes));
    check_clean(image);
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    image = open_image(path, IMGVM_IMAGE_READ_ONLY);
    CHECK_EQ(imgvm_image_read(image, 0, data, bytes, &err), 0);
    CHECK(!memcmp(data, model, bytes));
    check_clean(image);
    CHECK_EQ(imgvm_image_write(image, 0, data, 1, &err), (uint64_t)-EROFS);
    CHECK_EQ(imgvm_image_read(image, bytes, data, 1, &err), (uint64_t)-EINVAL);
    CHECK_EQ(imgvm_image_read(image, UINT64_MAX, data, 2, &err), (uint64_t)-EINVAL);
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    unlink(path);
    free(model);
    free(data);
}

static void set_config(imgvm_image *image, const char *text, uint64_t kernel_bytes)
{
    imgvm_payload *payload = NULL;
    imgvm_error err = {0};
    uint8_t *kernel = malloc(kernel_bytes + 1);
    for (uint64_t i = 0; i < kernel_bytes; i++)
        kernel[i] = (uint8_t)(i * 7 + i / 256);
    CHECK_EQ(imgvm_payload_new(&payload, &err), 0);
    CHECK_EQ(imgvm_payload_add(payload, "config", text, strlen(text), &err), 0);
    CHECK_EQ(imgvm_payload_add(payload, "config", text, strlen(text), &err), (uint64_t)-EEXIST);
    CHECK_EQ(imgvm_payload_add(payload, "", text, 0, &err), (uint64_t)-EINVAL);
    CHECK_EQ(imgvm_payload_add(payload, "kernel", kernel, kernel_bytes, &err), 0);
    CHECK_EQ(imgvm_payload_add(payload, "nothing", NULL, 0, &err), 0);
    CHECK_EQ(imgvm_image_set_config(image, payload, 1234, &err), 0);
    imgvm_payload_free(payload);
    free(kernel);
}

static void check_config(imgvm_image *image, const char *text, uint64_t kernel_bytes)
{
    uint32_t count = 0;
    imgvm_blob_info info;
    imgvm_error err = {0};
    char read[64] = {0};
    CHECK_EQ(imgvm_image_config_count(image, &count, &err), 0);
    CHECK_EQ(count, 3);
    CHECK_EQ(imgvm_image_config_info(image, 0, &info, &err), 0);
    CHECK(!strcmp(info.name, "config"));
    CHECK_EQ(info.bytes, strlen(text));
    CHECK_EQ(imgvm_image_config_read(image, 0, read, info.bytes, &err), 0);
    CHECK(!strcmp(read, text));
    CHECK_EQ(imgvm_image_config_info(image, 1, &info, &err), 0);
    CHECK_EQ(info.bytes, kernel_bytes);
    uint8_t *kernel = malloc(kernel_bytes + 1);
    CHECK_EQ(imgvm_image_config_read(image, 1, kernel, kernel_bytes, &err), 0);
    for (uint64_t i = kernel_bytes > 5000 ? kernel_bytes - 5000 : 0; i < kernel_bytes; i += 7)
        CHECK_EQ(kernel[i], (uint8_t)(i * 7 + i / 256));
    CHECK_EQ(imgvm_image_config_read(image, 1, kernel, kernel_bytes + 1, &err), (uint64_t)-EINVAL);
    CHECK_EQ(imgvm_image_config_info(image, 3, &info, &err), (uint64_t)-EINVAL);
    free(kernel);
}

static void test_config(uint32_t cluster_bytes)
{
    const char *path = path_of(0, "config.img");
    imgvm_error err = {0};
    uint32_t count;
    uint8_t sector[512], other[512];
    memset(sector, 0x5a, sizeof sector);
    CHECK_EQ(imgvm_image_create(path, 64 * MIB, cluster_bytes, &err), 0);
    imgvm_image *image = open_image(path, IMGVM_IMAGE_READ_WRITE);
    CHECK_EQ(imgvm_image_config_count(image, &count, &err), (uint64_t)-ENOENT);
    CHECK_EQ(imgvm_image_write(image, 5 * MIB, sector, sizeof sector, &err), 0);
    set_config(image, "first", 3 * MIB + 17);
    check_config(image, "first", 3 * MIB + 17);
    CHECK_EQ(imgvm_image_close(image, NULL), 0);

    image = open_image(path, IMGVM_IMAGE_READ_WRITE);
    check_config(image, "first", 3 * MIB + 17);
    set_config(image, "second", 0);
    check_config(image, "second", 0);
    CHECK_EQ(imgvm_image_write(image, 0, sector, sizeof sector, &err), 0);
    CHECK_EQ(imgvm_image_close(image, NULL), 0);

    image = open_image(path, IMGVM_IMAGE_READ_ONLY);
    imgvm_snapshot_info snapshot;
    check_config(image, "second", 0);
    check_clean(image);
    CHECK_EQ(imgvm_image_snapshot(image, 0, &snapshot, &err), 0);
    CHECK(!strcmp(snapshot.name, "imgvm.config") && !strcmp(snapshot.id, "1"));
    CHECK_EQ(snapshot.vm_state_bytes, 0);
    CHECK_EQ(snapshot.date_sec, 1234);
    CHECK_EQ(imgvm_image_snapshot(image, 1, &snapshot, &err), (uint64_t)-ENOENT);
    CHECK_EQ(imgvm_image_read(image, 5 * MIB, other, sizeof other, &err), 0);
    CHECK(!memcmp(sector, other, sizeof other));
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    unlink(path);
}

static void test_locks(void)
{
    const char *path = path_of(0, "locked.img");
    imgvm_error err = {0};
    imgvm_image *second = NULL;
    CHECK_EQ(imgvm_image_create(path, MIB, 0, &err), 0);
    imgvm_image *image = open_image(path, IMGVM_IMAGE_READ_WRITE);
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &second, &err), (uint64_t)-EBUSY);
    CHECK(strstr(err.message, "in use") != NULL);
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_ONLY, &second, &err), (uint64_t)-EBUSY);
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    image = open_image(path, IMGVM_IMAGE_READ_ONLY);
    second = open_image(path, IMGVM_IMAGE_READ_ONLY);
    CHECK_EQ(imgvm_image_close(second, NULL), 0);
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &second, &err), (uint64_t)-EBUSY);
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    unlink(path);
}

/* A host without room: one error, and an image that is whole. */
static void test_full_disk(void)
{
    const char *path = path_of(0, "full.img");
    struct rlimit old, small;
    imgvm_error err = {0};
    uint8_t *data = malloc(MIB);
    memset(data, 0x77, MIB);
    CHECK_EQ(imgvm_image_create(path, 64 * MIB, 0, &err), 0);
    imgvm_image *image = open_image(path, IMGVM_IMAGE_READ_WRITE);
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 3 * MIB + 4096;
    setrlimit(RLIMIT_FSIZE, &small);
    unsigned written = 0;
    while (written < 60 && !imgvm_image_write(image, written * MIB, data, MIB, &err))
        written++;
    CHECK(written >= 1 && written < 4);
    CHECK_EQ(err.code, (uint64_t)-EFBIG);
    CHECK(strstr(err.hint, "consistent") != NULL);
    CHECK_EQ(imgvm_image_flush(image, &err), 0);
    imgvm_payload *payload;
    CHECK_EQ(imgvm_payload_new(&payload, &err), 0);
    CHECK_EQ(imgvm_payload_add(payload, "big", data, MIB, &err), 0);
    CHECK_EQ(imgvm_image_set_config(image, payload, 0, &err), (uint64_t)-EFBIG);
    check_clean(image);
    setrlimit(RLIMIT_FSIZE, &old);
    CHECK_EQ(imgvm_image_set_config(image, payload, 0, &err), 0);
    imgvm_payload_free(payload);
    CHECK_EQ(imgvm_image_write(image, 40 * MIB, data, MIB, &err), 0);
    CHECK_EQ(imgvm_image_close(image, &err), 0);
    image = open_image(path, IMGVM_IMAGE_READ_ONLY);
    check_clean(image);
    memset(data, 0, MIB);
    CHECK_EQ(imgvm_image_read(image, (written - 1) * MIB, data, MIB, &err), 0);
    CHECK(data[0] == 0x77 && data[MIB - 1] == 0x77);
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    unlink(path);
    free(data);
}

static void test_raw_and_refusals(void)
{
    const char *path = path_of(0, "raw.img"), *missing = path_of(1, "missing.img");
    imgvm_error err = {0};
    imgvm_image *image = NULL;
    imgvm_image_info info;
    uint8_t byte = 0;
    CHECK_EQ(imgvm_image_open(missing, IMGVM_IMAGE_READ_ONLY, &image, &err), (uint64_t)-ENOENT);
    CHECK(err.hint[0] != 0);
    CHECK_EQ(imgvm_image_open(folder, IMGVM_IMAGE_READ_WRITE, &image, &err), (uint64_t)-EINVAL);
    CHECK_EQ(imgvm_image_open(folder, IMGVM_IMAGE_READ_ONLY, &image, &err), (uint64_t)-EINVAL);
    mkfifo(missing, 0600);
    CHECK_EQ(imgvm_image_open(missing, IMGVM_IMAGE_READ_ONLY, &image, &err), (uint64_t)-EINVAL);
    unlink(missing);

    int fd = open(path, O_CREAT | O_RDWR, 0600);
    CHECK_EQ(ftruncate(fd, MIB), 0);
    close(fd);
    image = open_image(path, IMGVM_IMAGE_READ_WRITE);
    imgvm_image_get_info(image, &info);
    CHECK_EQ(info.version, 0);
    CHECK_EQ(info.disk_bytes, MIB);
    CHECK_EQ(imgvm_image_write(image, MIB - 1, "x", 1, &err), 0);
    CHECK_EQ(imgvm_image_write(image, MIB, "x", 1, &err), (uint64_t)-EINVAL);
    CHECK_EQ(imgvm_image_flush(image, &err), 0);
    CHECK_EQ(imgvm_image_read(image, MIB - 1, &byte, 1, &err), 0);
    CHECK_EQ(byte, 'x');
    imgvm_payload *payload;
    CHECK_EQ(imgvm_payload_new(&payload, &err), 0);
    CHECK_EQ(imgvm_image_set_config(image, payload, 0, &err), (uint64_t)-ENOTSUP);
    imgvm_payload_free(payload);
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    unlink(path);

    CHECK_EQ(imgvm_image_create(path, 513, 0, &err), (uint64_t)-EINVAL);
    CHECK_EQ(imgvm_image_create(path, MIB, 1000, &err), (uint64_t)-EINVAL);
    CHECK_EQ(imgvm_image_create(path, UINT64_C(1) << 40, 512, &err), (uint64_t)-EFBIG);
    CHECK(access(path, F_OK) != 0);
}

int main(void)
{
    static const uint32_t cluster_sizes[] = {512, 4096, 65536, 2097152};
    if (!mkdtemp(folder))
        return 2;
    signal(SIGXFSZ, SIG_IGN);
    test_sha256();
    for (unsigned i = 0; i < ARRAY_LEN(cluster_sizes); i++) {
        test_model(cluster_sizes[i]);
        test_config(cluster_sizes[i]);
    }
    test_locks();
    test_full_disk();
    test_raw_and_refusals();
    rmdir(folder);
    return check_report();
}
