/* SPDX-License-Identifier: MIT */
/* The code cache and the fixed pieces of code around translated blocks. */
#define _GNU_SOURCE
#include "jit.h"

#include <asm/prctl.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "assembler.h"
#include "perf_map.h"
#include "translate.h"
#include "watch.h"

#define CPU(field) ((uint32_t)offsetof(struct cpu, field))
#define HOST_STACK_BYTES 16384 /* for pairs of return addresses (branch.c) */
#define NO_GUEST_RIP UINT64_C(0x8d5a61c3f2e94b07) /* not canonical: the guest's half of the pair at the bottom */

static const uint8_t pinned[] = {RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8, R9, R10, R11, R12};
static const uint8_t saved[] = {H_RBX, H_RBP, H_R12, H_R13, H_R14, H_R15};

static void save_guest(struct assembler *a)
{
    for (unsigned i = 0; i < ARRAY_LEN(pinned); i++)
        op_cpu(a, OPCW(0x89), pinned[i], CPU(gpr) + 8 * pinned[i]);
    op_cpu(a, OPCW(0x89), H_R13, CPU(gpr) + 8 * RSP);
}

static void load_guest(struct assembler *a)
{
    for (unsigned i = 0; i < ARRAY_LEN(pinned); i++)
        op_cpu(a, OPCW(0x8b), pinned[i], CPU(gpr) + 8 * pinned[i]);
    op_cpu(a, OPCW(0x8b), H_R13, CPU(gpr) + 8 * RSP);
}

static void put_push(struct assembler *a, unsigned reg)
{
    if (reg >> 3)
        put8(a, 0x41);
    put8(a, 0x50 | (reg & 7));
}

static void put_pop(struct assembler *a, unsigned reg)
{
    if (reg >> 3)
        put8(a, 0x41);
    put8(a, 0x58 | (reg & 7));
}

static void put_rsp(struct assembler *a, int32_t by)
{
    op_rm(a, OPCW(0x8d), H_RSP, H_RSP, by);
}

static int32_t distance(const struct translator *jit, const struct assembler *a, const void *target)
{
    return (int32_t)((const uint8_t *)target - (jit_rx(jit, a->p) + 4));
}

void jit_put_jump(const struct translator *jit, struct assembler *a, const void *target)
{
    put8(a, 0xe9);
    put32(a, (uint32_t)distance(jit, a, target));
}

void jit_put_call(const struct translator *jit, struct assembler *a, const void *target)
{
    put8(a, 0xe8);
    put32(a, (uint32_t)distance(jit, a, target));
}

static void jump_if(const struct translator *jit, struct assembler *a, unsigned condition, const void *target)
{
    put8(a, 0x0f);
    put8(a, 0x80 | condition);
    put32(a, (uint32_t)distance(jit, a, target));
}

/* void enter(code): saves what the ABI wants kept, gives the registers to the guest, jumps. */
static void make_enter(struct translator *jit, struct assembler *a)
{
    jit->enter = jit_rx(jit, a->p);
    for (unsigned i = 0; i < ARRAY_LEN(saved); i++)
        put_push(a, saved[i]);
    put_rsp(a, -24); /* the bottom pair, and 16-byte alignment */
    mov_imm64(a, H_RAX, NO_GUEST_RIP);
    op_rm(a, OPCW(0x89), H_RAX, H_RSP, 8);
    mov_imm64(a, H_RAX, (uint64_t)jit->stray_return);
    op_rm(a, OPCW(0x89), H_RAX, H_RSP, 0);
    op_cpu(a, OPCW(0x89), H_RSP, CPU(host_stack));
    op_rm(a, OPCW(0x8d), H_RAX, H_RSP, -HOST_STACK_BYTES);
    op_cpu(a, OPCW(0x89), H_RAX, CPU(host_stack_limit));
    mov_rr(a, T0, H_RDI);
    load_guest(a);
    op_rr(a, OPC(0xff), 4, T0); /* jmp r14 */
}

