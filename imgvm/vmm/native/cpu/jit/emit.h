/* SPDX-License-Identifier: MIT */
/* A block being translated: what translate.c, memory.c, flags.c and branch.c know of each other. */
#ifndef IMGVM_CPU_JIT_EMIT_H
#define IMGVM_CPU_JIT_EMIT_H

#include "shape.h"
#include "translate.h"

#define CPU(field) ((uint32_t)offsetof(struct cpu, field))
#define COLD_MAX (4 * BLOCK_MAX_INSNS)
#define GROUPS LEADS
#define NO_RECIPE (-1)
#define ALL_REGISTERS 0xffffu

/* Where the guest's status flags are. More than one may be true; none: nobody will ask before they are overwritten. */
struct flag_state {
    bool in_eflags;
    bool in_cc;  /* cpu->cc */
    int recipe;  /* the instruction that made them; running it again, or its like, makes them again */
};

enum cold_kind {
    COLD_ACCESS,   /* an access slot missed */
    COLD_LIMIT,    /* an operand is not inside of its segment, or takes a closer look; or a trial's window is over */
    COLD_UNIT,     /* a vector unit is not there, or does not hold the guest's state */
    COLD_EXECUTOR, /* the instruction is its executor's after all */
    COLD_TRAP,     /* the same, reached by a trap of the host at `pc` */
    COLD_POLL,     /* something wants a look before the instruction */
    COLD_EXIT,     /* the stub of an exit */
    COLD_STACK,    /* calls are nested too deeply on the host's stack */
    COLD_JUMP,     /* a computed jump whose target is not in the table */
    COLD_RETURN,   /* a return that does not pair with the last call */
    COLD_TAIL,     /* the rest of an exit that is itself hot: that of a call's return */
};

/* What a check of an address is about. */
struct check {
    unsigned bytes;    /* that are to lie in one page, from the lowest address on */
    bool write;
    bool group;        /* others lean on it */
    enum pages pages;
    bool trial;        /* its accesses are counted */
    bool adds;         /* the addend is added to T0, else it is in T1 */
    bool remade;       /* T0 is not the address any more when it has missed, nor expected to be */
    bool of_page;      /* `done` is where the slot is looked into */
    unsigned slot;     /* the first of them */
    int64_t low;       /* displacement of the lowest address */
    uint32_t lead;     /* where the addend is kept for a group whose slot is not one */
};

struct cold {
    enum cold_kind kind;
    uint8_t *patch;    /* rel32 of the jump here */
    uint8_t *pc;
    uint8_t *done;     /* COLD_ACCESS: the slot is filled, and T0 holds the host address; COLD_STACK, COLD_UNIT: where to go on */
    uint8_t *resume;   /* after the instruction; NULL: it ends the block */
    unsigned index;
    struct flag_state flags; /* when control came here */
    bool restore;      /* the hot path expects the flags in EFLAGS at `resume` */
    uint32_t held;     /* ... and this addend in T1; 0: none */
    struct check check; /* COLD_ACCESS, of */
    struct insn in;     /* this operand */
    bool group;        /* COLD_ACCESS, COLD_LIMIT: others lean on this check */
    unsigned exit;     /* COLD_EXIT, COLD_TAIL, to */
    uint64_t target;
    int32_t moved_rsp; /* COLD_RETURN: to be taken back before the executor runs */
    bool rcx_in_t1;    /* COLD_POLL */
    bool uncounted;    /* COLD_POLL: the block's instructions have not been counted yet */
};

/* Accesses by the same registers, checked together: [low, high) of base + index * scale, as they were when `anchor` was. */
struct group {
    bool valid, write;
    uint8_t base, index, scale, segment, asize;
    int64_t base_moved; /* e->moved[base] then */
    int64_t low, high;  /* displacements */
    unsigned slot;
    uint32_t addend; /* where in struct cpu */
};

