/* SPDX-License-Identifier: MIT */
/* The interpreter's own view of a processor: hot state first, decoded blocks, and the rules
 * by which an executor (exec_fn) runs one decoded instruction.
 *
 * An executor makes every check before it changes any state, so that a fault (raise_*, which
 * does not return) leaves the instruction not begun. It ends with NEXT (tail call of the following
 * instruction of the block), or, when control goes elsewhere, by setting cpu->rip and returning. */
#ifndef IMGVM_CPU_EXEC_EXEC_H
#define IMGVM_CPU_EXEC_EXEC_H

#include <stdatomic.h>

#include "../../arch/state.h"
#include "../../base/bits.h"
#include "../cpu.h"
#include "../decode/insn.h"
#include "../mmu/mmu.h"
#include "count.h"
#include "cpuid.h"
#include "fpu.h"
#include "native.h"
#include "points.h"

struct uop;
struct cpu;
struct block;
struct translator;
struct undo_log;
struct lockstep;

/* Something that runs hot blocks faster than their uops do. This folder knows no more of it. */
struct translator_ops {
    struct translator *(*create)(struct cpu *cpu, const struct cpu_options *options, imgvm_error *err);
    void (*destroy)(struct translator *translator);
    void (*attach_thread)(struct cpu *cpu); /* this thread is about to run the processor */
    /* Will `run` take this block, translating it first if need be? */
    bool (*ready)(struct cpu *cpu, struct translator *translator, struct block *block);
    /* Runs from the start of `block`, perhaps far beyond (never, while cpu->unlinked), and leaves cpu->rip; false: the
     * block is to be interpreted. */
    bool (*run)(struct cpu *cpu, struct translator *translator, struct block *block);
    /* This processor wrote code of the page at gpa: nothing made from it may be entered any more. */
    void (*code_written)(struct cpu *cpu, struct translator *translator, uint64_t gpa);
    /* This one is about to go. */
    void (*forget_block)(struct cpu *cpu, struct translator *translator, struct block *block);
    /* All blocks are about to go. */
    void (*forget)(struct cpu *cpu, struct translator *translator);
};
typedef void exec_fn(struct cpu *cpu, const struct uop *u);

/* One decoded instruction of a block, ready to run. */
struct uop {
    exec_fn *fn;
    native_fn native;  /* OPK_NATIVE rows: the thunk */
    struct insn in;
    uint16_t offset;   /* of this instruction from the block's start */
    uint16_t next;     /* offset of the following instruction */
    uint16_t index;    /* position in the block */
    bool ea_slow;      /* address size is not 64, or not 64-bit mode, or moffs */
    uint8_t unit;      /* OPK_NATIVE: of OPA_X87, OPA_MMX, OPA_SSE, OPA_AVX, what must not be in cpu->fpu_unready */
    uint16_t mem_size; /* OPK_NATIVE: bytes of the memory operand */
    uint8_t pages;     /* the translator's: what it has learnt of the memory operand (jit/learn.h) */
};

#define UNIT_VEX 0x80 /* of uop.unit and cpu.fpu_unready: VEX prefixes are #UD in real and virtual-8086 mode */

#define BLOCK_MAX_INSNS 64
#define LEADS 4 /* groups of operands at a time in translated code */
#define MODE_SINGLE 0x80 /* a block of one instruction, never cached */

/* A block found before by its linear address, good while `key` is the processor's (block_key). */
struct block_link {
    uint64_t linear, key;
    struct block *block;
};

