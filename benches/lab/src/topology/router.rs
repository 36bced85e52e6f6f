//! A site's router: a namespace between the bridge `lan` and the TUN device `wan`, and its NAT.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Ipv6;
use crate::linksim::QUEUE;
use crate::nat::Nat;
use crate::nat::rules::{self, Place};
use crate::netns::Netns;

/// Interface indexes of the bridge's ports begin here, so that they never equal the index of `eth0` at the other end:
/// the kernel would take the pair for an ordinary device and tell the bridge up to a second late that it has carrier.
const PORT_INDEX: u32 = 1000;

/// The running router of a site.
#[derive(Debug)]
pub(super) struct Router {
    netns: Netns,
    state: Mutex<(Nat, Place)>,
    /// The next free port of the bridge.
    next_port: Mutex<u32>,
}

impl Router {
    /// Configures a namespace in which `wan` already stands.
    pub(super) fn start(netns: Netns, nat: Nat, place: Place, mtu: u16) -> anyhow::Result<Self> {
        nat.check()?;
        netns.sysctl(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
        // Where bridges call nftables, what a host sends to its own outside is translated in the bridge, and goes nowhere.
        if netns.enter(|| Path::new("/proc/sys/net/bridge").exists())? {
            netns.sysctl(&[("net.bridge.bridge-nf-call-iptables", "0")])?;
        }
        let gateway = gateway(&place);
        // A bridge without a live port has no carrier and drops all until long after it gets one: hence the stub.
        let mut batch = format!(
            "link add stub type veth peer name stub-end\nlink set stub-end up\nlink add lan type bridge\nlink set stub master lan up\nlink set lan up\naddr add {gateway}/{} dev lan\n\
             link set wan mtu {mtu} txqueuelen {QUEUE} up\n",
            place.inside.prefix_len(),
        );
        let outside = place.outside;
        let _ = match place.uplink {
            Some((network, router)) => writeln!(
                batch,
                "addr add {outside}/{} dev wan\nroute add default via {router} dev wan",
                network.prefix_len()
            ),
            None => writeln!(batch, "addr add {outside}/32 dev wan\nroute add default dev wan"),
        };
        if let Some(v6) = place.v6 {
            let _ = write!(
                batch,
                "addr add {}/64 dev lan nodad\naddr add {}/128 dev wan nodad\nroute add ::/0 dev wan\n",
                v6.gateway, v6.outside
            );
        }
        netns.ip(&batch)?;
        let router = Self { netns, state: Mutex::new((nat, place)), next_port: Mutex::new(0) };
        router.load()?;
        Ok(router)
    }

    pub(super) fn netns(&self) -> &Netns {
        &self.netns
    }

    pub(super) fn nat(&self) -> Nat {
        self.state().0.clone()
    }

    pub(super) fn place(&self) -> Place {
        self.state().1.clone()
    }

    /// Replaces the NAT; mappings of the former are lost.
    pub(super) fn set_nat(&self, nat: Nat, forwards: Vec<Ipv4Addr>) -> anyhow::Result<()> {
        nat.check()?;
        {
            let mut state = self.state();
            state.0 = nat;
            state.1.forwards = forwards;
        }
        self.load()
    }

    /// Moves the router to another public address; all mappings are lost.
    pub(super) fn set_outside(&self, outside: Ipv4Addr) -> anyhow::Result<()> {
        let former = std::mem::replace(&mut self.state().1.outside, outside);
        self.netns.ip(&format!("addr add {outside}/32 dev wan\naddr del {former}/32 dev wan\n"))?;
        self.load()
    }

    /// Loads the rules anew, with no mapping and no tracked connection: also what a reboot does.
    pub(super) fn load(&self) -> anyhow::Result<()> {
        let script = {
            let state = self.state();
            rules::script(&state.0, &state.1)
        };
        self.netns.nft(&script)?;
        let timeout = self.state().0.udp_timeout.as_secs().to_string();
        self.netns.sysctl(&[
            ("net.netfilter.nf_conntrack_udp_timeout", &timeout),
            ("net.netfilter.nf_conntrack_udp_timeout_stream", &timeout),
        ])?;
        self.netns.flush_connections()
    }

    /// Joins `eth0` of another namespace to the LAN.
    pub(super) fn plug(&self, host: &Netns) -> anyhow::Result<()> {
        self.plug_as(host, "eth0")
    }

    /// Joins an interface of another namespace to the LAN.
    pub(super) fn plug_as(&self, host: &Netns, interface: &str) -> anyhow::Result<()> {
        let port = {
            let mut next = self.next_port.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next
        };
        let index = PORT_INDEX + port;
        self.netns.ip(&format!(
            "link add port{port} index {index} type veth peer name {interface} netns {}\nlink set port{port} master lan up\n",
            host.name()
        ))
    }

    /// The address that hosts of the LAN send to.
    pub(super) fn gateway(&self) -> Ipv4Addr {
        gateway(&self.state().1)
    }

    fn state(&self) -> MutexGuard<'_, (Nat, Place)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first address of the LAN.
fn gateway(place: &Place) -> Ipv4Addr {
    Ipv4Addr::from_bits(place.inside.network().to_bits() + 1)
}

/// What the rules need to know of a site's IPv6.
pub(super) fn place_v6(ipv6: Ipv6, index: u16) -> Option<rules::PlaceV6> {
    use std::net::Ipv6Addr;
    let segment = |subnet, interface| Ipv6Addr::new(0x2001, 0xdb8, index, subnet, 0, 0, 0, interface);
    let filter = match ipv6 {
        Ipv6::None => return None,
        Ipv6::Filtered => rules::FilterV6::Stateful,
        Ipv6::Open => rules::FilterV6::Open,
    };
    Some(rules::PlaceV6 { outside: segment(0, 1), gateway: segment(1, 1), filter })
}
