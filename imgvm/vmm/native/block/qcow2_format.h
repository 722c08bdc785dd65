/* SPDX-License-Identifier: MIT */
/* The layout of qcow2 files, versions 2 and 3 (docs/image-format.md). All numbers are big-endian. */
#ifndef IMGVM_BLOCK_QCOW2_FORMAT_H
#define IMGVM_BLOCK_QCOW2_FORMAT_H

#include "../base/bits.h"

#define QCOW2_MAGIC 0x514649fbu /* "QFI\xfb" */

/* Header: cluster 0.
 *
 *     0        4         8                 16       20            24                32
 *     | magic  | version | backing offset  | backing| cluster bits| disk bytes      | crypt ...
 *    32        36        40                48                 56           60       64
 *     | crypt  | L1 size | L1 offset       | refcount table    | rt clusters| snaps | snapshots offset
 *    72                  80                88                 96            100      104        112
 *     | incompatible      | compatible      | autoclear        | ref. order | length | compression
 *    `------------------------- version 3 only, from 72 on ------------------------'
 */
#define HEADER_VERSION 4
#define HEADER_BACKING_OFFSET 8
#define HEADER_BACKING_BYTES 16
#define HEADER_CLUSTER_BITS 20
#define HEADER_DISK_BYTES 24
#define HEADER_CRYPT 32
#define HEADER_L1_ENTRIES 36
#define HEADER_L1_OFFSET 40
#define HEADER_REFCOUNT_TABLE_OFFSET 48
#define HEADER_REFCOUNT_TABLE_CLUSTERS 56
#define HEADER_SNAPSHOTS 60
#define HEADER_SNAPSHOTS_OFFSET 64
#define HEADER_INCOMPATIBLE 72
#define HEADER_COMPATIBLE 80
#define HEADER_AUTOCLEAR 88
#define HEADER_REFCOUNT_ORDER 96
#define HEADER_BYTES 100
#define HEADER_COMPRESSION 104

#define HEADER_V2_BYTES 72
#define HEADER_V3_BYTES_MIN 104
#define HEADER_V3_BYTES 112 /* what we write: with the compression type */

#define CRYPT_NONE 0
#define CRYPT_AES 1
#define CRYPT_LUKS 2

#define COMPRESSION_DEFLATE 0
#define COMPRESSION_ZSTD 1

/* Incompatible features: who does not know a set bit must not open the image. */
#define INCOMPATIBLE_DIRTY BIT(0)         /* refcounts may be stale (lazy refcounts) */
#define INCOMPATIBLE_CORRUPT BIT(1)       /* somebody found the metadata broken: read only */
#define INCOMPATIBLE_EXTERNAL_DATA BIT(2) /* data clusters live in another file */
#define INCOMPATIBLE_COMPRESSION BIT(3)   /* the compression type is not 0 */
#define INCOMPATIBLE_EXTENDED_L2 BIT(4)   /* L2 entries of 16 bytes, with subclusters */

#define COMPATIBLE_LAZY_REFCOUNTS BIT(0) /* a writer may leave refcounts stale while the dirty bit says so */

#define AUTOCLEAR_BITMAPS BIT(0)  /* the bitmaps extension is consistent with the data */
#define AUTOCLEAR_RAW_DATA BIT(1) /* the external data file is at all times the disk, as a raw file */

/* Header extensions follow the header: type (4), length (4), data, padding to 8. Type 0 ends them. */
#define EXTENSION_END 0x00000000u
#define EXTENSION_BACKING_FORMAT 0xe2792acau
#define EXTENSION_FEATURE_NAMES 0x6803f857u /* records of: kind (1), bit (1), name (46) */
#define EXTENSION_BITMAPS 0x23852875u
#define EXTENSION_DATA_FILE 0x44415441u /* name of the external data file */
#define EXTENSION_BASE_ID 0x494d4742u   /* "IMGB", imgvm's own: what an overlay was laid over (docs/image-format.md) */
#define BASE_ID_BYTES 32
#define FEATURE_NAME_RECORD_BYTES 48