struct block {
    /* what a look by physical address reads, a line of the host's cache */
    struct block *hash_next;
    uint64_t gpa;
    const _Atomic uint32_t *generation_now; /* of the page; differs from `generation` once the code was written */
    const _Atomic uint32_t *across_now;     /* a single instruction that goes on in the next page: the same of that; NULL: it does not */
    uint8_t *seen; /* set when it is entered; its segment's (block.c) */
    uint32_t generation, across_generation;
    uint8_t mode; /* enum insn_mode */
    bool user;    /* decoded for CPL 3: privileges do not share blocks */
    uint16_t count, bytes;
    uint8_t translated_segment;
    bool interpret;          /* not worth another try */
    bool flags_dead;         /* overwrites all status flags before anything can see them */
    bool lost;               /* was translated, until there was no room for it */
    bool floats;             /* the translated code: it asks cpu->code_page where it is */
    uint32_t runs;
    /* the translator's (jit/translate.h): host code, good in one mode, at one linear address or wherever its page is */
    const void *translated;
    uint64_t translated_rip; /* `floats`: when it was translated */
    uint32_t translated_mode;
    uint32_t incoming;       /* the first exit that leads here, 0: none */
    uint32_t exits, exit_count; /* its own: numbers from `exits` */
    struct block *page_next; /* translated blocks of pages with the same hash */
    struct block *across_next; /* translated ones that go on in another page */
    struct block *segment_next, **segment_link; /* translated into the same segment; what points to this one */
    uint64_t across_gpa;
    struct block_link links[2]; /* where control went from here; true wherever one comes from */
    struct uop uops[];
};

/* Its bytes are what they were when it was decoded. */
static inline bool block_is_current(const struct block *block)
{
    return block->generation == atomic_load_explicit(block->generation_now, memory_order_acquire) &&
           (likely(!block->across_now) || block->across_generation == atomic_load_explicit(block->across_now, memory_order_acquire));
}

#define JUMP_CACHE_ENTRIES 4096u

/* Why control left a block other than by its end. */
enum cpu_event { EVENT_NONE, EVENT_EXCEPTION, EVENT_LEAVE, EVENT_SINGLE, EVENT_EXCLUSIVE, EVENT_STOP, EVENT_REFUSED, EVENT_INTERNAL };

/* What mmu.mode_key says of a mode: the privilege (2 bits), the TLB bank (2 bits), enum insn_mode; and outside 64-bit mode
 * what translated code takes for granted of the segments: which of ES, CS, SS and DS are flat, whether the stack pointer is
 * ESP, and the number of the code segment's base and limit, which say what an EIP means. The lowest 8 bits are what decoded
 * code depends on. */
#define MODE_KEY_BANK 2
#define MODE_KEY_MODE 4
#define MODE_KEY_FLAT 8
#define MODE_KEY_STACK32 12
#define MODE_KEY_CODE_SEGMENT 13

/* Bases and limits of the code segments met, each in the place that its number says. */
#define CODE_SEGMENTS 4096u
struct code_segments {
    uint64_t known[CODE_SEGMENTS]; /* base << 32 | ~limit; 0: none. The flat segment's is 0, too, and so is its number */
    unsigned count;
    bool full; /* the current one has no number: it is not translated */
};

#define GPR_ZERO INSN_REG_NONE
#define GPR_BLOCK_RIP INSN_REG_RIP

struct cpu {
    uint64_t gpr[18]; /* 16: always zero; 17: rip of the running block (base of RIP-relative operands) */
    uint16_t cc;      /* status flags as `lahf; seto al` leaves them in ax: AH = SF ZF 0 AF 0 PF 1 CF, AL = OF */
    bool code64;      /* CS.L: 64-bit mode */
    uint8_t cpl;
    uint8_t mode;     /* enum insn_mode of CS */
    bool stack32;     /* SS.B outside 64-bit mode */
    uint8_t boundary;  /* instruction boundaries need a look: see cpu_update_boundary */
    _Alignas(4) uint8_t fpu_unready; /* OPA_X87|MMX|SSE|AVX: preconditions not met, see fpu_ready in state.c */
    bool fpu_away; /* the guest's vector state is in s.xsave, not in the host's registers; translated code tests both at once */
    uint64_t seg_base[8]; /* by enum x86_sreg; [INSN_SEG_FLAT] = 0 */
    struct tlb_entry *tlb; /* bank of the current privilege */
    struct wide_entry *wide; /* the same; for translated code */
    uint64_t rip;          /* next instruction, exact between blocks */
    uint64_t eflags;       /* everything but the six status flags */
    struct block *block;   /* being executed */
    const struct uop *cur; /* set by slow paths that may fault */
    _Atomic uint32_t requests;
    _Atomic bool running; /* inside cpu_run */
    _Atomic uint32_t pending; /* something may want a look between instructions: what translated code polls */
    /* Pages with code that its last two slow stores went to; NO_PAGE: none. Since its last flush: then they are made. */
    _Atomic uint64_t store_pages[2];
    unsigned store_page; /* the later of them */
    uint32_t request_mask; /* requests that matter now (INTR only while IF is set) */
    int32_t budget;        /* blocks until the clock is looked at */
    uint32_t blocks_evicted; /* times that some went (block.c) */
    uint32_t pauses;       /* PAUSE instructions so far */
    uint64_t instructions;
    uint64_t count_limit;  /* cpu_run_count: stop at this many instructions; UINT64_MAX: none */

