/* SPDX-License-Identifier: MIT */
/* needs: block/[a-z]*.c base/error.c base/sha256.c */
/* libs: z zstd */
/* Power loss. This program's own pwrite and fdatasync keep a journal of what the image does to its file. Then the
 * file is rebuilt as a disk might hold it after a power loss at many points: all that was written before the last
 * fdatasync, and of what came later any sectors in any mixture. Each such file must open, be free of damage, and
 * hold every sector as it was at the last acknowledged flush, or as something written after it. */
#define _GNU_SOURCE
#include "block/qcow2.h"
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SECTOR 512
#define SECTORS 4096 /* of the guest's disk */

struct step {
    enum { STEP_WRITE, STEP_SYNC, STEP_ACK } kind;
    uint64_t offset, bytes;
    uint8_t *data;
};

static struct step *steps;
static size_t step_count, step_room;
static bool recording;

static struct step *record(int kind)
{
    if (step_count == step_room) {
        step_room = step_room ? 2 * step_room : 1024;
        steps = realloc(steps, step_room * sizeof *steps);
    }
    steps[step_count] = (struct step){.kind = kind};
    return &steps[step_count++];
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset)
{
    ssize_t put = syscall(SYS_pwrite64, fd, data, bytes, offset);
    if (recording && put > 0) {
        struct step *step = record(STEP_WRITE);
        step->offset = (uint64_t)offset;
        step->bytes = (uint64_t)put;
        step->data = malloc(step->bytes);
        memcpy(step->data, data, step->bytes);
    }
    return put;
}

int fdatasync(int fd)
{
    (void)fd; /* the host's disk is not what is tested */
    if (recording)
        record(STEP_SYNC);
    return 0;
}

/* Sector contents: the version in every 8 bytes. */
struct acknowledged {
    uint32_t version[SECTORS];
    unsigned config;
};
static struct acknowledged *acks;
static size_t ack_count;
static uint32_t latest[SECTORS];
static unsigned latest_config;

static void acknowledge(void)
{
    acks = realloc(acks, (ack_count + 1) * sizeof *acks);
    memcpy(acks[ack_count].version, latest, sizeof latest);
    acks[ack_count].config = latest_config;
    record(STEP_ACK)->offset = ack_count++;
}

static int add_reference(void *opaque, enum reference kind, uint64_t host, uint64_t entry, imgvm_error *err)
{
    struct qcow2 *q = opaque;
    uint64_t count;
    (void)entry;
    if (kind == REFERENCE_L1)
        return 0;
    int result = refcount_get(q, host >> q->cluster_bits, &count, err);
    return result ? result : refcount_set(q, host >> q->cluster_bits, count + 1, err);
}

static int no_damage(void *opaque, const char *what, uint64_t value, imgvm_error *err)
{
    (void)opaque, (void)what, (void)value, (void)err;
    return -EIO;
}

/* A snapshot that shares every cluster with the disk, as `qemu-img snapshot -c` makes it. */
static void make_snapshot(imgvm_image *image)
{
    struct qcow2 *q = image->qcow2;
    const struct walker walker = {add_reference, no_damage, q};
    uint64_t clusters = clusters_of(q, q->l1.count * 8), offset;
    uint8_t record_bytes[SNAPSHOT_FIXED_BYTES + 16 + 2] = {0};
    CHECK_EQ(qcow2_write_back(q, NULL), 0);
    CHECK_EQ(l1_walk(q, q->l1.offset, q->l1.count, &walker, NULL), 0);
    CHECK_EQ(clusters_alloc(q, clusters, clusters, &offset, NULL, NULL), 0);
    uint8_t *l1 = calloc(clusters, q->cluster_bytes);
    for (uint64_t i = 0; i < q->l1.count; i++) {
        struct table *table;
        store_be64(l1 + 8 * i, q->l1.entries[i] & ~ENTRY_COPIED);
        offset_table_set(&q->l1, i, q->l1.entries[i] & ~ENTRY_COPIED);
        CHECK_EQ(map_l2(q, i, &table, NULL), 0);
        for (uint64_t j = 0; table && j < BIT(q->l2_bits); j++)
            store_be64(table->data + 8 * j, load_be64(table->data + 8 * j) & ~ENTRY_COPIED);
        if (table)
            cache_dirty(&q->l2_cache, table);
    }
    CHECK_EQ(file_write(q->file, offset, l1, clusters << q->cluster_bits, NULL), 0);
    free(l1);
    store_be64(record_bytes + SNAPSHOT_L1_OFFSET, offset);
    store_be32(record_bytes + SNAPSHOT_L1_ENTRIES, (uint32_t)q->l1.count);
    store_be16(record_bytes + SNAPSHOT_ID_BYTES, 1);
    store_be16(record_bytes + SNAPSHOT_NAME_BYTES, 1);
    store_be32(record_bytes + SNAPSHOT_EXTRA_BYTES, 16);
    store_be64(record_bytes + SNAPSHOT_FIXED_BYTES + EXTRA_DISK_BYTES, image->disk_bytes);
    memcpy(record_bytes + SNAPSHOT_FIXED_BYTES + 16, "7s", 2);
    CHECK_EQ(snapshots_replace(q, q->snapshot_count, record_bytes, sizeof record_bytes, NULL), 0);
}

