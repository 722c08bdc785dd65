/* SPDX-License-Identifier: MIT */
/* needs: block/[a-z]*.c base/error.c base/sha256*.c */
/* libs: z zstd */
/* Power loss. This program's own pwritev, fallocate, ftruncate and fdatasync keep a journal of what the image does to its
 * file. Then the file is rebuilt as a disk might hold it after a power loss at many points: all that was written before
 * the last fdatasync, and of what came later any sectors in any mixture. Each such file must open, be free of damage, and
 * hold every sector as it was at the last acknowledged flush, or as something written after it; every snapshot must be
 * whole. IMGVM_POWER_CUTS says how many points in all (test_power.py: 15000), IMGVM_POWER_SEED where chance begins. Where
 * there are cuts enough, every step of a run is one. */
#define _GNU_SOURCE
#include "block/qcow2.h"
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define SECTOR 512
#define SECTORS 4096 /* of the guest's disk */
#define HALF (SECTORS / 2)
#define SNAPSHOTS 64
#define CUTS_DEFAULT 200
#define CUTS_OF_A_RUN 700

struct step {
    enum { STEP_WRITE, STEP_PUNCH, STEP_TRUNCATE, STEP_SYNC, STEP_ACK } kind;
    uint64_t offset, bytes;
    uint8_t *data;
};

static struct step *steps;
static size_t step_count, step_room;
static bool recording;
static unsigned cut_count, mixed_count; /* of the cuts, those with writes that no fdatasync follows */

static struct step *record(int kind, uint64_t offset, uint64_t bytes)
{
    if (step_count == step_room) {
        step_room = step_room ? 2 * step_room : 1024;
        steps = realloc(steps, step_room * sizeof *steps);
    }
    steps[step_count] = (struct step){.kind = kind, .offset = offset, .bytes = bytes};
    return &steps[step_count++];
}

ssize_t pwritev(int fd, const struct iovec *pieces, int count, off_t offset)
{
    ssize_t put = syscall(SYS_pwritev, fd, pieces, count, offset, 0);
    if (recording && put > 0) {
        struct step *step = record(STEP_WRITE, (uint64_t)offset, (uint64_t)put);
        struct vec vec = {.piece = pieces};
        step->data = malloc(step->bytes);
        vec_get(&vec, step->data, step->bytes);
    }
    return put;
}

int fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    int result = (int)syscall(SYS_fallocate, fd, mode, offset, bytes);
    CHECK(mode & FALLOC_FL_KEEP_SIZE);
    if (recording && !result && mode != FALLOC_FL_KEEP_SIZE) /* space alone changes no data */
        record(STEP_PUNCH, (uint64_t)offset, (uint64_t)bytes);
    return result;
}

int ftruncate(int fd, off_t bytes)
{
    if (recording)
        record(STEP_TRUNCATE, (uint64_t)bytes, 0);
    return (int)syscall(SYS_ftruncate, fd, bytes);
}

int fdatasync(int fd)
{
    (void)fd; /* the host's disk is not what is tested */
    if (recording)
        record(STEP_SYNC, 0, 0);
    return 0;
}

/* ---- what the guest did: a version in every 8 bytes of a sector; 0 is a sector of zeros ---- */

struct event {
    size_t step; /* how many steps there were when it began */
    uint32_t sector, version;
};
static struct event *events;
static size_t event_count, event_room;
static uint32_t latest[SECTORS];
static uint32_t next_version;

/* When there is one, it has the sectors from HALF on, and snapshots do not have them. */
static imgvm_image *further;
static uint32_t further_kept[HALF];

static struct {
    uint32_t sector[SECTORS];
    size_t made, deleted; /* steps: surely there from `made` on, perhaps gone from `deleted` on */
} snapshots[SNAPSHOTS];
static unsigned snapshot_count;
static struct {
    size_t step;
    unsigned value;
} configs[200];
static unsigned config_changes, latest_config;

static void changed(uint32_t sector, uint32_t version)
{
    if (event_count == event_room) {
        event_room = event_room ? 2 * event_room : 1024;
        events = realloc(events, event_room * sizeof *events);
    }
    latest[sector] = version;
    events[event_count++] = (struct event){recording ? step_count : 0, sector, version};
}

static void acknowledge(void)
{
    record(STEP_ACK, 0, 0);
}

/* Who has the sectors from `first` on, and how many of them. */
static imgvm_image *holder(imgvm_image *image, uint64_t first, uint64_t *count)
{
    if (!further || first >= HALF)
        return further ? further : image;
    *count = MIN(*count, HALF - first);
    return image;
}

