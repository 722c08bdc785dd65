/* SPDX-License-Identifier: MIT */
/* Where the BIOS lies and runs: for C, assembly and bios.ld alike.
 *
 *   9C00:0000  the extended BIOS data area: all that the BIOS keeps, its constants, and its stack on top
 *   E000:0040  what the machine says of itself (board_info.h)
 *   F000:0000  the code, read-only
 */
#ifndef IMGVM_FIRMWARE_LAYOUT_H
#define IMGVM_FIRMWARE_LAYOUT_H

#define BIOS_SEG 0xf000
#define EBDA_SEG 0x9c00
#define EBDA_BYTES 0x4000
#define EBDA_ADDRESS (EBDA_SEG << 4)
#define BDA_SEG 0x40
#define INFO_SEG 0xe004

/* A service that is entered while another one waits gets the next piece of the stack. A program may leave a service for
 * good, out of an interrupt, and its piece is lost with it: when none is left, all are there again. */
#define STACK_TOP EBDA_BYTES
#define STACK_BOTTOM 0x2000 /* bios.ld keeps the data below it */
#define STACK_STEP 0x400

/* struct regs of bios.h. */
#define FRAME_EDI 0
#define FRAME_ESI 4
#define FRAME_EBP 8
#define FRAME_EBX 12
#define FRAME_EDX 16
#define FRAME_ECX 20
#define FRAME_EAX 24
#define FRAME_ESP 28
#define FRAME_SS 32
#define FRAME_DS 34
#define FRAME_ES 36
#define FRAME_FS 38
#define FRAME_GS 40
#define FRAME_FLAGS 42
#define FRAME_BYTES 44

#endif