static uint32_t next_version;

static void write_sectors(imgvm_image *image, uint64_t first, uint64_t count)
{
    uint8_t *data = malloc(count * SECTOR);
    for (uint64_t i = 0; i < count; i++) {
        latest[first + i] = ++next_version;
        for (unsigned j = 0; j < SECTOR / 8; j++)
            store_le64(data + i * SECTOR + 8 * j, next_version);
    }
    CHECK_EQ(imgvm_image_write(image, first * SECTOR, data, count * SECTOR, NULL), 0);
    free(data);
}

static void set_config(imgvm_image *image)
{
    imgvm_payload *payload = NULL;
    uint8_t text[3000];
    memset(text, (int)++latest_config, sizeof text);
    CHECK_EQ(imgvm_payload_new(&payload, NULL), 0);
    CHECK_EQ(imgvm_payload_add(payload, "config", text, sizeof text, NULL), 0);
    CHECK_EQ(imgvm_image_set_config(image, payload, 0, NULL), 0);
    imgvm_payload_free(payload);
}

/* The file as found after a power loss at step `end`. */
static void rebuild(const char *path, const uint8_t *base, size_t base_bytes, size_t end, unsigned *seed)
{
    size_t synced = 0;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    for (size_t i = 0; i < end; i++)
        if (steps[i].kind == STEP_SYNC)
            synced = i;
    CHECK_EQ(syscall(SYS_pwrite64, fd, base, base_bytes, 0), base_bytes);
    unsigned odds = rand_r(seed) % 5; /* 0: nothing later arrived ... 4: everything */
    for (size_t i = 0; i < end; i++) {
        const struct step *step = &steps[i];
        if (step->kind != STEP_WRITE)
            continue;
        for (uint64_t at = 0; at < step->bytes;) {
            uint64_t part = MIN(step->bytes - at, SECTOR - (step->offset + at) % SECTOR);
            if (i < synced || rand_r(seed) % 4 < odds)
                CHECK_EQ(syscall(SYS_pwrite64, fd, step->data + at, part, step->offset + at), part);
            at += part;
        }
    }
    close(fd);
}

