//! What each side does: a pure function of what both have said.

use std::net::{IpAddr, SocketAddr};

use mesh_proto::{
    punch::{Punch, Sequence},
    status::Mapping,
};

/// How many ports of a sequence are used: so many mappings may be opened by others meanwhile.
pub(crate) const PREDICTED_PORTS: u16 = 32;

/// What a NAT makes of the ports of new mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// They stay what observers have seen.
    Stable,
    /// They can be predicted.
    Sequential(Sequence),
    /// They vary at random.
    Varying,
    /// Nobody has told yet: too few observers.
    Unknown,
}

impl Shape {
    /// Tells what a side's ports do.
    pub(crate) fn of(side: &Punch) -> Self {
        match (side.mapping, side.sequence) {
            (Mapping::None | Mapping::Eim, _) => Self::Stable,
            (Mapping::Adm | Mapping::Apdm | Mapping::Unknown, Some(sequence)) => Self::Sequential(sequence),
            (Mapping::Adm | Mapping::Apdm, None) => Self::Varying,
            (Mapping::Unknown, None) => Self::Unknown,
        }
    }
}

/// What one side does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Sends to this address from many sockets.
    pub(crate) spread: Option<Spread>,
    /// Probes ports of the address at which the coordinator sees the peer.
    pub(crate) ports: Option<Ports>,
}

/// Many sockets, one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spread {
    pub(crate) to: SocketAddr,
    pub(crate) sockets: Sockets,
}

/// How many sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sockets {
    /// As many as the limits allow.
    Birthday,
    /// As many as ports are predicted.
    Predicted,
}

/// One socket, many ports of one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ports {
    /// Any.
    Random(IpAddr),
    /// Those of a sequence.
    Predicted(IpAddr, Sequence),
}

/// Why nothing can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Both sides' ports stay: if plain probing did not get through, this will not.
    BothStable,
    /// Both sides' ports vary, and on at least one nobody can say how.
    BothVary,
    /// The peer says that it is elsewhere than where the coordinator sees it.
    WrongAddress,
}

impl Plan {
    /// Whether ports are predicted, which shows within a second whether it works.
    pub(crate) fn is_predicted(&self) -> bool {
        let spread = self.spread.is_some_and(|spread| spread.sockets == Sockets::Predicted);
        spread || matches!(self.ports, Some(Ports::Predicted(..)))
    }
}

/// Plans this side's part; `observed` is where the coordinator sees the peer.
pub(crate) fn plan(own: &Punch, peer: &Punch, observed: IpAddr) -> Result<Plan, Refusal> {
    use Shape::{Sequential, Stable, Unknown, Varying};
    let random = Some(Ports::Random(observed));
    let spread = |to, sockets| Some(Spread { to, sockets });
    let to_mapped = |sockets| spread(peer.mapped, sockets);
    let plan = match (Shape::of(own), Shape::of(peer)) {
        (Stable, Stable) => return Err(Refusal::BothStable),
        (Varying, Varying | Sequential(_)) | (Sequential(_), Varying) => return Err(Refusal::BothVary),
        (Stable, Varying | Unknown) | (Unknown, Varying) => Plan { spread: None, ports: random },
        (Varying | Unknown, Stable) | (Varying, Unknown) => {
            Plan { spread: to_mapped(Sockets::Birthday), ports: None }
        }
        (Unknown, Unknown) => Plan { spread: to_mapped(Sockets::Birthday), ports: random },
        (Stable | Unknown, Sequential(sequence)) => {
            Plan { spread: None, ports: Some(Ports::Predicted(observed, sequence)) }
        }
        (Sequential(_), Stable | Unknown) => Plan { spread: to_mapped(Sockets::Predicted), ports: None },
        (Sequential(_), Sequential(sequence)) => {
            let to = SocketAddr::new(observed, sequence.port(PREDICTED_PORTS / 2));
            Plan { spread: spread(to, Sockets::Predicted), ports: None }
        }
    };
    match plan.spread {
        Some(spread) if spread.to.ip() != observed => Err(Refusal::WrongAddress),
        Some(_) | None => Ok(plan),
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::punch::PunchStage;

    use super::*;

    fn side(mapping: Mapping, step: i16, mapped: &str) -> Punch {
        Punch {
            stage: PunchStage::Offer,
            id: [0; 12],
            mapping,
            mapped: mapped.parse().unwrap(),
            sequence: (step != 0).then_some(Sequence { next: 5000, step }),
            rate: 500,
            budget: 4096,
        }
    }

    #[test]
    fn what_one_side_does_answers_what_the_other_does() {
        use Mapping::{Adm, Apdm, Eim, None as Open, Unknown};
        let (a, b) = ("198.51.100.1:7", "198.51.100.2:8");
        let of = |mapping: Mapping, step, mapped| side(mapping, step, mapped);
        // (own and peer: mapping, step; spreads, probes ports, predicted)
        let table = [
            ((Eim, 0), (Apdm, 0), Some((false, true, false))),
            ((Open, 0), (Adm, 0), Some((false, true, false))),
            ((Eim, 0), (Unknown, 0), Some((false, true, false))),
            ((Unknown, 0), (Apdm, 0), Some((false, true, false))),
            ((Unknown, 0), (Unknown, 0), Some((true, true, false))),
            ((Eim, 0), (Apdm, 1), Some((false, true, true))),
            ((Apdm, -1), (Apdm, 256), Some((true, false, true))),
            ((Eim, 0), (Eim, 0), None),
            ((Apdm, 0), (Apdm, 0), None),
            ((Apdm, 0), (Adm, 2), None),
        ];
        for ((own, own_step), (peer, peer_step), expected) in table {
            let (own, peer) = (of(own, own_step, a), of(peer, peer_step, b));
            let plans =
                [plan(&own, &peer, peer.mapped.ip()), plan(&peer, &own, own.mapped.ip())].map(Result::ok);
            let shape = |plan: &Plan| (plan.spread.is_some(), plan.ports.is_some(), plan.is_predicted());
            assert_eq!(plans[0].as_ref().map(shape), expected, "{own:?} {peer:?}");
            assert_eq!(plans[1].is_some(), expected.is_some());
            if let [Some(one), Some(other)] = plans {
                assert!(one.spread.is_some() || other.spread.is_some(), "somebody opens sockets");
                assert!(
                    one.ports.is_some() || other.ports.is_some() || one.is_predicted(),
                    "somebody tries ports"
                );
                assert_eq!(one.is_predicted(), other.is_predicted());
            }
        }
    }

    #[test]
    fn a_third_party_is_not_sent_to() {
        let own = side(Mapping::Apdm, 0, "198.51.100.1:7");
        let liar = side(Mapping::Eim, 0, "203.0.113.77:53");
        let seen: IpAddr = [198, 51, 100, 2].into();
        assert_eq!(plan(&own, &liar, seen), Err(Refusal::WrongAddress));
        let victim = side(Mapping::Apdm, 0, "203.0.113.77:53");
        let easy = side(Mapping::Eim, 0, "198.51.100.1:7");
        assert_eq!(plan(&easy, &victim, seen).map(|plan| plan.ports), Ok(Some(Ports::Random(seen))));
    }
}
