/* SPDX-License-Identifier: MIT */
/* The guest's x87, SSE and AVX state: live in the host's registers while the processor runs, else in
 * x86_state.xsave (64-byte aligned, standard XSAVE format, SDM vol. 1, 13.4); and the memory images that
 * FNSTENV, FNSAVE, FXSAVE and XSAVE show the guest.
 *
 * Nothing here may be called from code that uses vector registers for itself. The instruction and data
 * pointers of x87 would be addresses of the host: every image says zero for them. */
#ifndef IMGVM_CPU_EXEC_FPU_H
#define IMGVM_CPU_EXEC_FPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../../arch/x86.h"

/* Give the registers to the guest, and back. `area` is x86_state.xsave. fpu_enter accepts any contents (reserved
 * bits are cleared first). fpu_leave puts the ABI's control words into the host's registers: the thread that runs a
 * processor may not count on others. */
void fpu_enter(uint8_t *area);
void fpu_leave(uint8_t *area);
/* The same without changing hands: area := registers, registers := area. Around the image functions below. */
void fpu_store(uint8_t *area);
void fpu_load(const uint8_t *area);

/* Copies without touching a vector register, which memcpy may do. */
static inline void fpu_copy(void *to, const void *from, size_t bytes)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

static inline void fpu_zero(void *to, size_t bytes)
{
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(0) : "memory");
}

/* ---- images; `area` was stored before and is loaded afterwards where it is not const ---- */

/* FNSTENV, FLDENV, FNSAVE, FRSTOR. `size32`: the 32-bit format (28 bytes; 108 with registers), else the 16-bit
 * one (14; 94). The stores return the number of bytes of `out` to write. FNSTENV masks all exceptions
 * afterwards and FNSAVE initialises x87, in `area`. */
unsigned fpu_fnstenv(uint8_t *area, uint8_t out[28], bool size32);
unsigned fpu_fnsave(uint8_t *area, uint8_t out[108], bool size32);
void fpu_fldenv(uint8_t *area, const uint8_t *in, bool size32);
void fpu_frstor(uint8_t *area, const uint8_t *in, bool size32);
/* An unmasked x87 exception waits for the next waiting instruction: FLDENV and FRSTOR raise #MF first. */
bool fpu_pending(const uint8_t *area);

/* Single registers, for instructions done in C: after fpu_open the area says everything. */
void fpu_open(uint8_t *area);
static inline uint8_t *fpu_xmm(uint8_t *area, unsigned n)
{
    return area + 160 + 16 * n;
}
static inline uint8_t *fpu_ymm_high(uint8_t *area, unsigned n)
{
    return area + 576 + 16 * n;
}
/* What every MMX instruction does first: TOP becomes 0 and no register is empty (SDM vol. 1, 9.5.1). Returns MM0;
 * the others follow at 16 bytes each. */
uint8_t *fpu_mmx(uint8_t *area);

/* FXSAVE: fills `out`; the return value says how many bytes, from the first, to write to the guest.
 * `long_mode`: 64-bit mode, with XMM8-15. */
#define FPU_FXSAVE_BYTES 512
unsigned fpu_fxsave(const uint8_t *area, uint8_t out[FPU_FXSAVE_BYTES], bool long_mode);
/* FXRSTOR. false: #GP(0), reserved bits of MXCSR are set; nothing was changed. */
bool fpu_fxrstor(uint8_t *area, const uint8_t in[FPU_FXSAVE_BYTES], bool long_mode);
/* The same of and into the host's registers, in 64-bit mode. `out` and `in` are aligned to 16 bytes; false: nothing was
 * done, fpu_fxrstor knows how. */
unsigned fpu_fxsave_live(uint8_t out[FPU_FXSAVE_BYTES]);
bool fpu_fxrstor_live(uint8_t in[FPU_FXSAVE_BYTES]);
/* LDMXCSR takes only these values; others are #GP(0). */
#define MXCSR_MASK 0xffffu
static inline bool fpu_mxcsr_valid(uint32_t mxcsr)
{
    return !(mxcsr & ~MXCSR_MASK);
}

/* XSAVE family. `rfbm` is EDX:EAX & XCR0 throughout (SDM vol. 1, 13.7-13.12); these know x87, SSE and AVX alone. */
#define FPU_XSAVE_BYTES 832 /* x87, SSE, AVX */
enum fpu_xsave { FPU_XSAVE, FPU_XSAVEOPT, FPU_XSAVEC };
/* Size of the image that the components of `features` need, legacy region and header included. */
uint32_t fpu_xsave_bytes(uint64_t features, bool compacted);
/* `image` holds what the guest's memory held (fpu_xsave_bytes of it) and is to be written back: what the
 * instruction leaves alone is left alone. */
void fpu_xsave(const uint8_t *area, uint8_t *image, uint64_t rfbm, enum fpu_xsave kind, bool long_mode);
/* How many bytes of the image XRSTOR reads, told by its first 576 bytes; 0: #GP(0), the header is invalid. */
uint32_t fpu_xrstor_bytes(const uint8_t *image, uint64_t rfbm, uint64_t xcr0);
/* false: #GP(0), nothing was changed. fpu_xrstor_bytes accepted the header before. */
bool fpu_xrstor(uint8_t *area, const uint8_t *image, uint64_t rfbm, bool long_mode);
/* State components not in their initial configuration, XGETBV(1): what `area` says, within `xcr0`. */
uint64_t fpu_in_use(const uint8_t *area, uint64_t xcr0);

#endif
