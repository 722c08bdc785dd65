/* SPDX-License-Identifier: MIT */
/* Making a processor, its flags and derived state, and moving the whole state in and out. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "debug.h"
#include "exec.h"
#include "trace.h"

uint32_t cpu_get_eflags(const struct cpu *cpu)
{
    return (uint32_t)cpu->eflags | ((cpu->cc >> 8) & 0xd5) | (cpu->cc & CC_OF ? EFLAGS_OF : 0);
}

void cpu_set_eflags(struct cpu *cpu, uint32_t value, uint32_t mask)
{
    uint32_t flags = (cpu_get_eflags(cpu) & ~mask) | (value & mask);
    bool ac_changed = (flags ^ cpu->eflags) & EFLAGS_AC;
    cpu->cc = (uint16_t)((((flags & 0xd5) | 2) << 8) | (flags & EFLAGS_OF ? CC_OF : 0));
    cpu->eflags = (flags & 0x3f7700u & ~(uint32_t)EFLAGS_STATUS) | EFLAGS_FIXED;
    if (unlikely(ac_changed))
        cpu_select_tlb(cpu);
    cpu_update_requests(cpu);
}

void cpu_update_mode_key(struct cpu *cpu)
{
    unsigned bank = cpu->alignment_checked ? TLB_BANKS : mmu_bank(&cpu->mmu, cpu->cpl == 3 ? MMU_USER : MMU_SUPERVISOR);
    cpu->mmu.mode_key = (uint32_t)cpu->mode << MODE_KEY_MODE | bank << MODE_KEY_BANK | cpu->cpl |
                        (cpu->code64 ? 0 : cpu->segment_key);
}

void cpu_set_cpl(struct cpu *cpu, uint8_t cpl)
{
    cpu->cpl = cpl;
    mmu_select_epoch(&cpu->mmu, cpl == 3);
    cpu_select_tlb(cpu);
}

void cpu_select_tlb(struct cpu *cpu)
{
    bool ac = cpu->eflags & EFLAGS_AC;
    cpu->mmu.ac = ac;
    cpu->alignment_checked = unlikely(ac) && cpu->cpl == 3 && (cpu->s.cr0 & CR0_AM);
    bool none = cpu->alignment_checked || cpu->undo;
    enum mmu_who who = cpu->cpl == 3 ? MMU_USER : MMU_SUPERVISOR;
    unsigned bank = mmu_bank(&cpu->mmu, who);
    cpu->tlb = none ? cpu->nothing : cpu->mmu.tlb[bank];
    cpu->wide = cpu->mmu.wide ? cpu->mmu.wide[bank] : NULL;
    cpu_update_mode_key(cpu);
}

/* Which of the vector units may be used now: the checks of SDM vol. 3, table 2-2 and 13.3, done once a change. */
static uint8_t fpu_ready(const struct cpu *cpu)
{
    uint64_t cr0 = cpu->s.cr0, cr4 = cpu->s.cr4;
    uint8_t ready = 0;
    if (!(cr0 & (CR0_EM | CR0_TS)))
        ready |= (uint8_t)(OPA_X87 | OPA_MMX);
    if (!(cr0 & (CR0_EM | CR0_TS)) && (cr4 & CR4_OSFXSR))
        ready |= (uint8_t)OPA_SSE;
    if (!(cr0 & CR0_TS) && (cr4 & CR4_OSXSAVE) && (cpu->s.xcr0 & (XCR0_SSE | XCR0_AVX)) == (XCR0_SSE | XCR0_AVX) &&
        (cr0 & CR0_PE) && !(cpu->eflags & EFLAGS_VM))
        ready |= (uint8_t)OPA_AVX;
    if ((cr0 & CR0_PE) && !(cpu->eflags & EFLAGS_VM))
        ready |= UNIT_VEX;
    return ready;
}

static void update_cpuid(struct cpu *cpu)
{
    struct cpuid_config *config = &cpu->cpuid;
    bool osxsave = cpu->s.cr4 & CR4_OSXSAVE, ospke = cpu->s.cr4 & CR4_PKE;
    if (config->xcr0 == cpu->s.xcr0 && config->osxsave == osxsave && config->ospke == ospke)
        return;
    config->xcr0 = cpu->s.xcr0;
    config->osxsave = osxsave;
    config->ospke = ospke;
    for (unsigned i = 0; i < CPUID_MEMOS; i++)
        cpu->cpuid_memo[i].known = false;
}

