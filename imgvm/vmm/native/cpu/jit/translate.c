/* SPDX-License-Identifier: MIT */
/* From uops to host code. The integer core is re-encoded with renamed registers and checked memory operands; everything
 * else calls its executor. */
#include "translate.h"

#include "../exec/exec_select.h"
#include "shape.h"

#define CPU(field) ((uint32_t)offsetof(struct cpu, field))
#define ALL_FLAGS EFLAGS_STATUS
#define NO_REG 0xff
#define COLD_MAX (3 * BLOCK_MAX_INSNS)
#define ROOM 32768 /* bytes that one block may need at most */

_Static_assert(sizeof(struct tlb_entry) == 32, "the index is made by one shift");

struct cold {
    uint8_t *patch;   /* rel32 of the jump here; NULL: reached by a trap of the instruction at `pc` */
    uint8_t *pc;
    uint8_t *resume;  /* after the instruction */
    unsigned index;
    bool restore;     /* the hot path expects the flags in EFLAGS afterwards */
};

struct emitter {
    struct assembler a;
    struct cpu *cpu;
    struct translator *jit;
    struct block *block;
    uint64_t rip;
    bool flags; /* EFLAGS hold the guest's status flags */
    uint16_t live[BLOCK_MAX_INSNS + 1]; /* status flags wanted before instruction i */
    struct cold cold[COLD_MAX];
    unsigned colds;
};

static unsigned host_register(unsigned guest)
{
    return guest == RSP ? H_R13 : guest >= 13 ? NO_REG : guest;
}

static void load_temp(struct emitter *e, unsigned temp, unsigned guest)
{
    op_gs(&e->a, OPCW(0x8b), temp, CPU(gpr) + 8 * guest);
}

static void store_temp(struct emitter *e, unsigned temp, unsigned guest)
{
    op_gs(&e->a, OPCW(0x89), temp, CPU(gpr) + 8 * guest);
}

static void spill_flags(struct emitter *e)
{
    op_rr(&e->a, OPCW(0x89), H_RAX, T1);
    put8(&e->a, 0x9f);                                            /* lahf */
    put8(&e->a, 0x0f), put8(&e->a, 0x90), put8(&e->a, 0xc0);      /* seto al */
    op_gs(&e->a, (struct opcode){.code = 0x89, .prefix = 0x66}, H_RAX, CPU(cc));
    op_rr(&e->a, OPCW(0x89), T1, H_RAX);
}

static void restore_flags(struct emitter *e)
{
    op_rr(&e->a, OPCW(0x89), H_RAX, T1);
    op_gs(&e->a, OPC(0x0fb7), H_RAX, CPU(cc));
    put8(&e->a, 0x04), put8(&e->a, 0x7f); /* add al, 7fh: OF */
    put8(&e->a, 0x9e);                    /* sahf */
    op_rr(&e->a, OPCW(0x89), T1, H_RAX);
    e->flags = true;
}

static struct jit_site *make_site(struct emitter *e, unsigned index)
{
    struct jit_site *site = &e->jit->sites[e->jit->site_count++];
    site->u = e->block->uops[index];
    site->after = (struct uop){.fn = jit_continue};
    site->block = e->block;
    site->rip = e->rip;
    return site;
}

static void call_executor(struct emitter *e, unsigned index)
{
    mov_imm64(&e->a, T0, (uint64_t)make_site(e, index));
    put8(&e->a, 0xe8);
    const uint8_t *here = e->jit->executable + (e->a.p - e->jit->writable);
    put32(&e->a, (uint32_t)((const uint8_t *)e->jit->callout - (here + 4)));
}

static void jump_cold(struct emitter *e, unsigned condition, unsigned index)
{
    put8(&e->a, 0x0f);
    put8(&e->a, 0x80 | condition);
    put32(&e->a, 0);
    e->cold[e->colds++] = (struct cold){.patch = e->a.p - 4, .index = index};
}

static void set_resume(struct emitter *e, unsigned first, bool restore)
{
    for (unsigned i = first; i < e->colds; i++) {
        e->cold[i].resume = e->a.p;
        e->cold[i].restore = restore;
    }
}

