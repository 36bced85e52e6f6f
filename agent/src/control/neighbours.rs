//! Finds coordinators on the networks that this host is in, for when their name leads elsewhere.
//!
//! A name like DuckDNS's stands for the outside address of a router. Behind that same router it leads nowhere, unless the
//! router turns packets round (hairpin), which few do. So a dial that has not succeeded soon asks all of its own networks
//! who answers STUN at the coordinator's port. Whoever does is dialed too, and only the pinned key decides.
//!
//! Asked by IPv4's limited broadcast, once per own address, since it is the sender's address that chooses the network.
//! Nothing is learnt from an answer but where it came from.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use futures_util::future::join_all;
use mesh_proto::stun::Message;
use tokio::{net::UdpSocket, time::Instant};

use crate::os::is_underlay;

/// A dial that succeeds by then asks nobody: most do.
pub(super) const DELAY: Duration = Duration::from_millis(500);
/// Wireless networks lose broadcasts: so many are sent.
const ROUNDS: u32 = 3;
/// Between them, and after the last. A LAN's round trip is far below.
const ROUND_TIME: Duration = Duration::from_millis(150);
/// Answers that are used; what goes beyond is cut.
const MAX_FOUND: usize = 8;
/// Room for an answer; what is longer is none.
const ANSWER_LEN: usize = 512;

/// Returns who answers at one of these ports in the networks of this host.
pub(super) async fn find(ports: &BTreeSet<u16>) -> Vec<SocketAddr> {
    let addresses = own_addresses().unwrap_or_default();
    let answers = join_all(addresses.into_iter().map(|own| ask(own, ports))).await;
    let found: BTreeSet<_> = answers.into_iter().filter_map(Result::ok).flatten().collect();
    found.into_iter().take(MAX_FOUND).collect()
}

/// Asks the network in which this host has an address.
async fn ask(own: Ipv4Addr, ports: &BTreeSet<u16>) -> io::Result<Vec<SocketAddr>> {
    let socket = UdpSocket::bind((own, 0)).await?;
    socket.set_broadcast(true)?;
    let mut transaction = [0; 12];
    getrandom::fill(&mut transaction).map_err(io::Error::other)?;
    let request = Message::BindingRequest { transaction }.encode();
    let mut found = Vec::new();
    for _ in 0..ROUNDS {
        for port in ports {
            socket.send_to(&request, (Ipv4Addr::BROADCAST, *port)).await?;
        }
        let end = Instant::now() + ROUND_TIME;
        let mut answer = [0; ANSWER_LEN];
        while let Ok(received) = tokio::time::timeout_at(end, socket.recv_from(&mut answer)).await {
            let (len, from) = received?;
            let is_answer = matches!(
                Message::decode(&answer[..len]),
                Ok(Message::BindingSuccess { transaction: of, .. }) if of == transaction
            );
            if is_answer && ports.contains(&from.port()) && found.len() < MAX_FOUND {
                found.push(from);
            }
        }
    }
    Ok(found)
}

/// Returns this host's IPv4 addresses in networks that have broadcasts.
fn own_addresses() -> io::Result<BTreeSet<Ipv4Addr>> {
    use nix::net::if_::InterfaceFlags;
    let wanted = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_BROADCAST;
    let of_interface = |interface: nix::ifaddrs::InterfaceAddress| {
        let fits = interface.flags.contains(wanted) && is_underlay(&interface.interface_name);
        interface.address.as_ref()?.as_sockaddr_in().filter(|_| fits).map(|address| address.ip())
    };
    Ok(nix::ifaddrs::getifaddrs()?.filter_map(of_interface).collect())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::netns::isolated;

    fn ip(arguments: &str) {
        assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success());
    }

    #[test]
    fn whoever_answers_right_at_the_port_is_found() {
        isolated("control::neighbours::tests::whoever_answers_right_at_the_port_is_found", async || {
            // A broadcast is heard by its own host too.
            ip("link set lo up");
            ip("link add eth0 type veth peer name far");
            ip("link set far up");
            ip("addr add 192.0.2.1/24 dev eth0");
            ip("link set eth0 up");
            let coordinator = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
            let liar = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
            let ports = [&coordinator, &liar].map(|socket| socket.local_addr().unwrap().port());
            let answer = async |socket: &UdpSocket, flip: u8| {
                let mut buffer = [0; 100];
                loop {
                    let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
                    let Ok(Message::BindingRequest { mut transaction }) = Message::decode(&buffer[..len])
                    else {
                        panic!("no request")
                    };
                    transaction[0] ^= flip;
                    let answer = Message::BindingSuccess { transaction, mapped: from }.encode();
                    socket.send_to(&answer, from).await.unwrap();
                }
            };
            let asked = BTreeSet::from(ports);
            let found = tokio::select! {
                found = find(&asked) => found,
                () = answer(&coordinator, 0) => unreachable!(),
                () = answer(&liar, 1) => unreachable!(),
            };
            assert_eq!(found, [SocketAddr::from(([192, 0, 2, 1], ports[0]))]);
        });
    }
}