/* The ways back to whoever called enter. */
static void make_leave(struct translator *jit, struct assembler *a)
{
    jit->leave_by_exit = jit_rx(jit, a->p); /* T1: number of the exit */
    op_cpu(a, OPC(0x89), T1, CPU(link_from));
    watch_put_left(a, LEFT_UNLINKED);
    uint8_t *by_exit = put_jmp(a);

    jit->leave_dead_floating = jit_rx(jit, a->p); /* T0: from the page */
    op_cpu(a, OPCW(0x03), T0, CPU(code_page));
    jit->leave_dead = jit_rx(jit, a->p); /* as leave_at, from a block that was killed */
    watch_put_left(a, LEFT_DEAD);
    uint8_t *dead = put_jmp(a);
    jit->stray_return = jit_rx(jit, a->p); /* a return to NO_GUEST_RIP: T0, where it will not get far */
    jit->leave_at = jit_rx(jit, a->p); /* T0: the next instruction */
    watch_put_left(a, LEFT_LOOK);
    patch_jump(dead, a->p);
    op_cpu(a, OPCW(0x89), T0, CPU(rip));
    uint8_t *at = put_jmp(a);
    jit->leave = jit_rx(jit, a->p); /* cpu->rip says it */
    watch_put_left(a, LEFT_COMPUTED);
    patch_jump(at, a->p);
    op_cpu_imm(a, OPC(0xc7), 0, CPU(link_from), 4);
    put32(a, 0);
    patch_jump(by_exit, a->p);
    save_guest(a);
}

static const void *make_leave_saved(struct translator *jit, struct assembler *a)
{
    const void *here = jit_rx(jit, a->p);
    op_cpu(a, OPCW(0x8b), H_RSP, CPU(host_stack));
    put_rsp(a, 24);
    for (unsigned i = ARRAY_LEN(saved); i-- > 0;)
        put_pop(a, saved[i]);
    put8(a, 0xc3);
    return here;
}

void jit_put_lookup(struct assembler *a, uint8_t *misses[2], bool in_page)
{
    op_cpu(a, OPCW(0x89), T0, CPU(rip));
    mov_rr(a, T1, T0);
    shift_imm(a, SHIFT_SHR, true, T1, 12);
    op_rr(a, OPC(0x31), T0, T1);
    alu_imm(a, ALU_AND, false, T1, JIT_JUMPS - 1);
    shift_imm(a, SHIFT_SHL, false, T1, 5);
    op_cpu(a, OPCW(0x03), T1, CPU(translated_jumps));
    op_rm(a, OPCW(0x3b), T0, T1, offsetof(struct jit_jump, linear));
    misses[0] = put_jcc(a, CC_NE);
    op_cpu(a, OPCW(0x8b), T0, CPU(mmu.epoch)); /* and mmu.mode_key */
    op_rm(a, OPCW(0x3b), T0, T1, offsetof(struct jit_jump, key));
    misses[1] = put_jcc(a, CC_NE);
    if (in_page) {
        op_cpu(a, OPCW(0x8b), T0, CPU(rip));
        alu_imm(a, ALU_AND, true, T0, (uint32_t)-(int32_t)GUEST_PAGE_SIZE);
        op_cpu(a, OPCW(0x89), T0, CPU(code_page));
    }
    op_rm(a, OPC(0xff), 4, T1, offsetof(struct jit_jump, code)); /* jmp */
}

/* T0: linear, T1: number of a physical page. CF = 0: the page of the one is the other, by what was fetched for a user in this
 * epoch, and cpu->code_page is told; else CF = 1. Nothing else is lost but T1. */