    /* what translated code reaches (see struct translator_ops) */
    struct cpu *self;
    struct translator *translator; /* NULL: interpret only */
    const struct translator_ops *translator_ops;
    unsigned translate_after; /* of struct cpu_options */
    void *translated_jumps;
    uint64_t code_page; /* the linear page that runs, in ring 3 of 64-bit mode: the same code may be elsewhere in another process */
    uint64_t call_target, refilled; /* its temporaries that do not fit a register */
    /* of operands that go to several pages by turns (jit/check.c, jit/learn.h) */
    uint64_t lead[LEADS];
    uint32_t next_of_few, trial_left;
    /* Outside 64-bit mode, for reading and for writing, by segment: the last byte of an operand may have this offset at
     * most; -1: whether it may be accessed takes a closer look. */
    int64_t seg_last[2][8];
    uint32_t segment_key; /* the segments' part of mmu.mode_key */
    uint64_t host_stack, host_stack_limit; /* of translated code: its bottom, and how deep calls may nest on it */
    uint32_t link_from; /* the exit that translated code left by and that could be linked; 0: none */
    bool copies_by_vectors;  /* the host: see host_movs in exec_string.c */
    bool executor_continued; /* the executor called from translated code went on to what follows */
    bool leave_translated;   /* ... and yet translated code must not: it may be stale */
    bool uncounted;          /* translated code runs that does not count its instructions */
    struct uop called[2];    /* the instruction that an executor runs for translated code, and what follows it */
    bool unlinked; /* it comes back after each block */
    uint8_t left_by; /* enum translated_exit */

    /* pending event, valid when event != EVENT_NONE */
    void *landing[5]; /* __builtin_setjmp buffer of cpu_run */
    enum cpu_event event;
    uint8_t vector;
    bool has_error_code;
    uint32_t error_code;
    bool exclusive;              /* no other processor executes anything now */
    bool in_soft_interrupt;      /* INT n is being delivered: a fault returns to the instruction itself */
    uint64_t soft_interrupt_rip;
    bool hold_interrupts; /* a debugger steps */
    bool reports_exceptions, exception_met; /* cpu_report_exceptions; `vector` waits for cpu_take_exception */
    uint8_t delivering; /* exception being delivered, NO_VECTOR if none: what a second one meets */

    /* debugging (debug.h) */
    uint32_t trap;     /* DR6 bits of the trap that comes at the end of the instruction */
    uint32_t resumed;  /* EFLAGS.RF as the instruction run last found it */
    bool debug_single; /* code or port breakpoints are enabled: an instruction at a time */
    bool task_trap;    /* the task switched to wants a debug trap (T bit of its TSS) */
    bool event_single; /* the next instruction is to be decoded anew, alone */
    bool ss_shadow;    /* the last instruction was MOV SS or POP SS */

    struct mmu mmu;
    struct tlb_entry nothing[TLB_ENTRIES]; /* the TLB bank while alignment is checked, or stores are to be undone:
                                              every access goes the slow way */
    bool alignment_checked;                /* CR0.AM, EFLAGS.AC and CPL 3 */
    struct x86_state s; /* cold registers; gpr, rip, rflags, xsave of it are stale while running (see cpu_get_state) */
    struct code_segments code_segments;
    struct block_link jump[JUMP_CACHE_ENTRIES];
    struct block_cache *blocks;
    struct native_cache *native;
    const struct exec_def *(*exec_table)[FORM_OTHER + 1]; /* [op][form] */
    uint32_t native_generation;
    struct cpuid_config cpuid;
    struct cpuid_memo cpuid_memo[CPUID_MEMOS];
    struct clock_piece tsc_piece; /* of the guest's TSC; no ticks: ask the executor */
    uint16_t slot_refills[TLB_BANKS * ACCESS_SLOTS]; /* each access slot's, counted down; not among what lock-step copies */

