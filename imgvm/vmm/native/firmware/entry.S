/* SPDX-License-Identifier: MIT */
/* Where the processor comes in: reset, interrupts, and the few things that C cannot say. */
#include "layout.h"

    .code16

    .section .reset, "ax"
    .globl reset
reset:
    ljmpw $BIOS_SEG, $start
    .ascii "01/01/26"       /* F000:FFF5, as everywhere: the date, */
    .byte 0
    .byte 0xfc              /* and the model: an AT (INT 15h, C0h says the same) */
    .byte 0

    .text
start:
    cli
    cld
    movl %cr0, %eax
    andl $~0x60000000, %eax /* caches on: CD and NW are set after a reset */
    movl %eax, %cr0
    movw $EBDA_SEG, %ax
    movw %ax, %ss
    movl $STACK_TOP, %esp
    movw %ax, %es
    movw $BIOS_SEG, %ax
    movw %ax, %ds
    movl $data_load, %esi
    xorl %edi, %edi
    movl $data_bytes, %ecx
    rep movsb (%esi), %es:(%edi)
    movl $bss_bytes, %ecx
    xorl %eax, %eax
    rep stosb %al, %es:(%edi)
    movw %ss, %ax
    movw %ax, %ds
    movl $STACK_TOP - STACK_STEP, stack_free /* POST itself has the first piece */
    calll post

/* ---- services ---- */

    .macro service name handler
    .globl \name
\name:
    pushw $\handler
    jmp dispatch
    .endm

    service int_09 keyboard_irq
    service int_10 video_service
    service int_11 equipment_service
    service int_12 memory_size_service
    service int_13 disk_service
    service int_14 serial_service
    service int_15 system_service
    service int_16 keyboard_service
    service int_17 printer_service
    service int_18 boot_failed_service
    service int_19 bootstrap_service
    service int_1a time_service

/* On the caller's stack: the handler, and the interrupt's IP, CS and FLAGS. The handler runs on the BIOS's own stack, with
 * DS = ES = SS as C wants it, and gets a struct regs. */
dispatch:
    pushw %ds
    pushl %eax
    movw $EBDA_SEG, %ax
    movw %ax, %ds
    movl stack_free, %eax
    cmpl $STACK_BOTTOM + STACK_STEP, %eax
    jae 1f
    movl $STACK_TOP, %eax
1:  subl $STACK_STEP, %eax
    movl %eax, stack_free
    addl $STACK_STEP - FRAME_BYTES, %eax
    movl %ebx, FRAME_EBX(%eax)
    movl %ecx, FRAME_ECX(%eax)
    movl %edx, FRAME_EDX(%eax)
    movl %esi, FRAME_ESI(%eax)
    movl %edi, FRAME_EDI(%eax)
    movl %ebp, FRAME_EBP(%eax)
    popl FRAME_EAX(%eax)
    popw FRAME_DS(%eax)
    popw %bx
    movw %es, FRAME_ES(%eax)
    movw %fs, FRAME_FS(%eax)
    movw %gs, FRAME_GS(%eax)
    movw %ss, FRAME_SS(%eax)
    movl %esp, FRAME_ESP(%eax)
    movw %sp, %bp
    movw 4(%bp), %cx
    movw %cx, FRAME_FLAGS(%eax)
    movw %ds, %cx
    movw %cx, %es
    movw %cx, %ss
    movl %eax, %esp
    movzwl %bx, %ebx
    cld
    calll *%ebx
    cli
    movl %esp, %eax
    addl $FRAME_BYTES, %esp
    movl %esp, stack_free
    movw FRAME_FLAGS(%eax), %bx
    movw FRAME_SS(%eax), %ss
    movl FRAME_ESP(%eax), %esp
    movw %sp, %bp
    movw %bx, 4(%bp)
    movl FRAME_EBX(%eax), %ebx
    movl FRAME_ECX(%eax), %ecx
    movl FRAME_EDX(%eax), %edx
    movl FRAME_ESI(%eax), %esi
    movl FRAME_EDI(%eax), %edi
    movl FRAME_EBP(%eax), %ebp
    movw FRAME_ES(%eax), %es
    movw FRAME_FS(%eax), %fs
    movw FRAME_GS(%eax), %gs
    pushw FRAME_DS(%eax)
    movl FRAME_EAX(%eax), %eax
    popw %ds
    iretw

