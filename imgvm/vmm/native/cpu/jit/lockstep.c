/* SPDX-License-Identifier: MIT */
#include "lockstep.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "../decode/isa.h"
#include "../exec/debug.h"
#include "../exec/undo.h"
#include "lockstep_io.h"

#define ATTEMPTS 3

/* What a block may change of a processor, less its vector registers (in state.xsave while they are not live). */
#define HOT_BYTES offsetof(struct cpu, requests)
#define WARM_AT offsetof(struct cpu, request_mask)
#define WARM_BYTES (offsetof(struct cpu, mmu) - WARM_AT)

struct snapshot {
    uint8_t hot[HOT_BYTES], warm[WARM_BYTES];
    uint8_t cpl, mode;
    bool alignment_checked, fpu_away;
    uint64_t rip, eflags, instructions, gpr[16], pdpte[4];
    struct x86_state state; /* of cpu->s: the cold registers, and vector state */
};

/* What came of a block. */
struct outcome {
    bool landed; /* by an event; then which */
    enum cpu_event event;
    uint8_t vector, cpl, mode;
    bool has_error_code;
    uint32_t error_code, trap;
    uint64_t instructions, seg_base[6];
    uint64_t undefined; /* status flags that the manual leaves open */
    unsigned io;
    struct x86_state state; /* all of it: general registers and vector state too */
};

struct lockstep {
    struct lockstep_io io;
    struct lockstep_counts counts;
    bool vectors; /* the block may touch x87 or vector registers */
    struct snapshot before;
    struct outcome interpreted, translated;
    struct undo_log undo;
    char report[sizeof ((struct cpu *)0)->message];
    size_t report_bytes;
};

/* ---- before ---- */

static bool touches_vectors(const struct block *block)
{
    for (unsigned i = 0; i < block->count; i++) {
        const struct uop *u = &block->uops[i];
        uint8_t kind = op_infos[u->in.op].kind;
        if (u->in.length && (u->unit || kind == OPK_SYS || (op_infos[u->in.op].attributes & (OPA_X87 | OPA_MMX | OPA_SSE | OPA_AVX))))
            return true;
    }
    return false;
}

static size_t cold_bytes(const struct lockstep *ls)
{
    return offsetof(struct x86_state, xsave) + (ls->vectors ? FPU_XSAVE_BYTES : 0);
}

static void take_snapshot(struct cpu *cpu, struct snapshot *to)
{
    if (!cpu->fpu_away && cpu->lockstep->vectors)
        fpu_store(cpu->s.xsave);
    fpu_copy(to->hot, cpu, HOT_BYTES);
    fpu_copy(to->warm, (uint8_t *)cpu + WARM_AT, WARM_BYTES);
    to->cpl = cpu->cpl;
    to->mode = cpu->mode;
    to->alignment_checked = cpu->alignment_checked;
    to->rip = cpu->rip;
    to->instructions = cpu->instructions;
    to->eflags = cpu->eflags;
    fpu_copy(to->gpr, cpu->gpr, sizeof to->gpr);
    fpu_copy(to->pdpte, cpu->mmu.pdpte, sizeof to->pdpte);
    to->fpu_away = cpu->fpu_away;
    fpu_copy(&to->state, &cpu->s, cold_bytes(cpu->lockstep));
}

static bool bytes_equal(const void *a, const void *b, size_t size)
{
    const uint8_t *p = a, *q = b;
    size_t i = 0;
    for (; i + 8 <= size; i += 8)
        if (load_le64(p + i) != load_le64(q + i))
            return false;
    for (; i < size; i++)
        if (p[i] != q[i])
            return false;
    return true;
}

/* Does the MMU or the TLB bank follow from something that the block changed? */
static bool derived_state_differs(const struct cpu *cpu, const struct snapshot *before)
{
    const struct x86_state *then = &before->state, *now = &cpu->s;
    return then->cr0 != now->cr0 || then->cr3 != now->cr3 || then->cr4 != now->cr4 || then->efer != now->efer ||
           then->xcr0 != now->xcr0 || !bytes_equal(then->dr, now->dr, sizeof now->dr) ||
           before->cpl != cpu->cpl || before->mode != cpu->mode ||
           ((before->eflags ^ cpu->eflags) & (EFLAGS_AC | EFLAGS_VM)) ||
           !bytes_equal(before->pdpte, cpu->mmu.pdpte, sizeof before->pdpte);
}