static void make_check_page(struct translator *jit, struct assembler *a)
{
    const uint32_t fetch = CPU(mmu.fetch);
    _Static_assert(sizeof(struct fetch_entry) == 32, "the index is made by one shift, of 12 - 5");
    jit->check_page = jit_rx(jit, a->p);
    put_push(a, H_RAX);
    op_rr(a, OPC(0x89), T0, H_RAX);
    shift_imm(a, SHIFT_SHR, false, H_RAX, 7);
    alu_imm(a, ALU_AND, false, H_RAX, (FETCH_ENTRIES - 1) << 5);
    shift_imm(a, SHIFT_SHL, true, T1, 12);
    op_cpu_at(a, OPCW(0x3b), T1, H_RAX, fetch + offsetof(struct fetch_entry, gpa));
    uint8_t *no[3] = {put_jcc(a, CC_NE)};
    op_cpu(a, OPC(0x8b), T1, CPU(mmu.epoch)); /* a user's: what was fetched for a supervisor has another */
    op_cpu_at(a, OPC(0x3b), T1, H_RAX, fetch + offsetof(struct fetch_entry, noted));
    no[1] = put_jcc(a, CC_NE);
    op_cpu_at(a, OPCW(0x8b), T1, H_RAX, fetch + offsetof(struct fetch_entry, tag));
    op_rr(a, OPCW(0x31), T0, T1);
    alu_imm(a, ALU_CMP, true, T1, GUEST_PAGE_SIZE - 1);
    no[2] = put_jcc(a, CC_ABOVE);
    mov_rr(a, T1, T0);
    alu_imm(a, ALU_AND, true, T1, (uint32_t)-(int32_t)GUEST_PAGE_SIZE);
    op_cpu(a, OPCW(0x89), T1, CPU(code_page));
    put_pop(a, H_RAX);
    PUT(a, 0xf8, 0xc3); /* clc; ret */
    for (unsigned i = 0; i < ARRAY_LEN(no); i++)
        patch_jump(no[i], a->p);
    put_pop(a, H_RAX);
    PUT(a, 0xf9, 0xc3); /* stc; ret */
}

/* T1: the place in the table that has what cpu->rip names, but in another epoch: goes there, if the page is still the same. */
static void put_other_epoch(struct translator *jit, struct assembler *a, uint8_t *misses[2])
{
    op_cpu(a, OPC(0x8b), T0, CPU(mmu.mode_key));
    op_rm(a, OPC(0x3b), T0, T1, offsetof(struct jit_jump, key) + 4);
    misses[0] = put_jcc(a, CC_NE);
    put_push(a, T1);
    op_cpu(a, OPCW(0x8b), T0, CPU(rip));
    op_rm(a, OPCW(0x8b), T1, T1, offsetof(struct jit_jump, page));
    jit_put_call(jit, a, jit->check_page);
    put_pop(a, T1);
    misses[1] = put_jcc(a, CC_BELOW);
    op_cpu(a, OPC(0x8b), T0, CPU(mmu.epoch));
    op_rm(a, OPC(0x89), T0, T1, offsetof(struct jit_jump, key));
    op_rm(a, OPC(0xff), 4, T1, offsetof(struct jit_jump, code)); /* jmp */
}

/* T0 = target rip, flags in cpu->cc: to its translation, or out. */
static void make_dispatch(struct translator *jit, struct assembler *a)
{
    make_check_page(jit, a);
    jit->dispatch = jit_rx(jit, a->p);
    uint8_t *misses[2];
    jit_put_lookup(a, misses, true);
    patch_jump(misses[0], a->p);
    jit_put_jump(jit, a, jit->leave);
    patch_jump(misses[1], a->p);
    put_other_epoch(jit, a, misses);
    for (unsigned i = 0; i < ARRAY_LEN(misses); i++)
        patch_jump(misses[i], a->p);
    jit_put_jump(jit, a, jit->leave);

    jit->again = jit_rx(jit, a->p); /* T1: number of an exit to there, in a block that is still linked for elsewhere */
    op_cpu(a, OPC(0x89), T1, CPU(link_from));
    jit_put_lookup(a, misses, true);
    patch_jump(misses[1], a->p);
    uint8_t *absent = misses[0];
    put_other_epoch(jit, a, misses);
    patch_jump(absent, a->p);
    for (unsigned i = 0; i < ARRAY_LEN(misses); i++)
        patch_jump(misses[i], a->p);
    op_cpu(a, OPC(0x8b), T1, CPU(link_from));
    jit_put_jump(jit, a, jit->leave_by_exit);

    jit->return_miss = jit_rx(jit, a->p); /* T0 = target: this pair is not it, those below may be */
    op_cpu(a, OPCW(0x3b), H_RSP, CPU(host_stack));
    jump_if(jit, a, CC_EQUAL, jit->dispatch);
    put_rsp(a, 16);
    jit_put_jump(jit, a, jit->dispatch);
}

