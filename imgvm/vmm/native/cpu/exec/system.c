/* SPDX-License-Identifier: MIT */
/* Control and debug registers, descriptor-table registers, caches and TLBs, time, identification and halts
 * (SDM vol. 2). */
#include "debug.h"
#include "exec.h"

#define RANDOM_TRIES 16

static void need_cpl0(struct cpu *cpu, const struct uop *u)
{
    if (cpu->cpl)
        raise_gp(cpu, u, 0);
}

/* ---- control registers ---- */

#define CR0_KNOWN (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)

static void set_cr0(struct cpu *cpu, const struct uop *u, uint64_t value)
{
    uint64_t old = cpu->s.cr0;
    value = (value & CR0_KNOWN) | CR0_ET | (value & ~UINT64_C(0xffffffff));
    if (value >> 32 || ((value & CR0_PG) && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD)))
        raise_gp(cpu, u, 0);
    bool paging_on = (value & CR0_PG) && !(old & CR0_PG), paging_off = !(value & CR0_PG) && (old & CR0_PG);
    uint64_t efer = cpu->s.efer;
    if (paging_on && (efer & EFER_LME)) {
        if (!(cpu->s.cr4 & CR4_PAE) || (cpu->s.segment[CS].attributes & SEG_L))
            raise_gp(cpu, u, 0);
        efer |= EFER_LMA;
    } else if (paging_on && (cpu->s.cr4 & CR4_PAE) && !mmu_load_pdptes(&cpu->mmu, cpu->s.cr3)) {
        raise_gp(cpu, u, 0);
    }
    if (paging_off) {
        if (cpu->code64 || (cpu->s.cr4 & CR4_PCIDE))
            raise_gp(cpu, u, 0);
        efer &= ~(uint64_t)EFER_LMA;
    }
    cpu->s.cr0 = value;
    cpu->s.efer = efer;
    cpu_update_mode(cpu);
    cpu_select_tlb(cpu);
    if ((value ^ old) & (CR0_PG | CR0_PE))
        mmu_flush(&cpu->mmu);
    else if ((value ^ old) & CR0_WP)
        mmu_flush_rights(&cpu->mmu);
}

static void set_cr3(struct cpu *cpu, const struct uop *u, uint64_t value)
{
    bool long_mode = cpu->s.efer & EFER_LMA;
    bool keep = (cpu->s.cr4 & CR4_PCIDE) && (value & BIT(63)); /* this PCID's translations (4.10.4.1) */
    if (keep)
        value &= ~BIT(63);
    if (long_mode && value >> CPUID_PHYSICAL_BITS)
        raise_gp(cpu, u, 0);
    if (!long_mode && (cpu->s.cr0 & CR0_PG) && (cpu->s.cr4 & CR4_PAE) && !mmu_load_pdptes(&cpu->mmu, value))
        raise_gp(cpu, u, 0);
    cpu->s.cr3 = value;
    mmu_load_cr3(&cpu->mmu, value, keep);
}

static void set_cr4(struct cpu *cpu, const struct uop *u, uint64_t value)
{
    uint64_t old = cpu->s.cr4;
    bool long_mode = cpu->s.efer & EFER_LMA;
    if (value & ~cpuid_cr4_bits(&cpu->cpuid) || (long_mode && !(value & CR4_PAE)))
        raise_gp(cpu, u, 0);
    if (((value ^ old) & CR4_LA57) && long_mode)
        raise_gp(cpu, u, 0); /* the tables have another root */
    if ((value & ~old & CR4_PCIDE) && (!long_mode || cpu->s.cr3 & 0xfff))
        raise_gp(cpu, u, 0);
    if (((value ^ old) & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP)) && (cpu->s.cr0 & CR0_PG) && !(cpu->s.efer & EFER_LMA) &&
        (value & CR4_PAE) && !mmu_load_pdptes(&cpu->mmu, cpu->s.cr3))
        raise_gp(cpu, u, 0);
    cpu->s.cr4 = value;
    if (value & CR4_TSD)
        cpu->tsc_piece.ticks = 0;
    cpu_update_mode(cpu);
    cpu_select_tlb(cpu);
    if ((value ^ old) & CR4_DE)
        debug_update(cpu);
    if ((value ^ old) & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP | CR4_PCIDE | CR4_LA57))
        mmu_flush(&cpu->mmu);
    else if ((value ^ old) & (CR4_SMAP | CR4_PKE))
        mmu_flush_rights(&cpu->mmu);
}

