/* SPDX-License-Identifier: MIT */
#include "queue.h"

#include <string.h>

#include "../../base/bits.h"

/* Descriptor (VIRTIO 1.2, 2.7.5): u64 address, u32 length, u16 flags, u16 next.
 * Available ring (2.7.6): u16 flags, u16 idx, u16 ring[size], u16 used_event.
 * Used ring (2.7.8): u16 flags, u16 idx, {u32 id, u32 length} ring[size], u16 avail_event. */
#define DESC_BYTES 16u
#define RING_HEADER 4u
#define USED_BYTES 8u

struct descriptor {
    uint64_t address;
    uint32_t bytes;
    uint16_t flags, next;
};

/* ---- ring words: each is read or written once, in one access ---- */

static uint16_t ring_load(const uint8_t *p) { return __atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE); }
static void ring_store(uint8_t *p, uint16_t value) { __atomic_store_n((uint16_t *)p, value, __ATOMIC_RELEASE); }

static uint8_t *used_event(const struct virtqueue *queue) { return queue->avail + RING_HEADER + 2u * queue->size; }
static uint8_t *avail_event(const struct virtqueue *queue)
{
    return queue->used + RING_HEADER + USED_BYTES * queue->size;
}

static uint64_t used_bytes(const struct virtqueue *queue) { return RING_HEADER + USED_BYTES * queue->size + 2; }

static void used_written(const struct virtqueue *queue, const uint8_t *p, uint32_t bytes)
{
    guest_mem_written(queue->mem, queue->used_gpa + (uint64_t)(p - queue->used), bytes);
}

/* ---- set-up ---- */

void virtqueue_init(struct virtqueue *queue, const struct guest_mem *mem, uint16_t size_max)
{
    *queue = (struct virtqueue){.mem = mem, .size_max = size_max, .size = size_max};
}

void virtqueue_reset(struct virtqueue *queue)
{
    virtqueue_init(queue, queue->mem, queue->size_max);
}

void virtqueue_break(struct virtqueue *queue, const char *why)
{
    if (!queue->broken)
        queue->broken_why = why;
    queue->broken = true;
}

void virtqueue_attach(struct virtqueue *queue)
{
    if (queue->desc_gpa % 16 || queue->avail_gpa % 2 || queue->used_gpa % 4) {
        virtqueue_break(queue, "a ring is misaligned");
        return;
    }
    queue->desc = guest_mem_ptr(queue->mem, queue->desc_gpa, DESC_BYTES * queue->size, false);
    queue->avail = guest_mem_ptr(queue->mem, queue->avail_gpa, RING_HEADER + 2u * queue->size + 2, false);
    queue->used = guest_mem_ptr(queue->mem, queue->used_gpa, used_bytes(queue), true);
    if (!queue->desc || !queue->avail || !queue->used)
        virtqueue_break(queue, "a ring is not in RAM");
}

void virtqueue_enable(struct virtqueue *queue, bool event_idx, bool indirect)
{
    queue->event_idx = event_idx;
    queue->indirect = indirect;
    queue->enabled = true;
    virtqueue_attach(queue);
}

/* ---- taking chains ---- */

/* The descriptor's memory as spans; neighbours in the host's address space grow together. */
static bool add_spans(struct virtqueue *queue, struct virtq_chain *chain, const struct descriptor *descriptor)
{
    bool in = descriptor->flags & VIRTQ_DESC_F_WRITE;
    if (!in && chain->in_count) {
        virtqueue_break(queue, "a device-readable descriptor follows a device-writable one");
        return false;
    }
    uint32_t *total = in ? &chain->in_bytes : &chain->out_bytes;
    if (descriptor->bytes > UINT32_MAX - chain->in_bytes - chain->out_bytes) {
        virtqueue_break(queue, "a chain is longer than 4 GiB");
        return false;
    }
    uint64_t gpa = descriptor->address;
    for (uint32_t left = descriptor->bytes; left;) {
        const struct guest_region *region = guest_mem_find(queue->mem, gpa);
        if (!region || (in && region->read_only)) {
            virtqueue_break(queue, "a descriptor points outside RAM");
            return false;
        }
        uint64_t offset = gpa - region->gpa;
        uint32_t bytes = (uint32_t)MIN(left, region->size - offset);
        uint8_t *host = region->host + offset;
        unsigned used = chain->out_count + chain->in_count;
        struct virtq_span *last = used > (in ? chain->out_count : 0u) ? &chain->spans[used - 1] : NULL;
        if (last && last->host + last->bytes == host && last->gpa + last->bytes == gpa) {
            last->bytes += bytes;
        } else if (used == VIRTQ_SPANS_MAX) {
            virtqueue_break(queue, "a chain has too many pieces");
            return false;
        } else {
            chain->spans[used] = (struct virtq_span){host, gpa, bytes};
            *(in ? &chain->in_count : &chain->out_count) += 1;
        }
        *total += bytes;
        gpa += bytes;
        left -= bytes;
    }
    return true;
}