/* What stands behind the instruction that an executor was called for: it went on. */
static void jit_continue(struct cpu *cpu, const struct uop *u)
{
    (void)u;
    cpu->executor_continued = true;
}

enum after_call { AFTER_LEAVE, AFTER_GO_ON, AFTER_DISPATCH };

/* Where translated code goes on: behind the instruction, or wherever cpu->rip says. */
static unsigned call_executor(struct cpu *cpu, struct block *block, const struct uop *u)
{
    bool live = !cpu->fpu_away;
    uint32_t epoch = cpu->mmu.epoch, mode_key = cpu->mmu.mode_key;
    uint64_t rip = jit_block_rip(cpu, block);
    cpu->block = block;
    cpu->gpr[GPR_BLOCK_RIP] = rip;
    cpu->called[0] = *u;
    cpu->called[1].fn = jit_continue;
    cpu->executor_continued = cpu->leave_translated = false;
    cpu->link_from = 0;
    if (unlikely(cpu->translator->learner.asked || !cpu->trial_left) && learn_look(cpu, block, u)) {
        jit_kill(cpu->translator, block);
        cpu->leave_translated = true;
    }
    cpu->called[0].fn(cpu, cpu->called);
    /* among them are those that serialize: what others wrote before must be seen by what comes next */
    bool pending = !cpu->unlinked && atomic_load_explicit(&cpu->pending, memory_order_relaxed);
    bool look = cpu->leave_translated || pending;
    if (!cpu->executor_continued)
        return cpu->unlinked || look || cpu_wants_attention(cpu) ? AFTER_LEAVE : AFTER_DISPATCH;
    if (unlikely(look || epoch != cpu->mmu.epoch || mode_key != cpu->mmu.mode_key)) {
        cpu->rip = (rip + u->next) & cpu_rip_mask(cpu);
        if (cpu->translator->count)
            cpu->instructions -= block->count - u->index - 1u;
        return AFTER_LEAVE;
    }
    if (live && cpu->fpu_away) { /* code that follows counts on it */
        fpu_enter(cpu->s.xsave);
        cpu->fpu_away = false;
    }
    return AFTER_GO_ON;
}

static unsigned call_counted_executor(struct cpu *cpu, struct block *block, const struct uop *u)
{
    cpu->counts.executors[u->in.op]++;
    return call_executor(cpu, block, u);
}

/* T0 = block, T1 = offset of the uop in it: runs its executor with all guest state in memory. */
static void make_callout(struct translator *jit, struct assembler *a)
{
    jit->callout = jit_rx(jit, a->p);
    save_guest(a);
    op_cpu(a, OPCW(0x8b), H_RDI, CPU(self));
    mov_rr(a, H_RSI, T0);
    op_place(a, OPCW(0x8d), H_RDX, (struct place){T0, T1, 0, 0});
    put_rsp(a, -8);
    mov_imm64(a, H_RAX, (uint64_t)(jit->count ? call_counted_executor : call_executor));
    op_rr(a, OPC(0xff), 2, H_RAX);
    put_rsp(a, 8);
    alu_imm(a, ALU_CMP, false, H_RAX, AFTER_GO_ON);
    uint8_t *out = put_jcc(a, CC_BELOW), *elsewhere = put_jcc(a, CC_NE);
    load_guest(a);
    put8(a, 0xc3);
    patch_jump(elsewhere, a->p); /* perhaps in another mode: pairs of return addresses are not for that */
    op_cpu(a, OPCW(0x8b), H_RSP, CPU(host_stack));
    load_guest(a);
    op_cpu(a, OPCW(0x8b), T0, CPU(rip));
    jit_put_jump(jit, a, jit->dispatch);
    patch_jump(out, a->p);
    watch_put_left(a, LEFT_EXECUTOR);
    make_leave_saved(jit, a);
}

/* save_guest; cpu->refilled := function(cpu, T0, T1, rcx); load_guest; CF = whether that is 0. */
static void put_helper(struct assembler *a, uint64_t function)
{
    op_cpu(a, OPCW(0x8b), H_RDI, CPU(self));
    mov_rr(a, H_RSI, T0);
    mov_rr(a, H_RDX, T1);
    put_rsp(a, -8);
    mov_imm64(a, H_RAX, function);
    op_rr(a, OPC(0xff), 2, H_RAX);
    put_rsp(a, 8);
    op_cpu(a, OPCW(0x89), H_RAX, CPU(refilled));
    load_guest(a);
    op_cpu_imm(a, OPCW(0x83), ALU_CMP, CPU(refilled), 1); /* below 1: CF */
    put8(a, 1);
}