static void examine(const char *path, size_t end)
{
    const struct acknowledged *ack = NULL;
    imgvm_error err = {0};
    imgvm_image *image = NULL;
    for (size_t i = 0; i < end; i++)
        if (steps[i].kind == STEP_ACK)
            ack = &acks[steps[i].offset];
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &image, &err), 0);
    if (!image) {
        printf("%s\n", err.message);
        return;
    }
    uint64_t leaks, corruptions, wrong = 0;
    CHECK(imgvm_image_check(image, &leaks, &corruptions, &err) >= 0);
    CHECK_EQ(corruptions, 0);
    uint8_t *disk = malloc(SECTORS * SECTOR);
    CHECK_EQ(imgvm_image_read(image, 0, disk, SECTORS * SECTOR, &err), 0);
    for (unsigned s = 0; s < SECTORS; s++) {
        uint64_t version = load_le64(disk + s * SECTOR);
        wrong += version < ack->version[s] || version > latest[s];
        wrong += memcmp(disk + s * SECTOR, disk + s * SECTOR + 8, SECTOR - 8) != 0;
    }
    CHECK_EQ(wrong, 0);
    uint8_t text[3000];
    CHECK_EQ(imgvm_image_config_read(image, 0, text, sizeof text, &err), 0);
    CHECK(text[0] == ack->config || text[0] == ack->config + 1);
    /* And it goes on working. */
    CHECK_EQ(imgvm_image_write(image, 100 * SECTOR, disk, 50 * SECTOR, &err), 0);
    CHECK_EQ(imgvm_image_close(image, &err), 0);
    free(disk);
}

/* `snapshots` fill the file: with small clusters, enough of them make the refcount table move while recorded. */
static void test_power_loss(const char *folder, uint32_t cluster_bytes, unsigned snapshots, unsigned seed)
{
    char path[80], lost[80];
    imgvm_image *image = NULL;
    snprintf(path, sizeof path, "%s/live.img", folder);
    snprintf(lost, sizeof lost, "%s/lost.img", folder);
    step_count = ack_count = 0;
    memset(latest, 0, sizeof latest);
    latest_config = next_version = 0;

    CHECK_EQ(imgvm_image_create(path, SECTORS * SECTOR, cluster_bytes, NULL), 0);
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &image, NULL), 0);
    for (unsigned i = 0; i < 12; i++)
        write_sectors(image, (uint64_t)rand_r(&seed) % (SECTORS - 200), 1 + rand_r(&seed) % 200);
    for (unsigned i = 0; i < snapshots; i++) {
        make_snapshot(image);
        if (snapshots > 1)
            write_sectors(image, 0, SECTORS);
    }
    if (snapshots > 1)
        make_snapshot(image);
    set_config(image);
    uint64_t table_offset = image->qcow2->refcounts.offset;
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    int fd = open(path, O_RDONLY);
    size_t base_bytes = (size_t)lseek(fd, 0, SEEK_END);
    uint8_t *base = malloc(base_bytes);
    CHECK_EQ(pread(fd, base, base_bytes, 0), base_bytes);
    close(fd);

    recording = true;
    acknowledge();
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &image, NULL), 0);
    for (unsigned i = 0; i < 60; i++) {
        if (i == 30 && snapshots > 1)
            write_sectors(image, 0, SECTORS);
        switch (rand_r(&seed) % 8) {
        case 0:
        case 1:
            CHECK_EQ(imgvm_image_flush(image, NULL), 0);
            acknowledge();
            break;
        case 2:
            set_config(image);
            acknowledge(); /* it flushes what came before, too */
            break;
        default:
            write_sectors(image, (uint64_t)rand_r(&seed) % (SECTORS - 90), 1 + rand_r(&seed) % 90);
        }
    }
    CHECK_EQ(image->qcow2->refcounts.offset != table_offset, snapshots > 1);
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    recording = false;

    for (unsigned i = 0; i < 100; i++) {
        size_t end = 1 + (size_t)rand_r(&seed) % step_count;
        /* Every other time right after a change of the header, before the fdatasync that follows it. */
        while (i % 2 && (steps[end - 1].kind != STEP_WRITE || steps[end - 1].offset >= 128))
            end = end % step_count + 1;
        rebuild(lost, base, base_bytes, end, &seed);
        examine(lost, end);
    }
    unlink(path);
    unlink(lost);
    for (size_t i = 0; i < step_count; i++)
        free(steps[i].data);
    free(base);
}

int main(void)
{
    char folder[] = "/tmp/imgvm-power-XXXXXX";
    if (!mkdtemp(folder))
        return 2;
    test_power_loss(folder, 512, 1, 1);
    test_power_loss(folder, 512, 3, 2);
    test_power_loss(folder, 4096, 1, 3);
    test_power_loss(folder, 65536, 1, 4);
    rmdir(folder);
    free(steps);
    free(acks);
    return check_report();
}
