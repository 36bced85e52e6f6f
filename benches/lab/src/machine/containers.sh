#!/bin/bash
# What a machine takes to run containers of its own: see containers.rs.
set -eu

for hierarchy in /sys/fs/cgroup/*; do
  mountpoint -q "$hierarchy" && mount -o remount,bind,rw "$hierarchy"
done

covered=/run/lab-kernel
mkdir -p "$covered"
for parameter in kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes \
  vm/overcommit_memory vm/panic_on_oom; do
  cp "/proc/sys/$parameter" "$covered/${parameter//\//.}"
  mount --bind "$covered/${parameter//\//.}" "/proc/sys/$parameter"
done
# The settings of the network are the machine's own.
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,rw /proc/sys/net
[ -e /dev/kmsg ] || ln -s null /dev/kmsg

# What is mounted from now on is seen by containers, too.
mount --make-rshared /

# As Debian's installer leaves it.
grep -q '^127\.0\.1\.1' /etc/hosts || printf '127.0.1.1\t%s\n' "$(cat /etc/hostname)" >>/etc/hosts
