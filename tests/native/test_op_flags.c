/* SPDX-License-Identifier: MIT */
/* needs: cpu/decode/decode.c cpu/decode/plan.c cpu/decode/isa.c cpu/decode/disasm.c */
/* op.def's flag columns against this processor: every computational operation runs on registers, from many values
 * and flags. What changes must be in "written"; what the result depends on, in "read"; and a flag that is written and
 * not undefined must not depend on what it was before. Operations this processor lacks are passed over. */
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "arch/x86.h"
#include "check.h"
#include "cpu/decode/isa.h"

#define FLAGS 6
static const unsigned flag_bits[FLAGS] = {EFLAGS_OF, EFLAGS_SF, EFLAGS_ZF, EFLAGS_AF, EFLAGS_PF, EFLAGS_CF};

/* The assembly below names these. */
uint64_t op_in[16], op_out[16], op_flags_in, op_flags_out;
uint8_t op_vectors[16 * 16];
uint8_t *op_code;

static sigjmp_buf after_trap;

static void on_trap(int number)
{
    (void)number;
    siglongjmp(after_trap, 1);
}

/* Loads all general registers but RSP, the XMM registers and the status flags; calls op_code; stores what came of it. */
__attribute__((noinline)) static void run_op(void)
{
#define EACH_GPR(DO)                                                                                            \
    DO(0, "rax") DO(1, "rcx") DO(2, "rdx") DO(3, "rbx") DO(5, "rbp") DO(6, "rsi") DO(7, "rdi") DO(8, "r8") DO(9, "r9") \
    DO(10, "r10") DO(11, "r11") DO(12, "r12") DO(13, "r13") DO(14, "r14") DO(15, "r15")
#define LOAD(number, name) "mov op_in + 8 * " #number "(%%rip), %%" name "\n"
#define STORE(number, name) "mov %%" name ", op_out + 8 * " #number "(%%rip)\n"
#define LOAD_XMM(number) "movups op_vectors + 16 * " #number "(%%rip), %%xmm" #number "\n"
    __asm__ volatile("sub $128, %%rsp\n" /* the red zone */
                     "push %%rbx\n push %%rbp\n push %%r12\n push %%r13\n push %%r14\n push %%r15\n"
                     LOAD_XMM(0) LOAD_XMM(1) LOAD_XMM(2) LOAD_XMM(3) LOAD_XMM(4) LOAD_XMM(5) LOAD_XMM(6) LOAD_XMM(7)
                     "pushq op_flags_in(%%rip)\n popfq\n" EACH_GPR(LOAD)
                     "call *op_code(%%rip)\n" EACH_GPR(STORE)
                     "pushfq\n popq op_flags_out(%%rip)\n cld\n emms\n"
                     "pop %%r15\n pop %%r14\n pop %%r13\n pop %%r12\n pop %%rbp\n pop %%rbx\n add $128, %%rsp\n"
                     :
                     :
                     : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc", "xmm0", "xmm1", "xmm2",
                       "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
}

static struct outcome {
    unsigned changed, read, kept; /* EFLAGS_* */
    unsigned runs;
    char example[64];
} outcomes[OP_COUNT];

static uint64_t random_u64(void)
{
    static uint64_t seed = 0x9e3779b97f4a7c15u;
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return seed;
}

static void fill_inputs(unsigned round)
{
    for (unsigned i = 0; i < 16; i++)
        op_in[i] = round == 1 ? 0 : round == 2 ? UINT64_MAX : round == 3 ? random_u64() & 15 : random_u64();
    for (unsigned i = 0; i < sizeof(op_vectors); i++)
        op_vectors[i] = round == 1 ? 0 : (uint8_t)random_u64();
}

static bool run_with(unsigned flags)
{
    op_flags_in = EFLAGS_FIXED | EFLAGS_IF | flags;
    if (sigsetjmp(after_trap, 1))
        return false;
    run_op();
    return true;
}

/* One set of inputs with no flag, all flags, and each flag alone. */
static void observe(struct outcome *outcome)
{
    uint64_t clear_out[16];
    if (!run_with(0))
        return;
    unsigned clear_flags = op_flags_out & EFLAGS_STATUS;
    memcpy(clear_out, op_out, sizeof(clear_out));
    outcome->changed |= clear_flags;
    for (unsigned i = 0; i < FLAGS; i++) {
        unsigned bit = flag_bits[i];
        if (!run_with(bit))
            return;
        unsigned flags = op_flags_out & EFLAGS_STATUS, differs = flags ^ clear_flags;
        outcome->changed |= flags ^ bit;
        if (memcmp(clear_out, op_out, sizeof(clear_out)) || differs & ~bit)
            outcome->read |= bit;
        if (differs & bit)
            outcome->kept |= bit;
    }
    outcome->runs++;
}

static bool is_wanted(const struct insn *insn)
{
    const struct op_info *info = &op_infos[insn->op];
    bool exchanges = insn->op == OP_XADD || insn->op == OP_CMPXCHG || insn->op == OP_XCHG;
    if (insn->flags & INSN_MEM || insn->rm == RSP || insn->reg == RSP || insn->vvvv == RSP)
        return false;
    if (info->attributes & (OPA_X87 | OPA_MMX)) /* they leave state behind that traps later */
        return false;
    return info->kind == OPK_INT || info->kind == OPK_NATIVE || (info->kind == OPK_MEM && exchanges);
}

static void try_bytes(const uint8_t *bytes, unsigned count)
{
    struct insn insn;
    int length = insn_decode(&insn, bytes, count, INSN_MODE_64);
    if (length <= 0 || !is_wanted(&insn))
        return;
    memcpy(op_code, bytes, length);
    op_code[length] = 0xc3; /* ret */
    struct outcome *outcome = &outcomes[insn.op];
    if (!outcome->example[0])
        insn_format(&insn, 0, outcome->example, sizeof(outcome->example));
    for (unsigned round = 0; round < 5; round++) {
        fill_inputs(round);
        observe(outcome);
    }
}

static void try_all(bool vex, unsigned map, unsigned prefix, unsigned opcode)
{
    static const uint8_t prefixes[8][3] = {{0}, {0x66}, {0xf3}, {0xf2}, {0x48}, {0x66, 0x48}, {0xf3, 0x48}, {0xf2, 0x48}};
    static const uint8_t immediates[] = {0x11, 0x01, 0x83};
    for (unsigned modrm = 0xc0; modrm < 0x100; modrm += modrm & 7 ? 5 : 1)
        for (unsigned i = 0; i < sizeof(immediates); i++) {
            uint8_t bytes[15] = {0};
            unsigned n = 0;
            if (vex) {
                bytes[n++] = 0xc4;
                bytes[n++] = 0xe0 | map;
                bytes[n++] = (prefix >> 2) << 7 | 0x60 | (prefix & 3); /* vvvv: register 3, L0 */
            } else {
                for (const uint8_t *p = prefixes[prefix]; *p; p++)
                    bytes[n++] = *p;
                if (map)
                    bytes[n++] = 0x0f;
                if (map > 1)
                    bytes[n++] = map == 2 ? 0x38 : 0x3a;
            }
            bytes[n++] = opcode;
            bytes[n++] = modrm;
            bytes[n] = immediates[i];
            try_bytes(bytes, sizeof(bytes));
            if (vex && map == 2 && i == 0) { /* some have no third operand: vvvv 1111b */
                bytes[2] |= 0x18;
                try_bytes(bytes, sizeof(bytes));
            }
        }
}

static void check_outcomes(void)
{
    unsigned tested = 0;
    for (unsigned op = 0; op < OP_COUNT; op++) {
        const struct op_info *info = &op_infos[op];
        const struct outcome *outcome = &outcomes[op];
        if (!outcome->runs)
            continue;
        tested++;
        unsigned free = info->flags_read | info->flags_undefined;
        unsigned changed = outcome->changed & ~info->flags_written;
        unsigned read = outcome->read & ~info->flags_read;
        unsigned kept = info->attributes & OPA_MAY_KEEP_FLAGS ? 0 : outcome->kept & info->flags_written & ~free;
        unsigned idle = info->flags_written & ~outcome->changed & ~info->flags_undefined;
        if (changed || read || kept || idle)
            printf("%s (%s): changes %#x it does not write, reads %#x, keeps %#x, never changes %#x\n", info->mnemonic,
                   outcome->example, changed, read, kept, idle);
        CHECK(!changed && !read && !kept && !idle);
    }
    printf("%u operations\n", tested);
    CHECK(tested > 300);
}

int main(void)
{
    static const int signals[] = {SIGILL, SIGSEGV, SIGFPE, SIGTRAP, SIGBUS};
    struct sigaction action = {.sa_handler = on_trap, .sa_flags = SA_NODEFER};
    op_code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(op_code != MAP_FAILED);
    for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        sigaction(signals[i], &action, NULL);
    for (unsigned map = 0; map < 4; map++)
        for (unsigned prefix = 0; prefix < 8; prefix++)
            for (unsigned opcode = 0; opcode < 256; opcode++) {
                try_all(false, map, prefix, opcode);
                if (map)
                    try_all(true, map, prefix, opcode);
            }
    check_outcomes();
    return check_report();
}
