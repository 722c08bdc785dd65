/* SPDX-License-Identifier: MIT */
/* libFuzzer target: whatever the bytes are, the decoder ends, answers within its contract (insn.h), and answers the
 * same however many bytes follow. The first byte of an input chooses the mode, the rest is code. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/decode/isa.h"
#include "promise.h"

/* The decoder is a table's interpreter, so that its branches say little: tell libFuzzer of each row, in each mode, with
 * and without memory, as of a branch. */
#define ROWS_MAX 4096
__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t rows_seen[3][2][ROWS_MAX];

static bool same(const struct insn *a, const struct insn *b)
{
    return !memcmp(a, b, sizeof *a);
}

/* A copy whose end is the end of the allocation, so that the sanitizer sees a byte read too many. */
static int decode_exactly(struct insn *insn, const uint8_t *code, size_t size, enum insn_mode mode)
{
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy)
        abort();
    memcpy(copy, code, size);
    memset(insn, 0, sizeof *insn);
    int length = insn_decode(insn, copy, size, mode);
    free(copy);
    return length;
}

static void check_fields(const struct insn *insn, enum insn_mode mode)
{
    PROMISE(insn->row < isa_row_count && insn->op < OP_COUNT && isa_rows[insn->row].op == insn->op);
    PROMISE(insn->form <= FORM_OTHER);
    PROMISE(insn->reg < 20 && insn->rm < 20 && insn->vvvv < 16 && insn->cond < 16);
    PROMISE(insn->base <= INSN_REG_RIP && insn->index <= INSN_REG_NONE && insn->scale <= 3);
    PROMISE(insn->segment <= INSN_SEG_FLAT);
    PROMISE(insn->asize == 2 || insn->asize == 4 || insn->asize == 8);
    PROMISE(insn->osize <= 64 && (insn->osize == 10 || !(insn->osize & (insn->osize - 1)))); /* 10: an x87 register in memory */
    PROMISE(insn->vl == 0 || insn->vl == 16 || insn->vl == 32);
    if (mode == INSN_MODE_64) {
        PROMISE(insn->asize != 2);
    } else {
        PROMISE(insn->asize != 8 && insn->base != INSN_REG_RIP && !(insn->flags & INSN_REX));
        PROMISE(insn->base < 8 || insn->base == INSN_REG_NONE);
    }
    if (insn->flags & INSN_LOCK)
        PROMISE(op_infos[insn->op].attributes & OPA_LOCKABLE && insn->flags & INSN_MEM);
    for (unsigned i = 0; i < 4; i++)
        PROMISE(insn_operand_size(insn, i) <= 512);
}

static void check_text(const struct insn *insn)
{
    char text[256], small[8];
    memset(text, '#', sizeof text);
    int length = insn_format(insn, 0x123456789abcdef0, text, sizeof text);
    PROMISE(length > 0 && (size_t)length < sizeof text && text[length] == 0 && strlen(text) == (size_t)length);
    memset(small, '#', sizeof small);
    insn_format(insn, 0, small, sizeof small - 1);
    PROMISE(small[sizeof small - 1] == '#' && memchr(small, 0, sizeof small - 1));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    enum insn_mode mode = (enum insn_mode)(data[0] % 3);
    const uint8_t *code = data + 1;
    size_t available = size - 1 > 32 ? 32 : size - 1;
    struct insn insn, other;
    int length = decode_exactly(&insn, code, available, mode);
    PROMISE((length > 0 && length <= INSN_MAX_BYTES && (size_t)length <= available) || length == INSN_ERR_TRUNCATED ||
            length == INSN_ERR_UNDEFINED || length == INSN_ERR_TOO_LONG);
    if (length == INSN_ERR_TRUNCATED)
        PROMISE(available < INSN_MAX_BYTES);
    if (length <= 0)
        return 0;
    PROMISE(insn.length == length);
    PROMISE(isa_row_count <= ROWS_MAX);
    rows_seen[mode][insn.flags & INSN_MEM ? 1 : 0][insn.row] = 1;
    check_fields(&insn, mode);
    check_text(&insn);

    /* exactly its bytes are enough, one fewer is not, and what follows has no say */
    PROMISE(decode_exactly(&other, code, (size_t)length, mode) == length && same(&insn, &other));
    PROMISE(decode_exactly(&other, code, (size_t)length - 1, mode) == INSN_ERR_TRUNCATED);
    uint8_t followed[INSN_MAX_BYTES + 1];
    memset(followed, 0xf0, sizeof followed);
    memcpy(followed, code, (size_t)length);
    PROMISE(decode_exactly(&other, followed, sizeof followed, mode) == length && same(&insn, &other));
    return 0;
}
