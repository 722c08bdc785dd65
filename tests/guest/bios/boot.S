/* SPDX-License-Identifier: MIT */
/* The boot sector of services.c: reads what follows it and goes there. */
    .code16
    .section .boot, "ax"
    .globl boot
boot:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $0x7c00, %esp
    sti
    cld
    movb %dl, boot_drive
    movw $0x7e00, %bx
    movw $2, %cx            /* cylinder 0, sector 2 */
    movb $0, %dh
    movb $PROGRAM_SECTORS, %al
    movb $0x02, %ah
    int $0x13
    jc failed
    calll main
failed:
    movb $99, %al
    outb %al, $0xf4
    hlt

    .globl boot_drive
boot_drive:
    .byte 0

    .org 510
    .word 0xaa55

/* void call_bios(uint8_t number, struct regs *): EAX and EDX. The instruction's number is written into it. */
    .text
    .globl call_bios
call_bios:
    pushl %ebp
    pushl %ebx
    pushl %esi
    pushl %edi
    movb %al, interrupt_number
    movl %edx, regs_at
    movw 30(%edx), %ax
    movw %ax, %es
    pushw 28(%edx)
    movl 4(%edx), %ebx
    movl 8(%edx), %ecx
    movl 16(%edx), %esi
    movl 20(%edx), %edi
    movl 24(%edx), %ebp
    movl (%edx), %eax
    movl 12(%edx), %edx
    popw %ds
    .byte 0xcd
interrupt_number:
    .byte 0
    pushfw
    pushw %ds
    pushl %edx
    movw $0, %dx
    movw %dx, %ds
    movl regs_at, %edx
    movl %eax, (%edx)
    movl %ebx, 4(%edx)
    movl %ecx, 8(%edx)
    popl 12(%edx)
    movl %esi, 16(%edx)
    movl %edi, 20(%edx)
    movl %ebp, 24(%edx)
    popw 28(%edx)
    movw %es, 30(%edx)
    popw 32(%edx)
    xorw %ax, %ax
    movw %ax, %es
    cld
    sti
    popl %edi
    popl %esi
    popl %ebx
    popl %ebp
    retl

    .data
regs_at:
    .long 0
