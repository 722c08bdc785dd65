/* SPDX-License-Identifier: MIT */
/* needs: block/[a-z]*.c base/error.c base/sha256*.c */
/* libs: z zstd */
/* Images that lie. A good image is damaged at one place at a time (each header field, each kind of table, every
 * length it may be cut to) and put through everything the API does. Any answer but a crash, a hang or an error
 * without words will do; the sanitizer build says more. */
#include "block/qcow2_format.h"
#include "check.h"
#include "include/imgvm_api.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DISK_BYTES (UINT64_C(1) << 20)
#define SECONDS_MAX 60

/* The host's disk is not what is tested, and thousands of flushes take minutes. */
int fdatasync(int fd)
{
    (void)fd;
    return 0;
}

static char path[80];
static uint8_t disk[DISK_BYTES];
static unsigned refused, survived;

static void put_file(const uint8_t *data, size_t bytes)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK_EQ(write(fd, data, bytes), bytes);
    close(fd);
}

static void check_words(int result, const imgvm_error *err)
{
    if (result >= 0)
        return;
    CHECK(err->message[0] && strlen(err->message) < sizeof err->message);
    CHECK_EQ(err->code, (uint64_t)(int64_t)result);
}

static void try_config(imgvm_image *image)
{
    imgvm_error err = {0};
    imgvm_blob_info info;
    uint32_t count = 0;
    int result = imgvm_image_config_count(image, &count, &err);
    check_words(result, &err);
    for (uint32_t i = 0; !result && i < count; i++) {
        result = imgvm_image_config_info(image, i, &info, &err);
        check_words(result, &err);
        if (result)
            break;
        CHECK(info.bytes <= DISK_BYTES); /* nobody allocates what is not there */
        if (info.bytes <= DISK_BYTES)
            check_words(imgvm_image_config_read(image, i, disk, info.bytes, &err), &err);
    }
}

static void try_everything(int mode)
{
    imgvm_image *image = NULL;
    imgvm_error err = {0};
    imgvm_image_info info;
    imgvm_snapshot_info snapshot;
    uint64_t leaks, corruptions;
    alarm(SECONDS_MAX);
    int result = imgvm_image_open(path, mode, &image, &err);
    check_words(result, &err);
    if (result) {
        refused++;
        return;
    }
    survived++;
    imgvm_image_get_info(image, &info);
    CHECK_EQ(imgvm_image_read(image, info.disk_bytes, disk, 1, &err), (uint64_t)-EINVAL);
    for (uint64_t at = 0; at < MIN(info.disk_bytes, DISK_BYTES); at += 64 << 10)
        check_words(imgvm_image_read(image, at, disk, MIN(info.disk_bytes - at, 64 << 10), &err), &err);
    for (uint32_t i = 0; i < MIN(info.snapshots, 10); i++)
        check_words(imgvm_image_snapshot(image, i, &snapshot, &err), &err);
    try_config(image);
    check_words(imgvm_image_check(image, &leaks, &corruptions, &err), &err);
    if (mode == IMGVM_IMAGE_READ_WRITE) {
        imgvm_payload *payload;
        for (uint64_t at = 0; at + 3000 < MIN(info.disk_bytes, DISK_BYTES); at += 50021)
            check_words(imgvm_image_write(image, at, disk, 3000, &err), &err);
        check_words(imgvm_image_flush(image, &err), &err);
        CHECK_EQ(imgvm_payload_new(&payload, &err), 0);
        CHECK_EQ(imgvm_payload_add(payload, "new", disk, 10000, &err), 0);
        check_words(imgvm_image_set_config(image, payload, 0, &err), &err);
        imgvm_payload_free(payload);
        try_config(image);
    }
    check_words(imgvm_image_close(image, &err), &err);
}

static void try_file(const uint8_t *data, size_t bytes)
{
    put_file(data, bytes);
    try_everything(IMGVM_IMAGE_READ_ONLY);
    try_everything(IMGVM_IMAGE_READ_WRITE);
}

static uint8_t *make_image(uint32_t cluster_bytes, size_t *bytes)
{
    imgvm_error err = {0};
    imgvm_image *image = NULL;
    imgvm_payload *payload = NULL;
    unlink(path);
    CHECK_EQ(imgvm_image_create(path, DISK_BYTES, cluster_bytes, &err), 0);
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &image, &err), 0);
    for (unsigned i = 0; i < sizeof disk; i++)
        disk[i] = (uint8_t)(i * 31 + i / 251);
    CHECK_EQ(imgvm_image_write(image, 0, disk, 60000, &err), 0);
    CHECK_EQ(imgvm_image_write(image, DISK_BYTES - 9000, disk, 9000, &err), 0);
    CHECK_EQ(imgvm_payload_new(&payload, &err), 0);
    CHECK_EQ(imgvm_payload_add(payload, "config", "text", 4, &err), 0);
    CHECK_EQ(imgvm_payload_add(payload, "kernel", disk, 20000, &err), 0);
    CHECK_EQ(imgvm_image_set_config(image, payload, 0, &err), 0);
    imgvm_payload_free(payload);
    CHECK_EQ(imgvm_image_close(image, &err), 0);
    int fd = open(path, O_RDONLY);
    *bytes = (size_t)lseek(fd, 0, SEEK_END);
    uint8_t *data = malloc(*bytes);
    CHECK_EQ(pread(fd, data, *bytes, 0), *bytes);
    close(fd);
    return data;
}

