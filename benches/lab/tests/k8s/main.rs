//! A real Kubernetes in the village: its workers stand behind different NATs and know each other by the mesh alone.
//!
//! What goes wrong with pod networks in practice, and where it is staged (agent: unit tests of `kubernetes`, and `podnet`
//! on a kernel of its own):
//!
//! | | |
//! |---|---|
//! | addresses of pods that are never given back | [`churn`], [`outages::a_worker_reboots`], [`newer_runtime`] (CNI's GC); agent: leases |
//! | a runtime that does not know that the agent is dead | [`newer_runtime`] (CNI's STATUS); agent: `plugin` |
//! | a configuration before the network works, half of one, a second one | [`rig`] (Ready comes after it), [`bad_input`]; agent: `conflist` |
//! | a bridge of another range | [`remade`] |
//! | small packets pass and large ones do not | [`mtu`], direct and through TCP 443 |
//! | Docker's and others' FORWARD DROP, `rp_filter`, rules that somebody flushes | agent: `forwarding`, `podnet` |
//! | kube-proxy by iptables and by nftables, hairpin, hostPort, NodePort, `externalTrafficPolicy: Local` | [`adjacency`], one story each |
//! | ranges that overlap a LAN, Services, another node's, a carrier's | [`bad_input`] |
//! | no range; RBAC; another CA; an expired token; a directory that cannot be written | [`bad_input`] |
//! | an agent that starts before the API server, or without it | [`outages::everybody_goes_on_without_control`], [`bad_input`] |
//! | restart, kill, roam, rollout under a stream | [`outages`], [`pod_agent`] |
//! | a reboot, with the agent on the host and in a pod | [`outages::a_worker_reboots`], [`pod_agent`] |
//! | two machines with one name | [`two_of_a_name`]; agent: `ranges`, `owner` |
//! | a VXLAN as flannel's over the mesh: MTU, checksums of what is offloaded | [`beneath`] |
//! | two families: one that cannot be had, one alone, IPv6 first; a node without a way into the IPv6 internet | [`story`] has a cluster of each kind; [`pod_agent`], [`dual_stack`], [`bad_input`], [`remade`] |
//! | a node that leaves, and a fresh one in its place | [`leaving`], [`coming`] |
//! | k3s' directories, credentials, restarts and upgrades; flannel that was left on | [`k3s`] |
//!
//! Firewalld, NetworkManager, systemd-networkd and flannel itself run in the test `guides`. Not staged: time skew; a full
//! conntrack table (it is the whole machine's).

mod access;
mod adjacency;
mod bad_input;
mod beneath;
mod churn;
mod coming;
mod dual_stack;
mod k3s;
mod leaving;
mod mtu;
mod newer_runtime;
mod outages;
mod pod_agent;
mod remade;
mod rig;
mod story;
mod talk;
mod two_of_a_name;