    _Alignas(64) uint8_t bounce[256]; /* operand that crosses a page or lives in MMIO */
    uint64_t bounce_linear;

    struct cpu_counts counts;
    uint32_t traced; /* of struct cpu_options */
    struct traced_mode {
        const char *name;
        uint64_t cr0, cr4, efer;
    } traced_mode; /* as a trace was told last */
    struct undo_log *undo;     /* writes to memory are noted there; NULL: they are not */
    struct lockstep *lockstep; /* of jit/lockstep.c */
    struct points points; /* a debugger's break- and watchpoints */
    struct cpu_callbacks callbacks;
    void *opaque;
    unsigned id, count;
    uint64_t deadline_ns;
    uint8_t sipi_vector;
    char message[4000];
};

#define NO_VECTOR 0xff
#define NO_PAGE UINT64_MAX
_Static_assert(offsetof(struct cpu, gpr) == 0 && offsetof(struct cpu, cc) == CPU_CC_OFFSET, "struct native_head");

#define NEXT return u[1].fn(cpu, u + 1)
/* Leave the block behind this instruction: what it changed decides how the next one is decoded or run. */
#define END_BLOCK                                                                                   \
    do {                                                                                            \
        cpu->rip = cpu_next_rip(cpu, u);                                                            \
        return;                                                                                     \
    } while (0)

/* Can 64-bit code be or go there: by the paging in use. */
static inline bool canonical(const struct cpu *cpu, uint64_t address)
{
    return x86_canonical(address, cpu->s.cr4 & CR4_LA57);
}
/* Can a register that holds an address take it: by what the processor has, whatever the paging (SDM vol. 3, 4.5.2). */
static inline bool canonical_in_register(const struct cpu *cpu, uint64_t address)
{
    return x86_canonical(address, cpuid_has(&cpu->cpuid, FEATURE_LA57));
}

/* ---- run.c ---- */

static inline uint64_t cpu_rip_mask(const struct cpu *cpu)
{
    /* 16-bit code too: behind FFFFh comes 10000h, which the segment's limit refuses (SDM vol. 3, 20.1.1) */
    return cpu->code64 ? ~UINT64_C(0) : 0xffffffffu;
}
static inline uint64_t cpu_this_rip(const struct cpu *cpu, const struct uop *u)
{
    return cpu->gpr[GPR_BLOCK_RIP] + u->offset;
}
static inline uint64_t cpu_next_rip(const struct cpu *cpu, const struct uop *u)
{
    uint64_t rip = cpu->gpr[GPR_BLOCK_RIP] + u->next;
    return likely(cpu->code64) ? rip : rip & cpu_rip_mask(cpu);
}

/* None of these returns to the executor. rip points at the instruction, whose effects must not have begun. */
_Noreturn void raise_exception(struct cpu *cpu, const struct uop *u, uint8_t vector);
_Noreturn void raise_error(struct cpu *cpu, const struct uop *u, uint8_t vector, uint32_t error_code);
static inline _Noreturn void raise_gp(struct cpu *cpu, const struct uop *u, uint32_t error_code)
{
    raise_error(cpu, u, EXC_GP, error_code);
}
static inline _Noreturn void raise_ud(struct cpu *cpu, const struct uop *u)
{
    raise_exception(cpu, u, EXC_UD);
}
/* Back to the run loop with cpu->rip as set by the caller; this instruction counts as executed if `done`. */
_Noreturn void leave_block(struct cpu *cpu, const struct uop *u, bool done);
/* A block is counted whole when it is entered; takes back what did not run of it, from u or (`done`) what follows. */
static inline void cpu_uncount(struct cpu *cpu, const struct uop *u, bool done)
{
    if (likely(!cpu->uncounted))
        cpu->instructions -= (uint64_t)(cpu->block->count - u->index) - done;
}
/* The instruction at u has run, and returns to the run loop although its block goes on. */
static inline void cpu_cut_block(struct cpu *cpu, const struct uop *u)
{
    cpu_uncount(cpu, u, true);
}
/* The instruction at u must not touch this port or physical address: back to the caller of cpu_run (may_access). */
void cpu_check_access(struct cpu *cpu, const struct uop *u, bool port, uint64_t address);
/* A bug or a limit of ours: ends this machine, not the process. */
_Noreturn void internal_error(struct cpu *cpu, const struct uop *u, const char *what);

