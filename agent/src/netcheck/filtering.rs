//! How the NAT before this node filters (RFC 4787, section 5): who is let in at a socket that has sent to one endpoint
//! alone.
//!
//! ```text
//! this node, a new socket          coordinator, first port   its second port   other nodes
//!   | -- STUN --------------------------> |                        |                |
//!   | <------------------- seen at X ---- |                        |                |
//!   | == Knock (X) over control ========> | == knock ============> | ===== Knock => |
//!   | <------------------------------------------------ knock ---- |                |
//!   | <----------------------------------------------------------------- knock ---- |
//!   | -- STUN ---------------------------------------------------> |                    can it send at all?
//! ```
//!
//! A knock that arrives from another address than was sent to proves that the filter does not look at addresses; one from
//! another port, that it does not look at ports. One that does not arrive proves something only of those that could have
//! got through: the nodes that were asked speak to the coordinator over UDP, and the second port answers afterwards.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mesh_proto::{
    control::{Knock, Knocking},
    netreport::Filtering,
};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Nat,
    probe::{Probe, random},
};
use crate::control::{ControlHandle, is_public};

/// Knocks are asked for so often: each may be lost on its way.
const KNOCKS: u32 = 3;
/// Pause between two of them.
const KNOCK_INTERVAL: Duration = Duration::from_millis(200);
/// How long the last ones are waited for, or four round trips if that is longer.
const LAST_KNOCK: Duration = Duration::from_millis(600);

/// Who knocked, and who may have.
#[derive(Debug, Default)]
struct Heard {
    from: BTreeSet<SocketAddr>,
    knocking: Option<Knocking>,
}

/// What knocks proved of one kind of sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    Passes,
    Dropped,
    Unknown,
}

/// Measures the filter, and asks all observers from the same socket after that.
pub(super) async fn measure(
    coordinator: SocketAddr,
    observers: &[SocketAddr],
    control: &ControlHandle,
) -> io::Result<Nat> {
    let probe = Probe::bind_for(coordinator)?;
    let own = probe.own();
    let Some(first) = probe.ask(&[coordinator]).await.first().copied() else {
        return Ok(Nat { own, ..Nat::default() });
    };
    let heard = listen(&probe, first.mapped, first.rtt, control).await;
    let second = heard.knocking.as_ref().map(|knocking| SocketAddr::new(coordinator.ip(), knocking.port));
    let all: Vec<SocketAddr> = observers.iter().copied().chain(second).collect();
    let all: Vec<SocketAddr> =
        all.iter().copied().filter(|at| *at != coordinator).collect::<BTreeSet<_>>().into_iter().collect();
    let mut seen = vec![first];
    seen.extend(probe.ask(&all).await);
    let second_answers = seen.iter().any(|seen| Some(seen.observer) == second);
    let (by_address, by_port) = judge(&heard, coordinator.ip(), first.mapped.ip(), second_answers);
    let is_open = own == Some(first.mapped);
    let filtering = match conclude(by_address, by_port) {
        Filtering::Eif if is_open => Filtering::None,
        other => other,
    };
    Ok(Nat { seen, own, filtering })
}

/// Asks for knocks at `mapped` and notes what arrives.
async fn listen(probe: &Probe, mapped: SocketAddr, rtt: Duration, control: &ControlHandle) -> Heard {
    let transaction = random();
    let mut knockings = control.knockings();
    let mut heard = Heard::default();
    let start = Instant::now();
    let end = start + KNOCK_INTERVAL * (KNOCKS - 1) + LAST_KNOCK.max(rtt * 4);
    for number in 0..=KNOCKS {
        let until = if number < KNOCKS { start + KNOCK_INTERVAL * (number + 1) } else { end };
        if number < KNOCKS {
            control.knock(Knock { to: mapped, transaction });
        }
        loop {
            tokio::select! {
                biased;
                () = sleep_until(until) => break,
                received = probe.recv() => {
                    let fit = received.iter().filter(|(_, id, _)| *id == transaction);
                    heard.from.extend(fit.map(|(from, ..)| *from));
                }
                knocking = knockings.recv() => match knocking {
                    Ok(knocking) if knocking.transaction == transaction => heard.add(knocking),
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return heard,
                },
            }
        }
    }
    // What has arrived already counts.
    while let Ok(received) = timeout(Duration::ZERO, probe.recv()).await {
        let fit = received.iter().filter(|(_, id, _)| *id == transaction);
        heard.from.extend(fit.map(|(from, ..)| *from));
    }
    heard
}

