#!/bin/bash
# Boots a Debian with systemd as its process 1 where this is started: a host's network and mount namespace.
# $1 the name, $2 the installed system, which is only read, $3 what this machine writes, $4 what is bound into it
set -eu

# A host's own /sys hides the control groups; below it lies the machine's, whose groups nspawn needs.
umount /sys
for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
  [ -e "$hierarchy/cgroup.procs" ] || continue
  mkdir -p "$hierarchy/$1"
  echo $$ >"$hierarchy/$1/cgroup.procs"
done
mkdir -p "$3/upper" "$3/work" "$3/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$3/upper,workdir=$3/work" "$3/root"
exec systemd-nspawn --directory="$3/root" --machine="$1" --boot --register=no --keep-unit \
  --resolv-conf=copy-host --bind-ro=/etc/hosts --bind=/dev/net/tun --bind-ro="$4" \
  --capability=CAP_NET_ADMIN,CAP_NET_RAW --console=passive