static void mov_to_cr(struct cpu *cpu, const struct uop *u)
{
    need_cpl0(cpu, u);
    uint64_t value = reg_read(cpu, u->in.rm, cpu->code64 ? 8 : 4);
    switch (u->in.reg) {
    case 0: set_cr0(cpu, u, value); break;
    case 2: cpu->s.cr2 = value; break;
    case 3: set_cr3(cpu, u, value); break;
    case 4: set_cr4(cpu, u, value); break;
    case 8:
        if (value & ~UINT64_C(15))
            raise_gp(cpu, u, 0);
        cpu_fpu_leave(cpu);
        cpu->callbacks.cr8_write(cpu->opaque, value);
        break;
    default: raise_ud(cpu, u);
    }
    END_BLOCK;
}

static void mov_from_cr(struct cpu *cpu, const struct uop *u)
{
    need_cpl0(cpu, u);
    uint64_t value;
    switch (u->in.reg) {
    case 0: value = cpu->s.cr0; break;
    case 2: value = cpu->s.cr2; break;
    case 3: value = cpu->s.cr3; break;
    case 4: value = cpu->s.cr4; break;
    case 8:
        cpu_fpu_leave(cpu);
        value = cpu->callbacks.cr8_read(cpu->opaque);
        break;
    default: raise_ud(cpu, u);
    }
    reg_write(cpu, u->in.rm, cpu->code64 ? 8 : 4, value);
    NEXT;
}

static void lmsw(struct cpu *cpu, const struct uop *u)
{
    need_cpl0(cpu, u);
    uint64_t value = rm_read(cpu, u, 2) & 15;
    /* LMSW can set PE, never clear it */
    set_cr0(cpu, u, (cpu->s.cr0 & ~UINT64_C(14)) | value);
    END_BLOCK;
}

static void smsw(struct cpu *cpu, const struct uop *u)
{
    if (cpu->cpl && (cpu->s.cr4 & CR4_UMIP))
        raise_gp(cpu, u, 0);
    if (u->in.flags & INSN_MEM)
        rm_write(cpu, u, 2, cpu->s.cr0);
    else
        reg_write(cpu, u->in.rm, u->in.osize, cpu->s.cr0);
    NEXT;
}

static void clts(struct cpu *cpu, const struct uop *u)
{
    need_cpl0(cpu, u);
    cpu->s.cr0 &= ~(uint64_t)CR0_TS;
    cpu_update_mode(cpu);
    END_BLOCK;
}

/* ---- debug registers ---- */

static unsigned debug_register(struct cpu *cpu, const struct uop *u)
{
    unsigned r = u->in.reg;
    if (r > 7 || ((r == 4 || r == 5) && (cpu->s.cr4 & CR4_DE)))
        raise_ud(cpu, u);
    need_cpl0(cpu, u);
    if (cpu->s.dr[7] & DR7_GD)
        debug_raise_fault(cpu, u, DR6_BD);
    return r == 4 ? 6 : r == 5 ? 7 : r;
}

static void mov_to_dr(struct cpu *cpu, const struct uop *u)
{
    unsigned r = debug_register(cpu, u);
    uint64_t value = reg_read(cpu, u->in.rm, cpu->code64 ? 8 : 4);
    if (r >= 6 && value >> 32)
        raise_gp(cpu, u, 0);
    if (r == 6)
        value = (value & 0xe00f) | DR6_FIXED;
    else if (r == 7)
        value = (value & 0xffff2bff) | DR7_FIXED;
    cpu->s.dr[r] = value;
    if (r != 6)
        debug_update(cpu);
    END_BLOCK;
}

static void mov_from_dr(struct cpu *cpu, const struct uop *u)
{
    unsigned r = debug_register(cpu, u);
    reg_write(cpu, u->in.rm, cpu->code64 ? 8 : 4, cpu->s.dr[r]);
    NEXT;
}

/* ---- descriptor-table registers ---- */

static void store_table(struct cpu *cpu, const struct uop *u)
{
    if (cpu->cpl && (cpu->s.cr4 & CR4_UMIP))
        raise_gp(cpu, u, 0);
    const struct x86_table *table = u->in.op == OP_SGDT ? &cpu->s.gdtr : &cpu->s.idtr;
    unsigned size = cpu->code64 ? 8 : 4;
    uint64_t linear = operand_linear(cpu, u, 2 + size, true);
    access_probe_write(cpu, u, linear, 2 + size);
    mem_write(cpu, u, linear, 2, table->limit);
    mem_write(cpu, u, linear + 2, size, table->base);
    NEXT;
}

