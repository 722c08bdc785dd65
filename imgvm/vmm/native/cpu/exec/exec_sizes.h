/* SPDX-License-Identifier: MIT */
/* Registers by operand size in bits, for executors that a macro writes once a size; `cpu` is in scope. Writing 32 bits
 * clears the upper half (SDM vol. 1, 3.4.1.1). */
#ifndef IMGVM_CPU_EXEC_EXEC_SIZES_H
#define IMGVM_CPU_EXEC_EXEC_SIZES_H

#include "exec.h"

#define GET8(r) (*reg8(cpu, r))
#define GET16(r) ((uint16_t)cpu->gpr[r])
#define GET32(r) ((uint32_t)cpu->gpr[r])
#define GET64(r) (cpu->gpr[r])
#define SET8(r, v) (*reg8(cpu, r) = (v))
#define SET16(r, v) (*(uint16_t *)&cpu->gpr[r] = (v))
#define SET32(r, v) (cpu->gpr[r] = (uint32_t)(v))
#define SET64(r, v) (cpu->gpr[r] = (v))

/* exec_set of prefix_r8 .. prefix_r64, prefix_m8 .. prefix_m64 */
#define SET_OF(prefix)                                                                                \
    {                                                                                                 \
        {prefix##_r8, prefix##_r16, prefix##_r32, prefix##_r64},                                      \
        {prefix##_m8, prefix##_m16, prefix##_m32, prefix##_m64},                                      \
    }

#endif
