/* SPDX-License-Identifier: MIT */
/* Entered as a 64-bit Linux: checks what the boot protocol promises, says so on COM1, and ends through the debug
 * exit port with 0 or the number of the check that failed. Linked at 16 MiB. */
#define DEBUG_EXIT 0xf4
#define COM1 0x3f8

    .text
    .globl start
start:
    movl    $1, %ebx
    cmpl    $0x53726448, 0x202(%rsi)    /* boot_params with a setup header */
    jne     fail
    movl    $2, %ebx
    movl    0x228(%rsi), %edi           /* the command line */
    cmpb    $'k', (%rdi)
    jne     fail
    movl    $3, %ebx
    cmpb    $3, 0x1e8(%rsi)             /* an e820 map of some length */
    jb      fail
    movl    $4, %ebx
    movq    0x70(%rsi), %rax            /* the ACPI root pointer */
    movabsq $0x2052545020445352, %rcx   /* "RSD PTR " */
    cmpq    %rcx, (%rax)
    jne     fail
    movl    $5, %ebx
    movw    %cs, %ax
    cmpw    $0x10, %ax
    jne     fail
    movw    %ds, %ax
    cmpw    $0x18, %ax
    jne     fail
    movl    $6, %ebx                    /* 64-bit arithmetic, high registers, the stack, memory through the map */
    movabsq $0x123456789abcdef0, %r8
    pushq   %r8
    popq    %r15
    cmpq    %r8, %r15
    jne     fail
    movq    %r8, (scratch)(%rip)
    cmpl    $0x12345678, (scratch + 4)(%rip)
    jne     fail
    movl    $7, %ebx
    movl    0x21c(%rsi), %ecx           /* the initrd: its size, its first bytes */
    cmpl    $6, %ecx
    jne     fail
    movl    0x218(%rsi), %ecx
    cmpl    $0x72746e69, (%rcx)         /* "intr" */
    jne     fail
    leaq    text(%rip), %rcx
    movw    $COM1, %dx
1:  movb    (%rcx), %al
    testb   %al, %al
    jz      2f
    outb    %al, %dx
    incq    %rcx
    jmp     1b
2:  xorl    %ebx, %ebx
fail:
    movl    %ebx, %eax
    movw    $DEBUG_EXIT, %dx
    outl    %eax, %dx
3:  hlt
    jmp     3b

text:
    .asciz  "64 bits\n"
    .balign 16
    .data
scratch:
    .quad   0, 0