/* Copied whole before it is looked at: the guest may be changing it. */
static struct descriptor load_descriptor(const uint8_t raw[DESC_BYTES])
{
    return (struct descriptor){load_le64(raw), load_le32(raw + 8), load_le16(raw + 12), load_le16(raw + 14)};
}

/* The table of an indirect descriptor (2.7.5.3). A chain that revisits a row is longer than the table. */
static bool walk_indirect(struct virtqueue *queue, struct virtq_chain *chain, const struct descriptor *table)
{
    uint32_t rows = table->bytes / DESC_BYTES;
    if (!queue->indirect || table->flags & VIRTQ_DESC_F_NEXT || !rows || table->bytes % DESC_BYTES) {
        virtqueue_break(queue, "a bad indirect descriptor");
        return false;
    }
    for (uint32_t i = 0, steps = 0;; steps++) {
        uint8_t raw[DESC_BYTES];
        if (i >= rows || steps >= MIN(rows, VIRTQ_SPANS_MAX) ||
            !guest_mem_read(queue->mem, table->address + (uint64_t)i * DESC_BYTES, raw, sizeof raw)) {
            virtqueue_break(queue, "an indirect table loops, leaves its bounds or is not in RAM");
            return false;
        }
        struct descriptor descriptor = load_descriptor(raw);
        if (descriptor.flags & VIRTQ_DESC_F_INDIRECT) {
            virtqueue_break(queue, "an indirect table inside an indirect table");
            return false;
        }
        if (!add_spans(queue, chain, &descriptor))
            return false;
        if (!(descriptor.flags & VIRTQ_DESC_F_NEXT))
            return true;
        i = descriptor.next;
    }
}

static bool walk(struct virtqueue *queue, struct virtq_chain *chain)
{
    uint16_t i = chain->head;
    for (unsigned steps = 0; steps < queue->size; steps++) {
        if (i >= queue->size) {
            virtqueue_break(queue, "a descriptor index is out of range");
            return false;
        }
        uint8_t raw[DESC_BYTES];
        memcpy(raw, queue->desc + i * DESC_BYTES, sizeof raw);
        struct descriptor descriptor = load_descriptor(raw);
        if (descriptor.flags & VIRTQ_DESC_F_INDIRECT)
            return walk_indirect(queue, chain, &descriptor);
        if (!add_spans(queue, chain, &descriptor))
            return false;
        if (!(descriptor.flags & VIRTQ_DESC_F_NEXT))
            return true;
        i = descriptor.next;
    }
    virtqueue_break(queue, "a descriptor chain loops");
    return false;
}

/* Ask to hear of the next available entry, and look once more: it may have come in between. */
static bool found_none(struct virtqueue *queue)
{
    uint8_t *word = queue->event_idx ? avail_event(queue) : queue->used;
    ring_store(word, queue->event_idx ? queue->next_avail : 0);
    used_written(queue, word, 2);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return ring_load(queue->avail + 2) == queue->next_avail;
}

