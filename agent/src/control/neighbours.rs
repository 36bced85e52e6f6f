//! Finds coordinators on the networks that this host is in, for when their name leads elsewhere.
//!
//! A name like DuckDNS's stands for the outside address of a router. Behind that same router it leads nowhere, unless the
//! router turns packets round (hairpin), which few do. So a dial that has not succeeded soon asks all of its own networks
//! who answers STUN at the coordinator's port. Whoever does is dialed too, and only the pinned key decides.
//!
//! Asked by IPv4's limited broadcast, once per own address, since it is the sender's address that chooses the network; and
//! by IPv6's multicast to all nodes of a link, once per own address too, since an answer comes from an address of the same
//! kind: where both have a global or unique local one, no address is met that only the link knows. Nothing is learnt from
//! an answer but where it came from.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
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
/// All nodes of a link (RFC 4291, section 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Own IPv6 addresses that are asked from; a host may have a good many.
const MAX_ASKING: usize = 8;
/// Answers that are used; what goes beyond is cut.
const MAX_FOUND: usize = 8;
/// Room for an answer; what is longer is none.
const ANSWER_LEN: usize = 512;

/// Returns who answers at one of these ports in the networks of this host.
pub(super) async fn find(ports: &BTreeSet<u16>) -> Vec<SocketAddr> {
    let answers =
        join_all(questions().unwrap_or_default().into_iter().map(|question| ask(question, ports))).await;
    let found: BTreeSet<_> = answers.into_iter().filter_map(Result::ok).flatten().collect();
    // In this order addresses that only the link knows come last.
    found.into_iter().take(MAX_FOUND).collect()
}

/// From where one network is asked, and to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    from: SocketAddr,
    to: SocketAddr,
}

/// Asks the network in which this host has an address.
async fn ask(question: Question, ports: &BTreeSet<u16>) -> io::Result<Vec<SocketAddr>> {
    let socket = UdpSocket::bind(question.from).await?;
    if question.to.is_ipv4() {
        socket.set_broadcast(true)?;
    }
    let mut transaction = [0; 12];
    getrandom::fill(&mut transaction).map_err(io::Error::other)?;
    let request = Message::BindingRequest { transaction }.encode();
    let mut found = Vec::new();
    for _ in 0..ROUNDS {
        for port in ports {
            let mut to = question.to;
            to.set_port(*port);
            socket.send_to(&request, to).await?;
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

/// Returns a question for each of this host's addresses in networks that have broadcasts, or multicast.
fn questions() -> io::Result<BTreeSet<Question>> {
    use nix::net::if_::{InterfaceFlags, if_nametoindex};
    let mut questions = BTreeSet::new();
    let mut asking = 0;
    for interface in nix::ifaddrs::getifaddrs()? {
        let has = |flag| interface.flags.contains(InterfaceFlags::IFF_UP | flag);
        let Some(address) = interface.address.filter(|_| is_underlay(&interface.interface_name)) else {
            continue;
        };
        if let Some(v4) = address.as_sockaddr_in().filter(|_| has(InterfaceFlags::IFF_BROADCAST)) {
            questions.insert(Question { from: (v4.ip(), 0).into(), to: (Ipv4Addr::BROADCAST, 0).into() });
        }
        if let Some(v6) = address.as_sockaddr_in6().filter(|_| has(InterfaceFlags::IFF_MULTICAST))
            && asking < MAX_ASKING
        {
            let link = if_nametoindex(interface.interface_name.as_str())?;
            let on_link = |ip| SocketAddr::from(SocketAddrV6::new(ip, 0, 0, link));
            asking += 1;
            let from = if v6.ip().is_unicast_link_local() { on_link(v6.ip()) } else { (v6.ip(), 0).into() };
            questions.insert(Question { from, to: on_link(ALL_NODES) });
        }
    }
    Ok(questions)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::netns::isolated;

    fn ip(arguments: &str) {
        assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success());
    }

    /// Answers every question; wrongly, if `flip` is not zero.
    async fn answer(socket: &UdpSocket, flip: u8) {
        let mut buffer = [0; 100];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            let Ok(Message::BindingRequest { mut transaction }) = Message::decode(&buffer[..len]) else {
                panic!("no request")
            };
            transaction[0] ^= flip;
            let answer = Message::BindingSuccess { transaction, mapped: from }.encode();
            // One's own question comes back from an interface that leads nowhere.
            let _ = socket.send_to(&answer, from).await;
        }
    }

    #[test]
    fn all_nodes_of_a_link_are_asked() {
        isolated("control::neighbours::tests::all_nodes_of_a_link_are_asked", async || {
            // What goes to all is heard by its own host too.
            ip("link set lo up");
            ip("link add eth0 type veth peer name far");
            ip("link set eth0 addrgenmode none");
            ip("link set far addrgenmode none");
            ip("link set far up");
            ip("link set eth0 up");
            ip("addr add fe80::1/64 dev eth0 nodad");
            ip("addr add fe80::2/64 dev far nodad");
            let coordinator = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await.unwrap();
            let port = coordinator.local_addr().unwrap().port();
            let asked = BTreeSet::from([port]);
            let found = async || {
                tokio::select! {
                    found = find(&asked) => found,
                    () = answer(&coordinator, 0) => unreachable!(),
                }
            };
            let link = nix::net::if_::if_nametoindex("eth0").unwrap();
            let on_link = SocketAddr::from(SocketAddrV6::new("fe80::2".parse().unwrap(), port, 0, link));
            let deadline = Instant::now() + Duration::from_secs(10);
            // IPv6 begins on a link when the kernel has got round to seeing that it is up.
            while !found().await.contains(&on_link) {
                assert!(Instant::now() < deadline, "the link's other end is not found");
            }
            ip("addr add fd00::1/64 dev eth0 nodad");
            let all = found().await;
            assert_eq!(all[0], SocketAddr::new("fd00::1".parse().unwrap(), port), "the link's come last");
            assert!(all.contains(&on_link), "{all:?}");
        });
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
