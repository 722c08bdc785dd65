/* SPDX-License-Identifier: MIT */
/* The ABI of imgvm's native core. cffi reads this very file: declarations and plain integer
 * #defines only. Fallible calls return 0 (or a count) or -errno and describe themselves in
 * *err. No call needs the Python interpreter; none exits or aborts the process. */
#ifndef IMGVM_API_H
#define IMGVM_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IMGVM_ABI 1

typedef struct {
    int code; /* -errno */
    char message[480];
    char hint[240];
} imgvm_error;

int imgvm_abi(void);

/* ---- many small files (base/) ---- */

typedef struct {
    uint64_t name; /* where its path begins in `names`; UINT64_MAX: it is in the open file `fd` */
    int64_t fd;
    uint64_t offset, bytes;
    uint64_t file_bytes; /* UINT64_MAX, or what the file's length must be */
} imgvm_piece;

/* Reads pieces of files one behind the other into `out`. Symbolic links are not followed. Returns how many were read whole
 * before one was not, which is left to the caller to look at. */
uint32_t imgvm_read_pieces(const char *names, const imgvm_piece *pieces, uint32_t count, void *out);

/* The hash of a name in a directory of ext4: major and minor. */
void imgvm_ext4_name_hash(const uint32_t seed[4], const uint8_t *name, uint32_t bytes, uint32_t out[2]);

/* ---- qcow2 images (block/) ---- */

typedef struct imgvm_image imgvm_image;

#define IMGVM_IMAGE_READ_ONLY 0
#define IMGVM_IMAGE_READ_WRITE 1
#define IMGVM_IMAGE_KEEP_TO_FOLDER 2 /* added: -EPERM when a backing file lies outside its image's folder */

#define IMGVM_IMAGE_REPAIR 4 /* read and write, for imgvm_image_repair: also an image that is marked corrupt */

#define IMGVM_IMAGE_RAW 8 /* added: a raw disk, whatever is in it */

#define IMGVM_IMAGE_KEEP_BELOW 16 /* added: as KEEP_TO_FOLDER, for the files below; its own backing file may be anywhere */

#define IMGVM_CHECK_LEAKS 1
#define IMGVM_CHECK_CORRUPT 2

typedef struct {
    uint32_t version;      /* qcow2: 2 or 3; raw: 0 */
    uint32_t cluster_bytes;
    uint64_t disk_bytes;   /* what the guest sees */
    uint64_t file_bytes;
    uint32_t snapshots;
    uint64_t incompatible, compatible, autoclear; /* feature bits */
    char backing_file[1024];
} imgvm_image_info;

typedef struct {
    char id[64], name[256];
    uint64_t disk_bytes, vm_state_bytes;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_ns;
} imgvm_snapshot_info;

/* cluster_bytes 0 means 65536. Fails with -EEXIST rather than overwrite. */
int imgvm_image_create(const char *path, uint64_t disk_bytes, uint32_t cluster_bytes, imgvm_error *err);
/* Zero, false, NULL and "" are the defaults. A data file is made with the image, a backing file must be there; both names
 * are relative to the image. */
typedef struct {
    uint64_t disk_bytes;
    uint32_t cluster_bytes, version, refcount_bits; /* 65536, 3, 16 */
    bool extended_l2, lazy_refcounts, zstd, data_file_raw;
    const char *backing_file, *backing_format, *data_file;
} imgvm_image_options;
int imgvm_image_create_with(const char *path, const imgvm_image_options *options, imgvm_error *err);
int imgvm_image_open(const char *path, int mode, imgvm_image **out, imgvm_error *err);
/* A new image at `path` in which only what differs from `below` is kept; the file does not say so: it is of use with this
 * handle alone. `below`, an image or a further disk of one, stays its owner's, who closes it later. */