static void write_sectors(imgvm_image *image, uint64_t first, uint64_t count)
{
    uint64_t all = count;
    imgvm_image *disk = holder(image, first, &count);
    uint8_t *data = malloc(count * SECTOR);
    for (uint64_t i = 0; i < count; i++) {
        changed((uint32_t)(first + i), ++next_version);
        for (unsigned j = 0; j < SECTOR / 8; j++)
            store_le64(data + i * SECTOR + 8 * j, next_version);
    }
    CHECK_EQ(imgvm_image_write(disk, first * SECTOR, data, count * SECTOR, NULL), 0);
    free(data);
    if (all > count)
        write_sectors(image, first + count, all - count);
}

static void zero_sectors(imgvm_image *image, uint64_t first, uint64_t count, bool discard)
{
    imgvm_image *disk = holder(image, first, &count);
    uint8_t *data = malloc(count * SECTOR);
    for (uint64_t i = 0; i < count; i++)
        changed((uint32_t)(first + i), 0);
    if (!discard)
        CHECK_EQ(imgvm_image_zero(disk, first * SECTOR, count * SECTOR, first & 1, NULL), 0);
    else
        CHECK_EQ(imgvm_image_discard(disk, first * SECTOR, count * SECTOR, NULL), 0);
    /* A discard may leave data; what is there now is what counts. */
    CHECK_EQ(imgvm_image_read(disk, first * SECTOR, data, count * SECTOR, NULL), 0);
    for (uint64_t i = 0; i < count; i++)
        if (load_le64(data + i * SECTOR))
            changed((uint32_t)(first + i), (uint32_t)load_le64(data + i * SECTOR));
    free(data);
}

static void compress_clusters(imgvm_image *image, uint64_t first)
{
    uint64_t bytes = MAX(image->qcow2->cluster_bytes, 4096), at = align_down(first * SECTOR, bytes);
    uint8_t *data = malloc(bytes);
    for (uint64_t i = 0; i < bytes / SECTOR; i++) {
        changed((uint32_t)(at / SECTOR + i), ++next_version);
        for (unsigned j = 0; j < SECTOR / 8; j++)
            store_le64(data + i * SECTOR + 8 * j, next_version);
    }
    CHECK_EQ(imgvm_image_write_compressed(image, at, data, bytes, 1, NULL), 0);
    free(data);
}

static void make_snapshot(imgvm_image *image)
{
    const imgvm_snapshot_state state = {.data = snapshots[snapshot_count].sector, .bytes = snapshot_count % 2 ? sizeof latest : 0};
    char name[16];
    snprintf(name, sizeof name, "s%u", snapshot_count);
    memcpy(snapshots[snapshot_count].sector, latest, sizeof latest);
    if (further)
        memset(snapshots[snapshot_count].sector + HALF, 0, sizeof latest / 2);
    snapshots[snapshot_count].deleted = SIZE_MAX;
    CHECK_EQ(imgvm_image_snapshot_create(image, name, &state, NULL), 0);
    snapshots[snapshot_count++].made = step_count;
    acknowledge();
}

/* The index, in the image's table, of the newest snapshot of ours that is not deleted. */
static int newest(imgvm_image *image, unsigned *which)
{
    imgvm_snapshot_info info;
    for (*which = snapshot_count; (*which)--;)
        for (uint32_t i = 0; snapshots[*which].deleted == SIZE_MAX && !imgvm_image_snapshot(image, i, &info, NULL); i++)
            if (info.name[0] == 's' && (unsigned)atoi(info.name + 1) == *which)
                return (int)i;
    return -1;
}

static void change_snapshots(imgvm_image *image, unsigned kind)
{
    unsigned which;
    int index = newest(image, &which);
    if (index < 0 || (kind == 0 && snapshot_count < SNAPSHOTS))
        make_snapshot(image);
    else if (kind == 1) {
        for (uint32_t s = 0; s < (further ? HALF : SECTORS); s++)
            changed(s, snapshots[which].sector[s]);
        CHECK_EQ(imgvm_image_snapshot_apply(image, (uint32_t)index, NULL), 0);
        acknowledge();
    } else {
        snapshots[which].deleted = step_count;
        CHECK_EQ(imgvm_image_snapshot_delete(image, (uint32_t)index, NULL), 0);
        acknowledge();
    }
}