struct emitter {
    struct assembler a;
    struct cpu *cpu;
    struct translator *jit;
    struct block *block;
    uint64_t rip;
    uint64_t page;     /* of it */
    bool in_page;      /* other pages may ask for cpu->code_page: ring 3 of 64-bit mode */
    bool code64;
    uint64_t rip_mask;
    uint32_t code_limit; /* outside 64-bit mode: CS's */
    unsigned bank;
    struct flag_state flags;
    struct plan plans[BLOCK_MAX_INSNS];
    uint16_t wanted[BLOCK_MAX_INSNS + 1]; /* status flags that something at or after instruction i can see */
    bool wants_poll;
    bool read_tsc; /* the block has an RDTSC so far */
    unsigned fpu_units; /* OPA_X87..., checked so far and nothing since has taken them away */
    struct group groups[GROUPS];
    unsigned next_group;
    uint32_t held;           /* the addend (offset in struct cpu) that T1 holds ... */
    const uint8_t *held_at;  /* ... if nothing has been emitted behind this */
    /* A block that jumps back to its own start has its body twice: see put_loop. */
    bool loops;
    uint8_t *loop_head;  /* of the second; NULL: this is the first */
    uint8_t *loop_patch; /* rel32 of the first's jump there */
    struct flag_state loop_flags;
    int64_t moved[16]; /* by how much adds of constants have moved each register */
    struct cold cold[COLD_MAX];
    unsigned colds;
};

static inline const struct uop *emit_uop(const struct emitter *e, unsigned i)
{
    return &e->block->uops[i];
}

/* Pinned registers have the guest's number; RSP is in r13, and R13-R15 are in memory. AH..BH (16..19) are 4..7, as without
 * a REX prefix. */
static inline unsigned host_register(unsigned guest)
{
    return guest == RSP ? H_R13 : guest >= 16 ? guest - 12 : guest >= 13 ? NO_REG : guest;
}

static inline void load_temp(struct emitter *e, unsigned temp, unsigned guest)
{
    op_cpu(&e->a, OPCW(0x8b), temp, CPU(gpr) + 8 * guest);
}

static inline void store_temp(struct emitter *e, unsigned temp, unsigned guest)
{
    op_cpu(&e->a, OPCW(0x89), temp, CPU(gpr) + 8 * guest);
}

/* The register's host register, or `temp` with its value. */
static inline unsigned fetch_register(struct emitter *e, unsigned guest, unsigned temp)
{
    unsigned r = host_register(guest);
    if (r == NO_REG)
        load_temp(e, r = temp, guest);
    return r;
}

/* The register := what RIP is in the block, or near it. */
static inline void emit_rip(struct emitter *e, unsigned reg, uint64_t rip)
{
    if (!e->block->floats) {
        mov_imm64(&e->a, reg, rip);
        return;
    }
    op_cpu(&e->a, OPCW(0x8b), reg, CPU(code_page));
    if (rip != e->page)
        op_rm(&e->a, OPCW(0x8d), reg, reg, (int32_t)(rip - e->page));
}

/* A way that leads out of the hot path at instruction i, with the flags where they are now. */
struct cold *emit_cold(struct emitter *e, enum cold_kind kind, unsigned i);

/* ---- flags.c ---- */

/* `shown_first`: the flags can be seen before the first instruction, whatever it is. */
void flags_analyse(struct emitter *e, bool shown_first);
uint16_t flags_killed(const struct uop *u);
/* EFLAGS are about to be lost. */
void flags_yield(struct emitter *e, unsigned i);
/* Around the code of instruction i, which writes these guest registers (bits) and perhaps no flags. */
void flags_before_change(struct emitter *e, unsigned i, unsigned written);
void flags_after_change(struct emitter *e, unsigned written);
/* flags_to_eflags will be called while T0 holds a memory operand. */
void flags_before_operand(struct emitter *e);
void flags_to_eflags(struct emitter *e);
void flags_to_cc(struct emitter *e);
/* The same from a state other than the current one, which stays as it is. */
void flags_to_cc_from(struct emitter *e, const struct flag_state *state);
/* Instruction i has set EFLAGS. */
void flags_made(struct emitter *e, unsigned i);
void flags_restore(struct emitter *e);

/* ---- check.c ---- */

