/* SPDX-License-Identifier: MIT */
/* Shared by gdb.c (sockets, stopping and going), gdb_packets.c (what is asked) and gdb_target.c (descriptions). */
#ifndef IMGVM_MACHINE_GDB_INTERNAL_H
#define IMGVM_MACHINE_GDB_INTERNAL_H

#include "gdb.h"
#include "inspect.h"
#include "registers.h"
#include "vm.h"

#define GDB_PACKET_BYTES 0x2000u /* told to gdb as PacketSize */
#define GDB_POINTS_MAX 1024u
#define GDB_SIGNAL_INT 2
#define GDB_SIGNAL_TRAP 5

enum gdb_go { GDB_HOLD, GDB_CONTINUE, GDB_STEP };

struct gdb_point {
    struct engine_point point;
    unsigned type; /* of Z: 0 software, 1 hardware, 2 write, 3 read, 4 access */
};

struct gdb {
    struct imgvm_vm *vm;
    int listen_fd, fd; /* -1: none */
    char unix_path[108];

    /* under vm.lock */
    bool held[ENGINE_CPUS_MAX];
    bool stopping;  /* the processors are on their way to be parked */
    unsigned stop_cpu;
    bool stop_is_point; /* stop_cpu came back by itself, else gdb asked */

    /* event loop only */
    bool stopped;   /* all are parked */
    bool reply_due; /* gdb waits for the next stop */
    uint64_t stopped_at_ns;
    unsigned cpu;       /* of Hg */
    unsigned continue_cpu; /* of Hc; UINT_MAX: all */
    unsigned bits, forced_bits; /* the description in use: 16, 32 or 64; 0: by what runs */
    bool physical, no_ack;
    struct gdb_point points[GDB_POINTS_MAX];
    unsigned point_count;

    uint8_t in[2 * GDB_PACKET_BYTES];
    size_t in_size;
    char out[2 * GDB_PACKET_BYTES + 16]; /* the last packet, for gdb's asking again */
    size_t out_size;
};

/* ---- gdb.c ---- */

/* Sends one packet; `data` may hold any bytes that need no escape. */
void gdb_send(struct gdb *gdb, const char *data, size_t size);
void gdb_send_text(struct gdb *gdb, const char *text);
void gdb_close(struct gdb *gdb);
/* Lets each processor do as `go` says. */
void gdb_resume(struct gdb *gdb, const enum gdb_go *go);
void gdb_resume_all(struct gdb *gdb);
int gdb_apply_points(struct gdb *gdb);

/* ---- gdb_packets.c ---- */

void gdb_packet(struct gdb *gdb, char *packet, size_t size);
void gdb_report_stop(struct gdb *gdb);

/* ---- gdb_monitor.c ---- */

void gdb_monitor(struct gdb *gdb, const char *command);

/* ---- gdb_target.c ---- */

struct gdb_register {
    char name[12];
    const char *type;
    const struct register_row *row;
    uint8_t bytes;
    const char *feature; /* where one begins */
};

#define GDB_REGISTERS_MAX 128
unsigned gdb_registers(unsigned bits, struct gdb_register *out);
/* Returns the text's length. */
size_t gdb_describe(unsigned bits, char *text, size_t size);

#endif