/* EFLAGS as the guest sees them, and back. `mask` selects what may change. */
uint32_t cpu_get_eflags(const struct cpu *cpu);
void cpu_set_eflags(struct cpu *cpu, uint32_t value, uint32_t mask);
/* Derived state after a change of CS, SS, CR0, CR4, EFER, XCR0, EFLAGS.VM or CPL. */
void cpu_update_mode(struct cpu *cpu);
/* After a change of IF, NMI blocking or activity: which requests are to be seen. */
void cpu_update_requests(struct cpu *cpu);
/* After a change of the interrupt shadow, TF or activity (cpu_update_requests does it too). */
void cpu_update_boundary(struct cpu *cpu);
/* Is there anything but the next block? Boundary events that arise on this processor keep cpu->boundary up to date
 * (cpu_update_boundary); the rest are requests. */
static inline bool cpu_wants_attention(const struct cpu *cpu)
{
    return cpu->boundary | (atomic_load_explicit(&cpu->requests, memory_order_relaxed) & cpu->request_mask);
}
/* cpu->pending := whether anything does. */
void cpu_update_pending(struct cpu *cpu);
/* The guest's vector state into s.xsave, so that ordinary C code may run. */
static inline void cpu_fpu_leave(struct cpu *cpu)
{
    if (!cpu->fpu_away) {
        fpu_leave(cpu->s.xsave);
        cpu->fpu_away = true;
    }
}

/* "pf" and the like (count.c). */
const char *exception_name(uint8_t vector);

/* ---- access.c: memory operands ---- */

uint64_t access_ea_slow(struct cpu *cpu, const struct uop *u, unsigned size, bool write);
/* The linear address without the segment's limit and type: INVLPG. */
uint64_t access_ea_unchecked(struct cpu *cpu, const struct uop *u);
uint64_t access_read_slow(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size);
void access_write_slow(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, uint64_t value);
void *access_load_slow(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size);
void *access_rmw_slow(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool read);
void access_commit(struct cpu *cpu, const struct uop *u, unsigned size);
/* Implicit supervisor access to system structures (descriptor tables, TSS, and what SDM vol. 3, 4.6 lists). */
uint64_t access_system_read(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size);
void access_system_write(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, uint64_t value);
/* Raises unless such an access to [linear, linear+size) would succeed (size <= 4096). */
void access_system_probe(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool write);
/* Host address of `size` bytes within one page, for page-wise copies; NULL: MMIO or ROM, go by elements. */
void *access_page_ptr(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool write);
/* Raises unless [linear, linear+size) can be written (size <= 4096). */
void access_probe_write(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size);
/* Raises unless the last byte's address is canonical: for what is read in pieces. 64-bit code's alone. */
void access_check_canonical(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool write);
/* The TLB's entry for an access to this page, entered if need be; NULL: there can be none, the access needs its executor. */
const struct tlb_entry *access_entry(struct cpu *cpu, uint64_t linear, bool write);
/* Segment limit and type check outside 64-bit mode: returns the linear address. */
uint64_t access_segment(struct cpu *cpu, const struct uop *u, unsigned segment, uint64_t offset, unsigned size, bool write);

/* Linear address of the memory operand. */
static inline uint64_t operand_linear(struct cpu *cpu, const struct uop *u, unsigned size, bool write)
{
    const struct insn *in = &u->in;
    if (unlikely(u->ea_slow))
        return access_ea_slow(cpu, u, size, write);
    return cpu->gpr[in->base] + (cpu->gpr[in->index] << in->scale) + (uint64_t)(int64_t)in->disp +
           cpu->seg_base[in->segment];
}

static inline struct tlb_entry *tlb_at(struct cpu *cpu, uint64_t linear)
{
    return &cpu->tlb[(linear / GUEST_PAGE_SIZE) % TLB_ENTRIES];
}

