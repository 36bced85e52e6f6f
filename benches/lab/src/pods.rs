//! Pods as Kubernetes nodes have them: namespaces behind a bridge of the node, each with its own addresses, that other
//! nodes' pods reach through the mesh without NAT.
//!
//! ```text
//!   pod eth0 --- veth --- bridge cni0 [node: forwards] mesh0 --- tunnel --- mesh0 [node] cni0 --- veth --- eth0 pod
//! ```
//!
//! Node number N has 10.244.N.0/24 and fd00:10:244:N::/64 for its pods, and offers them to the mesh ([`announce`]).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::Context as _;
use ipnet::IpNet;

use crate::mesh::{Mesh, MeshOptions, wait_until};
use crate::netns::Netns;
use crate::topology::Host;

/// The ranges of all pods.
const ALL: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
/// The bridge's name on every node: what is called so is no underlay for the agents.
const BRIDGE: &str = "cni0";
/// A veth that has the index of its other end is taken for an ordinary device; see `topology/router.rs`.
const PORT_INDEX: u32 = 2000;
/// The host number of a node's pod, behind the bridge's.
const POD: u8 = 2;
/// Ethernet's: a pod knows nothing of tunnels.
const MTU: u16 = 1500;

/// What the virtual devices on a pod's way leave to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offloading {
    /// Checksums and segmentation, as by default: what comes out of one pod's socket goes as a superpacket into another.
    On,
    /// Nothing: each packet is whole and complete, as on a wire.
    Off,
}

/// One pod of a node.
#[derive(Debug)]
pub struct Pod {
    node: String,
    number: u8,
    host: Host,
}

impl Pod {
    /// Makes a node's pod, and the bridge between the two.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or the node has a pod already.
    pub fn attach(mesh: &Mesh, node: &str, number: u8, offloading: Offloading) -> anyhow::Result<Self> {
        let lab = mesh.network().lab();
        let name = format!("{node}-pod");
        let host = Host::make(lab, &name, node)?;
        let outer = mesh.node(node)?.host().netns();
        outer.sysctl(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
        let port = format!("veth{number}");
        let [v4, v6] = addresses(number, 1);
        outer.ip(&format!(
            "link add {BRIDGE} type bridge\nlink add {port} index {} type veth peer name eth0 netns {}\n\
             link set {port} mtu {MTU} master {BRIDGE} up\nlink set {BRIDGE} up\n\
             addr add {v4}/24 dev {BRIDGE}\naddr add {v6}/64 dev {BRIDGE} nodad\n",
            PORT_INDEX + u32::from(number),
            host.netns().name(),
        ))?;
        let [own_v4, own_v6] = addresses(number, POD);
        host.netns().ip(&format!(
            "link set eth0 mtu {MTU} up\naddr add {own_v4}/24 dev eth0\naddr add {own_v6}/64 dev eth0 nodad\n\
             route add default via {v4}\nroute add ::/0 via {v6}\n"
        ))?;
        if offloading == Offloading::Off {
            finish_packets(outer, &port)?;
            finish_packets(host.netns(), "eth0")?;
        }
        Ok(Self { node: node.to_owned(), number, host })
    }

    /// Waits until every node knows where all these pods are.
    ///
    /// # Errors
    ///
    /// If one does not learn it in time.
    pub fn wait_announced(pods: &[Self], mesh: &Mesh, patience: Duration) -> anyhow::Result<()> {
        wait_until(patience, "all nodes know where the pods are", || {
            for node in mesh.nodes() {
                for pod in pods.iter().filter(|pod| pod.node != node.name()) {
                    let known = node.peer(&pod.node)?.allowed_ips;
                    if !pod.ranges().iter().all(|range| known.contains(range)) {
                        return Ok(false);
                    }
                }
            }
            Ok(true)
        })
    }

    /// The pod as a host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> IpAddr {
        addresses(self.number, POD)[0]
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> IpAddr {
        addresses(self.number, POD)[1]
    }

    /// The ranges of its node's pods.
    pub fn ranges(&self) -> [IpNet; 2] {
        ranges(self.number)
    }
}

/// Lets nodes offer the ranges of their pods, each by its number, and the coordinator approve them.
pub fn announce(options: &mut MeshOptions, nodes: impl IntoIterator<Item = (&'static str, u8)>) {
    options.coordinator_args.extend(ALL.map(|range| format!("--approve-routes={range}")));
    for (node, number) in nodes {
        let [v4, v6] = ranges(number);
        options.agent_args_of.entry(node.to_owned()).or_default().push(format!("--advertise={v4},{v6}"));
    }
}

/// Lets a device leave nothing of a packet to others.
///
/// # Errors
///
/// If there is no such device, or `ethtool` is missing.
pub fn finish_packets(netns: &Netns, interface: &str) -> anyhow::Result<()> {
    let run = || {
        let args = ["-K", interface, "tx", "off", "rx", "off", "gso", "off", "gro", "off"];
        std::process::Command::new("ethtool").args(args).output()
    };
    let output = netns.enter(run)?.context("ethtool cannot be run")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "ethtool of {interface}: {}", said.trim());
    Ok(())
}

fn ranges(node: u8) -> [IpNet; 2] {
    let [v4, v6] = addresses(node, 0);
    [IpNet::new_assert(v4, 24), IpNet::new_assert(v6, 64)]
}

fn addresses(node: u8, number: u8) -> [IpAddr; 2] {
    let v4 = Ipv4Addr::new(10, 244, node, number);
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, number.into());
    [v4.into(), v6.into()]
}
