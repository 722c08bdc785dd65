/* SPDX-License-Identifier: MIT */
/* Rows that run as themselves: the operand is found and checked here, the thunk (native.h) does the rest, with
 * the guest's vector state live. */
#include "exec.h"
#include "exec_select.h"
#include "../decode/isa.h"

/* #UD and #NM of the vector units (SDM vol. 3, table 2-2 and 13.3). */
static _Noreturn void raise_unavailable(struct cpu *cpu, const struct uop *u, uint32_t attributes)
{
    uint64_t cr0 = cpu->s.cr0;
    if (attributes & OPA_X87) {
        raise_exception(cpu, u, EXC_NM);
    } else if (attributes & OPA_MMX) {
        raise_exception(cpu, u, cr0 & CR0_EM ? EXC_UD : EXC_NM);
    } else if (attributes & OPA_SSE) {
        if ((cr0 & CR0_EM) || !(cpu->s.cr4 & CR4_OSFXSR))
            raise_ud(cpu, u);
        raise_exception(cpu, u, EXC_NM);
    }
    if (!(cpu->s.cr4 & CR4_OSXSAVE) || (cpu->s.xcr0 & (XCR0_SSE | XCR0_AVX)) != (XCR0_SSE | XCR0_AVX) ||
        !(cr0 & CR0_PE) || (cpu->eflags & EFLAGS_VM))
        raise_ud(cpu, u);
    raise_exception(cpu, u, EXC_NM);
}

static inline void check_unit(struct cpu *cpu, const struct uop *u)
{
    if (unlikely(u->unit & cpu->fpu_unready))
        raise_unavailable(cpu, u, op_infos[u->in.op].attributes);
}

static inline void enter(struct cpu *cpu, const struct uop *u)
{
    cpu->cur = u; /* native_trap asks */
    if (unlikely(cpu->fpu_away)) {
        fpu_enter(cpu->s.xsave);
        cpu->fpu_away = false;
    }
}

static void native_register(struct cpu *cpu, const struct uop *u)
{
    check_unit(cpu, u);
    enter(cpu, u);
    u->native(cpu, NULL);
    NEXT;
}

/* Alignment is checked before the address is translated: #GP comes before #PF. */
static inline uint64_t aligned_linear(struct cpu *cpu, const struct uop *u, bool write)
{
    uint64_t linear = operand_linear(cpu, u, u->mem_size, write);
    if (unlikely(linear & (u->mem_size - 1u)))
        raise_gp(cpu, u, 0);
    return linear;
}

static void native_load_aligned(struct cpu *cpu, const struct uop *u)
{
    check_unit(cpu, u);
    void *p = mem_load_ptr(cpu, u, aligned_linear(cpu, u, false), u->mem_size);
    enter(cpu, u);
    u->native(cpu, p);
    NEXT;
}

static void native_store_aligned(struct cpu *cpu, const struct uop *u)
{
    check_unit(cpu, u);
    void *p = mem_modify_ptr(cpu, u, aligned_linear(cpu, u, true), u->mem_size, false);
    enter(cpu, u);
    u->native(cpu, p);
    mem_done(cpu, u, p, u->mem_size);
    NEXT;
}

static void native_load(struct cpu *cpu, const struct uop *u)
{
    check_unit(cpu, u);
    void *p = mem_load_ptr(cpu, u, operand_linear(cpu, u, u->mem_size, false), u->mem_size);
    enter(cpu, u);
    u->native(cpu, p);
    NEXT;
}

static void native_store(struct cpu *cpu, const struct uop *u)
{
    check_unit(cpu, u);
    void *p = mem_modify_ptr(cpu, u, operand_linear(cpu, u, u->mem_size, true), u->mem_size, false);
    enter(cpu, u);
    u->native(cpu, p);
    mem_done(cpu, u, p, u->mem_size);
    NEXT;
}

static void native_modify(struct cpu *cpu, const struct uop *u)
{
    check_unit(cpu, u);
    void *p = mem_modify_ptr(cpu, u, operand_linear(cpu, u, u->mem_size, true), u->mem_size, true);
    enter(cpu, u);
    u->native(cpu, p);
    mem_done(cpu, u, p, u->mem_size);
    NEXT;
}

/* An exception that waits comes before those of the memory operand. */
static inline void check_pending(struct cpu *cpu, const struct uop *u)
{
    uint16_t status;
    enter(cpu, u);
    __asm__ volatile("fnstsw %0" : "=a"(status));
    if (unlikely(status & 0x80))
        raise_exception(cpu, u, EXC_MF);
}

static void native_load_x87(struct cpu *cpu, const struct uop *u)
{
    check_unit(cpu, u);
    check_pending(cpu, u);
    native_load(cpu, u);
}

/* CVTPD2PI, CVTTPD2PI */
static void native_load_x87_aligned(struct cpu *cpu, const struct uop *u)
{
    check_unit(cpu, u);
    check_pending(cpu, u);
    native_load_aligned(cpu, u);
}