void cpu_update_mode(struct cpu *cpu)
{
    const struct x86_segment *cs = &cpu->s.segment[CS], *ss = &cpu->s.segment[SS];
    bool v86 = cpu->eflags & EFLAGS_VM, protected = cpu->s.cr0 & CR0_PE;
    if (!protected)
        cpu_set_cpl(cpu, 0);
    else if (v86)
        cpu_set_cpl(cpu, 3);
    cpu->code64 = (cpu->s.efer & EFER_LMA) && (cs->attributes & SEG_L) && !v86;
    cpu->mode = cpu->code64 ? INSN_MODE_64 : (cs->attributes & SEG_DB) && !v86 ? INSN_MODE_32 : INSN_MODE_16;
    cpu->stack32 = ss->attributes & SEG_DB;
    cpu->fpu_unready = (uint8_t)~fpu_ready(cpu);
    cpu->mmu.cr0 = cpu->s.cr0;
    cpu->mmu.cr3 = cpu->s.cr3;
    cpu->mmu.cr4 = cpu->s.cr4;
    cpu->mmu.efer = cpu->s.efer;
    cpu->mmu.pkru = cpu->s.pkru;
    if (!cpu->code64)
        cpu_derive_segments(cpu);
    cpu_update_mode_key(cpu);
    update_cpuid(cpu);
    cpu_update_requests(cpu);
    if (unlikely(cpu->traced))
        cpu_trace_mode(cpu);
}

void cpu_set_pkru(struct cpu *cpu, uint32_t value)
{
    if (cpu->s.pkru == value)
        return;
    cpu->s.pkru = cpu->mmu.pkru = value;
    if (cpu->s.cr4 & CR4_PKE)
        mmu_flush_rights(&cpu->mmu);
}

uint64_t cpu_tsc(struct cpu *cpu)
{
    return cpu->callbacks.time_ns(cpu->opaque) + cpu->s.tsc_offset;
}

uint64_t cpu_tsc_in_piece(struct cpu *cpu)
{
    if (!cpu->callbacks.time_piece || (cpu->s.cr4 & CR4_TSD))
        return cpu_tsc(cpu);
    uint64_t now_ns = cpu->callbacks.time_piece(cpu->opaque, &cpu->tsc_piece);
    cpu->tsc_piece.ns += cpu->s.tsc_offset;
    return now_ns + cpu->s.tsc_offset;
}

void cpu_get_state(struct cpu *cpu, struct x86_state *state)
{
    if (state != &cpu->s)
        *state = cpu->s;
    for (unsigned i = 0; i < 16; i++)
        state->gpr[i] = cpu->gpr[i];
    state->rip = cpu->rip;
    state->rflags = cpu_get_eflags(cpu);
    state->cr8 = cpu->callbacks.cr8_read(cpu->opaque);
}

void cpu_set_state(struct cpu *cpu, const struct x86_state *state)
{
    if (state != &cpu->s)
        cpu->s = *state;
    for (unsigned i = 0; i < 16; i++)
        cpu->gpr[i] = state->gpr[i];
    cpu->gpr[GPR_ZERO] = 0;
    cpu->rip = state->rip;
    cpu->fpu_away = true;
    for (unsigned i = 0; i < 6; i++)
        cpu->seg_base[i] = state->segment[i].base;
    cpu->seg_base[INSN_SEG_FLAT] = 0;
    cpu->eflags = EFLAGS_FIXED;
    cpu_set_eflags(cpu, (uint32_t)state->rflags, ~0u);
    /* the privilege is the stack's (SDM vol. 3, 24.4.1: SS.DPL always equals CPL) */
    cpu_set_cpl(cpu, (state->segment[SS].attributes & SEG_DPL) >> SEG_DPL_SHIFT);
    cpu_update_mode(cpu);
    if ((state->cr0 & CR0_PG) && (state->cr4 & CR4_PAE) && !(state->efer & EFER_LMA))
        mmu_load_pdptes(&cpu->mmu, state->cr3);
    cpu->trap = 0;
    cpu->ss_shadow = false;
    cpu_select_tlb(cpu);
    debug_update(cpu);
    cpu->mmu.no_gigabyte_pages = !cpuid_has(&cpu->cpuid, FEATURE_PDPE1GB);
    mmu_flush(&cpu->mmu);
}

void cpu_set_a20(struct cpu *cpu, bool enabled)
{
    if (enabled)
        cpu->mmu.physical_mask |= BIT(20);
    else
        cpu->mmu.physical_mask &= ~BIT(20);
    mmu_flush(&cpu->mmu);
}