int imgvm_image_lay_over(imgvm_image *below, const char *path, imgvm_image **out, imgvm_error *err);
/* Flushes; the handle is gone whatever is returned. */
int imgvm_image_close(imgvm_image *image, imgvm_error *err);
int imgvm_image_get_info(imgvm_image *image, imgvm_image_info *out);
int imgvm_image_read(imgvm_image *image, uint64_t offset, void *data, uint64_t bytes, imgvm_error *err);
int imgvm_image_write(imgvm_image *image, uint64_t offset, const void *data, uint64_t bytes, imgvm_error *err);
/* The range reads as zeros afterwards; with give_back the host gets the space. */
int imgvm_image_zero(imgvm_image *image, uint64_t offset, uint64_t bytes, bool give_back, imgvm_error *err);
/* Nobody needs the range: what gives space back reads as zeros, the rest stays. */
int imgvm_image_discard(imgvm_image *image, uint64_t offset, uint64_t bytes, imgvm_error *err);
/* 1 when *run bytes from offset on are known to be zeros, 0 when they may be anything. */
int imgvm_image_extent(imgvm_image *image, uint64_t offset, uint64_t bytes, uint64_t *run, imgvm_error *err);
int imgvm_image_flush(imgvm_image *image, imgvm_error *err);
/* Has the host begin to write what its page cache holds of the file; a flush that comes later has less to do. */
void imgvm_image_write_out(imgvm_image *image);
/* Smaller: what lies behind the new end is gone. Larger: the new part reads as zeros. */
int imgvm_image_resize(imgvm_image *image, uint64_t disk_bytes, imgvm_error *err);
int imgvm_image_snapshot(imgvm_image *image, uint32_t index, imgvm_snapshot_info *out, imgvm_error *err);
typedef struct {
    const void *data; /* the machine's state; NULL and 0: a disk-only snapshot */
    uint64_t bytes;
    uint64_t vm_clock_ns;
    uint32_t date_sec, date_nsec;
} imgvm_snapshot_state;
int imgvm_image_snapshot_create(imgvm_image *image, const char *name, const imgvm_snapshot_state *state,
                                imgvm_error *err);
/* The disk becomes the snapshot's, in content and size. */
int imgvm_image_snapshot_apply(imgvm_image *image, uint32_t index, imgvm_error *err);
int imgvm_image_snapshot_delete(imgvm_image *image, uint32_t index, imgvm_error *err);
/* A part of the snapshot's disk, or of its machine's state. */
int imgvm_image_snapshot_read(imgvm_image *image, uint32_t index, bool state, uint64_t offset, void *data,
                              uint64_t bytes, imgvm_error *err);
/* As imgvm_image_extent, of the snapshot's disk. */
int imgvm_image_snapshot_extent(imgvm_image *image, uint32_t index, uint64_t offset, uint64_t bytes, uint64_t *run,
                                imgvm_error *err);
/* Whole clusters (or up to the disk's end), compressed as the image's header says. */
int imgvm_image_write_compressed(imgvm_image *image, uint64_t offset, const void *data, uint64_t bytes,
                                 uint32_t threads, imgvm_error *err);
/* Gives leaked clusters back; with `all`, also makes refcounts true and cuts references that lead nowhere, whose data is
 * lost then. The image was opened with IMGVM_IMAGE_REPAIR. */
int imgvm_image_repair(imgvm_image *image, bool all, imgvm_error *err);
/* flags: IMGVM_CHECK_* bits found; counts of leaked clusters and of corruptions. */
int imgvm_image_check(imgvm_image *image, uint64_t *leaks, uint64_t *corruptions, imgvm_error *err);

/* Further disks in the same file (docs/image-format.md), each with a handle of its own that is closed before the image's. It
 * reads, writes, zeroes, discards, flushes, and makes and applies snapshots; the rest is for the image's handle. In an overlay a disk is laid over the one
 * below it. */
int imgvm_image_add_disk(imgvm_image *image, const char *name, uint64_t disk_bytes, uint32_t date_sec, imgvm_error *err);
/* Disk number `index` of those in the image and in what is below it; -ENOENT behind the last. */
int imgvm_image_disk_name(imgvm_image *image, uint32_t index, char *name, uint32_t name_size, imgvm_error *err);
int imgvm_image_open_disk(imgvm_image *image, const char *name, imgvm_image **out, imgvm_error *err);

/* The embedded configuration (docs/image-format.md): an index of named blobs in snapshot
 * `imgvm.config`. Writing replaces the whole set atomically. -ENOENT when the image has none. */
typedef struct {
    char name[64];
    uint64_t bytes;
    uint8_t sha256[32];
} imgvm_blob_info;

typedef struct imgvm_payload imgvm_payload; /* a set of blobs being collected */
int imgvm_payload_new(imgvm_payload **out, imgvm_error *err);
int imgvm_payload_add(imgvm_payload *payload, const char *name, const void *data, uint64_t bytes, imgvm_error *err);
void imgvm_payload_free(imgvm_payload *payload);
int imgvm_image_set_config(imgvm_image *image, const imgvm_payload *payload, uint32_t date_sec, imgvm_error *err);
int imgvm_image_config_count(imgvm_image *image, uint32_t *count, imgvm_error *err);
int imgvm_image_config_info(imgvm_image *image, uint32_t index, imgvm_blob_info *out, imgvm_error *err);
/* Reads and verifies one blob (its SHA-256); `bytes` must be the blob's size. */
int imgvm_image_config_read(imgvm_image *image, uint32_t index, void *data, uint64_t bytes, imgvm_error *err);