static void load_table(struct cpu *cpu, const struct uop *u)
{
    need_cpl0(cpu, u);
    unsigned size = cpu->code64 ? 8 : 4;
    uint64_t linear = operand_linear(cpu, u, 2 + size, false);
    uint16_t limit = (uint16_t)mem_read(cpu, u, linear, 2);
    uint64_t base = mem_read(cpu, u, linear + 2, size);
    if (u->in.osize == 2 && !cpu->code64)
        base &= 0xffffff; /* a 16-bit operand size loads 24 bits */
    if (cpu->code64 && !canonical_in_register(cpu, base))
        raise_gp(cpu, u, 0);
    struct x86_table *table = u->in.op == OP_LGDT ? &cpu->s.gdtr : &cpu->s.idtr;
    *table = (struct x86_table){base, limit};
    NEXT;
}

/* ---- segment bases ---- */

static void fsgsbase(struct cpu *cpu, const struct uop *u)
{
    if (!(cpu->s.cr4 & CR4_FSGSBASE))
        raise_ud(cpu, u);
    unsigned index = u->in.op == OP_RDFSBASE || u->in.op == OP_WRFSBASE ? FS : GS;
    if (u->in.op == OP_RDFSBASE || u->in.op == OP_RDGSBASE) {
        reg_write(cpu, u->in.rm, u->in.osize, cpu->seg_base[index]);
    } else {
        uint64_t value = reg_read(cpu, u->in.rm, u->in.osize);
        if (!canonical_in_register(cpu, value))
            raise_gp(cpu, u, 0);
        cpu->seg_base[index] = cpu->s.segment[index].base = value;
    }
    NEXT;
}

static void swapgs(struct cpu *cpu, const struct uop *u)
{
    need_cpl0(cpu, u);
    uint64_t base = cpu->seg_base[GS];
    cpu->seg_base[GS] = cpu->s.segment[GS].base = cpu->s.kernel_gs_base;
    cpu->s.kernel_gs_base = base;
    NEXT;
}

/* ---- SMAP's flag and halts ---- */

static void clac_stac(struct cpu *cpu, const struct uop *u)
{
    if (cpu->cpl) /* in real mode too; CR4.SMAP does not matter (SDM vol. 2, CLAC) */
        raise_ud(cpu, u);
    if (u->in.op == OP_STAC)
        cpu->eflags |= EFLAGS_AC;
    else
        cpu->eflags &= ~(uint64_t)EFLAGS_AC;
    cpu_select_tlb(cpu);
    NEXT;
}

static void hlt(struct cpu *cpu, const struct uop *u)
{
    need_cpl0(cpu, u);
    cpu->s.activity = X86_HALTED;
    cpu_update_boundary(cpu);
    END_BLOCK;
}

/* ---- caches and TLBs ---- */

static void invlpg(struct cpu *cpu, const struct uop *u)
{
    need_cpl0(cpu, u);
    mmu_flush_page(&cpu->mmu, access_ea_unchecked(cpu, u));
    END_BLOCK;
}

static void cache_all(struct cpu *cpu, const struct uop *u)
{
    need_cpl0(cpu, u);
    NEXT;
}

static void invpcid(struct cpu *cpu, const struct uop *u)
{
    need_cpl0(cpu, u);
    uint64_t type = reg_read(cpu, u->in.reg, cpu->code64 ? 8 : 4);
    uint64_t linear = operand_linear(cpu, u, 16, false);
    uint64_t pcid = mem_read_64(cpu, u, linear), address = mem_read_64(cpu, u, linear + 8);
    if (type > 3 || pcid >> 12 || (type == 0 && !canonical(cpu, address)) || (type < 2 && pcid && !(cpu->s.cr4 & CR4_PCIDE)))
        raise_gp(cpu, u, 0);
    switch (type) {
    case 0: mmu_flush_page_of(&cpu->mmu, (unsigned)pcid, address); break;
    case 1: mmu_flush_space(&cpu->mmu, (unsigned)pcid); break;
    case 2: mmu_flush(&cpu->mmu); break;
    default: mmu_flush_local(&cpu->mmu); break;
    }
    END_BLOCK;
}

/* CLFLUSH and its kin check the address like a read. */
static void cache_line(struct cpu *cpu, const struct uop *u)
{
    mem_read_8(cpu, u, operand_linear(cpu, u, 1, false));
    NEXT;
}