/* T0 := linear address of the memory operand. */
static void put_address(struct emitter *e, const struct uop *u)
{
    struct assembler *a = &e->a;
    const struct insn *in = &u->in;
    if (in->base == INSN_REG_RIP) {
        mov_imm64(a, T0, e->rip + (uint64_t)(int64_t)in->disp);
    } else {
        unsigned base = NO_REG, index = NO_REG;
        if (in->base != INSN_REG_NONE) {
            base = host_register(in->base);
            if (base == NO_REG)
                load_temp(e, base = T0, in->base);
        }
        if (in->index != INSN_REG_NONE) {
            index = host_register(in->index);
            if (index == NO_REG)
                load_temp(e, index = T1, in->index);
        }
        if (base != NO_REG && index == NO_REG) {
            op_rm(a, OPCW(0x8d), T0, base, in->disp);
        } else if (base == NO_REG && index == NO_REG) {
            mov_imm64(a, T0, (uint64_t)(int64_t)in->disp);
        } else {
            struct opcode lea = OPCW(0x8d);
            put_rex(a, &lea, T0, index, base == NO_REG ? 0 : base);
            put8(a, 0x8d);
            put8(a, (base == NO_REG ? 0 : 0x80u) | (T0 & 7) << 3 | 4);
            put8(a, (unsigned)in->scale << 6 | (index & 7) << 3 | (base == NO_REG ? 5 : base & 7));
            put32(a, (uint32_t)in->disp);
        }
    }
    if (in->segment != INSN_SEG_FLAT)
        op_gs(a, OPCW(0x03), T0, CPU(seg_base) + 8 * in->segment);
}

/* T0: linear -> host address; the cold path runs instruction `index` by its executor. EFLAGS are lost. */
static void put_translation(struct emitter *e, unsigned size, bool write, unsigned index)
{
    struct assembler *a = &e->a;
    int32_t tag = write ? offsetof(struct tlb_entry, write_tag) : offsetof(struct tlb_entry, read_tag);
    op_rr(a, OPC(0x89), T0, T1);                                             /* mov r15d, r14d */
    put8(a, 0x41), put8(a, 0xc1), put8(a, 0xef), put8(a, 7);                 /* shr r15d, 7 */
    put8(a, 0x41), put8(a, 0x81), put8(a, 0xe7), put32(a, (TLB_ENTRIES - 1) << 5); /* and r15d */
    op_gs(a, OPCW(0x03), T1, CPU(tlb));
    op_rm(a, OPCW(0x33), T0, T1, tag);                                       /* xor r14, tag */
    put8(a, 0x49), put8(a, 0x81), put8(a, 0xfe), put32(a, GUEST_PAGE_SIZE - size); /* cmp r14 */
    jump_cold(e, 7, index);
    op_rm(a, OPCW(0x03), T0, T1, tag);
    op_rm(a, OPCW(0x03), T0, T1, offsetof(struct tlb_entry, addend));
    e->flags = false;
}

static void put_immediate(struct emitter *e, unsigned bytes, uint64_t value)
{
    for (unsigned i = 0; i < bytes; i++)
        put8(&e->a, (value >> (8 * i)) & 0xff);
}

/* ---- flags ---- */

static uint16_t flags_killed(const struct uop *u)
{
    const struct op_info *info = &op_infos[u->in.op];
    bool by_count = info->attributes & OPA_MAY_KEEP_FLAGS;
    bool fixed_count = u->in.form != FORM_RM_CL && u->in.form != FORM_RM_REG_CL;
    return by_count && !(fixed_count && (u->in.imm & (u->in.osize == 8 ? 63 : 31))) ? 0 : info->flags_written;
}

static void compute_liveness(struct emitter *e)
{
    unsigned n = e->block->count;
    e->live[n] = ALL_FLAGS;
    for (unsigned i = n; i-- > 0;) {
        const struct uop *u = &e->block->uops[i];
        if (!u->in.length) {
            e->live[i] = ALL_FLAGS;
            continue;
        }
        e->live[i] = (uint16_t)((e->live[i + 1] & ~flags_killed(u)) | op_infos[u->in.op].flags_read);
    }
}