/* ---- virtual machines (machine/) ---- */

typedef struct imgvm_vm imgvm_vm;

#define IMGVM_ENGINE_KVM 1
#define IMGVM_ENGINE_INTERP 2
#define IMGVM_ENGINE_JIT 3

#define IMGVM_DEBUG_EXIT_NONE 0
#define IMGVM_DEBUG_EXIT_RAW 1  /* status = value written */
#define IMGVM_DEBUG_EXIT_QEMU 2 /* status = (value << 1) | 1 */

typedef struct {
    uint32_t abi;          /* IMGVM_ABI */
    uint32_t engine;       /* IMGVM_ENGINE_* */
    uint32_t cpus;
    uint64_t memory_bytes; /* multiple of 4096 */
    uint32_t debug_exit;   /* IMGVM_DEBUG_EXIT_* */
    uint16_t debug_exit_port;
    bool entropy;          /* a virtio-rng device */
    bool firmware_shadow;  /* for a firmware that is not ours: C0000h to FFFFFh is RAM that it may keep data in */
    bool reset_is_exit;    /* a guest's reset ends the run (exit.on_reboot: exit) */
    int64_t rtc_offset_sec; /* added to the host's UTC for the CMOS clock */
    const char *cpu_model;    /* portable, x86-64, x86-64-v2, x86-64-v3; host or NULL: all that the engine has */
    const char *cpu_features; /* "+name -name ...", names as in /proc/cpuinfo; or NULL. -ENOTSUP: not to be had here */
    bool count; /* IMGVM_ENGINE_JIT: translated code counts its instructions (slower); the interpreter always does */
    bool lockstep; /* IMGVM_ENGINE_JIT, one processor: the interpreter checks every block; a difference ends the run */
    const char *cpu_vendor;   /* intel, amd; auto or NULL: the host's with model host, else intel */
    const char *trace; /* kinds of events, with commas between (base/trace.h), of which each is a line on trace_fd; or NULL */
    int trace_fd;
    int perf_map_fd; /* IMGVM_ENGINE_JIT: an open /tmp/perf-PID.map, where translated code is named for Linux perf; 0: none */
} imgvm_vm_config;

#define IMGVM_UNCOUNTED 0xffffffffffffffff
#define IMGVM_REASON_RUNNING 0
#define IMGVM_REASON_POWEROFF 1     /* ACPI S5 */
#define IMGVM_REASON_DEBUG_EXIT 2   /* status: the mapped value */
#define IMGVM_REASON_RESET 3        /* reset, and reset_is_exit */
#define IMGVM_REASON_TRIPLE_FAULT 4 /* message says where */
#define IMGVM_REASON_PANIC 5        /* the guest reported a panic */
#define IMGVM_REASON_STOPPED 6      /* imgvm_vm_stop or the console's escape */
#define IMGVM_REASON_INTERNAL 7     /* a bug or a limit of ours; message says what */
#define IMGVM_REASON_EXEC 8         /* the packed init reported its command's status */

typedef struct {
    uint32_t reason;
    uint32_t status;
    /* executed by the software processor; under KVM, in its hand-overs; IMGVM_UNCOUNTED: with the translator, unless
     * imgvm_vm_config.count asks for it */
    uint64_t instructions;
    uint64_t handovers;    /* times that KVM could not go on and the software processor did */
    uint64_t run_ns;       /* from start to end */
    char message[4000];
    uint64_t disk_errors;   /* requests of the guest's first faulty disk that failed on the host's side */
    char disk_message[480]; /* the first one */
} imgvm_result;

/* 0 when the engine can run here; else -errno and err says why (absent, no permission, ...). */
int imgvm_engine_probe(uint32_t engine, imgvm_error *err);

/* Whether imgvm_vm_config.trace may be this. */
int imgvm_trace_check(const char *kinds, imgvm_error *err);
int imgvm_vm_create(const imgvm_vm_config *config, imgvm_vm **out, imgvm_error *err);
void imgvm_vm_destroy(imgvm_vm *vm); /* stops it first */
#define IMGVM_CACHE_WRITEBACK 0    /* safe when the guest has flushed */
#define IMGVM_CACHE_WRITETHROUGH 1 /* safe when written: the guest is told that there is nothing to flush */
#define IMGVM_CACHE_UNSAFE 2       /* safe at the end of the run: flushes are answered and not done */