/* ---- hardware interrupts that need no C ---- */

/* IRQ 0: a tick of 1/18.2 seconds. Midnight is 1800B0h of them. */
    .globl int_08
int_08:
    pushw %ds
    pushw %ax
    pushw %dx
    movw $BDA_SEG, %ax
    movw %ax, %ds
    incl 0x6c
    cmpl $0x1800b0, 0x6c
    jb 1f
    movl $0, 0x6c
    movb $1, 0x70
1:  int $0x1c
    cli
    movb $0x20, %al
    outb %al, $0x20
    popw %dx
    popw %ax
    popw %ds
    iretw

/* Interrupts of hardware that nobody has asked for. */
    .globl irq_slave, irq_master, ignore
irq_slave:
    pushw %ax
    movb $0x20, %al
    outb %al, $0xa0
    outb %al, $0x20
    popw %ax
    iretw
irq_master:
    pushw %ax
    movb $0x20, %al
    outb %al, $0x20
    popw %ax
ignore:
    iretw

/* The diskette parameters that INT 1Eh points to; boot sectors of DOS copy them. */
    .globl diskette_parameters, system_configuration
diskette_parameters:
    .byte 0xaf, 0x02, 0x25, 0x02, 0x12, 0x1b, 0xff, 0x6c, 0xf6, 0x0f, 0x08
/* INT 15h, C0h. */
system_configuration:
    .word 8
    .byte 0xfc, 0, 1, 0x74, 0x40, 0, 0, 0 /* two 8259A, a clock, INT 15h 4Fh, an EBDA; INT 16h 09h */

/* ---- what C calls; arguments in EAX, EDX, ECX ---- */

/* void run_boot_code(u32 segment_offset, u32 drive): does not come back. */
    .globl run_boot_code
run_boot_code:
    movw $0, %bx
    movw %bx, %ds
    movw %bx, %es
    movw %bx, %ss
    movl $0x7c00, %esp
    pushw $0x0202
    pushl %eax              /* CS:IP */
    movzbl %dl, %edx
    xorl %eax, %eax
    xorl %ebx, %ebx
    xorl %ecx, %ecx
    xorl %esi, %esi
    xorl %edi, %edi
    xorl %ebp, %ebp
    iretw

/* void restart_boot(void): forgets all that is on the stack. */
    .globl restart_boot
restart_boot:
    movw $EBDA_SEG, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $STACK_TOP, %esp
    movl $STACK_TOP - STACK_STEP, stack_free
    calll boot

/* void copy_extended(u32 words): from the segment of descriptor 8 to that of 10h in `extended_gdt`, which both begin at 0.
 * Interrupts are off. The code segment stays the one of real mode, as nothing loads CS. */
    .globl copy_extended
copy_extended:
    pushl %esi
    pushl %edi
    movl %eax, %ecx
    pushw %ds
    pushw %es
    subl $8, %esp
    sgdtl (%esp)
    lgdtl extended_gdt_pointer
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    jmp 1f
1:  movw $8, %dx
    movw %dx, %ds
    movw $16, %dx
    movw %dx, %es
    xorl %esi, %esi
    xorl %edi, %edi
    rep movsw (%esi), %es:(%edi)
    movw $24, %dx
    movw %dx, %ds
    movw %dx, %es
    andb $0xfe, %al
    movl %eax, %cr0
    jmp 2f
2:  movw %ss, %dx
    movw %dx, %ds
    lgdtl (%esp)
    addl $8, %esp
    popw %es
    popw %ds
    popl %edi
    popl %esi
    retl