/* 1: the vector unit (OPA_X87...) may be used, and the host's registers hold the guest's state. */
static uint64_t enter_unit(struct cpu *cpu, uint64_t unused, uint64_t unit)
{
    (void)unused;
    if (unit & cpu->fpu_unready)
        return 0;
    if (cpu->fpu_away) {
        fpu_enter(cpu->s.xsave);
        cpu->fpu_away = false;
    }
    return 1;
}

/* T1 = unit: CF = 0, or CF = 1 and the instruction raises an exception. */
static void make_enter_unit(struct translator *jit, struct assembler *a)
{
    jit->enter_unit = jit_rx(jit, a->p);
    save_guest(a);
    put_helper(a, (uint64_t)enter_unit);
    put8(a, 0xc3);
}

/* The host address of `linear`, entered in the TLB and the slot; 0: the access needs its executor. */
static uint64_t refill(struct cpu *cpu, uint64_t linear, uint64_t slot_offset, bool write)
{
    const struct tlb_entry *entry = access_entry(cpu, linear, write);
    if (!entry)
        return 0;
    struct access_slot *slot = (struct access_slot *)((uint8_t *)cpu + slot_offset);
    slot->tag = align_down(linear, GUEST_PAGE_SIZE);
    slot->addend = entry->addend;
    (&cpu->mmu.slots_filled[0][0])[(slot - &cpu->mmu.slots[0][0]) / SLOT_GROUP] |= entry->gpa & SLOT_ANY;
    return linear + entry->addend;
}

/* The slot at gs:[T1] := addend rax, and its group has the mark cl. T0: linear -> host address. */
static void put_fill_slot(struct assembler *a)
{
    _Static_assert(sizeof(struct access_slot) == 16 && SLOT_GROUP == 16, "the group and the counter are found by shifts");
    op_cpu_at(a, OPCW(0x89), H_RAX, T1, offsetof(struct access_slot, addend));
    op_rr(a, OPCW(0x01), H_RAX, T0);
    op_rm(a, OPC(0x8d), H_RAX, T1, -(int32_t)CPU(mmu.slots));
    shift_imm(a, SHIFT_SHR, false, H_RAX, 8);
    op_cpu_at(a, OPC(0x08), H_RCX, H_RAX, CPU(mmu.slots_filled));
}

