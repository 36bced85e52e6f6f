#!/bin/bash
# Boots a Debian with systemd as its process 1 where this is started: a host's network and mount namespace.
# $1 the name, $2 the installed system, which is only read, $3 what this machine writes, $4 what is bound into it,
# $5 the control group it lives in, and further options of systemd-nspawn
set -eu
name=$1 system=$2 own=$3 shared=$4 group=$5
shift 5

# A host's own /sys hides the control groups; below it lies the machine's, whose groups nspawn needs.
umount /sys
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
  [ -e "$hierarchy$group/cgroup.procs" ] || continue
  echo $$ >"$hierarchy$group/cgroup.procs"
done
mkdir -p "$own/upper" "$own/work" "$own/root"
mount -t overlay overlay -o "lowerdir=$system,upperdir=$own/upper,workdir=$own/work" "$own/root"
# The names that the host knows are the machine's from its installation on, which is its own to change.
[ -e "$own/upper/etc/hosts" ] || cp /etc/hosts "$own/root/etc/hosts"
exec systemd-nspawn --directory="$own/root" --machine="$name" --boot --register=no --keep-unit \
  --resolv-conf=copy-host --bind-ro="$shared" \
  --capability=CAP_NET_ADMIN,CAP_NET_RAW --console=passive "$@"
