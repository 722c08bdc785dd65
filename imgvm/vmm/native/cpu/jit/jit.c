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
#include "translate.h"

static const uint8_t pinned[] = {RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8, R9, R10, R11, R12};

#define CPU(field) ((uint32_t)offsetof(struct cpu, field))

static void save_guest(struct assembler *a)
{
    for (unsigned i = 0; i < ARRAY_LEN(pinned); i++)
        op_gs(a, OPCW(0x89), pinned[i], CPU(gpr) + 8 * pinned[i]);
    op_gs(a, OPCW(0x89), H_R13, CPU(gpr) + 8 * RSP);
}

static void load_guest(struct assembler *a)
{
    for (unsigned i = 0; i < ARRAY_LEN(pinned); i++)
        op_gs(a, OPCW(0x8b), pinned[i], CPU(gpr) + 8 * pinned[i]);
    op_gs(a, OPCW(0x8b), H_R13, CPU(gpr) + 8 * RSP);
}

static const void *rx(const struct translator *jit, const uint8_t *writable)
{
    return jit->executable + (writable - jit->writable);
}

/* void enter(code): saves what the ABI wants kept, gives the registers to the guest, jumps. */
static void make_enter(struct translator *jit, struct assembler *a)
{
    static const uint8_t saved[] = {H_RBX, H_RBP, H_R12, H_R13, H_R14, H_R15};
    jit->enter = rx(jit, a->p);
    for (unsigned i = 0; i < ARRAY_LEN(saved); i++) {
        if (saved[i] >> 3)
            put8(a, 0x41);
        put8(a, 0x50 | (saved[i] & 7));
    }
    put8(a, 0x48), put8(a, 0x83), put8(a, 0xec), put8(a, 8); /* sub rsp, 8: aligned again */
    op_rr(a, OPCW(0x89), H_RDI, T0);
    load_guest(a);
    op_rr(a, OPC(0xff), 4, T0); /* jmp r14 */

    jit->exit = rx(jit, a->p); /* guest registers are live */
    save_guest(a);
    jit->exit_saved = rx(jit, a->p); /* they are in memory */
    put8(a, 0x48), put8(a, 0x83), put8(a, 0xc4), put8(a, 8);
    for (unsigned i = ARRAY_LEN(saved); i-- > 0;) {
        if (saved[i] >> 3)
            put8(a, 0x41);
        put8(a, 0x58 | (saved[i] & 7));
    }
    put8(a, 0xc3);
}

static void jump_to(const struct translator *jit, struct assembler *a, unsigned condition, const void *target)
{
    if (condition == 0xe9) {
        put8(a, 0xe9);
    } else {
        put8(a, 0x0f);
        put8(a, 0x80 | condition);
    }
    put32(a, (uint32_t)((const uint8_t *)target - ((const uint8_t *)rx(jit, a->p) + 4)));
}

void jit_put_jump(const struct translator *jit, struct assembler *a, const void *target)
{
    jump_to(jit, a, 0xe9, target);
}