/* May the code of this instruction destroy EFLAGS before it sets them itself? */
static bool loses_flags(const struct uop *u);

/* After instruction i wrote EFLAGS: are they wanted later than something that loses them? */
static bool must_spill(const struct emitter *e, unsigned i)
{
    unsigned n = e->block->count;
    for (unsigned j = i + 1; j < n; j++) {
        const struct uop *u = &e->block->uops[j];
        if (loses_flags(u))
            return true; /* even if nothing reads them: it may fault, and the image of EFLAGS is exact */
        if (op_infos[u->in.op].flags_written)
            return false; /* that one looks after them */
    }
    return e->live[n];
}

static bool canonical(uint64_t v) { return (uint64_t)((int64_t)(v << 16) >> 16) == v; }

static uint64_t branch_target(const struct emitter *e, const struct uop *u)
{
    return e->rip + u->next + u->in.imm;
}

static bool loses_flags(const struct uop *u)
{
    struct shape s;
    if (!u->in.length)
        return true;
    switch (special_of(u)) {
    case SPECIAL_LEA: case SPECIAL_NOP: case SPECIAL_MOV_IMM64: case SPECIAL_WIDEN: case SPECIAL_JCC: case SPECIAL_JMP:
        return false;
    case SPECIAL_NONE:
        return !shape_of(u, &s) || (u->in.flags & INSN_MEM);
    default:
        return true;
    }
}

/* ---- emission ---- */

static void put_shape(struct emitter *e, unsigned i, const struct shape *s)
{
    struct assembler *a = &e->a;
    const struct uop *u = &e->block->uops[i];
    const struct insn *in = &u->in;
    const struct op_info *info = &op_infos[in->op];
    bool mem = in->flags & INSN_MEM;
    uint16_t live_after = e->live[i + 1];
    unsigned first_cold = e->colds;
    if (mem) {
        put_address(e, u);
        put_translation(e, s->size, s->rm_written, i);
    }
    bool wants_flags = info->flags_read || (info->flags_written && (live_after & ~flags_killed(u)));
    if (wants_flags && !e->flags)
        restore_flags(e);
    unsigned reg = s->reg, rm = T0;
    if (!s->digit) {
        reg = host_register(s->reg);
        if (reg == NO_REG) {
            reg = T1;
            if (s->reg_read)
                load_temp(e, T1, s->reg);
        }
    }
    if (!mem) {
        rm = host_register(in->rm);
        if (rm == NO_REG) {
            rm = T0;
            if (s->rm_read)
                load_temp(e, T0, in->rm);
        }
        op_rr(a, s->op, reg, rm);
    } else {
        op_rm(a, s->op, reg, T0, 0);
    }
    put_immediate(e, s->immediate, in->imm);
    if (!s->digit && reg == T1 && s->reg_written)
        store_temp(e, T1, s->reg);
    if (!mem && rm == T0 && s->rm_written)
        store_temp(e, T0, in->rm);
    if (info->flags_written) {
        e->flags = true;
        set_resume(e, first_cold, true);
        if (must_spill(e, i))
            spill_flags(e);
    } else {
        set_resume(e, first_cold, e->flags);
    }
}

/* ---- rows that run as themselves ---- */

_Static_assert(offsetof(struct cpu, fpu_live) == offsetof(struct cpu, fpu_ready) + 1, "compared as one word");

static bool writes_memory(const struct uop *u)
{
    return (op_infos[u->in.op].attributes & (OPA_MEM_RMW | OPA_NO_MEM_READ)) && exec_memory_is_destination(&u->in);
}