static void restore_snapshot(struct cpu *cpu, const struct snapshot *from)
{
    bool derived = derived_state_differs(cpu, from), vectors = cpu->lockstep->vectors;
    if (vectors || from->fpu_away)
        cpu_fpu_leave(cpu);
    bool load = !from->fpu_away && cpu->fpu_away; /* a device was asked: vector state was put away, or the block's was */
    fpu_copy(cpu, from->hot, HOT_BYTES);
    fpu_copy((uint8_t *)cpu + WARM_AT, from->warm, WARM_BYTES);
    cpu->alignment_checked = from->alignment_checked;
    fpu_copy(&cpu->s, &from->state, cold_bytes(cpu->lockstep));
    if (load)
        fpu_load(cpu->s.xsave);
    if (!derived) {
        cpu_update_mode_key(cpu);
        return;
    }
    fpu_copy(cpu->mmu.pdpte, from->pdpte, sizeof from->pdpte);
    cpu_update_mode(cpu);
    cpu_set_cpl(cpu, from->cpl);
    debug_update(cpu);
    mmu_flush(&cpu->mmu);
}

/* ---- running, with events coming back here ---- */

static __attribute__((noinline)) bool run_interpreted(struct cpu *cpu, struct block *block)
{
    if (__builtin_setjmp(cpu->landing))
        return true;
    cpu->block = block;
    cpu->gpr[GPR_BLOCK_RIP] = cpu->rip;
    cpu->instructions += block->count;
    block->uops[0].fn(cpu, block->uops);
    return false;
}

static __attribute__((noinline)) bool run_translated(struct cpu *cpu, struct block *block)
{
    if (__builtin_setjmp(cpu->landing))
        return true;
    jit_translator.run(cpu, cpu->translator, block);
    return false;
}

/* The status flags that are undefined when control leaves the block at `rip` if it `landed`, or by one of its jumps: the
 * translator lets them be what they were, which need not be what the interpreter makes of them. */
static uint64_t undefined_flags(const struct cpu *cpu, const struct block *block, bool landed)
{
    const struct snapshot *before = &cpu->lockstep->before;
    uint64_t undefined = 0, at = cpu->rip - before->rip, run = cpu->instructions - before->instructions;
    for (unsigned i = 0; i < block->count && i < run; i++) {
        const struct uop *u = &block->uops[i];
        if (landed && (u->offset == at || !u->in.length))
            break;
        const struct op_info *info = &op_infos[u->in.op];
        if (!(info->attributes & OPA_MAY_KEEP_FLAGS))
            undefined &= ~(uint64_t)info->flags_written;
        undefined |= info->flags_undefined;
    }
    return undefined;
}

static void take_outcome(struct cpu *cpu, const struct block *block, struct outcome *to, bool landed)
{
    struct x86_state *s = &to->state;
    to->landed = landed;
    to->event = cpu->event;
    to->vector = cpu->vector;
    to->has_error_code = cpu->has_error_code;
    to->error_code = cpu->error_code;
    to->trap = cpu->trap;
    to->cpl = cpu->cpl;
    to->mode = cpu->mode;
    to->instructions = cpu->instructions;
    to->io = cpu->lockstep->io.next;
    fpu_copy(to->seg_base, cpu->seg_base, sizeof to->seg_base);
    fpu_copy(s, &cpu->s, offsetof(struct x86_state, xsave));
    fpu_copy(s->gpr, cpu->gpr, sizeof s->gpr);
    s->rip = cpu->rip;
    s->rflags = cpu_get_eflags(cpu);
    to->undefined = undefined_flags(cpu, block, landed);
    if (!cpu->lockstep->vectors)
        return;
    if (!cpu->fpu_away)
        fpu_store(cpu->s.xsave);
    fpu_copy(s->xsave, cpu->s.xsave, FPU_XSAVE_BYTES);
    fpu_open(s->xsave);
}

/* ---- comparing ---- */

