//! A socket that asks observers by STUN (RFC 8489) where they see it. Its datagrams are never fragmented on the way out.

use std::{collections::BTreeMap, io, net::SocketAddr, time::Duration};

use mesh_proto::stun::{HEADER_LEN, Message, TransactionId};
use quinn_udp::{UdpSockRef, UdpSocketState};
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use crate::control::bind_for;

/// When a request is sent (again), from the beginning; after the last wait, the observer does not answer.
const SENDINGS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(250), Duration::from_millis(700)];
/// How long an answer is waited for at most: more than a geostationary satellite takes.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Answers are short, but the system may hand over several in one piece.
const BUFFER: usize = 2048;

/// The socket.
pub(super) struct Probe {
    socket: UdpSocket,
    own: Option<SocketAddr>,
}

/// What an observer saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) observer: SocketAddr,
    pub(super) mapped: SocketAddr,
    pub(super) rtt: Duration,
}

impl Probe {
    /// Binds a socket on a new port that can reach an address.
    pub(super) fn bind_for(to: SocketAddr) -> io::Result<Self> {
        let socket = bind_for(to)?;
        let route = bind_for(to)?;
        route.connect(to)?;
        let own = SocketAddr::new(route.local_addr()?.ip(), socket.local_addr()?.port());
        // Forbids fragments.
        UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, own: Some(own) })
    }

    /// Returns the socket's own address, on the way to what it was bound for.
    pub(super) fn own(&self) -> Option<SocketAddr> {
        self.own
    }

    /// Asks all of these that are of the socket's family; returns what those saw that answered, in their order.
    pub(super) async fn ask(&self, observers: &[SocketAddr]) -> Vec<Seen> {
        let is_v4 = self.own.is_some_and(|own| own.is_ipv4());
        let mut asked: BTreeMap<TransactionId, (SocketAddr, Instant)> = BTreeMap::new();
        let mut seen: Vec<Seen> = Vec::new();
        let start = Instant::now();
        let wanted: Vec<_> = observers.iter().copied().filter(|at| at.is_ipv4() == is_v4).collect();
        for (index, sending) in SENDINGS.iter().enumerate() {
            for observer in &wanted {
                if !seen.iter().any(|seen| seen.observer == *observer) {
                    let transaction = random();
                    asked.insert(transaction, (*observer, Instant::now().max(start + *sending)));
                    self.send(*observer, &Message::BindingRequest { transaction }.encode()).await;
                }
            }
            let until = SENDINGS.get(index + 1).map_or(PATIENCE, |next| *next);
            while seen.len() < wanted.len() {
                let Ok(received) = timeout_at(start + until, self.recv()).await else { break };
                for (from, transaction, mapped) in received {
                    let known = asked.get(&transaction).filter(|(observer, _)| *observer == from);
                    if let Some((observer, at)) = known
                        && !seen.iter().any(|seen| seen.observer == from)
                    {
                        seen.push(Seen { observer: *observer, mapped, rtt: at.elapsed() });
                    }
                }
            }
        }
        seen.sort_by_key(|seen| wanted.iter().position(|at| *at == seen.observer));
        seen
    }

    /// Sends a datagram; one that cannot be sent is lost like any other. Returns whether it went out.
    pub(super) async fn send(&self, to: SocketAddr, message: &[u8]) -> bool {
        self.socket.send_to(message, to).await.is_ok()
    }

    /// Waits for STUN success responses. Cancel-safe.
    pub(super) async fn recv(&self) -> Vec<(SocketAddr, TransactionId, SocketAddr)> {
        let mut buffer = [0; BUFFER];
        loop {
            // An error tells of an earlier datagram that somebody refused.
            let Ok((len, from)) = self.socket.recv_from(&mut buffer).await else {
                tokio::task::yield_now().await;
                continue;
            };
            let from = SocketAddr::new(from.ip().to_canonical(), from.port());
            let found: Vec<_> = responses(&buffer[..len]).map(|(id, mapped)| (from, id, mapped)).collect();
            if !found.is_empty() {
                return found;
            }
        }
    }
}

/// The success responses in what was received: several, if the system put a train together.
fn responses(mut bytes: &[u8]) -> impl Iterator<Item = (TransactionId, SocketAddr)> {
    std::iter::from_fn(move || {
        let Ok(Message::BindingSuccess { transaction, mapped }) = Message::decode(bytes) else { return None };
        let len = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        bytes = bytes.get(HEADER_LEN + len..).unwrap_or_default();
        Some((transaction, mapped))
    })
}

/// A transaction id that nobody can guess.
pub(super) fn random() -> TransactionId {
    let mut id = TransactionId::default();
    getrandom::fill(&mut id).expect("the system gave random numbers at the start");
    id
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// Answers as an observer that sees everybody at `mapped`; the first `deaf` requests are lost.
    async fn observer(mapped: SocketAddr, mut deaf: u32) -> SocketAddr {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 2000];
            while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                let Ok(Message::BindingRequest { transaction }) = Message::decode(&buffer[..len]) else {
                    return;
                };
                let Some(left) = deaf.checked_sub(1) else {
                    for transaction in [[0; 12], transaction] {
                        let answer = Message::BindingSuccess { transaction, mapped }.encode();
                        socket.send_to(&answer, from).await.unwrap();
                    }
                    continue;
                };
                deaf = left;
            }
        });
        address
    }

    #[tokio::test]
    async fn observers_are_asked_again_and_forgeries_are_ignored() {
        let mapped = "203.0.113.1:5".parse().unwrap();
        let (first, second) = (observer(mapped, 0).await, observer(mapped, 1).await);
        let silent = observer(mapped, 9).await;
        let probe = Probe::bind_for(first).unwrap();
        assert!(probe.own().unwrap().ip().is_loopback());
        let seen = probe.ask(&[silent, second, first, "[::1]:9".parse().unwrap()]).await;
        assert_eq!(seen.iter().map(|seen| seen.observer).collect::<Vec<_>>(), [second, first]);
        assert!(seen.iter().all(|seen| seen.mapped == mapped && seen.rtt < PATIENCE));
    }

    #[test]
    fn answers_in_one_piece_are_told_apart() {
        let mapped = "203.0.113.1:5".parse().unwrap();
        let answer = |id| Message::BindingSuccess { transaction: [id; 12], mapped }.encode();
        let train = [answer(1), answer(2), vec![7; 9]].concat();
        let ids: Vec<_> = responses(&train).map(|(id, _)| id[0]).collect();
        assert_eq!(ids, [1, 2]);
    }
}