/* The vm borrows the image until it is destroyed. Disks appear as virtio-blk in order of addition. */
int imgvm_vm_add_disk(imgvm_vm *vm, imgvm_image *image, bool read_only, const char *serial, uint32_t cache,
                      imgvm_error *err);
/* 64-bit Linux boot protocol: kernel is an ELF vmlinux or a bzImage; initrd may be NULL. */
int imgvm_vm_load_linux(imgvm_vm *vm, const void *kernel, uint64_t kernel_bytes, const void *initrd,
                        uint64_t initrd_bytes, const char *cmdline, imgvm_error *err);
/* Multiboot 1: modules are added before; their strings are copied. */
int imgvm_vm_add_module(imgvm_vm *vm, const void *data, uint64_t bytes, const char *cmdline, imgvm_error *err);
int imgvm_vm_load_multiboot(imgvm_vm *vm, const void *kernel, uint64_t kernel_bytes, const char *cmdline,
                            imgvm_error *err);
#define IMGVM_BOOT_DISK 1  /* the boot sector of a disk */
#define IMGVM_BOOT_CDROM 2 /* El Torito, of a disk that holds an ISO image */

/* A BIOS of whole pages, at most 256 KiB. `order` (IMGVM_BOOT_*) is for the built-in one alone. */
int imgvm_vm_load_firmware(imgvm_vm *vm, const void *rom, uint64_t rom_bytes, const uint8_t *order, uint32_t order_count,
                           imgvm_error *err);
/* Serial console: bytes of input_fd go to the guest (-1: none), the guest's to output_fd. escape is
 * the prefix byte (1 = ctrl-a; 0 = none) whose `x` ends the run. The vm does not own the descriptors. */
int imgvm_vm_set_console(imgvm_vm *vm, int input_fd, int output_fd, uint8_t escape, imgvm_error *err);
/* Waits for gdb at HOST:PORT, PORT (loopback) or unix:PATH; where is told the address taken. Once started, the machine
 * stands at its first instruction until gdb lets it go. */
int imgvm_vm_set_gdb(imgvm_vm *vm, const char *address, char *where, uint32_t where_size, imgvm_error *err);
int imgvm_vm_start(imgvm_vm *vm, imgvm_error *err);
/* Waits at most timeout_ms (-1: for ever). 1 when the run has ended and *out is filled, 0 on timeout. */
int imgvm_vm_wait(imgvm_vm *vm, int timeout_ms, imgvm_result *out);
/* What was counted until the run ended (docs/debugging.md). Fills at most `most`; returns how many there are, 0 while the
 * machine still runs. */
typedef struct {
    char group[24];
    char name[40];
    uint64_t value;
} imgvm_count;
uint32_t imgvm_vm_counts(imgvm_vm *vm, imgvm_count *out, uint32_t most);
void imgvm_vm_power_button(imgvm_vm *vm);
void imgvm_vm_stop(imgvm_vm *vm);

/* ---- a processor by itself, with RAM from address 0 (machine/processor.c) ---- */

typedef struct imgvm_processor imgvm_processor;

#define IMGVM_STOP_STEPS 1      /* the instructions asked for are done */
#define IMGVM_STOP_BREAKPOINT 2 /* before the instruction at `address` */
#define IMGVM_STOP_WATCHPOINT 3 /* behind the instruction that touched `address` */
#define IMGVM_STOP_HALT 4
#define IMGVM_STOP_SHUTDOWN 5 /* triple fault */
#define IMGVM_STOP_TIMEOUT 6
#define IMGVM_STOP_ASKED 7    /* imgvm_processor_stop */
#define IMGVM_STOP_INTERNAL 8 /* a bug or a limit of ours; message says what */
#define IMGVM_STOP_EXCEPTION 9 /* one that is reported (imgvm_processor_report_exceptions) */

#define IMGVM_POINT_EXECUTE 1
#define IMGVM_POINT_WRITE 2
#define IMGVM_POINT_READ 4

typedef struct {
    uint32_t reason; /* IMGVM_STOP_* */
    uint32_t kinds;  /* of access, at a watchpoint */
    uint64_t address;
    uint64_t instructions; /* of this run; under KVM those that were stepped */
    uint32_t vector, error_code; /* of the exception */
    bool has_error_code;
    char message[480];
} imgvm_stop;

