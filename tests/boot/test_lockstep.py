# SPDX-License-Identifier: MIT
"""The translator in lock-step with the interpreter, over whole programs of Debian's: nothing that it does is other than what
the interpreter does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import guest_root
import pytest
from boot_images import packed

from imgvm.config import Config

pytestmark = [pytest.mark.boot, pytest.mark.network, pytest.mark.nightly, pytest.mark.timeout(0)]

SECONDS = 6 * 3600  # some fifty times as long as without
OPENSSL = """
for what in md5 sha1 sha256 sha512 sha3-256 blake2b512 aes-128-cbc aes-256-gcm chacha20-poly1305 camellia-128-cbc; do
    openssl speed -elapsed -seconds 1 -bytes 1024 -evp $what || exit 1
done
openssl speed -elapsed -seconds 2 rsa1024 ecdsap256 ed25519 || exit 1
echo computed
"""
PYTHON = """
cd /tmp
python3.11 -m test -u none test_float test_struct test_int test_grammar || exit 1
echo computed
"""
COMPILER = r"""
cat >/tmp/sum.c <<'END'
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct node { struct node *left, *right; uint32_t key; double weight; };

static struct node *insert(struct node *at, uint32_t key)
{
    if (!at) {
        at = calloc(1, sizeof *at);
        at->key = key;
        at->weight = sqrt(key) / 3;
    } else if (key < at->key) {
        at->left = insert(at->left, key);
    } else {
        at->right = insert(at->right, key);
    }
    return at;
}

static double sum(const struct node *at)
{
    return at ? sum(at->left) + at->weight + sum(at->right) : 0;
}

int main(void)
{
    struct node *root = NULL;
    uint32_t x = 1;
    float v[64];
    for (int i = 0; i < 500; i++)
        root = insert(root, x = x * 1664525 + 1013904223);
    for (int i = 0; i < 64; i++)
        v[i] = (float)i * 0.5f;
    double total = 0;
    for (int i = 0; i < 64; i++)
        total += v[i] * v[63 - i];
    char text[64];
    snprintf(text, sizeof text, "%.3f %.1f", sum(root), total);
    printf("computed %zu %s\n", strlen(text), text);
    return 0;
}
END
gcc="x86_64-linux-gnu-gcc-12 -Wall -Werror"
$gcc -O0 -g -o /tmp/plain /tmp/sum.c -lm && $gcc -O2 -ftree-vectorize -o /tmp/fast /tmp/sum.c -lm || exit 1
/tmp/plain >/tmp/said && /tmp/fast | cmp - /tmp/said && cat /tmp/said
"""
PROGRAMS = {
    "openssl": (OPENSSL, guest_root.SUITES),
    "python": (PYTHON, guest_root.SUITES),
    "gcc": (COMPILER, guest_root.COMPILER),
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("model", ["portable", "host"])
def test_programs_in_lockstep(program: str, model: str, tmp_path: Path) -> None:
    script, packages = PROGRAMS[program]
    (tmp_path / "initrd").write_bytes(guest_root.build_or_skip(script, packages))
    text = f"""
version: 1
name: lockstep
machine: {{memory: 1GiB, cpu: {{model: {model}}}}}
boot: {{kernel: {{distro: "debian:bookworm"}}, initrd: initrd, cmdline: [console=ttyS0, quiet, watchdog_thresh=60]}}
"""
    image = packed(Config.from_text(text, "lockstep.yaml", tmp_path), tmp_path / "lockstep.img")
    words = [sys.executable, "-m", "imgvm", "run", str(image), "--accel", "jit", "--lockstep"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "computed" in done.stdout, done.stdout[-3000:]
