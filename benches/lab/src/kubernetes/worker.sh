#!/bin/bash
# The init of a worker: mounts what is the worker's own, and keeps containerd, kubelet and kube-proxy running.
# Its namespaces are its own; with it all of its pods end.
set -eu

# Namespaces that the lab removes must not live on in here.
while umount -lR /run/netns 2>/dev/null; do :; done
mkdir -p /run/netns /run/containerd /var/lib/kubelet /var/lib/containerd /var/log/pods /var/log/containers
for directory in /run/netns /run/containerd; do mount -t tmpfs tmpfs "$directory"; done
for directory in /var/lib/kubelet /var/lib/containerd /var/log/pods /var/log/containers; do
  mkdir -p "$STATE$directory"
  mount --bind "$STATE$directory" "$directory"
done
mount --make-rshared /

# A network namespace's own /sys hides the control groups. They are mounted as the machine has them.
grep -E '^[^ ]+ /sys/fs/cgroup[^ ]* (tmpfs|cgroup2?) ' /proc/mounts | sort -u -k2,2 >"$STATE/cgroups"
while read -r _ target kind options _; do
  mkdir -p "$target"
  mount -t "$kind" -o "${options//rw,relatime,/}" none "$target" 2>/dev/null || mount -t "$kind" none "$target"
done <"$STATE/cgroups"

# What kubelet sets for the whole machine ends here.
for parameter in kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes \
  vm/overcommit_memory vm/panic_on_oom; do
  cp "/proc/sys/$parameter" "$STATE/${parameter//\//.}"
  mount --bind "$STATE/${parameter//\//.}" "/proc/sys/$parameter"
done

keep() { # name, command
  local name=$1
  shift
  while :; do
    "$@" >>"$LOGS-$name.log" 2>&1 &
    echo $! >"$STATE/$name.pid"
    wait $! || true
    echo "$name has ended" >>"$LOGS-$name.log"
    sleep 0.5
  done &
}
trap 'exit 0' TERM
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
keep containerd containerd --config "$CONTAINERD_CONFIG"
until ctr version >/dev/null 2>&1; do sleep 0.1; done
for image in $IMAGES; do
  [ -e "$STATE/imported" ] || ctr --namespace k8s.io images import "$image" >>"$LOGS-images.log" 2>&1
done
touch "$STATE/imported"
# Address and name are looked up at each start: they may be given later.
# shellcheck disable=SC2016
keep kubelet bash -c 'exec "$KUBERNETES/kubelet" --config "$STATE/kubelet.json" --kubeconfig "$KUBECONFIG" \
  --hostname-override "$(cat "$STATE/node-name")" $(cat "$STATE/node-ip")'
keep proxy "$KUBERNETES/kube-proxy" --config "$STATE/proxy.json" --hostname-override "$NODE"
wait