/* T0 = linear address, T1 = offset of the slot from gs. T0 := host address and CF = 0; or CF = 1. EFLAGS are lost. */
static void make_refill(struct translator *jit, struct assembler *a, bool user, bool write)
{
    _Static_assert(sizeof(struct wide_entry) == 16, "the index is made by one shift");
    int32_t tag = write ? offsetof(struct tlb_entry, write_tag) : offsetof(struct tlb_entry, read_tag);
    jit->refill[user][write] = jit_rx(jit, a->p);
    put_push(a, H_RAX);
    put_push(a, H_RCX);
    op_rr(a, OPC(0x89), T0, H_RAX);
    put_tlb_index(a, H_RAX);
    op_cpu(a, OPCW(0x03), H_RAX, CPU(tlb));
    mov_rr(a, H_RCX, T0);
    alu_imm(a, ALU_AND, true, H_RCX, (uint32_t)-(int32_t)GUEST_PAGE_SIZE);
    op_rm(a, OPCW(0x3b), H_RCX, H_RAX, tag);
    uint8_t *wide = put_jcc(a, CC_NE);
    op_cpu_at(a, OPCW(0x89), H_RCX, T1, offsetof(struct access_slot, tag));
    op_rm(a, OPC(0x0fb6), H_RCX, H_RAX, offsetof(struct tlb_entry, gpa)); /* the mark */
    op_rm(a, OPCW(0x8b), H_RAX, H_RAX, offsetof(struct tlb_entry, addend));
    put_fill_slot(a);
    op_rm(a, OPC(0x8d), H_RCX, T1, -(int32_t)CPU(mmu.slots));
    shift_imm(a, SHIFT_SHR, false, H_RCX, 3);
    op_cpu_at(a, (struct opcode){.code = 0xff, .prefix = 0x66}, 1, H_RCX, CPU(slot_refills)); /* dec */
    put_pop(a, H_RCX);
    put_pop(a, H_RAX);
    uint8_t *often = put_jcc(a, CC_EQUAL);
    PUT(a, 0xf8, 0xc3); /* clc; ret */

    patch_jump(often, a->p);
    save_guest(a);
    put_helper(a, (uint64_t)learn_refilled);
    put8(a, 0xc3);

    patch_jump(wide, a->p);
    if (user) { /* whose pages in the high half, if there are any, C finds */
        op_cpu(a, OPCW(0x0b), H_RCX, CPU(mmu.wide_key[0]));
    } else {
        mov_rr(a, H_RAX, H_RCX);
        shift_imm(a, SHIFT_SHR, true, H_RAX, 63);
        shift_imm(a, SHIFT_SHL, false, H_RAX, 3);
        op_cpu_at(a, OPCW(0x0b), H_RCX, H_RAX, CPU(mmu.wide_key));
    }
    op_rr(a, OPC(0x89), T0, H_RAX);
    shift_imm(a, SHIFT_SHR, false, H_RAX, 8);
    alu_imm(a, ALU_AND, false, H_RAX, (WIDE_ENTRIES - 1) << 4);
    op_cpu(a, OPCW(0x03), H_RAX, CPU(wide));
    op_rm(a, OPCW(0x33), H_RCX, H_RAX, offsetof(struct wide_entry, tag));
    if (!write)
        alu_imm(a, ALU_AND, true, H_RCX, ~WIDE_WRITABLE);
    else
        op_rr(a, OPCW(0x85), H_RCX, H_RCX);
    uint8_t *miss = put_jcc(a, CC_NE);
    op_rm(a, OPCW(0x8b), H_RAX, H_RAX, offsetof(struct wide_entry, addend));
    mov_rr(a, H_RCX, T0);
    alu_imm(a, ALU_AND, true, H_RCX, (uint32_t)-(int32_t)GUEST_PAGE_SIZE);
    op_cpu_at(a, OPCW(0x89), H_RCX, T1, offsetof(struct access_slot, tag));
    if (user) {
        mov_imm64(a, H_RCX, SLOT_LOCAL);
    } else {
        shift_imm(a, SHIFT_SHR, true, H_RCX, 63);
        op_rr(a, OPC(0xf7), 3, H_RCX); /* neg */
        _Static_assert(SLOT_LOCAL - 1 == SLOT_HIGH, "low ones are local, high ones here are not");
        alu_imm(a, ALU_ADD, false, H_RCX, SLOT_LOCAL);
    }
    put_fill_slot(a);
    put_pop(a, H_RCX);
    put_pop(a, H_RAX);
    PUT(a, 0xf8, 0xc3); /* clc; ret */

    patch_jump(miss, a->p);
    put_pop(a, H_RCX);
    put_pop(a, H_RAX);
    save_guest(a);
    mov_imm64(a, H_RCX, write);
    put_helper(a, (uint64_t)refill);
    uint8_t *none = put_jcc(a, CC_BELOW);
    op_cpu(a, OPCW(0x8b), T0, CPU(refilled));
    patch_jump(none, a->p);
    put8(a, 0xc3);
}

/* A translated vector instruction trapped, having changed nothing: its executor will find out why. */
static uint64_t resume_after_trap(const void *elsewhere, uint64_t rip)
{
    const struct translator *jit = elsewhere;
    uint64_t pc = rip - (uint64_t)jit->executable;
    unsigned low = 0, high, count;
    const struct jit_trap *traps = jit_segment_traps(jit, pc, &count);
    high = count;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (traps[middle].pc < pc)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && traps[low].pc == pc ? (uint64_t)jit->executable + traps[low].cold : 0;
}

static void jit_destroy(struct translator *jit)
{
    if (!jit)
        return;
    code_memory_unmap(&jit->memory);
    free(jit->exits);
    free(jit->all_traps);
    free(jit->jumps);
    free(jit->floating);
    free(jit);
}