/* L1 entry, refcount table entry:
 *
 *     63   62      56 55                                    9 8       0
 *     | C | reserved | offset of an L2 table / refcount block | reserved |      C only in L1
 *
 * L2 entry of a standard cluster:
 *
 *     63   62  61   56 55                                   9 8      1  0
 *     | C | 0 | resvd |  host offset (0: none)               | resvd  | Z |
 *
 * C: the refcount is exactly one, so it may be written in place. Z: reads as zero (version 3). In an external data
 * file every cluster has its place, offset 0 too: there C says that the entry has one.
 *
 * L2 entry of a compressed cluster, x = 62 - (cluster bits - 8):
 *
 *     63   62  61                 x  x-1                                  0
 *     | 0 | 1 | further sectors     | host offset, any byte               |
 *
 * Extended L2 entries (16 bytes, clusters of 16 KiB and more) go on with a bit map of the cluster's 32 subclusters; Z is
 * not used then:
 *
 *     63                      32 31                       0
 *     | subcluster reads as zero | subcluster is allocated |      neither: from the backing file
 */
#define ENTRY_COPIED BIT(63)
#define ENTRY_COMPRESSED BIT(62)
#define ENTRY_ZERO BIT(0)
#define ENTRY_OFFSET_MASK UINT64_C(0x00fffffffffffe00)
#define COMPRESSED_SECTOR_BYTES 512
#define SUBCLUSTERS 32u
#define EXTENDED_CLUSTER_BITS_MIN 14

/* A snapshot's record in the snapshot table, padded to 8 bytes. */
#define SNAPSHOT_L1_OFFSET 0
#define SNAPSHOT_L1_ENTRIES 8
#define SNAPSHOT_ID_BYTES 12
#define SNAPSHOT_NAME_BYTES 14
#define SNAPSHOT_DATE_SEC 16
#define SNAPSHOT_DATE_NSEC 20
#define SNAPSHOT_VM_CLOCK_NS 24
#define SNAPSHOT_VM_STATE_BYTES 32
#define SNAPSHOT_EXTRA_BYTES 36
#define SNAPSHOT_FIXED_BYTES 40
/* Extra data: the first three fields are qcow2's, further bytes are kept by everybody. */
#define EXTRA_VM_STATE_BYTES 0
#define EXTRA_DISK_BYTES 8
#define EXTRA_ICOUNT 16
#define EXTRA_KNOWN_BYTES 24

#define CLUSTER_BITS_MIN 9
#define CLUSTER_BITS_MAX 21
#define REFCOUNT_ORDER_MAX 6
/* Limits that QEMU enforces too, so that an image of ours always opens there. */
#define L1_BYTES_MAX (UINT64_C(32) << 20)
#define REFCOUNT_TABLE_BYTES_MAX (UINT64_C(8) << 20)
#define SNAPSHOTS_MAX 65536u
#define SNAPSHOT_TABLE_BYTES_MAX (UINT64_C(64) << 20)
#define SNAPSHOT_EXTRA_BYTES_MAX 1024u
#define BACKING_NAME_BYTES_MAX 1023u
#define HOST_OFFSET_MAX (UINT64_C(1) << 56)

/* The embedded configuration: a snapshot of this name whose extra data continues with
 *
 *    24        32        36         40                48               56
 *     | magic   | version | reserved | payload offset  | payload bytes  |
 *
 * and whose L1 table maps, at `payload offset` (where a VM state would be), the payload:
 *
 *     0         8         12       16              24         32                64
 *     | magic   | version | blobs  | payload bytes | reserved | SHA-256 of the   | index | blobs ...
 *                                                               rest of the head
 *                                                               and the index
 * with one record of 112 bytes a blob: name (64, NUL-padded), offset, bytes, SHA-256. */
#define CONFIG_SNAPSHOT_NAME "imgvm.config"
#define CONFIG_EXTRA_MAGIC "imgvmcfg"
#define CONFIG_EXTRA_BYTES 32
#define CONFIG_VERSION 1u
#define PAYLOAD_MAGIC "IMGVMCFG"
#define PAYLOAD_HEAD_BYTES 64
#define PAYLOAD_HASHED_HEAD_BYTES 32
#define PAYLOAD_RECORD_BYTES 112
#define PAYLOAD_NAME_BYTES 64
#define PAYLOAD_ALIGN 4096
#define PAYLOAD_BLOBS_MAX 1024u

/* A further disk of the machine: a snapshot whose name is the prefix and the disk's name, whose L1 table is the disk's, and
 * whose extra data continues with
 *
 *    24        32        36         40
 *     | magic   | version | reserved |
 */
#define DISK_SNAPSHOT_PREFIX "imgvm.disk."
#define DISK_EXTRA_MAGIC "imgvmdsk"
#define DISK_EXTRA_BYTES 16
#define DISK_VERSION 1u

#endif