static void put_native(struct emitter *e, unsigned i, const uint8_t *code, unsigned bytes)
{
    struct assembler *a = &e->a;
    const struct uop *u = &e->block->uops[i];
    unsigned first_cold = e->colds;
    uint32_t wanted = 0x100u | u->unit;
    op_gs(a, OPC(0x0fb7), T1, CPU(fpu_ready)); /* fpu_ready, and fpu_live above it */
    op_rr(a, OPC(0x81), 4, T1);
    put32(a, wanted);
    op_rr(a, OPC(0x81), 7, T1);
    put32(a, wanted);
    jump_cold(e, 5, i);
    if (u->in.flags & INSN_MEM) {
        put_address(e, u);
        put_translation(e, u->mem_size, writes_memory(u), i);
    }
    e->cold[e->colds++] = (struct cold){.pc = a->p, .index = i};
    for (unsigned b = 0; b < bytes; b++)
        put8(a, code[b]);
    set_resume(e, first_cold, false);
    e->flags = false;
}

static uint8_t *put_jcc(struct emitter *e, unsigned condition)
{
    put8(&e->a, 0x0f), put8(&e->a, 0x80 | condition), put32(&e->a, 0);
    return e->a.p;
}

static void land_here(struct emitter *e, uint8_t *after_jump)
{
    int32_t distance = (int32_t)(e->a.p - after_jump);
    __builtin_memcpy(after_jump - 4, &distance, 4);
}

/* An exit to a constant target. Control that can go round in circles looks at requests and the clock's budget: that is
 * backward jumps and those to other pages. */
static void leave_to(struct emitter *e, uint64_t target)
{
    struct assembler *a = &e->a;
    struct jit_exit *exit = &e->jit->exits[e->jit->exit_count++];
    bool same_page = (target ^ e->rip) < GUEST_PAGE_SIZE && (target / GUEST_PAGE_SIZE) == (e->rip / GUEST_PAGE_SIZE);
    bool poll = !same_page || target <= e->rip;
    uint8_t *attention = NULL, *budget = NULL;
    if (poll) {
        op_gs(a, OPC(0x8b), T1, CPU(requests));
        op_gs(a, OPC(0x23), T1, CPU(request_mask));
        op_gs(a, OPC(0x0a), T1, CPU(boundary));
        attention = put_jcc(e, 5);
        op_gs(a, OPC(0xff), 1, CPU(budget));
        budget = put_jcc(e, 8);
    }
    op_gs(a, OPCW(0x8b), T1, CPU(code_epoch));
    if (same_page) {
        op_rm(a, OPC(0x81), 7, T1, 0); /* cmp dword [r15], imm32 */
    } else {
        op_rm(a, OPC(0x8b), T1, T1, 0);
        op_gs(a, OPC(0x03), T1, CPU(mmu.epoch));
        op_rr(a, OPC(0x81), 7, T1); /* cmp r15d, imm32 */
    }
    *exit = (struct jit_exit){.expected = a->p, .target = target, .same_page = same_page};
    put32(a, 0);
    uint8_t *stale = put_jcc(e, 5);
    put8(a, 0xe9), put32(a, 0); /* until it is linked, to what follows */
    exit->jump = a->p - 4;
    land_here(e, stale);
    mov_imm64(a, T1, (uint64_t)exit);
    op_gs(a, OPCW(0x89), T1, CPU(link_from));
    if (poll) {
        land_here(e, attention);
        land_here(e, budget);
    }
    mov_imm64(a, T0, target);
    op_gs(a, OPCW(0x89), T0, CPU(rip));
    jit_put_jump(e->jit, a, e->jit->exit);
}

/* T0 holds a computed target: it must be canonical, or the executor raises what is due. */
static void check_canonical(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    op_rr(a, OPCW(0x89), T0, T1);
    put8(a, 0x49), put8(a, 0xc1), put8(a, 0xff), put8(a, 47); /* sar r15, 47 */
    op_rr(a, OPC(0xff), 0, T1);                               /* inc r15d */
    put8(a, 0x41), put8(a, 0x83), put8(a, 0xff), put8(a, 1);  /* cmp r15d, 1 */
    jump_cold(e, 7, i);
}

static void move_rsp(struct emitter *e, int32_t by)
{
    op_rm(&e->a, OPCW(0x8d), H_R13, H_R13, by);
}

/* T0 := host address of the eight bytes below the stack pointer, writable. */
static void put_push(struct emitter *e, unsigned i)
{
    op_rm(&e->a, OPCW(0x8d), T0, H_R13, -8);
    put_translation(e, 8, true, i);
}

