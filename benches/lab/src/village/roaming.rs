//! The village, and where its nodes may go: networks of every kind, and a relay that stands alone.
//!
//! | site | what it is | hosts | adds to a round trip |
//! |---|---|---|---|
//! | `home` | a LAN with others on it, EIM x APDF | `home-a`, `home-b` | 8 ms |
//! | `office` | symmetric, APDM x APDF | `office` | 12 ms |
//! | `lte` | a carrier's NAT, EIM x EIF, addresses of 100.64.0.0/10 | `macbook` | 60 ms |
//! | `cafe` | EIM x ADF | none | 20 ms |
//! | `plaza` | public addresses, no NAT | none | 15 ms |
//! | `guest` | lets no UDP out | none | 25 ms |
//! | `vps` | the relay alone, on a public host | `vps` | 30 ms |

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::{COORDINATOR_HOST, COORDINATOR_NAME, NODES, Village, topology};
use crate::mesh::MeshOptions;
use crate::nat::{Egress, Nat};
use crate::run::Lab;
use crate::topology::{Site, Topology};

/// The networks to which nodes roam.
pub const NETWORKS: [&str; 6] = ["home", "office", "lte", "cafe", "plaza", "guest"];
/// The host of the relay that stands alone; see [`Mesh::start_relay`](crate::Mesh::start_relay).
pub const RELAY_HOST: &str = "vps";

impl Village {
    /// As [`Village::prepare`], with the networks to which nodes roam.
    ///
    /// # Errors
    ///
    /// As [`Village::prepare`].
    pub fn prepare_roaming(lab: &Lab) -> anyhow::Result<Self> {
        Self::prepare_on(
            lab,
            roaming_topology(),
            MeshOptions::new(COORDINATOR_HOST, COORDINATOR_NAME, &NODES),
        )
    }
}

/// The network of the village with all those of [`NETWORKS`], and [`RELAY_HOST`].
#[must_use]
pub fn roaming_topology() -> Topology {
    let ms = Duration::from_millis;
    topology()
        .site(
            Site::behind("plaza", Nat::none())
                .latency(ms(15))
                .outside(Ipv4Addr::new(203, 0, 113, 129))
                .inside(Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, 192), 26)),
        )
        .site(
            Site::behind("guest", Nat::masquerade().egress(Egress::NoUdp))
                .latency(ms(25))
                .outside(Ipv4Addr::new(198, 51, 100, 70))
                .inside(Ipv4Net::new_assert(Ipv4Addr::new(172, 20, 9, 0), 24)),
        )
        .site(Site::public(RELAY_HOST).latency(ms(30)).outside(Ipv4Addr::new(198, 51, 100, 80)))
}