/* The check of r, for so many bytes, after what has been learnt (uop.pages); `low`, `group` and `lead` are the caller's. */
struct check check_of(struct emitter *e, const struct reference *r, unsigned bytes, unsigned learnt);
/* Before T0 is made. */
void check_begin(struct emitter *e, unsigned i, const struct check *check);
/* May check_put_direct make the address itself? Its place has T1 in it, and T0 is left alone or lost. */
bool check_is_direct(const struct emitter *e, const struct insn *in, bool keep_t1);
struct place check_put_direct(struct emitter *e, unsigned i, const struct insn *in, struct check *check);
/* Is it relative to RIP in code that floats, in one page for certain? Then this makes the address itself. T1 is lost. */
bool check_is_of_page(const struct emitter *e, const struct insn *in, const struct check *check);
struct place check_put_of_page(struct emitter *e, unsigned i, const struct insn *in, struct check *check);
/* T0: in's linear address, with check->low for displacement -> its place in the host's memory. T1 may be part of it unless
 * `keep_t1`, and is lost. */
struct place check_put(struct emitter *e, unsigned i, const struct insn *in, struct check *check, bool keep_t1);
/* Where a group finds the addend. */
uint32_t check_addend(const struct emitter *e, const struct check *check);
/* The way when it missed: to where it goes on, or to what follows here, if it takes the executor. */
void check_cold(struct emitter *e, const struct cold *cold);

/* ---- memory.c ---- */

/* Where instruction i finds its memory operand (plan.memory) in the host's memory. T1 may be part of the place unless
 * `keep_t1`. */
struct place memory_operand(struct emitter *e, unsigned i, bool keep_t1);
/* The element of a string of bits that its index (in->reg) names. T1 is not part of the place. */
struct place memory_bit_string(struct emitter *e, unsigned i);
/* The same for what instruction i pushes, when that is not the plan's operand; T1 is not part of it. */
struct place memory_push(struct emitter *e, unsigned i);
/* T0 := base + index * scale + disp: an offset in its segment, of the address size's bits. T1 is lost if the index is in memory. */
void memory_offset(struct emitter *e, const struct insn *in, int64_t disp);
/* The stack pointer moves; `temp` is lost if it is SP. */
void memory_move_stack(struct emitter *e, int32_t by, unsigned temp);
/* Registers have changed: by a constant, or anyhow. */
void memory_moved(struct emitter *e, unsigned reg, int64_t by);
void memory_changed(struct emitter *e, unsigned registers);
void memory_forget(struct emitter *e);
/* What was emitted from `start` on has left T1 alone, or made it the addend. */
void memory_keep_addend(struct emitter *e, const uint8_t *start);
/* Behind an executor: back to cold->resume, with all that is expected there. */
void memory_resume(struct emitter *e, const struct cold *cold);
/* The rest of instruction i's way when its slot missed. */
void memory_cold(struct emitter *e, const struct cold *cold);

/* ---- branch.c ---- */

/* Does the block end with a conditional jump to its start? */
bool branch_loops(const struct emitter *e);
/* Outside 64-bit mode: may the jump of instruction i be taken, or is that beyond the code segment's limit? */
bool branch_stays_inside(const struct emitter *e, unsigned i);
/* Everything that ends a block. */
void branch_emit(struct emitter *e, unsigned i);
/* A conditional jump with which the block does not end. */
void branch_aside(struct emitter *e, unsigned i);
/* After the last instruction of a block that has no branch. */
void branch_fall_through(struct emitter *e);
bool branch_wants_poll(const struct emitter *e);
/* Looks whether something wants a look before instruction i. */
void branch_poll(struct emitter *e, unsigned i);
/* So many of the block's instructions will not run after all. */
void branch_uncount(struct emitter *e, unsigned not_run);
void branch_cold(struct emitter *e, const struct cold *cold);
/* Out of the block to `target`, here and now; flags are in cpu->cc. */
void branch_exit_here(struct emitter *e, uint64_t target);

/* ---- time.c ---- */

/* RDTSC, RDTSCP */
void time_read(struct emitter *e, unsigned i);
/* LFENCE */
void time_fence(struct emitter *e);

/* ---- translate.c ---- */

/* Runs instruction i by its executor; flags are in cpu->cc before and after. */
void emit_call_executor(struct emitter *e, unsigned i);

static inline void emit_set_resume(struct emitter *e, unsigned first)
{
    for (unsigned k = first; k < e->colds; k++) {
        e->cold[k].resume = e->a.p;
        e->cold[k].restore = e->flags.in_eflags;
        e->cold[k].held = e->held_at == e->a.p ? e->held : 0;
    }
}

#endif