/* ---- time, identification, randomness ---- */

static void rdtsc(struct cpu *cpu, const struct uop *u)
{
    if ((cpu->s.cr4 & CR4_TSD) && cpu->cpl)
        raise_gp(cpu, u, 0);
    uint64_t tsc = cpu_tsc_in_piece(cpu);
    cpu->gpr[RAX] = (uint32_t)tsc;
    cpu->gpr[RDX] = tsc >> 32;
    if (u->in.op == OP_RDTSCP)
        cpu->gpr[RCX] = (uint32_t)cpu->s.tsc_aux;
    NEXT;
}

static void rdpid(struct cpu *cpu, const struct uop *u)
{
    reg_write(cpu, u->in.rm, cpu->code64 ? 8 : 4, cpu->s.tsc_aux);
    NEXT;
}

static void rdpmc(struct cpu *cpu, const struct uop *u)
{
    raise_gp(cpu, u, 0); /* there are no counters */
}

static void cpuid(struct cpu *cpu, const struct uop *u)
{
    uint32_t out[4];
    uint32_t leaf = (uint32_t)cpu->gpr[RAX], subleaf = (uint32_t)cpu->gpr[RCX];
    if (unlikely(cpu->callbacks.cpuid != NULL)) {
        cpu_fpu_leave(cpu);
        cpu->callbacks.cpuid(cpu->opaque, leaf, subleaf, out);
    } else {
        cpuid_query(&cpu->cpuid, leaf, subleaf, out);
        cpu->cpuid_memo[leaf % CPUID_MEMOS] = (struct cpuid_memo){leaf, subleaf, true, 0, {out[0], out[1], out[2], out[3]}};
    }
    cpu->gpr[RAX] = out[0];
    cpu->gpr[RBX] = out[1];
    cpu->gpr[RCX] = out[2];
    cpu->gpr[RDX] = out[3];
    NEXT;
}

/* The host's own generator; a host without one, or out of entropy, says so by CF = 0 as the manual has it. */
static void rdrand(struct cpu *cpu, const struct uop *u)
{
    uint64_t value = 0;
    uint8_t ok = 0;
    if (cpuid_host_has(FEATURE_RDRAND))
        for (unsigned i = 0; i < RANDOM_TRIES && !ok; i++)
            __asm__ volatile(".byte 0x48, 0x0f, 0xc7, 0xf0\n\tsetc %1" : "=a"(value), "=q"(ok) : : "cc"); /* rdrand rax */
    reg_write(cpu, u->in.rm, u->in.osize, ok ? value : 0);
    cpu->cc = (uint16_t)(0x0200 | (ok ? CC_CF : 0));
    NEXT;
}

/* ---- XCR0 ---- */

static void xgetbv(struct cpu *cpu, const struct uop *u)
{
    if (!(cpu->s.cr4 & CR4_OSXSAVE))
        raise_ud(cpu, u);
    uint32_t index = (uint32_t)cpu->gpr[RCX];
    uint64_t value;
    if (index == 0) {
        value = cpu->s.xcr0;
    } else if (index == 1 && cpuid_has(&cpu->cpuid, FEATURE_XGETBV1)) {
        cpu_fpu_leave(cpu);
        value = fpu_in_use(cpu->s.xsave, cpu->s.xcr0) | (cpu->s.pkru ? cpu->s.xcr0 & XCR0_PKRU : 0);
    } else {
        raise_gp(cpu, u, 0);
    }
    cpu->gpr[RAX] = (uint32_t)value;
    cpu->gpr[RDX] = value >> 32;
    NEXT;
}

static void xsetbv(struct cpu *cpu, const struct uop *u)
{
    if (!(cpu->s.cr4 & CR4_OSXSAVE))
        raise_ud(cpu, u);
    need_cpl0(cpu, u);
    uint64_t value = cpu->gpr[RDX] << 32 | (uint32_t)cpu->gpr[RAX];
    uint64_t offered = XCR0_X87 | XCR0_SSE | (cpuid_has(&cpu->cpuid, FEATURE_AVX) ? XCR0_AVX : 0) |
                       (cpuid_has(&cpu->cpuid, FEATURE_PKU) ? XCR0_PKRU : 0);
    if ((uint32_t)cpu->gpr[RCX] || (value & ~offered) || !(value & XCR0_X87) || ((value & XCR0_AVX) && !(value & XCR0_SSE)))
        raise_gp(cpu, u, 0);
    cpu->s.xcr0 = value;
    cpu_update_mode(cpu);
    END_BLOCK;
}