static uint64_t interesting(unsigned which, uint64_t old, uint64_t cluster_bytes, unsigned *seed)
{
    switch (which) {
    case 0: return 0;
    case 1: return 1;
    case 2: return UINT64_MAX;
    case 3: return old + 1;
    case 4: return old - 1;
    case 5: return old ^ BIT(63);
    case 6: return old ^ BIT(62);
    case 7: return cluster_bytes;
    case 8: return INT64_MAX;
    case 9: return old << 32 | old >> 32;
    case 10: return old + cluster_bytes;
    case 11: return UINT32_MAX;
    case 12: return cluster_bytes << 40;
    default: return (uint64_t)rand_r(seed) << 33 ^ (uint64_t)rand_r(seed) << 11 ^ (uint64_t)rand_r(seed);
    }
}
#define INTERESTING 16

static void test_header_fields(const uint8_t *good, size_t bytes, uint64_t cluster_bytes)
{
    static const struct { unsigned at, bytes; } fields[] = {
        {0, 4}, {HEADER_VERSION, 4}, {HEADER_BACKING_OFFSET, 8}, {HEADER_BACKING_BYTES, 4}, {HEADER_CLUSTER_BITS, 4},
        {HEADER_DISK_BYTES, 8}, {HEADER_CRYPT, 4}, {HEADER_L1_ENTRIES, 4}, {HEADER_L1_OFFSET, 8},
        {HEADER_REFCOUNT_TABLE_OFFSET, 8}, {HEADER_REFCOUNT_TABLE_CLUSTERS, 4}, {HEADER_SNAPSHOTS, 4},
        {HEADER_SNAPSHOTS_OFFSET, 8}, {HEADER_INCOMPATIBLE, 8}, {HEADER_COMPATIBLE, 8}, {HEADER_AUTOCLEAR, 8},
        {HEADER_REFCOUNT_ORDER, 4}, {HEADER_BYTES, 4}, {HEADER_COMPRESSION, 4}, {112, 4}, {116, 4}, {120, 8},
    };
    uint8_t *bad = malloc(bytes);
    unsigned seed = 5;
    for (unsigned f = 0; f < ARRAY_LEN(fields); f++)
        for (unsigned which = 0; which < INTERESTING; which++) {
            memcpy(bad, good, bytes);
            uint8_t *field = bad + fields[f].at;
            if (fields[f].bytes == 8)
                store_be64(field, interesting(which, load_be64(field), cluster_bytes, &seed));
            else
                store_be32(field, (uint32_t)interesting(which, load_be32(field), cluster_bytes, &seed));
            try_file(bad, bytes);
        }
    /* Extensions of every length, with and without a backing file's name behind them. */
    for (unsigned i = 0; i < 60; i++) {
        static const uint32_t types[] = {EXTENSION_BACKING_FORMAT, EXTENSION_FEATURE_NAMES, EXTENSION_BITMAPS, 0x1234};
        memcpy(bad, good, bytes);
        store_be32(bad + 112, types[i % 4]);
        store_be32(bad + 116, i < 30 ? i * 13 : (uint32_t)interesting(i, 24, cluster_bytes, &seed));
        store_be64(bad + HEADER_AUTOCLEAR, i & 1);
        store_be64(bad + HEADER_INCOMPATIBLE, i & 4 ? BIT(17) : 0);
        store_be64(bad + 120, interesting(i % INTERESTING, 1, cluster_bytes, &seed));
        store_be64(bad + 128, interesting(i % 7, 64, cluster_bytes, &seed));
        store_be64(bad + 136, interesting(i % 11, 5 * cluster_bytes, cluster_bytes, &seed));
        if (i & 8) {
            store_be64(bad + HEADER_BACKING_OFFSET, 200 + i);
            store_be32(bad + HEADER_BACKING_BYTES, 20);
            memset(bad + 200 + i, "/x:\n"[i / 16], 20);
        }
        try_file(bad, bytes);
    }
    free(bad);
}