static void say(struct lockstep *ls, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(struct lockstep *ls, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(ls->report + ls->report_bytes, sizeof ls->report - ls->report_bytes, format, args);
    va_end(args);
    ls->report_bytes = MIN(ls->report_bytes + (size_t)MAX(n, 0), sizeof ls->report - 1);
}

#define FIELD(name_) {#name_, offsetof(struct outcome, name_), sizeof ((struct outcome *)0)->name_}
#define STATE(name_) {#name_, offsetof(struct outcome, state.name_), sizeof ((struct outcome *)0)->state.name_}
#define SEGMENT(name_, segment_)                                                                          \
    {name_ ".selector", offsetof(struct outcome, state.segment_.selector), 2},                            \
    {name_ ".attributes", offsetof(struct outcome, state.segment_.attributes), 4},                        \
    {name_ ".limit", offsetof(struct outcome, state.segment_.limit), 4},                                  \
    {name_ ".base", offsetof(struct outcome, state.segment_.base), 8}

/* Everything but the general and vector registers, which are many. */
static const struct {
    const char *name;
    size_t at, bytes;
} fields[] = {
    STATE(rip), FIELD(landed), FIELD(event), FIELD(trap), FIELD(cpl), FIELD(mode), FIELD(instructions), FIELD(io),
    FIELD(seg_base), SEGMENT("es", segment[ES]), SEGMENT("cs", segment[CS]), SEGMENT("ss", segment[SS]), SEGMENT("ds", segment[DS]),
    SEGMENT("fs", segment[FS]), SEGMENT("gs", segment[GS]), SEGMENT("ldtr", ldtr), SEGMENT("tr", tr), STATE(gdtr.base), STATE(gdtr.limit), STATE(idtr.base), STATE(idtr.limit),
    STATE(cr0), STATE(cr2), STATE(cr3), STATE(cr4), STATE(dr), STATE(xcr0), STATE(efer), STATE(star), STATE(lstar), STATE(cstar),
    STATE(sfmask), STATE(kernel_gs_base), STATE(sysenter_cs), STATE(sysenter_esp), STATE(sysenter_eip), STATE(tsc_offset),
    STATE(tsc_aux), STATE(tsc_adjust), STATE(pat), STATE(misc_enable), STATE(spec_ctrl), STATE(xss), STATE(mtrr_def_type),
    STATE(mtrr_fixed), STATE(mtrr_base), STATE(mtrr_mask), STATE(activity), STATE(nmi_blocked), STATE(interrupt_shadow),
};

static const char *const gpr_names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

static bool exceptions_agree(const struct outcome *a, const struct outcome *b)
{
    return a->event != EVENT_EXCEPTION || (a->vector == b->vector && a->has_error_code == b->has_error_code &&
                                           (!a->has_error_code || a->error_code == b->error_code));
}

static bool flags_agree(const struct outcome *a, const struct outcome *b)
{
    return !((a->state.rflags ^ b->state.rflags) & ~(a->undefined & b->undefined));
}

static bool outcomes_agree(const struct outcome *a, const struct outcome *b, bool vectors)
{
    bool same = bytes_equal(a, b, offsetof(struct outcome, state.xsave)); /* padding too, or they are looked at singly */
    for (unsigned i = 0; !same && i < ARRAY_LEN(fields); i++)
        if (!bytes_equal((const uint8_t *)a + fields[i].at, (const uint8_t *)b + fields[i].at, fields[i].bytes))
            return false;
    const uint8_t *x = a->state.xsave, *y = b->state.xsave;
    if (vectors && !(bytes_equal(x, y, 5) && bytes_equal(x + 24, y + 24, 4) && bytes_equal(x + 32, y + 32, 160 - 32 + 256) &&
                     bytes_equal(x + 576, y + 576, 256)))
        return false;
    return exceptions_agree(a, b) && flags_agree(a, b) &&
           bytes_equal(a->state.gpr, b->state.gpr, sizeof a->state.gpr);
}

static void say_bytes(struct lockstep *ls, const uint8_t *bytes, size_t size)
{
    for (size_t i = size; i-- > 0;) /* as a number */
        say(ls, "%02x", bytes[i]);
}

static void say_field(struct lockstep *ls, const char *name, const uint8_t *before, const uint8_t *a, const uint8_t *b, size_t size)
{
    if (bytes_equal(a, b, size))
        return;
    say(ls, "\n  %-8s interpreted ", name);
    say_bytes(ls, a, size);
    say(ls, " translated ");
    say_bytes(ls, b, size);
    if (before) {
        say(ls, " before ");
        say_bytes(ls, before, size);
    }
}

static void say_vectors(struct lockstep *ls, const char *kind, unsigned first, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        char name[8];
        unsigned at = first + 16 * i;
        snprintf(name, sizeof name, "%s%u", kind, i);
        say_field(ls, name, ls->before.state.xsave + at, ls->interpreted.state.xsave + at, ls->translated.state.xsave + at, 16);
    }
}

