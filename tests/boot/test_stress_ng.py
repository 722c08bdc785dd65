# SPDX-License-Identifier: MIT
"""Debian's stress-ng on four processors in software: every stressor checks what it does, and the kernel has nothing to say
against it.

IMGVM_STRESS_SECONDS in the environment is how long each stressor runs, IMGVM_STRESS_ROUNDS how often all of them do. In less
than some seconds a busy host gets no stressor started, which some of them call a failure."""

from __future__ import annotations

import os
import re
from pathlib import Path

import guest_root
import pytest
from boot_images import packed

import imgvm
from imgvm.config import Config

pytestmark = [pytest.mark.boot, pytest.mark.network, pytest.mark.nightly]

PROCESSORS = 4
SECONDS = int(os.environ.get("IMGVM_STRESS_SECONDS", "5"))
ROUNDS = int(os.environ.get("IMGVM_STRESS_ROUNDS", "1"))
BOOT_SECONDS, SLOWER = 300, 12  # a host that does other things too

# One after another, so many workers of each.
STRESSORS = {
    "computing": "cpu 4 matrix 2 vecmath 2 vecfp 2 vecshuf 2 vecwide 2 fp 2 fp-error 2 qsort 2 radixsort 2 bsearch 2 hash 2 "
    "crypt 2 ipsec-mb 2 zlib 2 regs 2 nop 2 branch 2 far-branch 2 funccall 2 funcret 2 goto 2 longjmp 2 context 2 icache 2 "
    "opcode 2 tsc 4 rdrand 2 x86cpuid 2",
    "memory": "vm 2 vm-rw 2 vm-addr 2 vm-segv 2 vm-splice 2 mmap 2 mmapfork 2 mremap 2 mprotect 2 munmap 2 madvise 2 mlock 2 "
    "brk 2 stack 2 malloc 2 memcpy 2 memrate 2 memthrash 4 mcontend 4 fault 4 userfaultfd 2 tlb-shootdown 4 remap 2 pagemove 2 "
    "cacheline 4 flushcache 2 misaligned 4 prefetch 2 physpage 2 pkey 2 secretmem 2",
    "processes": "fork 4 vfork 4 clone 4 exec 2 pthread 4 zombie 2 wait 2 daemon 2 kill 2 switch 2 yield 4 affinity 4 resched 4 "
    "rseq 4 schedpolicy 2 ptrace 2 session 2 vdso 2 get 2 set 2 x86syscall 2 syscall 2 enosys 2 sysbadaddr 2 priv-instr 2 dynlib 2",
    "signals": "signal 2 signest 2 sigsegv 4 sigfpe 4 sigtrap 2 sigchld 2 sigpipe 2 sigq 2 sigrt 2 sigsuspend 2 sigabrt 2 sigfd 2 "
    "sigio 2 sigpending 2 bad-altstack 2 timer 2 timerfd 2 itimer 2 alarm 2 hrtimers 2 nanosleep 2 clock 2 sleep 2 cyclic 1",
    "messages": "atomic 4 futex 4 mutex 4 sem 4 sem-sysv 4 membarrier 4 lockbus 4 dekker 2 peterson 2 rmap 2 msg 2 mq 2 shm 2 "
    "shm-sysv 2 pipe 4 pipeherd 2 ring-pipe 2 fifo 2 sock 2 sockpair 2 sockfd 2 sockmany 2 udp 2 sctp 2 poll 2 epoll 2 eventfd 2 "
    "splice 2 tee 2 sendfile 2 io-uring 2 aio 2 getrandom 2",
}
# The clock's limits are those of a starved host, not of a guest that hangs.
CMDLINE = "console=ttyS0, quiet, watchdog_thresh=60, rcupdate.rcu_cpu_stall_timeout=120"
SCRIPT = """
complaints() {{ dmesg | grep -E 'BUG:|WARNING:|Oops|lockup|detected stall|blocked for more than'; }}
ifconfig lo up
dmesg -n 1; dmesg -c >/dev/null
round=0; bad=0
while [ $round -lt {rounds} ]; do
    set -- {stressors}
    while [ $# -gt 0 ]; do
        if ! stress-ng --$1 $2 --vm-bytes 64M --mmap-bytes 64M --timeout {seconds}s --verify --oomable --quiet >/tmp/said 2>&1; then
            echo "FAILED: $1"; cat /tmp/said; bad=1
        fi
        if complaints >/tmp/said; then echo "FAILED: $1: kernel"; dmesg | tail -n 60; dmesg -c >/dev/null; bad=1; fi
        echo "ran $1"
        shift 2
    done
    round=$((round + 1))
done
exit $bad
"""


@pytest.mark.timeout(0)
@pytest.mark.parametrize("accel", ["jit", "interp"])
@pytest.mark.parametrize("group", STRESSORS)
def test_stress_ng(accel: str, group: str, tmp_path: Path) -> None:
    stressors = STRESSORS[group].split()
    script = SCRIPT.format(stressors=" ".join(stressors), seconds=SECONDS, rounds=ROUNDS)
    (tmp_path / "initrd").write_bytes(guest_root.build_or_skip(script, guest_root.STRESS))
    text = f"""
version: 1
name: stress-ng
machine: {{memory: 1GiB, cpus: {PROCESSORS}, cpu: {{model: host}}}}
boot: {{kernel: {{distro: "debian:bookworm"}}, initrd: initrd, cmdline: [{CMDLINE}]}}
"""
    image = packed(Config.from_text(text, "stress.yaml", tmp_path), tmp_path / "stress.img")
    with imgvm.run(image, accel) as vm:
        result = vm.wait(BOOT_SECONDS + SLOWER * ROUNDS * SECONDS * len(stressors) / 2)
        said = vm.console.text().replace("\r", "")
    assert result is not None, f"no end:\n{said[-3000:]}"
    assert (result.reason, result.status) == ("exec", 0), said[-6000:]
    assert re.findall(r"^ran (\S+)$", said, re.M) == stressors[::2] * ROUNDS
