//! The mesh beneath another pod network: a VXLAN between two nodes, set as flannel sets its own, over the mesh's interface.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, ensure};

use crate::mtu::{End, both_ways, mtu};
use crate::rig::Rig;

/// What flannel calls its device.
const DEVICE: &str = "flannel.1";
/// The mesh's.
const MESH: &str = "mesh0";
/// What a VXLAN takes of each packet.
const OVERHEAD: usize = 50;

/// A node of the other network, by its number.
struct Side {
    worker: &'static str,
    number: u8,
}

/// Its MTU follows the mesh's, and everything large passes.
pub(crate) fn a_vxlan_passes(rig: &Rig, workers: [&'static str; 2]) -> anyhow::Result<()> {
    let sides = [Side { worker: workers[0], number: 1 }, Side { worker: workers[1], number: 2 }];
    for (own, other) in [(&sides[0], &sides[1]), (&sides[1], &sides[0])] {
        let (from, to) =
            (rig.village.node(own.worker)?.address()?, rig.village.node(other.worker)?.address()?);
        let host = rig.village.network().host(own.worker)?;
        host.netns().ip(&own.device(from))?;
        host.netns().ip(&other.neighbour())?;
        let entry = ["fdb", "append", &other.link_address(), "dev", DEVICE, "dst", &to.to_string()];
        host.command("bridge").args(entry).output()?.success()?;
    }
    let hosts = [rig.village.network().host(workers[0])?, rig.village.network().host(workers[1])?];
    let end = |number: usize, device| End {
        netns: hosts[number].netns(),
        address: IpAddr::V4(sides[number].address()),
        device,
    };
    let (inner, outer) = (mtu(&end(0, DEVICE))?, mtu(&end(0, MESH))?);
    ensure!(inner + OVERHEAD == outer, "the MTU is {inner}, over a mesh with {outer}");
    let took = both_ways(rig, &[end(0, DEVICE), end(1, DEVICE)]).context("through the VXLAN")?;
    println!("10 MB through a VXLAN over the mesh, each way: {took:.1?}");
    hosts.iter().try_for_each(|host| host.netns().ip(&format!("link del {DEVICE}\n")))
}

impl Side {
    /// Flannel gives the device the first address of the node's range.
    fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 245, self.number, 0)
    }

    fn link_address(&self) -> String {
        format!("02:00:00:00:f1:{:02x}", self.number)
    }

    /// What the node itself is given.
    fn device(&self, mesh: Ipv4Addr) -> String {
        format!(
            "link add {DEVICE} address {} type vxlan id 1 dev {MESH} local {mesh} dstport 8472 nolearning\n\
             addr add {}/32 dev {DEVICE}\n\
             link set {DEVICE} up\n",
            self.link_address(),
            self.address()
        )
    }

    /// What the others are told of it.
    fn neighbour(&self) -> String {
        let address = self.address();
        format!(
            "neigh add {address} lladdr {} dev {DEVICE} nud permanent\n\
             route add {address}/24 via {address} dev {DEVICE} onlink\n",
            self.link_address()
        )
    }
}
