/* SPDX-License-Identifier: MIT */
/* needs: machine/keep.c */
/* Bytes that are put away: they come back as they were, and take no memory until then. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "machine/keep.h"

#define SIZE (24u << 20)

static long resident_pages(void)
{
    long total = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file && fscanf(file, "%ld %ld", &total, &resident) == 2);
    if (file)
        fclose(file);
    return resident;
}

int main(void)
{
    uint8_t *data = malloc(SIZE + 1);
    for (uint32_t i = 0; i <= SIZE; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 24);
    long before = resident_pages();
    const uint8_t *kept = keep_bytes(data, SIZE + 1);
    CHECK(kept != NULL);
    CHECK(resident_pages() - before < SIZE / 4096 / 4);
    CHECK(kept && !memcmp(kept, data, SIZE + 1));
    keep_forget(kept, SIZE + 1);
    CHECK(keep_bytes(data, 0) == NULL);
    keep_forget(NULL, 0);
    free(data);
    return check_report();
}