static void fill_exec_table(struct cpu *cpu)
{
    static const struct exec_def *const all[] = {exec_int, exec_shift, exec_multiply, exec_bit, exec_move, exec_control,
                                                 exec_stack, exec_string, exec_io, exec_segment, exec_interrupt, exec_far,
                                                 exec_system, exec_msr, exec_fpu_system, exec_masked, exec_flags};
    for (unsigned i = 0; i < ARRAY_LEN(all); i++) {
        for (const struct exec_def *def = all[i]; def->set || def->any; def++) {
            if (def->form != EXEC_ANY_FORM) {
                cpu->exec_table[def->op][def->form] = def;
                continue;
            }
            for (unsigned form = 0; form <= FORM_OTHER; form++)
                cpu->exec_table[def->op][form] = def;
        }
    }
}

static void announce_all(struct cpuid_config *config, unsigned id, unsigned count)
{
    static const enum cpu_feature system_features[] = {
#include "system_features.h"
    };
    cpuid_init(config, id, count);
    for (unsigned i = 0; i < ARRAY_LEN(system_features); i++)
        cpuid_announce(config, system_features[i]);
}

void cpu_offered_features(unsigned count, struct feature_set *out)
{
    struct cpuid_config config;
    announce_all(&config, 0, count);
    *out = config.announced;
}

enum cpu_vendor cpu_host_vendor(void)
{
    return cpuid_host_vendor();
}

struct cpu *cpu_create(const struct cpu_callbacks *callbacks, void *opaque, struct guest_mem *mem,
                       const struct cpu_options *options, imgvm_error *err)
{
    struct cpu *cpu = aligned_alloc(64, align_up(sizeof *cpu, 64));
    if (!cpu) {
        error_set(err, ENOMEM, "out of memory");
        return NULL;
    }
    memset(cpu, 0, sizeof *cpu);
    cpu->callbacks = *callbacks;
    cpu->opaque = opaque;
    cpu->id = options->id;
    cpu->count = options->count;
    cpu->deadline_ns = UINT64_MAX;
    cpu->delivering = NO_VECTOR;
    cpu->fpu_away = true;
    cpu->copies_by_vectors = __builtin_cpu_is("amd") && __builtin_cpu_supports("avx");
    cpu->store_pages[0] = cpu->store_pages[1] = NO_PAGE;
    mmu_init(&cpu->mmu, mem);
    mmu_clear_bank(cpu->nothing);
    announce_all(&cpu->cpuid, options->id, options->count);
    if (options->features)
        cpu->cpuid.announced = *options->features;
    else
        feature_set_remove(&cpu->cpuid.announced, FEATURE_LA57);
    cpu->cpuid.apic_enabled = true;
    if (options->vendor != CPU_VENDOR_AUTO)
        cpu->cpuid.vendor = options->vendor;
    cpu->self = cpu;
    cpu->blocks = block_cache_create(options->count, options->block_bytes);
    cpu->native = native_cache_create(err);
    cpu->exec_table = calloc(OP_COUNT, sizeof *cpu->exec_table);
    if (options->translator)
        cpu->mmu.wide = calloc(TLB_BANKS, sizeof *cpu->mmu.wide);
    bool tracked = !options->translator || mmu_track_stores(&cpu->mmu);
    if (!cpu->blocks || !cpu->native || !cpu->exec_table || !tracked || (options->translator && !cpu->mmu.wide)) {
        if (cpu->native)
            error_set(err, ENOMEM, "out of memory for a processor");
        cpu_destroy(cpu);
        return NULL;
    }
    cpu->native_generation = cpu->native->generation;
    cpu->translator_ops = options->translator;
    cpu->translate_after = options->translate_after;
    if (options->translator && !(cpu->translator = options->translator->create(cpu, options, err))) {
        cpu_destroy(cpu);
        return NULL;
    }
    fill_exec_table(cpu);
    struct x86_state *fresh = &cpu->s;
    x86_state_reset(fresh, options->id == 0);
    cpu_set_state(cpu, fresh);
    cpu->traced = options->traced;
    return cpu;
}

void cpu_destroy(struct cpu *cpu)
{
    if (!cpu)
        return;
    if (cpu->translator)
        cpu->translator_ops->destroy(cpu->translator);
    block_cache_destroy(cpu->blocks);
    native_cache_destroy(cpu->native);
    free(cpu->lockstep);
    free(cpu->counts.executors);
    free(cpu->points.point);
    free(cpu->mmu.held_page);
    free(cpu->mmu.wide);
    free(cpu->mmu.stored);
    free(cpu->exec_table);
    free(cpu);
}
