/* SPDX-License-Identifier: MIT */
/* The rows of isa.def as coverage.py lists them: "<number> <map> <opcode> <mode> <kind> <feature> <mnemonic>". */
#include <stdio.h>

#include "cpu/decode/isa.h"

int main(void)
{
    static const char *const maps[] = {"", "0F", "0F38", "0F3A", "VEX.0F", "VEX.0F38", "VEX.0F3A"};
    static const char *const modes[] = {"any", "not64", "only64"}, *const prefixes[] = {"", "", "NP", "66", "F3", "F2"};
    static const char *const features[] = {
        [FEATURE_BASE] = "-",
#define FEATURE(name, ...) [FEATURE_##name] = #name,
#include "arch/cpuid.def"
#undef FEATURE
    };
    for (unsigned i = 0; i < isa_row_count; i++) {
        const struct isa_row *row = &isa_rows[i];
        const struct op_info *info = &op_infos[row->op];
        printf("%u %s.%s.%02X/%02x %s %s %s\n", i, maps[row->map], prefixes[row->pp], row->opcode, row->modrm,
               modes[row->attributes & A_MODE], features[info->feature], info->mnemonic);
    }
    return 0;
}
