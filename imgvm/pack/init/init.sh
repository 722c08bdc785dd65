#!/bin/busybox sh
# SPDX-License-Identifier: MIT
# The first process of a guest whose initrd imgvm built: gets the machine's devices going, runs the command
# of /etc/imgvm/exec and reports its status, or offers a shell; then switches the machine off.
# This process must never end: the kernel would panic.

/bin/busybox mkdir -p /proc /sys /dev /tmp /run /root /mnt /sbin /usr/bin /usr/sbin
/bin/busybox --install -s /bin
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM="${TERM:-linux}"
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -t devtmpfs -o nosuid devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o nosuid,noexec devpts /dev/pts
mount -t tmpfs -o nosuid,nodev tmpfs /run
mount -t tmpfs -o nosuid,nodev tmpfs /tmp
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr

# Without console= on its command line the kernel's console may be one that nobody sees (a tty0 without a
# screen); the machine's is the first serial port. Commands get it as their controlling terminal, for Ctrl-C.
terminal="setsid cttyhack"
case " $(cat /sys/class/tty/console/active 2>/dev/null) " in
*" ttyS0 "*) ;;
*) if [ -c /dev/ttyS0 ]; then
    exec </dev/ttyS0 >/dev/ttyS0 2>&1
    terminal="setsid -c"
fi ;;
esac

[ -s /etc/hostname ] && hostname -F /etc/hostname

load() {
    while read -r module; do
        insmod "/lib/imgvm/$module.ko" || echo "imgvm: the module $module cannot be loaded" >&2
    done
}
load </etc/imgvm/modules
ip link set lo up 2>/dev/null
# The power button, while the command already runs: acpid calls what lies in /etc/acpi/PWRF.
{ load && [ -c /dev/input/event0 ] && acpid -l /dev/null; } </etc/imgvm/late-modules &

# `finish STATUS` reports a command's status, which ends the machine; `finish` switches the machine off.
# The disks come to rest first. imgvm-exit waits until all output has left the console.
finish() {
    trap '' USR1 USR2 TERM
    sync
    umount -a -r 2>/dev/null
    imgvm-exit "$@"
    poweroff -f
    while :; do sleep 3600; done
}

restart() {
    trap '' USR1 USR2 TERM
    sync
    umount -a -r 2>/dev/null
    imgvm-exit
    reboot -f
    while :; do sleep 3600; done
}

# The signals by which busybox's halt, poweroff and reboot ask the first process. A shell runs a trap only while
# it waits, so the work is done in the background, where standard input has to be handed over.
exec 3<&0
trap finish USR1 USR2
trap restart TERM

# The end of a terminal's first process hangs the terminal up, and Linux drops what has not left the serial port by then:
# imgvm-exit waits for that. The traps are there so that Ctrl-C is the command's alone.
then_drain='trap : INT QUIT; "$@"; status=$?; imgvm-exit; exit "$status"'
if [ -f /etc/imgvm/exec ]; then
    $terminal sh -c "$then_drain" sh sh /etc/imgvm/exec <&3 3<&- &
    wait "$!"
    finish "$?"
else
    echo "imgvm: a shell of $(hostname); \`exit\` switches the machine off"
    $terminal sh -c "$then_drain" sh sh <&3 3<&- &
    wait "$!"
    finish
fi