static void put_push_return(struct emitter *e, unsigned i, const struct uop *u)
{
    put_push(e, i);
    mov_imm64(&e->a, T1, e->rip + u->next);
    op_rm(&e->a, OPCW(0x89), T1, T0, 0);
    move_rsp(e, -8);
}

/* true: control has left the block. */
static bool put_special(struct emitter *e, unsigned i, enum special kind)
{
    struct assembler *a = &e->a;
    const struct uop *u = &e->block->uops[i];
    const struct insn *in = &u->in;
    unsigned first_cold = e->colds, r;
    switch (kind) {
    case SPECIAL_NOP:
        return false;
    case SPECIAL_LEA: {
        struct uop plain = *u;
        plain.in.segment = INSN_SEG_FLAT;
        put_address(e, &plain);
        r = host_register(in->reg);
        if (in->osize == 4)
            op_rr(a, OPC(0x89), T0, r == NO_REG ? T0 : r);
        else if (r != NO_REG)
            op_rr(a, OPCW(0x89), T0, r);
        if (r == NO_REG)
            store_temp(e, T0, in->reg);
        return false;
    }
    case SPECIAL_MOV_IMM64:
        r = host_register(in->rm);
        mov_imm64(a, r == NO_REG ? T0 : r, in->imm);
        if (r == NO_REG)
            store_temp(e, T0, in->rm);
        return false;
    case SPECIAL_WIDEN:
        if (in->osize == 2)
            put8(a, 0x66);
        if (in->osize == 8)
            put8(a, 0x48);
        put8(a, in->op == OP_CBW ? 0x98 : 0x99);
        return false;
    case SPECIAL_PUSH:
        put_push(e, i);
        r = in->form == FORM_IMM ? NO_REG : host_register(in->rm);
        if (r == NO_REG) {
            r = T1;
            if (in->form == FORM_IMM)
                mov_imm64(a, T1, in->imm);
            else
                load_temp(e, T1, in->rm);
        }
        op_rm(a, OPCW(0x89), r, T0, 0);
        move_rsp(e, -8);
        set_resume(e, first_cold, false);
        return false;
    case SPECIAL_POP:
        op_rr(a, OPCW(0x89), H_R13, T0);
        put_translation(e, 8, false, i);
        move_rsp(e, 8);
        r = host_register(in->rm);
        op_rm(a, OPCW(0x8b), r == NO_REG ? T1 : r, T0, 0);
        if (r == NO_REG)
            store_temp(e, T1, in->rm);
        set_resume(e, first_cold, false);
        return false;
    case SPECIAL_LEAVE:
        op_rr(a, OPCW(0x89), H_RBP, T0);
        put_translation(e, 8, false, i);
        op_rm(a, OPCW(0x8d), H_R13, H_RBP, 8);
        op_rm(a, OPCW(0x8b), H_RBP, T0, 0);
        set_resume(e, first_cold, false);
        return false;
    case SPECIAL_JCC: {
        if (!e->flags)
            restore_flags(e);
        uint8_t *taken = put_jcc(e, in->cond);
        leave_to(e, e->rip + u->next);
        land_here(e, taken);
        leave_to(e, branch_target(e, u));
        return true;
    }
    case SPECIAL_JMP:
        leave_to(e, branch_target(e, u));
        return true;
    case SPECIAL_JMP_RM:
        if (in->flags & INSN_MEM) {
            put_address(e, u);
            put_translation(e, 8, false, i);
            op_rm(a, OPCW(0x8b), T0, T0, 0);
        } else {
            r = host_register(in->rm);
            if (r == NO_REG)
                load_temp(e, T0, in->rm);
            else
                op_rr(a, OPCW(0x89), r, T0);
        }
        check_canonical(e, i);
        jit_put_jump(e->jit, a, e->jit->dispatch);
        return true;
    case SPECIAL_CALL:
        put_push_return(e, i, u);
        leave_to(e, branch_target(e, u));
        return true;
    case SPECIAL_CALL_REG:
        r = host_register(in->rm);
        if (r == NO_REG)
            load_temp(e, T0, in->rm);
        else
            op_rr(a, OPCW(0x89), r, T0);
        check_canonical(e, i);
        put_push_return(e, i, u);
        if (r == NO_REG)
            load_temp(e, T0, in->rm);
        else
            op_rr(a, OPCW(0x89), r, T0);
        jit_put_jump(e->jit, a, e->jit->dispatch);
        return true;
    case SPECIAL_RET:
        op_rr(a, OPCW(0x89), H_R13, T0);
        put_translation(e, 8, false, i);
        op_rm(a, OPCW(0x8b), T0, T0, 0);
        check_canonical(e, i);
        move_rsp(e, 8 + (in->form == FORM_IMM ? (int32_t)(uint16_t)in->imm : 0));
        jit_put_jump(e->jit, a, e->jit->dispatch);
        return true;
    default:
        return false;
    }
}

