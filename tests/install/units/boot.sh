#!/bin/sh
# The first process of a simulated machine made of namespaces: makes its root file system, and becomes systemd.
#
# boot.sh ROOT FILES PROGRAM... : /usr is the host's, FILES are copied over the rest, and PROGRAMs are in /usr/local/bin.
set -eu
root=$1 files=$2
shift 2

mount --make-rprivate /
mount -t tmpfs -o mode=0755 machine "$root"
cd "$root"
mkdir dev etc etc/systemd etc/systemd/system old proc root run sys tmp usr var
ln -s usr/bin usr/lib usr/lib64 usr/sbin .
mount --bind -o ro /usr usr
mount -t tmpfs -o mode=0755 local usr/local
mkdir usr/local/bin
for program; do
    touch "usr/local/bin/${program##*/}"
    mount --bind "$program" "usr/local/bin/${program##*/}"
done

echo 'root:x:0:0::/root:/bin/sh' >etc/passwd
echo 'root:x:0:' >etc/group
echo '127.0.0.1 localhost' >etc/hosts
printf 'passwd: files\ngroup: files\nhosts: files\n' >etc/nsswitch.conf
cp /etc/ld.so.cache etc
: >etc/machine-id
# Units that manage the hardware of a real machine.
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-logind.service systemd-modules-load.service \
    systemd-sysctl.service modprobe@.service dbus.service dbus.socket; do
    ln -s /dev/null "etc/systemd/system/$unit"
done
cp -R "$files/." .

mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=0755 cgroup sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 dev dev
for device in full null random tty urandom zero; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=0755 run run
mount -t tmpfs tmp tmp

pivot_root . old
umount -l old
# systemd makes credentials in a mount namespace of their own, from which they must propagate.
mount --make-rshared /
exec setpriv --bounding-set=-sys_module,-sys_rawio,-sys_time --inh-caps=-sys_module,-sys_rawio,-sys_time \
    env -i container=transit-kms-test PATH=/usr/local/bin:/usr/bin:/usr/sbin \
    /lib/systemd/systemd --unit=multi-user.target