/* T0 = target rip: to its translation, or out. */
static void make_dispatch(struct translator *jit, struct assembler *a)
{
    jit->dispatch = rx(jit, a->p);
    op_gs(a, OPCW(0x89), T0, CPU(rip));
    put8(a, 0x50);                                      /* push rax */
    put8(a, 0x51);                                      /* push rcx */
    op_gs(a, OPC(0x8b), H_RAX, CPU(requests));
    op_gs(a, OPC(0x23), H_RAX, CPU(request_mask));
    op_gs(a, OPC(0x0a), H_RAX, CPU(boundary));          /* or al */
    uint8_t *out[4];
    unsigned outs = 0;
#define OUT_IF(cc)                                                                                         \
    do {                                                                                                   \
        op_prefix_jcc(a, cc);                                                                              \
        out[outs++] = a->p;                                                                                \
    } while (0)
#define op_prefix_jcc(a, cc) (put8(a, 0x0f), put8(a, 0x80 | (cc)), put32(a, 0))
    put8(a, 0x85), put8(a, 0xc0); /* test eax, eax */
    OUT_IF(5);
    op_gs(a, OPC(0xff), 1, CPU(budget)); /* dec */
    OUT_IF(8);
    op_gs(a, OPCW(0x8b), H_RAX, CPU(code_epoch));
    op_rm(a, OPC(0x8b), H_RAX, H_RAX, 0);
    op_gs(a, OPC(0x03), H_RAX, CPU(mmu.epoch));
    op_gs(a, OPC(0x8b), H_RCX, CPU(mode_key));
    put8(a, 0x48), put8(a, 0xc1), put8(a, 0xe1), put8(a, 32); /* shl rcx, 32 */
    op_rr(a, OPCW(0x09), H_RCX, H_RAX);                       /* rax = key */
    op_rr(a, OPCW(0x89), T0, H_RCX);
    put8(a, 0x48), put8(a, 0xc1), put8(a, 0xe9), put8(a, 12); /* shr rcx, 12 */
    op_rr(a, OPC(0x31), T0, H_RCX);                           /* xor ecx, r14d */
    put8(a, 0x81), put8(a, 0xe1), put32(a, JUMP_CACHE_ENTRIES - 1); /* and ecx */
    put8(a, 0xc1), put8(a, 0xe1), put8(a, 5);                 /* shl ecx, 5 */
    op_gs(a, OPCW(0x03), H_RCX, CPU(translated_jumps));
    op_rm(a, OPCW(0x3b), T0, H_RCX, 0);
    OUT_IF(5);
    op_rm(a, OPCW(0x3b), H_RAX, H_RCX, 8);
    OUT_IF(5);
    op_rm(a, OPCW(0x8b), T0, H_RCX, 16);
    put8(a, 0x59), put8(a, 0x58);
    op_rr(a, OPC(0xff), 4, T0);
    for (unsigned i = 0; i < outs; i++) {
        int32_t distance = (int32_t)(a->p - out[i]);
        memcpy(out[i] - 4, &distance, 4);
    }
    put8(a, 0x59), put8(a, 0x58);
    jump_to(jit, a, 0xe9, jit->exit);
}

/* T0 = struct jit_site *: runs its executor with all guest state in memory. */
static void make_callout(struct translator *jit, struct assembler *a)
{
    jit->callout = rx(jit, a->p);
    save_guest(a);
    op_rm(a, OPCW(0x8b), H_RAX, T0, offsetof(struct jit_site, block));
    op_gs(a, OPCW(0x89), H_RAX, CPU(block));
    op_rm(a, OPCW(0x8b), H_RAX, T0, offsetof(struct jit_site, rip));
    op_gs(a, OPCW(0x89), H_RAX, CPU(gpr) + 8 * GPR_BLOCK_RIP);
    op_gs(a, OPC(0xc6), 0, CPU(executor_continued));
    put8(a, 0);
    op_gs(a, OPCW(0x8b), H_RDI, CPU(self));
    op_rr(a, OPCW(0x89), T0, H_RSI); /* the site begins with its uop */
    put8(a, 0x48), put8(a, 0x83), put8(a, 0xec), put8(a, 8);
    op_rm(a, OPC(0xff), 2, H_RSI, offsetof(struct uop, fn));
    put8(a, 0x48), put8(a, 0x83), put8(a, 0xc4), put8(a, 8);
    op_gs(a, OPC(0x80), 7, CPU(executor_continued)); /* cmp byte, 0 */
    put8(a, 0);
    put8(a, 0x74); /* jz out */
    uint8_t *out = a->p;
    put8(a, 0);
    load_guest(a);
    put8(a, 0xc3);
    out[0] = (uint8_t)(a->p - out - 1);
    put8(a, 0x48), put8(a, 0x83), put8(a, 0xc4), put8(a, 8); /* drop the return address */
    jump_to(jit, a, 0xe9, jit->exit_saved);
}

void jit_continue(struct cpu *cpu, const struct uop *u)
{
    (void)u;
    cpu->executor_continued = 1;
}

/* A translated vector instruction trapped, having changed nothing: its executor will find out why. */
static uint64_t resume_after_trap(const void *elsewhere, uint64_t rip)
{
    const struct translator *jit = elsewhere;
    uint64_t pc = rip - (uint64_t)jit->executable;
    unsigned low = 0, high = jit->trap_count;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (jit->traps[middle].pc < pc)
            low = middle + 1;
        else
            high = middle;
    }
    return low < jit->trap_count && jit->traps[low].pc == pc ? (uint64_t)jit->executable + jit->traps[low].cold : 0;
}

