#!/bin/busybox sh
# SPDX-License-Identifier: MIT
# The first process of a guest whose initrd imgvm built: gets the machine's devices going, mounts the root file
# system if there is one, runs the command of /etc/imgvm/exec and reports its status, or offers a shell; then
# switches the machine off. This process must never end: the kernel would panic.

system_path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
here= # where our own files are; in a root file system, below /run
[ "$1" = moved ] && here=/run/imgvm
busybox=$here/bin/busybox

if [ -z "$here" ]; then
    $busybox mkdir -p /proc /sys /dev /tmp /run /root /mnt /sbin /usr/bin /usr/sbin
    $busybox --install -s /bin
fi
export PATH=$here/bin:$system_path HOME=/root TERM="${TERM:-linux}"

if [ -z "$here" ]; then
    mount -t proc -o nosuid,nodev,noexec proc /proc
    mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
    mount -t devtmpfs -o nosuid devtmpfs /dev
    mkdir -p /dev/pts /dev/shm
    mount -t devpts -o nosuid,noexec devpts /dev/pts
    mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm
    mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run
    [ -f /etc/imgvm/root ] || mount -t tmpfs -o nosuid,nodev tmpfs /tmp
    ln -sf /proc/self/fd /dev/fd
    ln -sf /proc/self/fd/0 /dev/stdin
    ln -sf /proc/self/fd/1 /dev/stdout
    ln -sf /proc/self/fd/2 /dev/stderr
fi

# Without console= on its command line the kernel's console may be one that nobody sees (a tty0 without a
# screen); the machine's is the first serial port. Commands get it as their controlling terminal, for Ctrl-C.
terminal="$busybox setsid $busybox cttyhack"
case " $(cat /sys/class/tty/console/active 2>/dev/null) " in
*" ttyS0 "*) ;;
*) if [ -c /dev/ttyS0 ]; then
    exec </dev/ttyS0 >/dev/ttyS0 2>&1
    terminal="$busybox setsid -c"
fi ;;
esac

load() {
    while read -r module; do
        insmod "$here/lib/imgvm/$module.ko" || echo "imgvm: the module $module cannot be loaded" >&2
    done
}

# `finish STATUS` reports a command's status, which ends the machine; `finish` switches the machine off.
# The disks come to rest first. imgvm-exit waits until all output has left the console.
finish() {
    trap '' USR1 USR2 TERM
    PATH=$here/bin:$system_path
    rest
    imgvm-exit "$@"
    poweroff -f
    while :; do sleep 3600; done
}

restart() {
    trap '' USR1 USR2 TERM
    PATH=$here/bin:$system_path
    rest
    imgvm-exit
    reboot -f
    while :; do sleep 3600; done
}

rest() {
    [ -n "$here" ] && kill -KILL -1 2>/dev/null # what still writes to the root file system
    sync
    umount -a -r 2>/dev/null
}

# Mounts what root= names and goes on there: with the system's own first process, or with this script.
enter_root() {
    read -r type </etc/imgvm/root
    root= mode=rw flags= init=
    for word in $(cat /proc/cmdline); do
        case $word in
        root=*) root=${word#root=} ;;
        rootfstype=*) type=${word#rootfstype=} ;;
        rootflags=*) flags=,${word#rootflags=} ;;
        init=*) init=${word#init=} ;;
        ro | rw) mode=$word ;;
        esac
    done
    case $root in
    UUID=* | LABEL=*) device=$(findfs "$root") ;;
    *) device=$root ;;
    esac
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        [ -b "$device" ] && break
        sleep 0.2
    done
    mkdir -p /newroot
    if ! mount -t "$type" -o "$mode$flags" "$device" /newroot; then
        echo "imgvm: the root file system $root cannot be mounted" >&2
        finish 125
    fi
    if [ ! -f /etc/imgvm/exec ]; then
        for path in $init /sbin/init /etc/init /bin/init; do
            { [ -x "/newroot$path" ] || [ -L "/newroot$path" ]; } && move && exec switch_root /newroot "$path"
        done
    fi
    mkdir -p /run/imgvm/bin /run/imgvm/etc /run/imgvm/lib
    cp /bin/busybox /bin/imgvm-exit /run/imgvm/bin/
    cp -r /etc/imgvm /run/imgvm/etc/
    sed -i 's,^#!,&/run/imgvm,' /run/imgvm/etc/imgvm/acpi/PWRF/00000080 # where busybox will be
    while read -r module; do
        mkdir -p /run/imgvm/lib/imgvm
        cp "/lib/imgvm/$module.ko" /run/imgvm/lib/imgvm/
    done </etc/imgvm/late-modules
    cp /init /run/imgvm/init
    /run/imgvm/bin/busybox --install -s /run/imgvm/bin
    move && exec switch_root /newroot /run/imgvm/bin/busybox sh /run/imgvm/init moved
}

move() {
    for point in dev proc sys run; do
        mount --move "/$point" "/newroot/$point" || return
    done
}

if [ -z "$here" ]; then
    [ -s /etc/hostname ] && hostname -F /etc/hostname
    load </etc/imgvm/modules
    ip link set lo up 2>/dev/null
    [ -f /etc/imgvm/root ] && enter_root
fi

# The power button, while the command already runs: acpid calls what lies in its folder PWRF.
{ load && [ -c /dev/input/event0 ] && acpid -c "$here/etc/imgvm/acpi" -l /dev/null; } <"$here/etc/imgvm/late-modules" &

# The signals by which busybox's halt, poweroff and reboot ask the first process. A shell runs a trap only while
# it waits, so the work is done in the background, where standard input has to be handed over.
exec 3<&0
trap finish USR1 USR2
trap restart TERM

# A root file system's own programs come before ours of the same name. busybox' shell would take its own.
shell=$busybox
[ -n "$here" ] && PATH=$system_path:$here/bin && [ -x /bin/sh ] && shell=/bin/sh
[ "$shell" = "$busybox" ] && shell="$busybox sh"

# The end of a terminal's first process hangs the terminal up, and Linux drops what has not left the serial port by then:
# imgvm-exit waits for that. The traps are there so that Ctrl-C is the command's alone.
then_drain='trap : INT QUIT; "$@"; status=$?; imgvm-exit; exit "$status"'
if [ -f "$here/etc/imgvm/exec" ]; then
    $terminal $busybox sh -c "$then_drain" sh $shell "$here/etc/imgvm/exec" <&3 3<&- &
    wait "$!"
    finish "$?"
else
    echo "imgvm: a shell of $(hostname); \`exit\` switches the machine off"
    $terminal $busybox sh -c "$then_drain" sh $shell <&3 3<&- &
    wait "$!"
    finish
fi
