/* SPDX-License-Identifier: MIT */
/* Decodes what test_decoder_capstone.py sends: lines "<16|32|64> <hex bytes>", or binary runs (see below), and answers
 * a line each: "<length> <text>" with the length negative for INSN_ERR_*.
 *
 *   decode_tool            lines from standard input
 *   decode_tool MODE FILE OFFSET SIZE ADDRESS   one instruction after the other: "<address> <length> <text>" */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/decode/insn.h"

static enum insn_mode mode_of(const char *word)
{
    return !strcmp(word, "16") ? INSN_MODE_16 : !strcmp(word, "32") ? INSN_MODE_32 : INSN_MODE_64;
}

static int decode_lines(void)
{
    char line[256], text[256];
    while (fgets(line, sizeof(line), stdin)) {
        char mode[8], hex[128];
        uint8_t bytes[64];
        size_t count = 0;
        if (sscanf(line, "%7s %127s", mode, hex) != 2)
            return 1;
        for (const char *c = hex; c[0] && c[1] && count < sizeof(bytes); c += 2) {
            unsigned byte;
            if (sscanf(c, "%2x", &byte) != 1)
                return 1;
            bytes[count++] = byte;
        }
        struct insn insn;
        int length = insn_decode(&insn, bytes, count, mode_of(mode));
        text[0] = 0;
        if (length > 0)
            insn_format(&insn, 0, text, sizeof(text));
        printf("%d %s\n", length, text);
    }
    return 0;
}

static int decode_file(char **words)
{
    enum insn_mode mode = mode_of(words[0]);
    size_t size = strtoull(words[3], NULL, 0);
    uint64_t address = strtoull(words[4], NULL, 0);
    FILE *file = fopen(words[1], "rb");
    uint8_t *bytes = malloc(size);
    if (!file || !bytes || fseek(file, strtol(words[2], NULL, 0), SEEK_SET) || fread(bytes, 1, size, file) != size) {
        perror(words[1]);
        return 1;
    }
    fclose(file);
    for (size_t at = 0; at < size;) {
        char text[256] = "";
        struct insn insn;
        int length = insn_decode(&insn, bytes + at, size - at, mode);
        if (length > 0)
            insn_format(&insn, address + at, text, sizeof(text));
        printf("%" PRIx64 " %d %s\n", address + at, length, text);
        at += length > 0 ? length : 1;
    }
    free(bytes);
    return 0;
}

int main(int argc, char **argv)
{
    return argc == 6 ? decode_file(argv + 1) : decode_lines();
}