#define MEM_ACCESSORS(bits)                                                                                   \
    static inline uint##bits##_t mem_read_##bits(struct cpu *cpu, const struct uop *u, uint64_t linear)      \
    {                                                                                                         \
        struct tlb_entry *e = tlb_at(cpu, linear);                                                            \
        if (likely((linear ^ e->read_tag) <= GUEST_PAGE_SIZE - bits / 8))                                     \
            return *(uint##bits##_t *)(linear + e->addend);                                                   \
        return (uint##bits##_t)access_read_slow(cpu, u, linear, bits / 8);                                    \
    }                                                                                                         \
    static inline void mem_write_##bits(struct cpu *cpu, const struct uop *u, uint64_t linear,               \
                                        uint##bits##_t value)                                                 \
    {                                                                                                         \
        struct tlb_entry *e = tlb_at(cpu, linear);                                                            \
        if (likely((linear ^ e->write_tag) <= GUEST_PAGE_SIZE - bits / 8))                                    \
            *(uint##bits##_t *)(linear + e->addend) = value;                                                  \
        else                                                                                                  \
            access_write_slow(cpu, u, linear, bits / 8, value);                                               \
    }
MEM_ACCESSORS(8)
MEM_ACCESSORS(16)
MEM_ACCESSORS(32)
MEM_ACCESSORS(64)
#undef MEM_ACCESSORS

static inline uint64_t mem_read(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size)
{
    switch (size) {
    case 1: return mem_read_8(cpu, u, linear);
    case 2: return mem_read_16(cpu, u, linear);
    case 4: return mem_read_32(cpu, u, linear);
    default: return mem_read_64(cpu, u, linear);
    }
}
static inline void mem_write(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, uint64_t value)
{
    switch (size) {
    case 1: mem_write_8(cpu, u, linear, (uint8_t)value); return;
    case 2: mem_write_16(cpu, u, linear, (uint16_t)value); return;
    case 4: mem_write_32(cpu, u, linear, (uint32_t)value); return;
    default: mem_write_64(cpu, u, linear, value); return;
    }
}

/* Host address of a readable operand of any size up to 128 bytes: RAM itself, or a copy in the bounce buffer
 * with the same offset modulo 64 (so that alignment faults stay). */
static inline void *mem_load_ptr(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size)
{
    struct tlb_entry *e = tlb_at(cpu, linear);
    if (likely((linear ^ e->read_tag) <= GUEST_PAGE_SIZE - size))
        return (void *)(linear + e->addend);
    return access_load_slow(cpu, u, linear, size);
}
/* Host address of an operand to be written: RAM itself, or the bounce buffer, which mem_done then writes back.
 * Everything is checked here; mem_done cannot fault. `read`: the old value is wanted too. */
static inline void *mem_modify_ptr(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool read)
{
    struct tlb_entry *e = tlb_at(cpu, linear);
    if (likely((linear ^ e->write_tag) <= GUEST_PAGE_SIZE - size))
        return (void *)(linear + e->addend);
    return access_rmw_slow(cpu, u, linear, size, read);
}
static inline bool mem_is_bounced(const struct cpu *cpu, const void *p)
{
    return (const uint8_t *)p - cpu->bounce < (ptrdiff_t)sizeof cpu->bounce && (const uint8_t *)p >= cpu->bounce;
}
static inline void mem_done(struct cpu *cpu, const struct uop *u, void *p, unsigned size)
{
    if (unlikely(mem_is_bounced(cpu, p)))
        access_commit(cpu, u, size);
}

/* ---- registers ---- */

/* Byte registers 16..19 are AH, CH, DH, BH: the second byte of registers 0..3. */
static inline uint8_t *reg8(struct cpu *cpu, unsigned r)
{
    return (uint8_t *)cpu->gpr + ((r & 15) << 3) + (r >> 4);
}
static inline uint64_t reg_read(struct cpu *cpu, unsigned r, unsigned size)
{
    switch (size) {
    case 1: return *reg8(cpu, r);
    case 2: return (uint16_t)cpu->gpr[r];
    case 4: return (uint32_t)cpu->gpr[r];
    default: return cpu->gpr[r];
    }
}
static inline void reg_write(struct cpu *cpu, unsigned r, unsigned size, uint64_t value)
{
    switch (size) {
    case 1: *reg8(cpu, r) = (uint8_t)value; break;
    case 2: *(uint16_t *)&cpu->gpr[r] = (uint16_t)value; break;
    case 4: cpu->gpr[r] = (uint32_t)value; break;
    default: cpu->gpr[r] = value; break;
    }
}
/* The rm operand, register or memory, of any size: for executors that are not hot. */
static inline uint64_t rm_read(struct cpu *cpu, const struct uop *u, unsigned size)
{
    if (u->in.flags & INSN_MEM)
        return mem_read(cpu, u, operand_linear(cpu, u, size, false), size);
    return reg_read(cpu, u->in.rm, size);
}
static inline void rm_write(struct cpu *cpu, const struct uop *u, unsigned size, uint64_t value)
{
    if (u->in.flags & INSN_MEM)
        mem_write(cpu, u, operand_linear(cpu, u, size, true), size, value);
    else
        reg_write(cpu, u->in.rm, size, value);
}

#define CC_CF 0x0100u
#define CC_PF 0x0400u
#define CC_AF 0x1000u
#define CC_ZF 0x4000u
#define CC_SF 0x8000u
#define CC_OF 0x0001u

/* Condition `cond` of Jcc, SETcc, CMOVcc (SDM vol. 1, appendix B). */
static inline bool cc_test(uint16_t cc, unsigned cond)
{
    bool result;
    switch (cond >> 1) {
    case 0: result = cc & CC_OF; break;
    case 1: result = cc & CC_CF; break;
    case 2: result = cc & CC_ZF; break;
    case 3: result = cc & (CC_CF | CC_ZF); break;
    case 4: result = cc & CC_SF; break;
    case 5: result = cc & CC_PF; break;
    case 6: result = ((cc >> 15) ^ cc) & 1; break;
    default: result = (cc & CC_ZF) || (((cc >> 15) ^ cc) & 1); break;
    }
    return result ^ (cond & 1);
}

/* ---- stack (stack.c) ---- */

uint64_t stack_pop_slow(struct cpu *cpu, const struct uop *u, unsigned size);
void stack_push_slow(struct cpu *cpu, const struct uop *u, unsigned size, uint64_t value);
static inline void stack_push(struct cpu *cpu, const struct uop *u, unsigned size, uint64_t value)
{
    if (likely(cpu->code64)) {
        uint64_t rsp = cpu->gpr[RSP] - size;
        mem_write(cpu, u, rsp, size, value);
        cpu->gpr[RSP] = rsp;
    } else {
        stack_push_slow(cpu, u, size, value);
    }
}
/* Reads the top without moving the stack pointer: the caller moves it once nothing can fault. */
static inline uint64_t stack_pop(struct cpu *cpu, const struct uop *u, unsigned size)
{
    if (likely(cpu->code64)) {
        uint64_t value = mem_read(cpu, u, cpu->gpr[RSP], size);
        cpu->gpr[RSP] += size;
        return value;
    }
    return stack_pop_slow(cpu, u, size);
}
/* Stack pointer as the current stack size has it. */
static inline uint64_t stack_mask(const struct cpu *cpu)
{
    return cpu->code64 ? ~UINT64_C(0) : cpu->stack32 ? 0xffffffffu : 0xffffu;
}
static inline void stack_set(struct cpu *cpu, uint64_t rsp)
{
    uint64_t mask = stack_mask(cpu);
    /* a 32-bit stack pointer clears the upper half, a 16-bit one leaves the rest */
    cpu->gpr[RSP] = mask == 0xffff ? (cpu->gpr[RSP] & ~mask) | (rsp & mask) : rsp & mask;
}

/* ---- what the files of exec/ offer: (operation, form) -> executors by [memory][log2 of size] ---- */

typedef exec_fn *exec_set[2][4];
struct exec_def {
    uint16_t op;
    uint8_t form; /* enum insn_form, or EXEC_ANY_FORM */
    const exec_set *set;
    exec_fn *any; /* instead of a set: one function that looks at the insn itself */
};
#define EXEC_ANY_FORM 0xff
/* each ends with a row of zeros in `set` and `any` */
extern const struct exec_def exec_int[], exec_shift[], exec_multiply[], exec_bit[], exec_move[], exec_control[],
    exec_stack[], exec_string[], exec_io[], exec_segment[], exec_interrupt[], exec_far[], exec_system[], exec_msr[],
    exec_fpu_system[], exec_masked[], exec_flags[];

/* ---- interrupt.c ---- */

enum interrupt_source { INTERRUPT_EXTERNAL, INTERRUPT_EXCEPTION, INTERRUPT_SOFTWARE, INTERRUPT_NMI, INTERRUPT_INT1 };
/* Delivers through the IDT or IVT; cpu->rip is the return address. May raise (u may be NULL). */
void interrupt_deliver(struct cpu *cpu, uint8_t vector, enum interrupt_source source, bool has_error, uint32_t error);
/* What IRET and RETF share in protected mode: CS:RIP, checked and loaded, and `with_stack` SS:RSP as they lie at
 * `frame` on the stack, RSP with `drop` added; else RSP becomes `frame` + `drop`. */
void interrupt_return(struct cpu *cpu, const struct uop *u, uint16_t cs_selector, uint64_t rip, bool with_stack,
                      uint64_t frame, uint64_t drop);

/* ---- segment.c, state.c; see segment.h for descriptors ---- */

void cpu_set_segment(struct cpu *cpu, unsigned segment, const struct x86_segment *value);
/* ---- flat.c: what is derived of segments outside 64-bit mode ---- */
void cpu_derive_segment(struct cpu *cpu, unsigned segment);
void cpu_derive_segments(struct cpu *cpu);
/* Nobody remembers a mode_key any more: code segments may get other numbers. */
void cpu_forget_code_segments(struct cpu *cpu);
/* After any of this. */
void cpu_update_mode_key(struct cpu *cpu);
void cpu_set_cpl(struct cpu *cpu, uint8_t cpl);
/* After a change of CPL, EFLAGS.AC, CR0.AM or CR4.SMAP. */
void cpu_select_tlb(struct cpu *cpu);
void cpu_set_pkru(struct cpu *cpu, uint32_t value);
/* Guest TSC: nanoseconds of the machine's clock, plus the offset the guest set. */
uint64_t cpu_tsc(struct cpu *cpu);
/* The same, and translated code may go on by itself (cpu->tsc_piece) if every privilege may read it. */
uint64_t cpu_tsc_in_piece(struct cpu *cpu);

/* ---- block.c ---- */

struct block_cache;
/* `processors`: of the machine; `bytes`: for decoded blocks, 0: what is good for so many processors. */
struct block_cache *block_cache_create(unsigned processors, size_t bytes);
void block_cache_destroy(struct block_cache *cache);
/* The block at cpu->rip (raises on a fetch fault), cached or decoded now. */
struct block *block_find_slow(struct cpu *cpu, uint64_t linear, uint64_t key);

/* What a linear address means: the epoch (struct mmu), mode and privilege (6 bits), and the number of writes to code and of
 * evictions of blocks so far, which only grow, cut to 26 bits. */
static inline uint32_t code_written(const struct cpu *cpu)
{
    return atomic_load_explicit(cpu->mmu.mem->code_epoch, memory_order_acquire);
}
static inline uint64_t block_key_at(const struct cpu *cpu, uint32_t written)
{
    return mmu_code_key(&cpu->mmu) | (uint64_t)(written + cpu->blocks_evicted) << 38;
}
static inline uint64_t block_key(const struct cpu *cpu)
{
    return block_key_at(cpu, code_written(cpu));
}
static inline struct block *block_find(struct cpu *cpu)
{
    struct block *from = cpu->block;
    if (likely(from && cpu->code64)) {
        uint64_t key = block_key(cpu);
        for (unsigned i = 0; i < 2; i++)
            if (from->links[i].linear == cpu->rip && from->links[i].key == key)
                return from->links[i].block;
        return block_find_slow(cpu, cpu->rip, key);
    }
    return block_find_slow(cpu, UINT64_MAX, 0);
}
/* One instruction at cpu->rip, in the cache's scratch block. */
struct block *block_single(struct cpu *cpu);

#endif
