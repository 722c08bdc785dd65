/* SPDX-License-Identifier: MIT */
/* needs: base/sha256*.c base/sha256_host.c */
#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"
#include "base/sha256_compress.h"
#include "check.h"

static const char *in_hex(const uint8_t digest[SHA256_BYTES])
{
    static char text[2 * SHA256_BYTES + 1];
    for (unsigned i = 0; i < SHA256_BYTES; i++)
        sprintf(text + 2 * i, "%02x", digest[i]);
    return text;
}

/* FIPS 180-2, appendix B */
static void test_known_digests(void)
{
    static const char *const two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    uint8_t digest[SHA256_BYTES], million[1000000];
    sha256("abc", 3, digest);
    CHECK(!strcmp(in_hex(digest), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
    sha256(two_blocks, strlen(two_blocks), digest);
    CHECK(!strcmp(in_hex(digest), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"));
    memset(million, 'a', sizeof million);
    sha256(million, sizeof million, digest);
    CHECK(!strcmp(in_hex(digest), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"));
}

static void test_parts_of_any_size(void)
{
    uint8_t data[1000], whole[SHA256_BYTES], parts[SHA256_BYTES];
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 7);
    sha256(data, sizeof data, whole);
    for (unsigned part = 1; part < 200; part++) {
        struct sha256 sha;
        sha256_init(&sha);
        for (unsigned at = 0; at < sizeof data; at += part)
            sha256_update(&sha, data + at, at + part < sizeof data ? part : sizeof data - at);
        sha256_final(&sha, parts);
        CHECK(!memcmp(whole, parts, sizeof whole));
    }
}

static void test_host_instructions_agree(void)
{
    if (!sha256_host_has_sha())
        return;
    uint8_t data[64 * 9 + 1];
    for (unsigned seed = 0; seed < 50; seed++) {
        uint32_t portable[8], host[8];
        srand(seed);
        for (unsigned i = 0; i < sizeof data; i++)
            data[i] = (uint8_t)rand();
        for (unsigned i = 0; i < 8; i++)
            portable[i] = host[i] = (uint32_t)rand() * 5;
        sha256_compress_portable(portable, data + 1, seed % 10);
        sha256_compress_sha(host, data + 1, seed % 10);
        CHECK(!memcmp(portable, host, sizeof host));
    }
}

int main(void)
{
    test_known_digests();
    test_parts_of_any_size();
    test_host_instructions_agree();
    return check_report();
}
