//! The largest IP packet that reaches the coordinator in one piece: STUN requests of many lengths that routers must not
//! fragment. What stands behind a request is ignored by whoever answers, and the answer is short.

use std::{collections::BTreeMap, io, net::SocketAddr, time::Duration};

use mesh_proto::stun::{HEADER_LEN, Message, TransactionId};
use tokio::time::{Instant, timeout_at};

use super::probe::{Probe, random};

/// IPv6's smallest MTU, which every path is taken to carry.
const FLOOR: u16 = 1280;
/// Ethernet's.
const ETHERNET: u16 = 1500;
/// That of jumbo frames; larger ones gain nothing.
const JUMBO: u16 = 9000;
/// How fine each wave of probes is, in bytes: some eight in each.
const STEPS: [u16; 3] = [32, 4, 1];
/// The same between Ethernet's MTU and jumbo frames.
const JUMBO_STEPS: [u16; 5] = [1000, 128, 16, 4, 1];
/// Least and most that the answers of a wave are waited for; two round trips, if that lies between.
const WAVE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(1300));

/// Measures it; nothing if not even the smallest packet gets through.
pub(super) async fn measure(coordinator: SocketAddr) -> io::Result<Option<u16>> {
    let probe = Probe::bind_for(coordinator)?;
    let Some(seen) = probe.ask(&[coordinator]).await.first().copied() else { return Ok(None) };
    let headers = if coordinator.is_ipv4() { 28 } else { 48 };
    let mut search = Search { probe, to: coordinator, headers, wait: (seen.rtt * 2).clamp(WAVE.0, WAVE.1) };
    if search.largest(&[FLOOR, ETHERNET]).await == Some(ETHERNET) {
        return Ok(Some(search.between(ETHERNET, JUMBO, &JUMBO_STEPS).await));
    }
    if search.largest(&[FLOOR]).await.is_none() {
        return Ok(None);
    }
    Ok(Some(search.between(FLOOR, ETHERNET, &STEPS).await))
}

struct Search {
    probe: Probe,
    to: SocketAddr,
    headers: u16,
    wait: Duration,
}

impl Search {
    /// Returns the largest length that passes, from one that does up to another.
    async fn between(&mut self, mut passes: u16, mut most: u16, steps: &[u16]) -> u16 {
        for step in steps {
            let mut lengths: Vec<u16> = (passes..=most).step_by(usize::from(*step)).skip(1).collect();
            if lengths.last() != Some(&most) && passes < most {
                lengths.push(most);
            }
            passes = self.largest(&lengths).await.unwrap_or(passes);
            most = lengths.into_iter().find(|length| *length > passes).map_or(passes, |length| length - 1);
        }
        passes
    }

    /// Returns the largest of these lengths that passes. Each is sent twice, if need be.
    async fn largest(&mut self, lengths: &[u16]) -> Option<u16> {
        let mut asked: BTreeMap<TransactionId, u16> = BTreeMap::new();
        let mut best = None;
        for _ in 0..2 {
            let mut went_out = false;
            for length in lengths.iter().filter(|length| Some(**length) > best) {
                let transaction = random();
                let mut request = Message::BindingRequest { transaction }.encode();
                let padded = usize::from(*length - self.headers);
                request.resize(padded.max(HEADER_LEN), 0);
                // This host's own interface may refuse it at once.
                if self.probe.send(self.to, &request).await {
                    asked.insert(transaction, *length);
                    went_out = true;
                }
            }
            let until = Instant::now() + self.wait;
            while went_out && best < lengths.last().copied() {
                let Ok(received) = timeout_at(until, self.probe.recv()).await else { break };
                for (from, transaction, _) in received {
                    best = best.max(asked.get(&transaction).copied().filter(|_| from == self.to));
                }
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::UdpSocket;

    use super::*;

    #[tokio::test]
    async fn the_largest_length_that_is_answered_is_found() {
        for (limit, found) in
            [(1400, Some(1400)), (1499, Some(1499)), (1500, Some(1500)), (2001, Some(2001)), (1000, None)]
        {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let address = socket.local_addr().unwrap();
            let router = tokio::spawn(async move {
                let mut buffer = [0; 10_000];
                while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                    let Ok(Message::BindingRequest { transaction }) = Message::decode(&buffer[..len]) else {
                        continue;
                    };
                    if len + 28 <= limit {
                        let answer = Message::BindingSuccess { transaction, mapped: from }.encode();
                        socket.send_to(&answer, from).await.unwrap();
                    }
                }
            });
            assert_eq!(measure(address).await.unwrap(), found, "limit {limit}");
            router.abort();
        }
    }
}