typedef struct {
    uint32_t abi;          /* IMGVM_ABI */
    uint32_t engine;       /* IMGVM_ENGINE_* */
    uint64_t memory_bytes; /* multiple of 4096 */
    const char *cpu_model, *cpu_features, *cpu_vendor; /* as in imgvm_vm_config */
} imgvm_processor_config;

/* `bytes` of a register from its byte `first` on. `clears`: written, it clears the rest, as EAX does that of RAX. */
typedef struct {
    uint16_t index; /* imgvm_processor_register's */
    uint8_t first, bytes;
    bool clears;
} imgvm_register_part;

/* What the processor did to a port, or to an address where it has no memory. */
typedef struct {
    uint64_t address, value;
    uint32_t size;
    bool is_port, is_write;
} imgvm_access;

int imgvm_processor_create(const imgvm_processor_config *config, imgvm_processor **out, imgvm_error *err);
void imgvm_processor_destroy(imgvm_processor *processor);
/* To the power-on state; memory stays. */
int imgvm_processor_reset(imgvm_processor *processor, imgvm_error *err);
/* Names of registers, by index; returns a register's bytes, or -ENOENT behind the last. */
int imgvm_processor_register(uint32_t index, const char **name);
/* Little-endian values; returns the register's bytes. Writing rip wakes a processor that halted or shut down. */
int imgvm_processor_get(imgvm_processor *processor, const char *name, uint8_t value[16], imgvm_error *err);
int imgvm_processor_set(imgvm_processor *processor, const char *name, const uint8_t value[16], imgvm_error *err);
/* Many at once, their bytes one behind the other in `values`. Written in order. */
int imgvm_processor_get_parts(imgvm_processor *processor, const imgvm_register_part *parts, uint32_t count, uint8_t *values,
                              imgvm_error *err);
int imgvm_processor_set_parts(imgvm_processor *processor, const imgvm_register_part *parts, uint32_t count,
                              const uint8_t *values, imgvm_error *err);
/* 16, 32 or 64: the code that runs; and the linear address of its next instruction. */
int imgvm_processor_code_bits(imgvm_processor *processor, uint64_t *linear_pc, imgvm_error *err);
int imgvm_processor_read(imgvm_processor *processor, uint64_t address, void *data, uint64_t bytes, bool physical,
                         imgvm_error *err);
int imgvm_processor_write(imgvm_processor *processor, uint64_t address, const void *data, uint64_t bytes, bool physical,
                          imgvm_error *err);
/* Single bytes, each at an address of its own. */
int imgvm_processor_peek(imgvm_processor *processor, const uint64_t *addresses, uint8_t *values, uint64_t count,
                         bool physical, imgvm_error *err);
int imgvm_processor_poke(imgvm_processor *processor, const uint64_t *addresses, const uint8_t *values, uint64_t count,
                         bool physical, imgvm_error *err);
/* From now on an exception ends the run in place of being delivered; -ENOTSUP under KVM. INT n, INT3 and INTO are
 * instructions, not exceptions. */
int imgvm_processor_report_exceptions(imgvm_processor *processor, bool report, imgvm_error *err);
/* Linear addresses. */
int imgvm_processor_add_point(imgvm_processor *processor, uint64_t address, uint64_t bytes, uint32_t kinds,
                              imgvm_error *err);
int imgvm_processor_remove_point(imgvm_processor *processor, uint64_t address, uint64_t bytes, uint32_t kinds,
                                 imgvm_error *err);
/* What a port reads as from now on; before that, all ones. */
int imgvm_processor_set_port(imgvm_processor *processor, uint16_t port, uint32_t value, imgvm_error *err);
/* false: bit 20 of every physical address that the processor makes is 0. */
void imgvm_processor_set_a20(imgvm_processor *processor, bool enabled);
/* The last accesses to ports and to nothing, oldest first, which are then forgotten (some 1000 are kept). */
uint32_t imgvm_processor_accesses(imgvm_processor *processor, imgvm_access *out, uint32_t room);
/* On the caller's thread. instructions 0: no limit; timeout_ms -1: none. A breakpoint where the last run stopped is
 * passed over. */
int imgvm_processor_run(imgvm_processor *processor, uint64_t instructions, int timeout_ms, imgvm_stop *out,
                        imgvm_error *err);
void imgvm_processor_stop(imgvm_processor *processor); /* from any thread */

/* One instruction as text. Returns its length, or 0 when there is none (text says why). bits: 16, 32, 64. */
int imgvm_disassemble(const void *code, uint64_t bytes, uint32_t bits, uint64_t address, char *text, uint32_t size);

#endif