static void say_code(struct lockstep *ls, const struct cpu *cpu, const struct block *block, uint64_t rip)
{
    uint8_t code[GUEST_PAGE_SIZE];
    if (!guest_mem_read(cpu->mmu.mem, block->gpa, code, block->bytes))
        return;
    for (unsigned offset = 0, i = 0; i < block->count; i++) {
        struct insn in;
        char text[128] = "(undefined)";
        int length = insn_decode(&in, code + offset, block->bytes - offset, (enum insn_mode)block->mode);
        if (length > 0)
            insn_format(&in, rip + offset, text, sizeof text);
        say(ls, "\n  %llx  %s", (unsigned long long)(rip + offset), text);
        if (length <= 0)
            break;
        offset += (unsigned)length;
    }
}

/* The whole story, into cpu->message. Vector state has been put away: C may do as it likes. */
static void report(struct cpu *cpu, const struct block *block, const struct undo_range *memory)
{
    struct lockstep *ls = cpu->lockstep;
    const struct outcome *a = &ls->interpreted, *b = &ls->translated;
    const struct snapshot *then = &ls->before;
    ls->report_bytes = 0;
    say(ls, "lock-step: the translated block at %#x:%#llx (%#llx, %u instructions) differs from the interpreter",
        then->state.segment[CS].selector, (unsigned long long)then->rip, (unsigned long long)block->gpa, block->count);
    if (ls->io.differs || a->io != b->io)
        say(ls, "\n  ports and MMIO: access %u of %u is another one or missing", ls->io.next, ls->io.count);
    for (unsigned i = 0; i < 16; i++)
        say_field(ls, gpr_names[i], (const uint8_t *)&then->gpr[i], (const uint8_t *)&a->state.gpr[i],
                  (const uint8_t *)&b->state.gpr[i], 8);
    for (unsigned i = 0; i < ARRAY_LEN(fields); i++)
        say_field(ls, fields[i].name, NULL, (const uint8_t *)a + fields[i].at, (const uint8_t *)b + fields[i].at, fields[i].bytes);
    if (!flags_agree(a, b))
        say_field(ls, "rflags", NULL, (const uint8_t *)&a->state.rflags, (const uint8_t *)&b->state.rflags, 8);
    if (!exceptions_agree(a, b))
        say(ls, "\n  exception interpreted %u (%#x) translated %u (%#x)", a->vector, a->error_code, b->vector, b->error_code);
    if (ls->vectors) {
        const uint8_t *x = a->state.xsave, *y = b->state.xsave;
        say_field(ls, "fcw", NULL, x, y, 2);
        say_field(ls, "fsw", NULL, x + 2, y + 2, 2);
        say_field(ls, "ftw", NULL, x + 4, y + 4, 1);
        say_field(ls, "mxcsr", NULL, x + 24, y + 24, 4);
        say_vectors(ls, "st", 32, 8);
        say_vectors(ls, "xmm", 160, 16);
        say_vectors(ls, "ymmh", 576, 16);
    }
    if (memory) {
        say(ls, "\n  memory at host %p, %u bytes:", (void *)memory->host, memory->size);
        say_field(ls, "", NULL, ls->undo.after + memory->at, memory->host, MIN(memory->size, 64u));
    }
    say_code(ls, cpu, block, then->rip);
    snprintf(cpu->message, sizeof cpu->message, "%s", ls->report);
}

/* ---- a block ---- */

static bool comparable(const struct cpu *cpu, const struct block *block)
{
    if (cpu->points.count)
        return false; /* a watchpoint's hit is remembered outside of what is restored */
    for (unsigned i = 0; i < block->count; i++)
        if (block->uops[i].in.op == OP_RDRAND || block->uops[i].in.op == OP_RDSEED)
            return false;
    return true;
}

static bool interpret(struct cpu *cpu, struct block *block)
{
    struct lockstep *ls = cpu->lockstep;
    ls->undo.abandoned = false;
    ls->undo.count = ls->undo.used = 0;
    ls->io.phase = IO_RECORD;
    ls->io.next = 0;
    cpu->undo = &ls->undo;
    cpu->tlb = cpu->nothing;
    bool landed = run_interpreted(cpu, block);
    cpu->undo = NULL;
    take_outcome(cpu, block, &ls->interpreted, landed);
    undo_take_back(&ls->undo);
    restore_snapshot(cpu, &ls->before);
    return !ls->undo.abandoned;
}

static bool translate(struct cpu *cpu, struct block *block, enum lockstep_phase phase)
{
    struct lockstep *ls = cpu->lockstep;
    ls->io.phase = phase;
    ls->io.next = 0;
    bool landed = run_translated(cpu, block);
    ls->io.phase = IO_REAL;
    return landed;
}

