//! Whether every relay is reached, over UDP and over TCP.

use std::{net::SocketAddr, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use ipnet::IpNet;
use mesh_proto::netreport::{Reach, RelayReport};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{RelayTarget, millis, probe::Probe};
use crate::control::{HostPort, resolve_all};

/// Addresses of one relay that are tried.
const MAX_ADDRESSES: usize = 4;
/// Relays that are tried.
const MAX_RELAYS: usize = 16;
/// How long a TCP connection may take: two lost packets.
const TCP_PATIENCE: Duration = Duration::from_secs(4);

/// Tries all of them at once.
pub(super) async fn measure(relays: &[RelayTarget], mesh: &[IpNet]) -> Vec<RelayReport> {
    let one = |relay: &RelayTarget| {
        let relay = relay.clone();
        async move {
            let named = addresses(&relay.addresses, mesh).await;
            let mut all: Vec<SocketAddr> = relay.known.into_iter().collect();
            all.extend(named.into_iter().filter(|address| relay.known != Some(*address)));
            all.truncate(MAX_ADDRESSES);
            let (udp, tcp) = tokio::join!(udp(&all), tcp(&all));
            RelayReport { name: relay.name, udp, tcp }
        }
    };
    join_all(relays.iter().take(MAX_RELAYS).map(one)).await
}

/// Resolves `host:port`s; those that lead nowhere are left out.
pub(super) async fn addresses(names: &[String], mesh: &[IpNet]) -> Vec<SocketAddr> {
    let names = HostPort::parse_all(names);
    let mut resolved = resolve_all(names.clone(), mesh.to_vec()).await;
    names.iter().flat_map(|name| resolved.remove(name).unwrap_or_default()).collect()
}

async fn udp(addresses: &[SocketAddr]) -> Reach {
    let families = [true, false].map(|is_v4| async move {
        let of_family: Vec<_> = addresses.iter().copied().filter(|at| at.is_ipv4() == is_v4).collect();
        let probe = Probe::bind_for(*of_family.first()?).ok()?;
        probe.ask(&of_family).await.into_iter().min_by_key(|seen| seen.rtt)
    });
    let best = join_all(families).await.into_iter().flatten().min_by_key(|seen| seen.rtt);
    match best {
        Some(seen) => {
            Reach { reachable: Some(true), address: Some(seen.observer), rtt_ms: Some(millis(seen.rtt)) }
        }
        None => unreached(addresses),
    }
}

async fn tcp(addresses: &[SocketAddr]) -> Reach {
    let mut attempts: FuturesUnordered<_> = addresses
        .iter()
        .map(|address| async move {
            let start = Instant::now();
            let connected = timeout(TCP_PATIENCE, TcpStream::connect(address)).await;
            matches!(connected, Ok(Ok(_))).then(|| (*address, start.elapsed()))
        })
        .collect();
    while let Some(attempt) = attempts.next().await {
        if let Some((address, rtt)) = attempt {
            return Reach { reachable: Some(true), address: Some(address), rtt_ms: Some(millis(rtt)) };
        }
    }
    unreached(addresses)
}

/// None of them answers, or there is none.
fn unreached(addresses: &[SocketAddr]) -> Reach {
    let address = addresses.first().copied();
    Reach { reachable: address.map(|_| false), address, rtt_ms: None }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn a_port_that_is_closed_is_not_reached_and_no_address_says_nothing() {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let open = listener.local_addr().unwrap();
        assert_eq!(tcp(&[open]).await.reachable, Some(true));
        drop(listener);
        let relay = |addresses| RelayTarget { name: "pi".into(), addresses, known: None };
        let reports = measure(&[relay(vec![open.to_string()]), relay(vec![])], &[]).await;
        let shown: Vec<_> =
            reports.iter().map(|report| (report.udp.reachable, report.tcp.reachable)).collect();
        assert_eq!(shown, [(Some(false), Some(false)), (None, None)]);
    }
}