/* Words of all metadata: every cluster of the file but most of the guest's data. */
static void test_tables(const uint8_t *good, size_t bytes, uint64_t cluster_bytes, unsigned rounds)
{
    uint8_t *bad = malloc(bytes);
    unsigned seed = 77;
    for (unsigned round = 0; round < rounds; round++) {
        memcpy(bad, good, bytes);
        for (unsigned n = 1 + rand_r(&seed) % 3; n--;) {
            /* A word that is not zero says something; the others are hit now and then. */
            size_t at;
            do
                at = (size_t)rand_r(&seed) % (bytes / 8) * 8;
            while (!load_be64(bad + at) && rand_r(&seed) % 64);
            if (rand_r(&seed) % 3) /* the first words of clusters are the busiest */
                at = at / cluster_bytes * cluster_bytes + 8 * ((size_t)rand_r(&seed) % 12);
            if (at + 8 <= bytes)
                store_be64(bad + at,
                           interesting(rand_r(&seed) % INTERESTING, load_be64(bad + at), cluster_bytes, &seed));
        }
        try_file(bad, bytes);
    }
    free(bad);
}

static void test_truncation(const uint8_t *good, size_t bytes)
{
    for (size_t length = 0; length < bytes; length += length < 130 ? 1 : length / 9)
        try_file(good, length);
}

/* Tables that repeat one L2 table, and refcounts that leave nothing free. */
static void test_repetition(const uint8_t *good, size_t bytes)
{
    uint8_t *bad = malloc(bytes);
    memcpy(bad, good, bytes);
    uint64_t l1 = load_be64(bad + HEADER_L1_OFFSET), entries = load_be32(bad + HEADER_L1_ENTRIES);
    for (uint64_t i = 1; i < entries; i++)
        store_be64(bad + l1 + 8 * i, load_be64(bad + l1));
    try_file(bad, bytes);

    memcpy(bad, good, bytes);
    uint64_t table = load_be64(bad + HEADER_REFCOUNT_TABLE_OFFSET), table_words =
        load_be32(bad + HEADER_REFCOUNT_TABLE_CLUSTERS) * (BIT(load_be32(bad + HEADER_CLUSTER_BITS)) / 8);
    uint64_t block = load_be64(bad + table);
    for (uint64_t i = 0; i < table_words; i++)
        store_be64(bad + table + 8 * i, block);
    memset(bad + block, 0x11, BIT(load_be32(bad + HEADER_CLUSTER_BITS)));
    try_file(bad, bytes);
    free(bad);
}

/* An image that is nothing but claims: huge and sparse. */
static void test_sparse_giant(void)
{
    uint8_t head[HEADER_V3_BYTES] = {0};
    store_be32(head, QCOW2_MAGIC);
    store_be32(head + HEADER_VERSION, 3);
    store_be32(head + HEADER_CLUSTER_BITS, 16);
    store_be64(head + HEADER_DISK_BYTES, UINT64_C(1) << 50);
    store_be32(head + HEADER_L1_ENTRIES, 1u << 21);
    store_be64(head + HEADER_L1_OFFSET, 65536);
    store_be64(head + HEADER_REFCOUNT_TABLE_OFFSET, UINT64_C(1) << 30);
    store_be32(head + HEADER_REFCOUNT_TABLE_CLUSTERS, 128);
    store_be32(head + HEADER_SNAPSHOTS, 65536);
    store_be64(head + HEADER_SNAPSHOTS_OFFSET, UINT64_C(1) << 31);
    store_be32(head + HEADER_REFCOUNT_ORDER, 4);
    store_be32(head + HEADER_BYTES, HEADER_V3_BYTES);
    put_file(head, sizeof head);
    CHECK_EQ(truncate(path, (off_t)1 << 40), 0);
    try_everything(IMGVM_IMAGE_READ_ONLY);
    try_everything(IMGVM_IMAGE_READ_WRITE);
}

int main(void)
{
    char folder[] = "/tmp/imgvm-hostile-XXXXXX";
    if (!mkdtemp(folder))
        return 2;
    snprintf(path, sizeof path, "%s/bad.img", folder);
    static const uint32_t cluster_sizes[] = {512, 4096};
    for (unsigned i = 0; i < ARRAY_LEN(cluster_sizes); i++) {
        size_t bytes;
        uint8_t *good = make_image(cluster_sizes[i], &bytes);
        test_header_fields(good, bytes, cluster_sizes[i]);
        test_tables(good, bytes, cluster_sizes[i], 800);
        test_truncation(good, bytes);
        test_repetition(good, bytes);
        free(good);
    }
    test_sparse_giant();
    printf("%u refused, %u opened\n", refused, survived);
    CHECK(refused > 500 && survived > 1000);
    unlink(path);
    rmdir(folder);
    return check_report();
}