static void put_cold_paths(struct emitter *e)
{
    struct assembler *a = &e->a;
    for (unsigned i = 0; i < e->colds; i++) {
        const struct cold *cold = &e->cold[i];
        if (cold->patch) {
            int32_t distance = (int32_t)(a->p - (cold->patch + 4));
            __builtin_memcpy(cold->patch, &distance, 4);
        } else {
            e->jit->traps[e->jit->trap_count++] = (struct jit_trap){(uint32_t)(cold->pc - e->jit->writable),
                                                                    (uint32_t)(a->p - e->jit->writable)};
        }
        call_executor(e, cold->index);
        if (!cold->resume) {
            /* a branch: its executor set cpu->rip and the call did not come back */
            put8(a, 0x0f), put8(a, 0x0b);
            continue;
        }
        if (cold->restore)
            restore_flags(e);
        put8(a, 0xe9);
        put32(a, (uint32_t)(cold->resume - (a->p + 4)));
    }
}

static bool targets_canonical(const struct emitter *e)
{
    const struct uop *last = &e->block->uops[e->block->count - 1];
    bool relative = last->in.length && last->in.form == FORM_REL;
    return canonical(e->rip + e->block->bytes) && (!relative || canonical(branch_target(e, last)));
}

const void *jit_translate(struct cpu *cpu, struct translator *jit, struct block *block, uint64_t rip)
{
    if (jit->trap_count + BLOCK_MAX_INSNS > JIT_TRAPS || jit->used + ROOM > JIT_CODE_BYTES || jit->site_count + 3 * BLOCK_MAX_INSNS > JIT_SITES ||
        jit->exit_count + 2 > JIT_EXITS) {
        jit_flush(jit);
        return NULL;
    }
    struct emitter e = {.a = {jit->writable + jit->used}, .cpu = cpu, .jit = jit, .block = block, .rip = rip};
    if (!targets_canonical(&e))
        return NULL;
    uint8_t *start = e.a.p;
    compute_liveness(&e);
    op_gs(&e.a, OPCW(0x81), 0, CPU(instructions)); /* add qword, imm32 */
    put32(&e.a, block->count);
    bool left = false;
    for (unsigned i = 0; i < block->count && !left; i++) {
        const struct uop *u = &block->uops[i];
        uint16_t feature = u->in.length ? op_infos[u->in.op].feature : FEATURE_BASE;
        bool known = u->in.length && (feature == FEATURE_BASE || cpuid_has(&cpu->cpuid, (enum cpu_feature)feature));
        enum special kind = known ? special_of(u) : SPECIAL_NONE;
        struct shape shape;
        uint8_t code[NATIVE_MAX_BYTES + 1];
        unsigned bytes = known ? inline_code(u, code) : 0;
        if (bytes) {
            put_native(&e, i, code, bytes);
        } else if (kind != SPECIAL_NONE) {
            left = put_special(&e, i, kind);
        } else if (known && shape_of(u, &shape)) {
            put_shape(&e, i, &shape);
        } else {
            call_executor(&e, i);
            e.flags = false;
        }
    }
    if (!left)
        leave_to(&e, rip + block->bytes);
    put_cold_paths(&e);
    jit->used = align_up((uint64_t)(e.a.p - jit->writable), 16);
    return jit->executable + (start - jit->writable);
}
