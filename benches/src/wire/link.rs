//! What lies between the two hosts.

use std::time::Duration;

use mesh_lab::{Filtering, Impairment, Loss, Mapping, Nat, Network, Rate, Site, Topology, topology::Ipv6};
use serde::Serialize;

use super::{
    Load,
    stage::{ENDS, ENDS_V6, LAN_V6},
};

/// Each host's share of the one-way delay of a long way.
const LONG: Duration = Duration::from_millis(10);
/// Share of packets lost in each direction.
const LOSS: f64 = 0.01;
/// The bottleneck, in Mbit/s.
const NARROW: u64 = 100;

/// A way between two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Link {
    /// A LAN of veth and a bridge: as fast as the machine.
    Lan,
    /// Simulated: 40 ms and 1 % loss.
    Lossy,
    /// Simulated: 40 ms and a bottleneck of 100 Mbit/s with a queue of 50 ms.
    Narrow,
    /// A LAN, on which the sender's own interface is the bottleneck of 100 Mbit/s, with the plain queue of 1,000
    /// packets: what a full send buffer does.
    Uplink,
}

impl Link {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Lan, Self::Lossy, Self::Narrow, Self::Uplink];

    /// Returns its name, also on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Lossy => "lossy",
            Self::Narrow => "narrow",
            Self::Uplink => "uplink",
        }
    }

    /// Returns the loads that say something over it: no flood, where the link is what is full.
    #[must_use]
    pub const fn loads(self) -> &'static [Load] {
        match self {
            Self::Lan => &Load::ALL,
            Self::Lossy | Self::Narrow | Self::Uplink => {
                &[Load::Tcp1, Load::Tcp4, Load::PingIdle, Load::PingLoaded]
            }
        }
    }

    /// Makes the sender's interface slow, where that is the link.
    pub(super) fn slow_down(self, network: &Network) -> anyhow::Result<()> {
        if self != Self::Uplink {
            return Ok(());
        }
        let rate = format!("{NARROW}mbit");
        let host = network.host(ENDS[0])?;
        for what in [
            "qdisc add dev eth0 root handle 1: htb default 1".to_owned(),
            format!("class add dev eth0 parent 1: classid 1:1 htb rate {rate} ceil {rate}"),
            "qdisc add dev eth0 parent 1:1 pfifo limit 1000".to_owned(),
        ] {
            host.command("tc").args(what.split(' ')).output()?.success()?;
        }
        Ok(())
    }

    /// Describes a network with the two hosts; on a LAN, with two more that have IPv6 there.
    pub(super) fn topology(self) -> Topology {
        let both = match self {
            Self::Lan | Self::Uplink => {
                let lan = |name| Site::behind(name, Nat::new(Mapping::Eim, Filtering::Apdf));
                let plain = ENDS.into_iter().fold(lan("lan"), |lan, name| lan.host(name));
                let v6 =
                    ENDS_V6.into_iter().fold(lan(LAN_V6).ipv6(Ipv6::Filtered), |lan, name| lan.host(name));
                return Topology::new().site(plain).site(v6);
            }
            Self::Lossy => Impairment::delay(LONG).loss(Loss::Uniform(LOSS)),
            Self::Narrow => Impairment::delay(LONG).rate(Rate::mbit(NARROW)),
        };
        // All that is wrong with the way is wrong with the sender's line, but for half of the delay.
        let [from, to] = ENDS;
        Topology::new()
            .site(Site::public(from).impaired(both))
            .site(Site::public(to).impaired(Impairment::delay(LONG)))
    }
}
