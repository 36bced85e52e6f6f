//! What keeps the pod network from being as wanted: one sentence each, for the status, the log and an Event.

use std::path::PathBuf;

use ipnet::IpNet;

/// One thing that is not as it should be, by whoever has to put it right. Nothing that worked stops because of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// The cluster gave the node a range that is in use here.
    #[error(
        "the pod range {range} of this node overlaps {network}, which this host reaches through {interface}: give the cluster another pod range"
    )]
    RangeInUse {
        /// The node's pod range.
        range: IpNet,
        /// The network that is connected.
        network: IpNet,
        /// Where it is connected.
        interface: String,
    },
    /// A bridge of a pod network that was here before has the range.
    #[error(
        "another pod network's interface {interface} still has {network}, which overlaps the pod range {range} of this node: remove that network, then `ip link delete {interface}`"
    )]
    RangeOfOther {
        /// The node's pod range.
        range: IpNet,
        /// The network that is connected.
        network: IpNet,
        /// The other network's interface.
        interface: String,
    },
    /// The cluster's own ranges overlap.
    #[error("the pod range {range} of this node overlaps the {kind} range {other} of the cluster")]
    RangesOverlap {
        /// The node's pod range.
        range: IpNet,
        /// What the other is for: `service` or `mesh`.
        kind: &'static str,
        /// The other range.
        other: IpNet,
    },
    /// There is no such plugin, neither installed nor to be installed.
    #[error("the network plugin {name} is neither in {} nor among what can be installed: install containernetworking-plugins", dir.display())]
    PluginMissing {
        /// The plugin.
        name: &'static str,
        /// Where the container runtime looks.
        dir: PathBuf,
    },
    /// Plugins are there, but do not answer.
    #[error("the network plugins {} in {} do not run: {reason}", names.join(", "), dir.display())]
    PluginsBroken {
        /// Where the container runtime looks.
        dir: PathBuf,
        /// The plugins.
        names: Vec<&'static str>,
        /// What happened, which is the same with all of them.
        reason: String,
    },
    /// A plugin cannot be put where the runtime looks.
    #[error("the network plugin {} cannot be installed: {reason}", path.display())]
    PluginNotInstalled {
        /// The plugin.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A plugin of ours cannot be removed.
    #[error("the network plugins in {} cannot be removed: {reason}", dir.display())]
    PluginNotRemoved {
        /// Where the runtime looks.
        dir: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The configuration cannot be put where the runtime looks.
    #[error("the network configuration {} cannot be written: {reason}", path.display())]
    ConflistUnwritable {
        /// Our file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The runtime takes the first configuration, and that is another one.
    #[error("pods get their network from {}, which sorts before {ours}: remove it, or rename it", path.display())]
    OtherConfigurationFirst {
        /// The other file.
        path: PathBuf,
        /// The name of ours.
        ours: &'static str,
    },
    /// The runtime is k3s', which has been told of other directories.
    #[error(
        "k3s' container runtime looks for {what} in {}, not in {}: start k3s' servers with --flannel-backend=none, or set {setting}",
        theirs.display(), ours.display()
    )]
    K3sLooksElsewhere {
        /// For what.
        what: &'static str,
        /// Where it looks.
        theirs: PathBuf,
        /// Where the agent puts it.
        ours: PathBuf,
        /// Which setting is the agent's.
        setting: &'static str,
    },
    /// The host does not tell of its networks.
    #[error("the host's networks cannot be listed: {reason}")]
    Surroundings {
        /// What the system said.
        reason: String,
    },
    /// The bridge of the pods cannot be put right.
    #[error("the bridge {bridge} cannot be set: {reason}")]
    Bridge {
        /// Its name.
        bridge: String,
        /// What the system said.
        reason: String,
    },
    /// Pods run with addresses that the node no longer has.
    #[error(
        "some pods still have addresses of an old pod range of this node: delete them, so that they are made anew"
    )]
    PodsOfOldRange,
    /// What is known of the pods' addresses cannot be read or freed.
    #[error("the pods' addresses in {} cannot be read or freed: {reason}", dir.display())]
    Leases {
        /// host-local's directory.
        dir: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A program that is needed is not there, or fails.
    #[error("the packet filter cannot be set by {program}: {reason}")]
    Filter {
        /// `nft`, or one of the `iptables`.
        program: &'static str,
        /// What it said.
        reason: String,
    },
    /// Somebody removes our rules again and again.
    #[error(
        "another program keeps changing the pod network's rules ({what}): they are put back less and less often"
    )]
    Contested {
        /// Whose rules.
        what: &'static str,
    },
    /// Another program's packet filter drops what is forwarded, where no rule of ours can help.
    #[error(
        "the nftables chain {chain} refuses what is forwarded by default: let it accept {bridge} and {interface}"
    )]
    ForwardDropped {
        /// Family, table and chain.
        chain: String,
        /// The pods' bridge.
        bridge: String,
        /// The mesh's interface.
        interface: String,
    },
    /// Firewalld does not let pods' packets pass.
    #[error(
        "firewalld refuses what is forwarded between pods: run firewall-cmd --permanent --zone=trusted \
         --add-interface={interface} --add-interface={bridge}, and firewall-cmd --reload"
    )]
    Firewalld {
        /// The pods' bridge.
        bridge: String,
        /// The mesh's interface.
        interface: String,
    },
    /// A kernel setting is refused.
    #[error("the kernel setting {name} cannot be set to {value}: {reason}")]
    Sysctl {
        /// Its name, with slashes.
        name: String,
        /// What it should be.
        value: String,
        /// What the system said.
        reason: String,
    },
    /// Answers of pods behind the same bridge go around the translation of Services.
    #[error(
        "the kernel module br_netfilter is not loaded, so pods cannot reach Services on their own node: run `modprobe br_netfilter`"
    )]
    NoBridgeFilter,
}