static void make_stubs(struct translator *jit)
{
    struct assembler a = jit_assembler(jit, jit->writable);
    make_leave(jit, &a);
    make_leave_saved(jit, &a);
    make_enter(jit, &a);
    make_dispatch(jit, &a);
    make_callout(jit, &a);
    make_enter_unit(jit, &a);
    for (unsigned kind = 0; kind < 4; kind++)
        make_refill(jit, &a, kind / 2, kind % 2);
    jit->first_free = align_up((uint64_t)(a.p - jit->writable), 64);
}

static bool allocate(struct cpu *cpu, struct translator *jit)
{
    jit->jumps = calloc(JIT_JUMPS, sizeof *jit->jumps);
    for (unsigned i = 0; i < cpu->mmu.mem->count; i++)
        jit->pages_known = MAX(jit->pages_known, (cpu->mmu.mem->regions[i].gpa + cpu->mmu.mem->regions[i].size) / GUEST_PAGE_SIZE);
    jit->floating = calloc(jit->pages_known / 64 + 1, sizeof *jit->floating);
    return jit->jumps && jit->floating && (!jit->count || watch_executors(cpu));
}

/* Does a 32-bit displacement lead from all of the code to all of struct cpu? */
static bool reaches(int64_t distance, size_t bytes)
{
    return distance > (int64_t)bytes - INT32_MAX && distance < INT32_MAX - (int64_t)sizeof(struct cpu);
}

static struct translator *jit_create(struct cpu *cpu, const struct cpu_options *options, imgvm_error *err)
{
    struct translator *jit = calloc(1, sizeof *jit);
    if (!jit) {
        error_set(err, ENOMEM, "out of memory for the translator");
        return NULL;
    }
    jit->count = options->count_instructions;
    jit->perf_map = cpu->callbacks.name_code;
    jit->counts = &cpu->counts;
    for (unsigned i = 0; i < ARRAY_LEN(cpu->slot_refills); i++)
        cpu->slot_refills[i] = LEARN_REFILLS;
    cpu->trial_left = UINT32_MAX;
    bool good = code_memory_map(&jit->memory, jit_segments_plan(jit, options->count, options->code_bytes), cpu, jit->perf_map, err) == 0;
    if (good) {
        jit->writable = jit->memory.writable;
        jit->executable = jit->memory.executable;
        jit->cpu_from_start = (const uint8_t *)cpu - jit->executable;
        jit->far = !reaches(jit->cpu_from_start, jit->memory.bytes);
        make_stubs(jit);
        good = jit_segments_create(jit) && allocate(cpu, jit);
        if (!good)
            error_set(err, ENOMEM, "out of memory for the translator");
    }
    if (!good) {
        jit_destroy(jit);
        return NULL;
    }
    if (jit->perf_map)
        perf_map_stubs(cpu, jit);
    cpu->translated_jumps = jit->jumps;
    jit_forget(cpu, jit);
    cpu->counts.translator_emptied = 0;
    cpu->native->resume_elsewhere = resume_after_trap;
    cpu->native->elsewhere = jit;
    return jit;
}

/* Translated code finds the processor through gs, which nothing else in a 64-bit Linux process uses. */
static void jit_attach_thread(struct cpu *cpu)
{
    if (syscall(SYS_arch_prctl, ARCH_SET_GS, cpu) < 0)
        internal_error(cpu, NULL, "the host refuses a gs base");
}

/* Where computed jumps look. */
static void remember(struct cpu *cpu, struct translator *jit, const struct block *block)
{
    struct jit_jump *jump = &jit->jumps[(uint32_t)(cpu->rip ^ cpu->rip >> 12) % JIT_JUMPS];
    jump->linear = cpu->rip;
    jump->key = (uint64_t)cpu->mmu.mode_key << 32 | cpu->mmu.epoch;
    jump->code = block->translated;
    /* outside 64-bit mode RIP is an offset in a segment, which is no address to look up */
    jump->page = block->across_now || !cpu->code64 ? JIT_NO_PAGE : block->gpa / GUEST_PAGE_SIZE;
}