/* The further disk's only snapshot is made, and applied from then on. */
static void change_further(imgvm_image *image)
{
    imgvm_snapshot_info info;
    uint32_t index = 0;
    while (!imgvm_image_snapshot(image, index, &info, NULL) && strcmp(info.name, "further"))
        index++;
    if (strcmp(info.name, "further")) {
        memcpy(further_kept, latest + HALF, sizeof further_kept);
        CHECK_EQ(imgvm_image_snapshot_create(further, "further", &(imgvm_snapshot_state){0}, NULL), 0);
    } else {
        for (uint32_t s = 0; s < HALF; s++)
            changed(HALF + s, further_kept[s]);
        CHECK_EQ(imgvm_image_snapshot_apply(further, index, NULL), 0);
    }
    acknowledge();
}

static void set_config(imgvm_image *image)
{
    imgvm_payload *payload = NULL;
    uint8_t text[3000];
    memset(text, (int)++latest_config, sizeof text);
    configs[config_changes].step = recording ? step_count : 0;
    configs[config_changes++].value = latest_config;
    CHECK_EQ(imgvm_payload_new(&payload, NULL), 0);
    CHECK_EQ(imgvm_payload_add(payload, "config", text, sizeof text, NULL), 0);
    CHECK_EQ(imgvm_image_set_config(image, payload, 0, NULL), 0);
    imgvm_payload_free(payload);
}

/* ---- the file as found after a power loss at step `end` ---- */

static void rebuild(const char *path, const uint8_t *base, size_t base_bytes, size_t end, unsigned *seed)
{
    static const uint8_t zeros[SECTOR];
    size_t synced = 0;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    for (size_t i = 0; i < end; i++)
        if (steps[i].kind == STEP_SYNC)
            synced = i;
    CHECK_EQ(syscall(SYS_pwrite64, fd, base, base_bytes, 0), base_bytes);
    unsigned odds = rand_r(seed) % 5; /* 0: nothing later arrived ... 4: everything */
    bool mixed = false;
    for (size_t i = 0; i < end; i++) {
        const struct step *step = &steps[i];
        if (step->kind == STEP_TRUNCATE && (i < synced || rand_r(seed) % 4 < odds))
            CHECK_EQ(syscall(SYS_ftruncate, fd, step->offset), 0);
        if (step->kind != STEP_WRITE && step->kind != STEP_PUNCH)
            continue;
        mixed |= i >= synced;
        for (uint64_t at = 0; at < step->bytes;) {
            uint64_t part = MIN(step->bytes - at, SECTOR - (step->offset + at) % SECTOR);
            const uint8_t *data = step->data ? step->data + at : zeros;
            if (i < synced || rand_r(seed) % 4 < odds)
                CHECK_EQ(syscall(SYS_pwrite64, fd, data, part, step->offset + at), part);
            at += part;
        }
    }
    mixed_count += mixed;
    cut_count++;
    close(fd);
}

static bool may_be(uint32_t sector, uint64_t version, size_t ack, size_t end)
{
    for (size_t i = 0; i < event_count; i++)
        if (events[i].sector == sector && events[i].version == version && events[i].step >= ack && events[i].step < end)
            return true;
    return false;
}

static void examine_disk(imgvm_image *image, size_t ack, size_t end)
{
    static uint8_t disk[SECTORS * SECTOR];
    static uint32_t flushed[SECTORS];
    uint64_t wrong = 0;
    memset(flushed, 0, sizeof flushed);
    for (size_t i = 0; i < event_count && events[i].step < ack; i++)
        flushed[events[i].sector] = events[i].version;
    imgvm_error err = {0};
    CHECK_EQ(imgvm_image_read(image, 0, disk, sizeof disk, &err), 0);
    if (further)
        CHECK_EQ(imgvm_image_read(further, HALF * SECTOR, disk + HALF * SECTOR, HALF * SECTOR, &err), 0);
    if (err.code)
        printf("%s\n", err.message);
    for (uint32_t s = 0; s < SECTORS; s++) {
        uint64_t version = load_le64(disk + s * SECTOR);
        wrong += version != flushed[s] && !may_be(s, version, ack, end);
        wrong += memcmp(disk + s * SECTOR, disk + s * SECTOR + 8, SECTOR - 8) != 0;
    }
    CHECK_EQ(wrong, 0);
}