/* Did the x87 store that just ran, with no exception pending before, write its operand? An unmasked invalid operation,
 * overflow or underflow leaves memory as it was, an unmasked loss of precision does not (SDM vol. 1, 8.5). */
static inline bool x87_has_stored(void)
{
    enum { INVALID = 0x01, OVERFLOWN = 0x08, UNDERFLOWN = 0x10 };
    uint16_t status, control;
    __asm__ volatile("fnstsw %0; fnstcw %1" : "=a"(status), "=m"(control));
    return !(status & ~control & (INVALID | OVERFLOWN | UNDERFLOWN));
}

static void native_store_x87(struct cpu *cpu, const struct uop *u)
{
    check_unit(cpu, u);
    check_pending(cpu, u);
    void *p = mem_modify_ptr(cpu, u, operand_linear(cpu, u, u->mem_size, true), u->mem_size, false);
    enter(cpu, u);
    u->native(cpu, p);
    if (unlikely(mem_is_bounced(cpu, p)) && x87_has_stored())
        access_commit(cpu, u, u->mem_size);
    NEXT;
}

/* VZEROALL and VZEROUPPER outside 64-bit mode, where registers 8 to 15 stay as they are (SDM vol. 2). */
static void native_vzero_low(struct cpu *cpu, const struct uop *u)
{
    check_unit(cpu, u);
    cpu_fpu_leave(cpu);
    fpu_open(cpu->s.xsave);
    fpu_zero(fpu_ymm_high(cpu->s.xsave, 0), 8 * 16);
    if (u->in.op == OP_VZEROALL)
        fpu_zero(fpu_xmm(cpu->s.xsave, 0), 8 * 16);
    NEXT;
}

static void native_missing(struct cpu *cpu, const struct uop *u)
{
    raise_ud(cpu, u);
}

/* Destinations come first; MOVUPS and many others exist as load and as store. */
bool exec_memory_is_destination(const struct insn *in)
{
    switch (operand_infos[isa_rows[in->row].operand[0]].class) {
    case CLASS_E: case CLASS_M: case CLASS_W: case CLASS_Q:
        return true;
    default:
        return false;
    }
}

static unsigned memory_operand_size(const struct insn *in)
{
    const struct isa_row *row = &isa_rows[in->row];
    for (unsigned i = 0; i < 4; i++) {
        switch (operand_infos[row->operand[i]].class) {
        case CLASS_E: case CLASS_M: case CLASS_W: case CLASS_Q: {
            unsigned size = insn_operand_size(in, i);
            return size ? size : in->osize;
        }
        default:
            break;
        }
    }
    return in->osize;
}

/* With a memory operand these touch no MMX register; whether they wait for x87 is the host's to say. */
static bool loads_without_x87(unsigned op)
{
    return op == OP_CVTPI2PS || op == OP_CVTPI2PD;
}

void exec_select_native(struct cpu *cpu, struct uop *u)
{
    const struct op_info *info = &op_infos[u->in.op];
    uint32_t attributes = info->attributes;
    u->fn = native_missing;
    if (!cpuid_has(&cpu->cpuid, (enum cpu_feature)info->feature) && info->feature != FEATURE_BASE)
        return;
    if (u->in.vl == 32 && isa_rows[u->in.row].attributes & A_AVX2 && !cpuid_has(&cpu->cpuid, FEATURE_AVX2))
        return;
    u->native = native_thunk(cpu->native, &u->in, info);
    if (!u->native)
        return;
    u->unit = (uint8_t)(attributes & (OPA_X87 | OPA_MMX | OPA_SSE | OPA_AVX));
    if (u->in.flags & INSN_VEX)
        u->unit |= UNIT_VEX;
    u->mem_size = (uint16_t)memory_operand_size(&u->in);
    bool aligned = attributes & OPA_ALIGN16 && (u->mem_size == 16 || u->mem_size == 32);
    bool destination = exec_memory_is_destination(&u->in);
    if (!cpu->code64 && (u->in.op == OP_VZEROALL || u->in.op == OP_VZEROUPPER))
        u->fn = native_vzero_low;
    else if (!(u->in.flags & INSN_MEM))
        u->fn = native_register;
    else if (destination && attributes & OPA_MEM_RMW)
        u->fn = native_modify;
    else if (attributes & (OPA_X87 | OPA_MMX) && !(attributes & OPA_NOWAIT) && !loads_without_x87(u->in.op))
        u->fn = destination && attributes & OPA_NO_MEM_READ ? native_store_x87
                : aligned                                    ? native_load_x87_aligned
                                                             : native_load_x87;
    else if (destination && attributes & OPA_NO_MEM_READ)
        u->fn = aligned ? native_store_aligned : native_store;
    else
        u->fn = aligned ? native_load_aligned : native_load;
}