/* ---- PKRU ---- */

static void rdpkru(struct cpu *cpu, const struct uop *u)
{
    if (!(cpu->s.cr4 & CR4_PKE))
        raise_ud(cpu, u);
    if ((uint32_t)cpu->gpr[RCX])
        raise_gp(cpu, u, 0);
    cpu->gpr[RAX] = cpu->s.pkru;
    cpu->gpr[RDX] = 0;
    NEXT;
}

static void wrpkru(struct cpu *cpu, const struct uop *u)
{
    if (!(cpu->s.cr4 & CR4_PKE))
        raise_ud(cpu, u);
    if ((uint32_t)cpu->gpr[RCX] || (uint32_t)cpu->gpr[RDX])
        raise_gp(cpu, u, 0);
    cpu_set_pkru(cpu, (uint32_t)cpu->gpr[RAX]);
    END_BLOCK;
}

const struct exec_def exec_system[] = {
    {OP_MOV_TO_CR, EXEC_ANY_FORM, NULL, mov_to_cr},
    {OP_MOV_FROM_CR, EXEC_ANY_FORM, NULL, mov_from_cr},
    {OP_LMSW, EXEC_ANY_FORM, NULL, lmsw},
    {OP_SMSW, EXEC_ANY_FORM, NULL, smsw},
    {OP_CLTS, EXEC_ANY_FORM, NULL, clts},
    {OP_MOV_TO_DR, EXEC_ANY_FORM, NULL, mov_to_dr},
    {OP_MOV_FROM_DR, EXEC_ANY_FORM, NULL, mov_from_dr},
    {OP_SGDT, EXEC_ANY_FORM, NULL, store_table},
    {OP_SIDT, EXEC_ANY_FORM, NULL, store_table},
    {OP_LGDT, EXEC_ANY_FORM, NULL, load_table},
    {OP_LIDT, EXEC_ANY_FORM, NULL, load_table},
    {OP_RDFSBASE, EXEC_ANY_FORM, NULL, fsgsbase},
    {OP_RDGSBASE, EXEC_ANY_FORM, NULL, fsgsbase},
    {OP_WRFSBASE, EXEC_ANY_FORM, NULL, fsgsbase},
    {OP_WRGSBASE, EXEC_ANY_FORM, NULL, fsgsbase},
    {OP_SWAPGS, EXEC_ANY_FORM, NULL, swapgs},
    {OP_CLAC, EXEC_ANY_FORM, NULL, clac_stac},
    {OP_STAC, EXEC_ANY_FORM, NULL, clac_stac},
    {OP_HLT, EXEC_ANY_FORM, NULL, hlt},
    {OP_INVLPG, EXEC_ANY_FORM, NULL, invlpg},
    {OP_INVPCID, EXEC_ANY_FORM, NULL, invpcid},
    {OP_INVD, EXEC_ANY_FORM, NULL, cache_all},
    {OP_WBINVD, EXEC_ANY_FORM, NULL, cache_all},
    {OP_CLFLUSH, EXEC_ANY_FORM, NULL, cache_line},
    {OP_CLFLUSHOPT, EXEC_ANY_FORM, NULL, cache_line},
    {OP_CLWB, EXEC_ANY_FORM, NULL, cache_line},
    {OP_RDTSC, EXEC_ANY_FORM, NULL, rdtsc},
    {OP_RDTSCP, EXEC_ANY_FORM, NULL, rdtsc},
    {OP_RDPID, EXEC_ANY_FORM, NULL, rdpid},
    {OP_RDPMC, EXEC_ANY_FORM, NULL, rdpmc},
    {OP_CPUID, EXEC_ANY_FORM, NULL, cpuid},
    {OP_RDRAND, EXEC_ANY_FORM, NULL, rdrand},
    {OP_RDSEED, EXEC_ANY_FORM, NULL, rdrand},
    {OP_XGETBV, EXEC_ANY_FORM, NULL, xgetbv},
    {OP_XSETBV, EXEC_ANY_FORM, NULL, xsetbv},
    {OP_RDPKRU, EXEC_ANY_FORM, NULL, rdpkru},
    {OP_WRPKRU, EXEC_ANY_FORM, NULL, wrpkru},
    {0, 0, NULL, NULL},
};