static struct translator *jit_create(struct cpu *cpu, imgvm_error *err)
{
    struct translator *jit = calloc(1, sizeof *jit);
    if (!jit) {
        error_set(err, ENOMEM, "out of memory for the translator");
        return NULL;
    }
    int fd = memfd_create("imgvm-jit", MFD_CLOEXEC);
    void *w = MAP_FAILED, *x = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, JIT_CODE_BYTES) == 0) {
        w = mmap(NULL, JIT_CODE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        x = mmap(NULL, JIT_CODE_BYTES, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    }
    if (fd >= 0)
        close(fd);
    jit->sites = malloc(JIT_SITES * sizeof *jit->sites);
    jit->exits = malloc(JIT_EXITS * sizeof *jit->exits);
    jit->traps = malloc(JIT_TRAPS * sizeof *jit->traps);
    jit->jump = calloc(JUMP_CACHE_ENTRIES, sizeof *jit->jump);
    if (w == MAP_FAILED || x == MAP_FAILED || !jit->sites || !jit->exits || !jit->traps || !jit->jump) {
        error_set(err, ENOMEM, "cannot map the translator's code cache");
        return NULL;
    }
    jit->writable = w;
    jit->executable = x;
    struct assembler a = {jit->writable};
    make_enter(jit, &a);
    make_dispatch(jit, &a);
    make_callout(jit, &a);
    jit->first_free = jit->used = align_up((uint64_t)(a.p - jit->writable), 64);
    jit->generation = 1;
    cpu->translated_jumps = jit->jump;
    cpu->native->resume_elsewhere = resume_after_trap;
    cpu->native->elsewhere = jit;
    return jit;
}

static void jit_destroy(struct translator *jit)
{
    if (!jit)
        return;
    munmap(jit->writable, JIT_CODE_BYTES);
    munmap((void *)jit->executable, JIT_CODE_BYTES);
    free(jit->sites);
    free(jit->exits);
    free(jit->traps);
    free(jit->jump);
    free(jit);
}

/* Translated code finds the processor through gs, which nothing else in a 64-bit Linux process uses. */
static void jit_attach_thread(struct cpu *cpu)
{
    if (syscall(SYS_arch_prctl, ARCH_SET_GS, cpu) < 0)
        internal_error(cpu, NULL, "the host refuses a gs base");
}

void jit_flush(struct translator *jit)
{
    jit->used = jit->first_free;
    jit->site_count = jit->exit_count = jit->trap_count = 0;
    jit->generation++;
    for (unsigned i = 0; i < JUMP_CACHE_ENTRIES; i++)
        jit->jump[i].key = 0;
}

/* Where the dispatcher looks. */
static void remember(struct translator *jit, uint64_t linear, uint64_t key, const void *code)
{
    unsigned slot = ((uint32_t)(linear >> 12) ^ (uint32_t)linear) % JUMP_CACHE_ENTRIES;
    jit->jump[slot] = (struct jit_link){linear, key, code, 0};
}

/* The last run ended at an exit whose target is the block that is entered now: next time it goes there directly. */
static void link_exit(struct cpu *cpu, const struct translator *jit, const void *code)
{
    struct jit_exit *exit = cpu->link_from;
    cpu->link_from = NULL;
    if (exit->target != cpu->rip)
        return;
    uint32_t expected = atomic_load(cpu->code_epoch) + (exit->same_page ? 0 : cpu->mmu.epoch);
    const uint8_t *next = jit->executable + (exit->jump + 4 - jit->writable);
    int32_t distance = (int32_t)((const uint8_t *)code - next);
    memcpy(exit->expected, &expected, 4);
    memcpy(exit->jump, &distance, 4);
}

static bool jit_ready(struct cpu *cpu, struct translator *jit, struct block *block)
{
    if (block->mode != INSN_MODE_64)
        return false;
    if (!block->translated || block->translated_rip != cpu->rip || block->translated_generation != jit->generation) {
        if (block->runs < cpu->translate_after) {
            block->runs++;
            return false;
        }
        block->translated = jit_translate(cpu, jit, block, cpu->rip);
        if (!block->translated)
            return false;
        block->translated_rip = cpu->rip;
        block->translated_generation = jit->generation;
    }
    return true;
}

static bool jit_run(struct cpu *cpu, struct translator *jit, struct block *block)
{
    if (!jit_ready(cpu, jit, block)) {
        cpu->link_from = NULL;
        return false;
    }
    if (!cpu->unlinked) {
        if (cpu->link_from)
            link_exit(cpu, jit, block->translated);
        remember(jit, cpu->rip, block_key(cpu), block->translated);
    }
    void (*enter)(const void *) = (void (*)(const void *))jit->enter;
    enter(block->translated);
    return true;
}

const struct translator_ops jit_translator = {jit_create, jit_destroy, jit_attach_thread, jit_ready, jit_run};
