/* SPDX-License-Identifier: MIT */
#include "trace.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#define LINE_BYTES 400

#define AT "%x:%" PRIx64
#define WHERE(cpu) (cpu)->s.segment[CS].selector, (cpu)->rip

static void __attribute__((format(printf, 2, 3))) line(struct cpu *cpu, const char *format, ...)
{
    char text[LINE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    cpu->callbacks.trace(cpu->opaque, text);
}

static void trace_exception(struct cpu *cpu, uint8_t vector, bool has_error, uint32_t error)
{
    char name[4] = "", code[16] = "", address[32] = "";
    snprintf(name, sizeof name, "%s", exception_name(vector));
    for (unsigned i = 0; name[i]; i++)
        name[i] &= (char)~0x20;
    if (has_error)
        snprintf(code, sizeof code, "(%x)", error);
    if (vector == EXC_PF)
        snprintf(address, sizeof address, " cr2 %" PRIx64, cpu->s.cr2);
    line(cpu, "exception #%s%s%s at " AT " rsp %" PRIx64 " flags %x", name, code, address, WHERE(cpu), cpu->gpr[RSP],
         cpu_get_eflags(cpu));
}

void cpu_trace_delivery(struct cpu *cpu, uint8_t vector, enum interrupt_source source, bool has_error, uint32_t error)
{
    static const char *const sources[] = {[INTERRUPT_EXTERNAL] = "", [INTERRUPT_SOFTWARE] = " int", [INTERRUPT_NMI] = " nmi",
                                          [INTERRUPT_INT1] = " int1"};
    bool exception = source == INTERRUPT_EXCEPTION;
    if (!cpu_traces(cpu, exception ? TRACE_EXCEPTIONS : TRACE_INTERRUPTS))
        return;
    if (exception)
        trace_exception(cpu, vector, has_error, error);
    else
        line(cpu, "interrupt %02x%s at " AT, vector, sources[source], WHERE(cpu));
}

void cpu_trace_triple_fault(struct cpu *cpu)
{
    if (cpu_traces(cpu, TRACE_EXCEPTIONS))
        line(cpu, "%s", cpu->message);
}

static const char *mode_name(const struct cpu *cpu)
{
    static const char *const protected[] = {[INSN_MODE_16] = "protected16", [INSN_MODE_32] = "protected32"};
    static const char *const compatibility[] = {[INSN_MODE_16] = "compatibility16", [INSN_MODE_32] = "compatibility32"};
    if (!(cpu->s.cr0 & CR0_PE))
        return cpu->mode == INSN_MODE_32 ? "real32" : "real";
    if (cpu->eflags & EFLAGS_VM)
        return "virtual8086";
    if (cpu->code64)
        return "long";
    return (cpu->s.efer & EFER_LMA ? compatibility : protected)[cpu->mode];
}

void cpu_trace_mode(struct cpu *cpu)
{
    const struct traced_mode now = {mode_name(cpu), cpu->s.cr0, cpu->s.cr4, cpu->s.efer};
    const struct traced_mode *last = &cpu->traced_mode;
    if (last->name == now.name && last->cr0 == now.cr0 && last->cr4 == now.cr4 && last->efer == now.efer)
        return;
    if (!cpu_traces(cpu, TRACE_MODES))
        return;
    cpu->traced_mode = now;
    line(cpu, "mode %s cpl %u cr0 %" PRIx64 " cr3 %" PRIx64 " cr4 %" PRIx64 " efer %" PRIx64 " at " AT, now.name, cpu->cpl,
         now.cr0, cpu->s.cr3, now.cr4, now.efer, WHERE(cpu));
}

void cpu_trace_msr(struct cpu *cpu, bool write, uint32_t index, uint64_t value, bool known)
{
    if (!cpu_traces(cpu, TRACE_MSRS))
        return;
    if (!known && !write)
        line(cpu, "msr read %x: #GP", index);
    else
        line(cpu, "msr %s %x = %" PRIx64 "%s", write ? "write" : "read", index, value, known ? "" : ": #GP");
}

void cpu_trace_exit(struct cpu *cpu, const char *why)
{
    if (cpu_traces(cpu, TRACE_EXITS))
        line(cpu, "exit %s to " AT, why, WHERE(cpu));
}