int virtqueue_pop(struct virtqueue *queue, struct virtq_chain *chain)
{
    if (queue->broken || !queue->enabled)
        return queue->broken ? -1 : 0;
    uint16_t available = ring_load(queue->avail + 2);
    if (available == queue->next_avail) {
        if (found_none(queue))
            return 0;
        available = ring_load(queue->avail + 2);
    }
    if ((uint16_t)(available - queue->next_avail) > queue->size) {
        virtqueue_break(queue, "the available index jumped");
        return -1;
    }
    uint16_t head = ring_load(queue->avail + RING_HEADER + 2u * (queue->next_avail & (queue->size - 1u)));
    chain->head = head;
    chain->out_count = chain->in_count = 0;
    chain->out_bytes = chain->in_bytes = 0;
    if (!walk(queue, chain))
        return -1;
    queue->next_avail++;
    return 1;
}

/* With event idx nothing is needed: avail_event stays behind until the ring is found empty. */
void virtqueue_busy(struct virtqueue *queue)
{
    if (queue->broken || !queue->enabled || queue->event_idx)
        return;
    ring_store(queue->used, VIRTQ_USED_F_NO_NOTIFY);
    used_written(queue, queue->used, 2);
}

/* ---- giving them back ---- */

bool virtqueue_pending(const struct virtqueue *queue)
{
    return queue->enabled && !queue->broken && ring_load(queue->avail + 2) != queue->next_avail;
}

void virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written)
{
    if (queue->broken || !queue->enabled)
        return;
    uint8_t *entry = queue->used + RING_HEADER + USED_BYTES * (queue->used_idx & (queue->size - 1u));
    store_le32(entry, head);
    store_le32(entry + 4, written);
    used_written(queue, entry, USED_BYTES);
    ring_store(queue->used + 2, ++queue->used_idx);
    used_written(queue, queue->used + 2, 2);
}

bool virtqueue_should_interrupt(struct virtqueue *queue)
{
    if (queue->broken || !queue->enabled)
        return false;
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* used idx is out before the driver's wish is read (2.7.7.1) */
    if (!queue->event_idx)
        return !(ring_load(queue->avail) & VIRTQ_AVAIL_F_NO_INTERRUPT);
    uint16_t old = queue->signalled, now = queue->used_idx;
    bool valid = queue->signalled_valid;
    queue->signalled = now;
    queue->signalled_valid = true;
    /* Was used_event passed since the last decision? Modulo 2^16 (2.7.10). */
    return !valid || (uint16_t)(now - ring_load(used_event(queue)) - 1) < (uint16_t)(now - old);
}

/* ---- the contents ---- */

enum copy_kind { COPY_OUT, COPY_IN, COPY_ZERO };

static uint32_t copy(const struct guest_mem *mem, const struct virtq_chain *chain, uint32_t offset, void *data,
                     uint32_t bytes, enum copy_kind kind)
{
    const struct virtq_span *span = &chain->spans[kind == COPY_OUT ? 0 : chain->out_count];
    const struct virtq_span *end = span + (kind == COPY_OUT ? chain->out_count : chain->in_count);
    uint32_t done = 0;
    for (; span < end && done < bytes; span++) {
        if (offset >= span->bytes) {
            offset -= span->bytes;
            continue;
        }
        uint32_t n = MIN(bytes - done, span->bytes - offset);
        if (kind == COPY_OUT)
            memcpy((uint8_t *)data + done, span->host + offset, n);
        else if (kind == COPY_IN)
            memcpy(span->host + offset, (const uint8_t *)data + done, n);
        else
            memset(span->host + offset, 0, n);
        if (kind != COPY_OUT)
            guest_mem_written(mem, span->gpa + offset, n);
        done += n;
        offset = 0;
    }
    return done;
}

uint32_t virtq_chain_read(const struct virtq_chain *chain, uint32_t offset, void *data, uint32_t bytes)
{
    return copy(NULL, chain, offset, data, bytes, COPY_OUT);
}

uint32_t virtq_chain_write(const struct guest_mem *mem, const struct virtq_chain *chain, uint32_t offset,
                           const void *data, uint32_t bytes)
{
    return copy(mem, chain, offset, (void *)data, bytes, COPY_IN);
}

uint32_t virtq_chain_zero(const struct guest_mem *mem, const struct virtq_chain *chain, uint32_t offset,
                          uint32_t bytes)
{
    return copy(mem, chain, offset, NULL, bytes, COPY_ZERO);
}