impl Heard {
    /// Each time others may have been asked.
    fn add(&mut self, knocking: Knocking) {
        match &mut self.knocking {
            None => self.knocking = Some(knocking),
            Some(known) => known.others.extend(knocking.others),
        }
    }
}

/// What is proved of other addresses, and of other ports of an address that was sent to.
fn judge(heard: &Heard, coordinator: IpAddr, mapped: IpAddr, second_answers: bool) -> (Proof, Proof) {
    let is_other = |ip: IpAddr| ip != coordinator && ip != mapped;
    // Who stands on the coordinator's own network comes from its address, and who stands beside this node does not cross
    // the NAT.
    let others = heard.knocking.iter().flat_map(|knocking| &knocking.others);
    let mut others = others.filter(|ip| is_other(**ip) && (is_public(**ip) || !is_public(coordinator)));
    let by_address = match (heard.from.iter().any(|from| is_other(from.ip())), others.next()) {
        (true, _) => Proof::Passes,
        (false, Some(_)) => Proof::Dropped,
        (false, None) => Proof::Unknown,
    };
    let by_port = match (heard.from.iter().any(|from| from.ip() == coordinator), second_answers) {
        (true, _) => Proof::Passes,
        (false, true) => Proof::Dropped,
        (false, false) => Proof::Unknown,
    };
    (by_address, by_port)
}

fn conclude(by_address: Proof, by_port: Proof) -> Filtering {
    match (by_address, by_port) {
        (Proof::Passes, _) => Filtering::Eif,
        (_, Proof::Dropped) => Filtering::Apdf,
        (Proof::Dropped, Proof::Passes) => Filtering::Adf,
        (Proof::Unknown, Proof::Passes) => Filtering::EifOrAdf,
        (Proof::Dropped, Proof::Unknown) => Filtering::AdfOrApdf,
        (Proof::Unknown, Proof::Unknown) => Filtering::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_proved_is_concluded() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (coordinator, mapped) = (at("192.0.2.1:1").ip(), at("203.0.113.1:5").ip());
        let (second, other) = (at("192.0.2.1:2"), at("198.51.100.1:9"));
        let heard = |from: &[SocketAddr], others: &[IpAddr]| Heard {
            from: from.iter().copied().collect(),
            knocking: Some(Knocking { transaction: [0; 12], port: 2, others: others.to_vec() }),
        };
        let near = at("192.168.1.9:1").ip();
        let table = [
            (heard(&[second, other], &[other.ip()]), true, Filtering::Eif),
            (heard(&[other], &[other.ip()]), false, Filtering::Eif),
            (heard(&[second], &[other.ip()]), true, Filtering::Adf),
            (heard(&[], &[other.ip()]), true, Filtering::Apdf),
            (heard(&[second], &[]), true, Filtering::EifOrAdf),
            (heard(&[], &[other.ip()]), false, Filtering::AdfOrApdf),
            (heard(&[], &[]), true, Filtering::Apdf),
            (heard(&[], &[]), false, Filtering::Unknown),
            // They prove nothing: one comes from the coordinator's address, one from inside.
            (heard(&[], &[near, mapped, coordinator]), false, Filtering::Unknown),
            (Heard::default(), false, Filtering::Unknown),
        ];
        for (row, (heard, second_answers, expected)) in table.iter().enumerate() {
            let (by_address, by_port) = judge(heard, coordinator, mapped, *second_answers);
            assert_eq!(conclude(by_address, by_port), *expected, "row {row}");
        }
    }
}
