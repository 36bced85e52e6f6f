//! Builds the answer of `meshctl why`.

use mesh_engine::{
    event::PathAddress,
    snapshot::{PeerSnapshot, Snapshot},
};
use mesh_proto::{
    DEFAULT_AGENT_PORT,
    candidate::CandidateKind,
    status::{Mapping, PathReason},
};

use super::status::{Input, millis};
use crate::local_api::{Why, WhyDecision, WhyPath};

/// Tells why a peer is on the path it is on.
#[must_use]
pub fn explain(input: &Input<'_>, name: &str, peer: &PeerSnapshot) -> Why {
    let primary = peer.path.as_ref().map(|path| path.address);
    let paths = peer.paths.iter().map(|path| WhyPath {
        path: input.path_text(Some(path.address)),
        primary: primary == Some(path.address),
        rtt_ms: path.rtt.map(millis),
        loss: path.loss.unwrap_or(0.0),
        loss_measured: path.loss.is_some(),
        last_answer: path.last_answer.map(|at| input.timestamp(at)),
    });
    let ends = peer.decisions.iter().skip(1).map(|next| Some(next.at)).chain([None]);
    let decisions = peer.decisions.iter().zip(ends).map(|(decision, end)| WhyDecision {
        at: input.timestamp(decision.at),
        lasted_s: end.map(|end| end.saturating_duration_since(decision.at).as_secs_f64()),
        path: input.path_text(decision.path),
        reason: decision.reason.clone(),
    });
    let (code, reason) = reason(input, name, peer);
    Why { node: name.to_owned(), code, reason, paths: paths.collect(), decisions: decisions.collect() }
}

/// Says why a peer is on the path it is on, and for a relayed one what could be done.
pub(super) fn reason(input: &Input<'_>, name: &str, peer: &PeerSnapshot) -> (PathReason, String) {
    let is_relayed = peer.path.as_ref().is_some_and(|path| !path.address.is_direct());
    let code = if is_relayed && input.snapshot.udp_blocked { PathReason::UdpBlocked } else { peer.code };
    let nats = || {
        // That both vary was found out, if nobody has told.
        let told = |mapping: Option<Mapping>| match (code, mapping) {
            (PathReason::NatsVary, Some(Mapping::Unknown) | None) => Some(Mapping::Apdm),
            (_, mapping) => mapping,
        };
        let (own, other) = (nat_text(told(Some(input.snapshot.mapping))), nat_text(told(peer.mapping)));
        let other = if own == other { "same" } else { other };
        format!("{}: {own}; {name}: {other}", input.map.this.name)
    };
    let advice = format!("forward UDP {} on either side", port(input.snapshot));
    let text = match code {
        PathReason::NatsVary => format!("relayed: {}; {advice}", nats()),
        PathReason::PunchFailed => format!("relayed: {}; no port has answered; {advice}", nats()),
        PathReason::NoAnswer => format!("{}; {advice}", peer.reason),
        PathReason::Punching => format!("{}; many ports are being tried", peer.reason),
        PathReason::UdpBlocked => {
            "relayed: UDP does not get out here; have it let out to any port".to_owned()
        }
        PathReason::AnsweredOnLan
        | PathReason::Answered
        | PathReason::AnsweredPunched
        | PathReason::Doubted
        | PathReason::Heard
        | PathReason::NothingKnown
        | PathReason::NoCandidates
        | PathReason::NotProbed
        | PathReason::StoppedAnswering
        | PathReason::Unknown => peer.reason.clone(),
    };
    (code, text)
}

/// What is said of a NAT behind which a peer is not reached: that it filters by port is why.
fn nat_text(mapping: Option<Mapping>) -> &'static str {
    match mapping {
        Some(Mapping::Adm | Mapping::Apdm) => "symmetric NAT with port filtering",
        Some(Mapping::Eim) => "NAT with port filtering",
        Some(Mapping::None) => "firewall",
        Some(Mapping::Unknown) | None => "NAT of unknown kind",
    }
}

/// The port that would have to be forwarded: that of this node's own addresses.
fn port(snapshot: &Snapshot) -> u16 {
    let hosts = snapshot.candidates.iter().filter(|candidate| candidate.kind == CandidateKind::Host);
    hosts.map(|candidate| candidate.address.port()).next().unwrap_or(DEFAULT_AGENT_PORT)
}

impl Input<'_> {
    fn path_text(&self, path: Option<PathAddress>) -> String {
        match path {
            Some(PathAddress::Direct(remote) | PathAddress::Punched { remote, .. }) => {
                format!("direct {remote}")
            }
            Some(PathAddress::Relay(relay)) => format!("relay {}", self.relay_name(relay)),
            None => "none".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::status::tests::{document, input_of, snapshot},
        *,
    };

    #[test]
    fn what_could_be_done_is_said_with_both_nats() {
        let now = std::time::Instant::now() + std::time::Duration::from_secs(1000);
        let mut snapshot = snapshot(now);
        snapshot.mapping = Mapping::Apdm;
        let table = [
            (
                PathReason::NatsVary,
                Some(Mapping::Adm),
                "relayed: pi: symmetric NAT with port filtering; office: same; forward UDP 51820 on either side",
            ),
            (
                PathReason::PunchFailed,
                Some(Mapping::Eim),
                "relayed: pi: symmetric NAT with port filtering; office: NAT with port filtering; no port has \
                 answered; forward UDP 51820 on either side",
            ),
            (
                PathReason::NoAnswer,
                None,
                "relayed: no direct path has answered; forward UDP 51820 on either side",
            ),
        ];
        for (code, mapping, expected) in table {
            snapshot.peers[0].code = code;
            snapshot.peers[0].mapping = mapping;
            let said = input_of(&snapshot, now, |input| reason(input, "office", &snapshot.peers[0]));
            assert_eq!(said, (code, expected.to_owned()));
        }
        assert_eq!(document().peers[1].path.code, PathReason::NoAnswer);
    }
}
