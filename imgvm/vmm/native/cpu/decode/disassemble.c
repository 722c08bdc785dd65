/* SPDX-License-Identifier: MIT */
/* The ABI's disassembler: the same tables that the processor runs by. */
#include <stdio.h>

#include "../../base/error.h"
#include "insn.h"

int imgvm_disassemble(const void *code, uint64_t bytes, uint32_t bits, uint64_t address, char *text, uint32_t size)
{
    enum insn_mode mode = bits == 64 ? INSN_MODE_64 : bits == 32 ? INSN_MODE_32 : INSN_MODE_16;
    struct insn insn;
    int length = insn_decode(&insn, code, bytes < INSN_MAX_BYTES ? bytes : INSN_MAX_BYTES, mode);
    if (length > 0)
        insn_format(&insn, address, text, size);
    else if (size)
        snprintf(text, size, "%s", length == INSN_ERR_TRUNCATED ? "(cut off)" : "(bad)");
    return length > 0 ? length : 0;
}