static void examine_snapshots(imgvm_image *image, size_t end)
{
    static uint8_t disk[SECTORS * SECTOR];
    static uint32_t state[SECTORS];
    bool found[SNAPSHOTS] = {false};
    imgvm_snapshot_info info;
    imgvm_error err = {0};
    for (uint32_t i = 0; !imgvm_image_snapshot(image, i, &info, NULL); i++) {
        unsigned which = (unsigned)atoi(info.name + 1);
        uint64_t wrong = 0;
        if (info.name[0] != 's')
            continue;
        found[which] = true;
        CHECK_EQ(imgvm_image_snapshot_read(image, i, false, 0, disk, sizeof disk, &err), 0);
        for (unsigned s = 0; s < SECTORS; s++)
            wrong += load_le64(disk + s * SECTOR) != snapshots[which].sector[s];
        CHECK_EQ(wrong, 0);
        if (!info.vm_state_bytes)
            continue;
        CHECK_EQ(imgvm_image_snapshot_read(image, i, true, 0, state, sizeof state, &err), 0);
        CHECK(!memcmp(state, snapshots[which].sector, sizeof state));
    }
    for (unsigned i = 0; i < snapshot_count; i++)
        CHECK(found[i] || snapshots[i].made >= end || snapshots[i].deleted < end);
}

static void examine_config(imgvm_image *image, size_t ack, size_t end)
{
    imgvm_error err = {0};
    uint8_t text[3000];
    bool known = false;
    unsigned flushed = 0;
    CHECK_EQ(imgvm_image_config_read(image, 0, text, sizeof text, &err), 0);
    for (unsigned i = 0; i < config_changes; i++) {
        if (configs[i].step < ack)
            flushed = configs[i].value;
        known |= configs[i].step >= ack && configs[i].step < end && configs[i].value == text[0];
    }
    CHECK(known || text[0] == flushed);
}

static void close_all(imgvm_image *image)
{
    if (further)
        CHECK_EQ(imgvm_image_close(further, NULL), 0);
    further = NULL;
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
}

static void examine(const char *path, size_t end, bool has_further)
{
    imgvm_error err = {0};
    imgvm_image *image = NULL;
    size_t ack = 0;
    for (size_t i = 0; i < end; i++)
        if (steps[i].kind == STEP_ACK)
            ack = i;
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &image, &err), 0);
    if (!image) {
        printf("%s\n", err.message);
        return;
    }
    uint64_t leaks, corruptions;
    CHECK(imgvm_image_check(image, &leaks, &corruptions, &err) >= 0);
    CHECK_EQ(corruptions, 0);
    if (has_further)
        CHECK_EQ(imgvm_image_open_disk(image, "further", &further, &err), 0);
    examine_disk(image, ack, end);
    examine_snapshots(image, end);
    examine_config(image, ack, end);
    /* And it goes on working. */
    uint8_t data[50 * SECTOR] = {1};
    CHECK_EQ(imgvm_image_write(image, 100 * SECTOR, data, sizeof data, &err), 0);
    close_all(image);
}

/* ---- a run of the image, and its cuts ---- */

struct world {
    uint32_t cluster_bytes;
    unsigned snapshots; /* they fill the file: with small clusters, enough of them make the refcount table move */
    bool extended_l2, uses_snapshots, moves_table, further;
};

static void forget(void)
{
    for (size_t i = 0; i < step_count; i++)
        free(steps[i].data);
    step_count = event_count = 0;
    snapshot_count = config_changes = latest_config = next_version = 0;
    memset(latest, 0, sizeof latest);
}

static void act(imgvm_image *image, const struct world *world, unsigned *seed)
{
    uint64_t first = (uint64_t)rand_r(seed) % (SECTORS - 300), count = 1 + (uint64_t)rand_r(seed) % 90;
    switch (rand_r(seed) % 14) {
    case 0:
    case 1:
        CHECK_EQ(imgvm_image_flush(image, NULL), 0);
        acknowledge();
        break;
    case 2:
        set_config(image);
        acknowledge(); /* it flushes what came before, too */
        break;
    case 3:
        zero_sectors(image, first, count, false);
        break;
    case 4:
        zero_sectors(image, first, 3 * count, true);
        break;
    case 5:
        if (world->further)
            write_sectors(image, first, count);
        else
            compress_clusters(image, first);
        break;
    case 6:
        if (world->further) {
            change_further(image);
            break;
        } /* fall through */
    case 7:
        if (world->uses_snapshots) {
            change_snapshots(image, (unsigned)rand_r(seed) % 3);
            break;
        } /* fall through */
    default:
        write_sectors(image, first, count);
    }
}

static size_t choose_cut(unsigned cut, unsigned cuts, unsigned *seed)
{
    size_t points = step_count - 1, end = 2 + (size_t)rand_r(seed) % points;
    if (cuts >= points && cut < points)
        return 2 + cut;
    /* Every other time right after a change of the header, before the fdatasync that follows it. */
    while (cut % 2 && (steps[end - 1].kind != STEP_WRITE || steps[end - 1].offset >= 128))
        end = 2 + (end - 1) % points;
    return end;
}

