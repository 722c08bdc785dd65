/* SPDX-License-Identifier: MIT */
#include "../include/imgvm_api.h"

int imgvm_abi(void)
{
    return IMGVM_ABI;
}
