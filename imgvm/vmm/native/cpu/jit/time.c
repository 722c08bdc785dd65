/* SPDX-License-Identifier: MIT */
/* RDTSC and RDTSCP, by the piece of the machine's clock that the executor has fetched last (base/clock_piece.h). */
#include "emit.h"

#define PIECE(field) (CPU(tsc_piece) + (uint32_t)offsetof(struct clock_piece, field))

static void put_lfence(struct assembler *a)
{
    PUT(a, 0x0f, 0xae);
    put8(a, 0xe8);
}

/* Time is not read before what precedes it, whether or not an LFENCE says so: most of those are nothing here. */
void time_fence(struct emitter *e)
{
    if (e->read_tsc)
        put_lfence(&e->a);
}

void time_read(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    e->read_tsc = true;
    flags_yield(e, i);
    op_cpu_imm(a, OPCW(0x83), ALU_CMP, PIECE(ticks), 1); /* may raise #GP, with RAX and RDX as they are */
    put8(a, 0);
    emit_cold(e, COLD_EXECUTOR, i)->patch = put_jcc(a, CC_EQUAL);
    put_lfence(a);
    PUT(a, 0x0f, 0x31); /* rdtsc */
    shift_imm(a, SHIFT_SHL, true, H_RDX, 32);
    op_rr(a, OPCW(0x09), H_RDX, H_RAX);
    op_cpu(a, OPCW(0x2b), H_RAX, PIECE(tsc));
    op_cpu(a, OPCW(0x3b), H_RAX, PIECE(ticks));
    emit_cold(e, COLD_EXECUTOR, i)->patch = put_jcc(a, CC_AE);
    op_cpu(a, OPCW(0xf7), 4, PIECE(slope)); /* mul: RDX has the product's upper half */
    op_cpu(a, OPCW(0x03), H_RDX, PIECE(ns));
    op_rr(a, OPC(0x89), H_RDX, H_RAX);
    shift_imm(a, SHIFT_SHR, true, H_RDX, 32);
    if (emit_uop(e, i)->in.op == OP_RDTSCP)
        op_cpu(a, OPC(0x8b), H_RCX, CPU(s.tsc_aux));
}