static void test_power_loss(const char *folder, const struct world *world, unsigned seed, unsigned cuts)
{
    const unsigned began = seed;
    char path[80], lost[80];
    imgvm_image *image = NULL;
    snprintf(path, sizeof path, "%s/live.img", folder);
    snprintf(lost, sizeof lost, "%s/lost.img", folder);
    const imgvm_image_options options = {.disk_bytes = SECTORS * SECTOR, .cluster_bytes = world->cluster_bytes,
                                         .extended_l2 = world->extended_l2};
    CHECK_EQ(imgvm_image_create_with(path, &options, NULL), 0);
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &image, NULL), 0);
    if (world->further) {
        CHECK_EQ(imgvm_image_add_disk(image, "further", SECTORS * SECTOR, 0, NULL), 0);
        CHECK_EQ(imgvm_image_open_disk(image, "further", &further, NULL), 0);
    }
    for (unsigned i = 0; i < 12; i++)
        write_sectors(image, (uint64_t)rand_r(&seed) % (SECTORS - 200), 1 + rand_r(&seed) % 200);
    for (unsigned i = 0; i < world->snapshots; i++) {
        make_snapshot(image);
        if (world->snapshots > 1)
            write_sectors(image, 0, SECTORS);
    }
    if (world->moves_table)
        make_snapshot(image);
    for (unsigned i = 0; i < snapshot_count; i++)
        snapshots[i].made = 0;
    set_config(image);
    step_count = 0;
    uint64_t table_offset = image->qcow2->refcounts.offset;
    close_all(image);
    int fd = open(path, O_RDONLY);
    size_t base_bytes = (size_t)lseek(fd, 0, SEEK_END);
    uint8_t *base = malloc(base_bytes);
    CHECK_EQ(pread(fd, base, base_bytes, 0), base_bytes);
    close(fd);

    recording = true;
    acknowledge();
    acknowledge(); /* all that was before is before step 1 */
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &image, NULL), 0);
    if (world->further)
        CHECK_EQ(imgvm_image_open_disk(image, "further", &further, NULL), 0);
    for (unsigned i = 0; i < 60; i++) {
        if (i == 30 && world->snapshots > 1)
            write_sectors(image, 0, SECTORS);
        act(image, world, &seed);
    }
    CHECK_EQ(image->qcow2->refcounts.offset != table_offset, world->moves_table);
    close_all(image);
    recording = false;

    for (unsigned i = 0; i < cuts; i++) {
        size_t end = choose_cut(i, cuts, &seed);
        rebuild(lost, base, base_bytes, end, &seed);
        int before = check_failures;
        examine(lost, end, world->further);
        if (check_failures != before)
            printf("clusters of %u, seed %u, cut %u at step %zu of %zu\n", world->cluster_bytes, began, i, end,
                   step_count);
    }
    unlink(path);
    unlink(lost);
    forget();
    free(base);
}

int main(void)
{
    static const struct world worlds[] = {
        {512, 1, false, false, false, false}, {512, 3, false, false, true, false}, {512, 1, false, true, false, false},
        {4096, 1, false, true, false, false}, {65536, 1, false, true, false, false}, {16384, 1, true, true, false, false},
        {65536, 0, true, false, false, false}, {4096, 1, false, true, false, true}, {65536, 0, false, false, false, true},
    };
    const char *asked = getenv("IMGVM_POWER_CUTS"), *chosen = getenv("IMGVM_POWER_SEED");
    unsigned cuts = asked ? (unsigned)atoi(asked) : CUTS_DEFAULT, seed = chosen ? (unsigned)atoi(chosen) : 1;
    unsigned rounds = MAX(cuts / (ARRAY_LEN(worlds) * CUTS_OF_A_RUN), 1);
    char folder[] = "/tmp/imgvm-power-XXXXXX";
    if (!mkdtemp(folder))
        return 2;
    for (unsigned round = 0; round < rounds; round++)
        for (unsigned i = 0; i < ARRAY_LEN(worlds); i++)
            test_power_loss(folder, &worlds[i], seed + i + 100 * round, cuts / (unsigned)(rounds * ARRAY_LEN(worlds)) + 1);
    rmdir(folder);
    printf("%u cuts, %u of them through writes that were not flushed\n", cut_count, mixed_count);
    free(steps);
    free(events);
    return check_report();
}
