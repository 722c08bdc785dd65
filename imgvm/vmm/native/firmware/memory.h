/* SPDX-License-Identifier: MIT */
#ifndef IMGVM_FIRMWARE_MEMORY_H
#define IMGVM_FIRMWARE_MEMORY_H

void memory_init(void); /* takes the map over from the board */

#endif