/* Some processor wrote code, perhaps of ours. */
static void look_over(struct cpu *cpu, struct translator *jit)
{
    uint32_t now = atomic_load(cpu->mmu.mem->code_epoch);
    if (likely(now == jit->seen_code_epoch))
        return;
    jit->seen_code_epoch = now;
    jit_kill_stale(jit);
}

static void jit_code_written(struct cpu *cpu, struct translator *jit, uint64_t gpa)
{
    jit_kill_stale_page(jit, gpa);
    cpu->leave_translated = true;
    /* nobody else wrote in the meantime: there is nothing more to look over */
    if (atomic_load(cpu->mmu.mem->code_epoch) == jit->seen_code_epoch + 1)
        jit->seen_code_epoch++;
}

static bool may_translate(const struct cpu *cpu, const struct block *block)
{
    return !(block->mode & MODE_SINGLE) && !block->interpret && !cpu->alignment_checked && cpu->count_limit == UINT64_MAX;
}

/* false: the code segment has no number, but the next one will. */
static bool has_code_segment(struct cpu *cpu, struct translator *jit)
{
    if (likely(cpu->code64 || !cpu->code_segments.full))
        return true;
    jit_forget(cpu, jit);
    cpu_forget_code_segments(cpu);
    return false;
}

static bool is_translated(const struct cpu *cpu, const struct block *block)
{
    return block->translated && block->translated_mode == cpu->mmu.mode_key &&
           (block->floats ? cpu->rip < JIT_FLOATS_BELOW : block->translated_rip == cpu->rip);
}

static bool jit_ready(struct cpu *cpu, struct translator *jit, struct block *block)
{
    if (!may_translate(cpu, block) || !has_code_segment(cpu, jit))
        return false;
    if (unlikely(block->across_now) && jit_is_in_page(cpu) && !mmu_pages_are_single(&cpu->mmu))
        return false; /* which one is the other page? */
    look_over(cpu, jit);
    if (is_translated(cpu, block))
        return true;
    if (unlikely(!block_is_current(block)))
        return false; /* since it was found; the look is over, and nobody would tell of it again */
    if (block->runs < cpu->translate_after) {
        block->runs++;
        return false;
    }
    if (block->translated && !block->floats && jit_is_in_page(cpu) && block->translated_mode == cpu->mmu.mode_key)
        jit_float_page(jit, block->gpa);
    jit_kill(jit, block); /* it was translated for another address or mode */
    return jit_translate(cpu, jit, block, cpu->rip);
}

static bool jit_run(struct cpu *cpu, struct translator *jit, struct block *block)
{
    uint64_t translated = jit->counts->translated;
    if (atomic_load_explicit(&cpu->pending, memory_order_relaxed))
        cpu_update_pending(cpu); /* before the look: what is written after it is pending */
    if (!jit_ready(cpu, jit, block)) {
        cpu->link_from = 0;
        return false;
    }
    if (cpu->cpl != 3)
        jit_follow_epoch(cpu, jit);
    if (!cpu->unlinked) {
        if (cpu->link_from)
            jit_link(cpu, jit, cpu->link_from, block);
        remember(cpu, jit, block);
    }
    cpu->code_page = align_down(cpu->rip, GUEST_PAGE_SIZE);
    if (unlikely(block->across_now))
        jit_expect_epoch(cpu, jit, block);
    void (*enter)(const void *) = (void (*)(const void *))jit->enter;
    cpu->uncounted = !jit->count;
    cpu->counts.entered++;
    if (translated == jit->counts->translated) /* once is not yet use */
        *block->seen = jit->segments[block->translated_segment].seen = true;
    enter(block->translated);
    cpu->uncounted = false;
    if (cpu->link_from)
        cpu->rip = jit_exit_target(cpu, &jit->exits[cpu->link_from]);
    watch_left(cpu, atomic_load(cpu->mmu.mem->code_epoch) != jit->seen_code_epoch);
    return true;
}

static void jit_forget_block(struct cpu *cpu, struct translator *jit, struct block *block)
{
    (void)cpu;
    jit_kill(jit, block);
}

const struct translator_ops jit_translator = {jit_create, jit_destroy, jit_attach_thread, jit_ready, jit_run, jit_code_written,
                                              jit_forget_block, jit_forget};