/* Translated code may leave a block behind any instruction (a page boundary in a group of operands, code that was written). */
static bool left_early(const struct lockstep *ls, const struct block *block)
{
    const struct outcome *ours = &ls->translated, *theirs = &ls->interpreted;
    uint64_t into = ours->state.rip - ls->before.rip;
    bool less = ours->instructions < theirs->instructions || (theirs->landed && ours->instructions == theirs->instructions);
    return !ours->landed && less && into && into < block->bytes;
}

/* Runs the block by both. Returns whether the translated one was left by an event. */
static bool compare(struct cpu *cpu, struct block *block)
{
    struct lockstep *ls = cpu->lockstep;
    ls->io.count = 0;
    ls->vectors = touches_vectors(block);
    take_snapshot(cpu, &ls->before);
    for (unsigned attempt = 1;; attempt++) {
        ls->io.differs = false;
        if (!interpret(cpu, block) && !ls->io.differs) {
            ls->counts.abandoned++;
            return translate(cpu, block, IO_FINISH);
        }
        bool landed = translate(cpu, block, IO_REPLAY);
        take_outcome(cpu, block, &ls->translated, landed);
        if (left_early(ls, block)) {
            ls->counts.abandoned++;
            return landed;
        }
        const struct undo_range *memory = undo_compare(&ls->undo);
        if (!ls->io.differs && !memory && outcomes_agree(&ls->interpreted, &ls->translated, ls->vectors)) {
            ls->counts.compared++;
            ls->counts.settled += attempt > 1;
            return landed;
        }
        if (attempt == ATTEMPTS) {
            cpu_fpu_leave(cpu);
            report(cpu, block, memory);
            cpu->event = EVENT_INTERNAL;
            return true;
        }
        undo_take_back_again(&ls->undo);
        restore_snapshot(cpu, &ls->before);
        mmu_flush(&cpu->mmu); /* a page table may have been written and not been made known yet: both read it now */
    }
}

static bool lockstep_run(struct cpu *cpu, struct translator *translator, struct block *block)
{
    struct lockstep *ls = cpu->lockstep;
    void *landing[ARRAY_LEN(cpu->landing)];
    if ((block->mode & MODE_SINGLE) || !jit_translator.ready(cpu, translator, block))
        return false;
    if (!comparable(cpu, block)) {
        ls->counts.skipped++;
        return jit_translator.run(cpu, translator, block);
    }
    fpu_copy(landing, cpu->landing, sizeof landing);
    bool landed = compare(cpu, block);
    fpu_copy(cpu->landing, landing, sizeof landing);
    if (landed)
        __builtin_longjmp(cpu->landing, 1);
    return true;
}

static bool lockstep_ready(struct cpu *cpu, struct translator *translator, struct block *block)
{
    return jit_translator.ready(cpu, translator, block);
}

static struct translator *lockstep_create(struct cpu *cpu, const struct cpu_options *options, imgvm_error *err)
{
    if (cpu->count > 1) {
        error_set(err, EINVAL, "lock-step takes one processor, not %u", cpu->count);
        return NULL;
    }
    cpu->lockstep = aligned_alloc(64, align_up(sizeof *cpu->lockstep, 64));
    if (!cpu->lockstep) {
        error_set(err, ENOMEM, "out of memory for the lock-step");
        return NULL;
    }
    cpu->lockstep->counts = (struct lockstep_counts){0};
    lockstep_io_attach(&cpu->lockstep->io, cpu);
    cpu->unlinked = true;
    struct cpu_options counting = *options;
    counting.count_instructions = true; /* it is compared */
    return jit_translator.create(cpu, &counting, err);
}

static void lockstep_destroy(struct translator *translator)
{
    jit_translator.destroy(translator); /* cpu_destroy frees the rest */
}

static void lockstep_attach_thread(struct cpu *cpu)
{
    jit_translator.attach_thread(cpu);
}

static void lockstep_code_written(struct cpu *cpu, struct translator *translator, uint64_t gpa)
{
    jit_translator.code_written(cpu, translator, gpa);
}

static void lockstep_forget_block(struct cpu *cpu, struct translator *translator, struct block *block)
{
    jit_translator.forget_block(cpu, translator, block);
}

static void lockstep_forget(struct cpu *cpu, struct translator *translator)
{
    jit_translator.forget(cpu, translator);
}

const struct lockstep_counts *lockstep_counts(const struct cpu *cpu)
{
    return cpu->lockstep ? &cpu->lockstep->counts : NULL;
}

const struct translator_ops lockstep_translator = {lockstep_create, lockstep_destroy, lockstep_attach_thread, lockstep_ready,
                                                   lockstep_run, lockstep_code_written, lockstep_forget_block, lockstep_forget};
