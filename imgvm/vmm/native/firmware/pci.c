/* SPDX-License-Identifier: MIT */
/* PCI configuration space by ports CF8h and CFCh, and INT 1Ah, B1h (PCI BIOS specification 2.1). There is one bus. */
#include "bios.h"

#define STATUS_OK 0x00
#define STATUS_UNSUPPORTED 0x81
#define STATUS_BAD_VENDOR 0x83
#define STATUS_NOT_FOUND 0x86
#define STATUS_BAD_REGISTER 0x87

static void select(u8 devfn, u8 offset)
{
    out32(0xcf8, 0x80000000 | (u32)devfn << 8 | (offset & 0xfc));
}

u32 pci_read32(u8 devfn, u8 offset)
{
    select(devfn, offset);
    return in32(0xcfc);
}

u16 pci_read16(u8 devfn, u8 offset)
{
    select(devfn, offset);
    return in16((u16)(0xcfc + (offset & 2)));
}

u8 pci_read8(u8 devfn, u8 offset)
{
    select(devfn, offset);
    return in8((u16)(0xcfc + (offset & 3)));
}

void pci_write32(u8 devfn, u8 offset, u32 value)
{
    select(devfn, offset);
    out32(0xcfc, value);
}

void pci_write16(u8 devfn, u8 offset, u16 value)
{
    select(devfn, offset);
    out16((u16)(0xcfc + (offset & 2)), value);
}

void pci_write8(u8 devfn, u8 offset, u8 value)
{
    select(devfn, offset);
    out8((u16)(0xcfc + (offset & 3)), value);
}

/* The `index`th function whose dword at `offset` is `value` above the bits of `shift`. */
static u8 find(struct regs *r, u8 offset, unsigned shift, u32 value)
{
    u16 index = r->si;
    for (unsigned devfn = 0; devfn < 256; devfn++) {
        if (pci_read32((u8)devfn, 0) == 0xffffffff) {
            if (devfn % 8 == 0)
                devfn += 7; /* no such device */
            continue;
        }
        if (pci_read32((u8)devfn, offset) >> shift != value || index--)
            continue;
        r->bx = (u16)devfn;
        return STATUS_OK;
    }
    return STATUS_NOT_FOUND;
}

static u8 access(struct regs *r)
{
    unsigned bytes = (const u8[]){1, 2, 4}[(r->al - 8) % 3];
    bool here = r->bh == 0;
    if (r->di > 255 || r->di % bytes)
        return STATUS_BAD_REGISTER;
    u8 at = (u8)r->di;
    switch (r->al) {
    case 0x08: r->cl = here ? pci_read8(r->bl, at) : 0xff; break;
    case 0x09: r->cx = here ? pci_read16(r->bl, at) : 0xffff; break;
    case 0x0a: r->ecx = here ? pci_read32(r->bl, at) : 0xffffffff; break;
    case 0x0b: if (here) pci_write8(r->bl, at, r->cl); break;
    case 0x0c: if (here) pci_write16(r->bl, at, r->cx); break;
    case 0x0d: if (here) pci_write32(r->bl, at, r->ecx); break;
    }
    return STATUS_OK;
}

void pci_bios_service(struct regs *r)
{
    u8 status = STATUS_OK;
    switch (r->al) {
    case 0x01:
        r->al = 0x01; /* configuration mechanism 1 */
        r->bx = 0x0210;
        r->cl = 0;
        r->edx = 0x20494350; /* "PCI " */
        break;
    case 0x02:
        status = r->dx == 0xffff ? STATUS_BAD_VENDOR : find(r, 0, 0, (u32)r->cx << 16 | r->dx);
        break;
    case 0x03:
        status = find(r, 8, 8, r->ecx & 0xffffff);
        break;
    case 0x08 ... 0x0d:
        status = access(r);
        break;
    default:
        status = STATUS_UNSUPPORTED;
    }
    r->ah = status;
    set_carry(r, status != STATUS_OK);
}
