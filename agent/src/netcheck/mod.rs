//! What a node finds out about the network around it when it is asked to: `meshctl netcheck`.
//!
//! The engine knows by itself where observers see its socket. The rest is measured here, on demand, from sockets of its
//! own, so that no mapping and no filter that the mesh needs is touched:
//!
//! | what | how |
//! |---|---|
//! | `filtering` | the coordinator and other nodes knock at a socket that has never sent to them |
//! | `hairpin` | two sockets send to where the coordinator sees the other one |
//! | `reach` | STUN over UDP and a TCP connection, to every relay |
//! | `mtu` | STUN requests of many lengths, which must not be fragmented |
//! | `portal` | plain HTTP to the coordinator's TCP port, or to a URL that a person has chosen |
//!
//! All of it runs at once and takes some three seconds; what has not been told by then stays unknown. Being cancelled at
//! any time is safe: the sockets are closed, and nothing else is held.

mod filtering;
mod hairpin;
mod mtu;
mod portal;
mod probe;
mod reach;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    netreport::{Filtering, Ipv6Report, NatReport, NetReport, ObserverReport, ProxyReport, RelayReport},
    status::{ControlTransport, CoordinatorStatus, Mapping, SelfStatus},
};

pub use portal::{InvalidPortalUrl, PortalUrl};
use probe::{Probe, Seen};

use crate::control::{ControlHandle, HostPort, ProxyRules};

/// Everything is told by then, or stays unknown; a little less than a person waits.
const DEADLINE: Duration = Duration::from_secs(8);

/// What is known before anything is measured.
#[derive(Debug)]
pub struct Inputs {
    /// What the status document says of this node.
    pub this: SelfStatus,
    /// Who answers STUN.
    pub observers: Vec<SocketAddr>,
    /// The relays of the map.
    pub relays: Vec<RelayTarget>,
    /// Names of the coordinator.
    pub coordinators: Vec<String>,
    /// Where nothing of the underlay is.
    pub mesh: Vec<IpNet>,
    /// The control connection.
    pub control: ControlHandle,
    /// Which proxy byte pipes lead through.
    pub proxy: ProxyRules,
    /// What a person has chosen to tell captive portals by.
    pub portal_url: Option<PortalUrl>,
}

/// A relay that is to be reached.
#[derive(Debug, Clone)]
pub struct RelayTarget {
    /// Its name.
    pub name: String,
    /// Where the map says that it is.
    pub addresses: Vec<String>,
    /// Where it answers already over UDP.
    pub known: Option<SocketAddr>,
}

/// What was found out from one socket about the NAT.
#[derive(Debug, Default)]
struct Nat {
    seen: Vec<Seen>,
    /// The socket's own address.
    own: Option<SocketAddr>,
    filtering: Filtering,
}

/// Measures everything.
pub async fn run(inputs: Inputs) -> NetReport {
    let coordinator = udp_address(&inputs.this.coordinator);
    let v6: Vec<SocketAddr> = inputs.observers.iter().copied().filter(SocketAddr::is_ipv6).collect();
    let nat = async {
        match coordinator {
            Some(coordinator) => filtering::measure(coordinator, &inputs.observers, &inputs.control).await,
            None => Ok(ask_only(&inputs.observers).await),
        }
    };
    let hairpin = async { hairpin::measure(coordinator?).await.ok().flatten() };
    let mtu = async { mtu::measure(coordinator?).await.ok().flatten() };
    let portal = portal::measure(inputs.portal_url.as_ref(), &inputs.coordinators, &inputs.mesh);
    let relays = reach::measure(&inputs.relays, &inputs.mesh);
    let (nat, hairpin, mtu, portal, relays, v6) = tokio::join!(
        within(nat),
        within(hairpin),
        within(mtu),
        within(portal),
        within(relays),
        within(ask_over_v6(&v6)),
    );
    let nat = nat.and_then(Result::ok).unwrap_or_default();
    report(
        &inputs,
        nat,
        Rest {
            hairpin: hairpin.flatten(),
            mtu: mtu.flatten(),
            portal: portal.flatten(),
            relays: relays.unwrap_or_default(),
            v6: v6.flatten(),
        },
    )
}

/// What was found out beside [`Nat`].
struct Rest {
    hairpin: Option<bool>,
    mtu: Option<u16>,
    portal: Option<bool>,
    relays: Vec<RelayReport>,
    v6: Option<bool>,
}

fn report(inputs: &Inputs, nat: Nat, rest: Rest) -> NetReport {
    let this = &inputs.this;
    let mut status = this.nat.clone();
    if status.mapping == Mapping::Unknown {
        let pairs: Vec<_> = nat.seen.iter().map(|seen| (seen.observer, seen.mapped)).collect();
        status.mapping = mesh_engine::mapping_of(&pairs, |address| nat.own == Some(address));
    }
    let is_global = |candidate: &&Candidate| {
        let is_own = candidate.kind == CandidateKind::Host;
        is_own && matches!(candidate.address.ip(), IpAddr::V6(v6) if v6.segments()[0] & 0xe000 == 0x2000)
    };
    let used = inputs.control.proxy();
    let names = inputs.coordinators.iter().filter_map(|name| name.parse::<HostPort>().ok());
    let chosen = names.filter_map(|name| inputs.proxy.proxy_for(&name).cloned()).next();
    let observed = |seen: &Seen| ObserverReport {
        address: seen.observer,
        mapped: seen.mapped,
        rtt_ms: millis(seen.rtt),
    };
    NetReport {
        nat: NatReport { status, filtering: nat.filtering, hairpin: rest.hairpin },
        candidates: this.candidates.clone(),
        coordinator: this.coordinator.clone(),
        relay: this.relay.clone(),
        relays: rest.relays,
        observers: nat.seen.iter().map(observed).collect(),
        ipv6: Ipv6Report {
            address: this.candidates.iter().find(is_global).map(|candidate| candidate.address.ip()),
            reachable: rest.v6,
        },
        captive_portal: rest.portal,
        proxy: used
            .clone()
            .or(chosen)
            .map(|proxy| ProxyReport { url: proxy.to_string(), in_use: used.is_some() }),
        clock_offset_ms: inputs.control.clock_offset_ms().map(|offset| (offset * 1e3).round() / 1e3),
        uplink_mtu: rest.mtu,
    }
}

async fn within<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(DEADLINE, work).await.ok()
}

/// Where the coordinator is reached over UDP, if it is.
fn udp_address(coordinator: &CoordinatorStatus) -> Option<SocketAddr> {
    let is_quic = coordinator.transport == Some(ControlTransport::Quic);
    coordinator.address.as_deref().filter(|_| is_quic)?.parse().ok()
}

/// Asks observers without anybody's help.
async fn ask_only(observers: &[SocketAddr]) -> Nat {
    let v4: Vec<SocketAddr> = observers.iter().copied().filter(SocketAddr::is_ipv4).collect();
    let Some(Ok(probe)) = v4.first().map(|first| Probe::bind_for(*first)) else { return Nat::default() };
    Nat { seen: probe.ask(&v4).await, own: probe.own(), filtering: Filtering::Unknown }
}

/// Whether any of these observers, whose addresses are IPv6, answers; nothing if there is none.
async fn ask_over_v6(observers: &[SocketAddr]) -> Option<bool> {
    match Probe::bind_for(*observers.first()?) {
        Ok(probe) => Some(!probe.ask(observers).await.is_empty()),
        // No way out at all.
        Err(_) => Some(false),
    }
}

fn millis(duration: Duration) -> f64 {
    // Microseconds are as fine as it gets.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
