//! Whether the NAT leads back in what goes to its own outside (RFC 4787, section 6): two sockets of this host send to
//! where the coordinator sees the other one. Both send, so that no filter is in the way.

use std::{io, net::SocketAddr, time::Duration};

use mesh_proto::stun::Message;
use tokio::time::{Instant, timeout_at};

use super::probe::{Probe, random};

/// How often both send.
const SENDINGS: u32 = 3;
/// Pause between two of them, and how long the last one is waited for: the way to the NAT and back is short.
const INTERVAL: Duration = Duration::from_millis(200);

/// Measures it; nothing if there is no NAT, or nobody who tells where the sockets are seen.
pub(super) async fn measure(coordinator: SocketAddr) -> io::Result<Option<bool>> {
    let (one, two) = (Probe::bind_for(coordinator)?, Probe::bind_for(coordinator)?);
    let asked = [coordinator];
    let (one_seen, two_seen) = tokio::join!(one.ask(&asked), two.ask(&asked));
    let (Some(one_seen), Some(two_seen)) = (one_seen.first(), two_seen.first()) else { return Ok(None) };
    if one.own() == Some(one_seen.mapped) {
        return Ok(None);
    }
    let transaction = random();
    let start = Instant::now();
    for number in 1..=SENDINGS {
        let message = |mapped| Message::BindingSuccess { transaction, mapped }.encode();
        one.send(two_seen.mapped, &message(two_seen.mapped)).await;
        two.send(one_seen.mapped, &message(one_seen.mapped)).await;
        let until = start + INTERVAL * number;
        loop {
            let received = tokio::select! {
                biased;
                received = timeout_at(until, one.recv()) => received,
                received = two.recv() => Ok(received),
            };
            match received {
                Ok(received) if received.iter().any(|(_, id, _)| *id == transaction) => {
                    return Ok(Some(true));
                }
                Ok(_) => {}
                Err(_elapsed) => break,
            }
        }
    }
    Ok(Some(false))
}
