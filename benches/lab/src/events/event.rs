//! What may happen to the village.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A node leaves its network, and comes up in another one some time later.
    Roam {
        /// The node.
        node: &'static str,
        /// The site to which it goes.
        to: &'static str,
        /// How long it is nowhere.
        away: Duration,
    },
    /// A site's router forgets all its mappings and connections.
    Reboot {
        /// The site.
        site: &'static str,
    },
    /// A site gets another public address.
    Renumber {
        /// The site.
        site: &'static str,
        /// The address.
        to: Ipv4Addr,
    },
    /// The home of the coordinator gets another public address, and its name follows.
    MoveHome {
        /// The address.
        to: Ipv4Addr,
    },
    /// A node's agent does not run for a while, as if the machine slept.
    Sleep {
        /// The node.
        node: &'static str,
        /// How long.
        length: Duration,
    },
    /// A node's link goes down and comes up again.
    Flap {
        /// The node.
        node: &'static str,
        /// How long it is down.
        length: Duration,
    },
    /// A site lets no UDP out any more.
    Block {
        /// The site.
        site: &'static str,
    },
    /// A site lets UDP out again.
    Unblock {
        /// The site.
        site: &'static str,
    },
    /// A node's agent is killed, and started again some time later.
    Kill {
        /// The node.
        node: &'static str,
        /// How long it is dead.
        length: Duration,
    },
    /// A node loses power: all that is not on its disk is gone. It comes up where it was.
    PowerCycle {
        /// The node.
        node: &'static str,
        /// How long it is off.
        length: Duration,
    },
    /// The coordinator, and the relay in it, is killed.
    KillCoordinator,
    /// It is started again.
    StartCoordinator,
    /// The relay that stands alone is killed.
    KillRelay,
    /// It is started again.
    StartRelay,
}

/// A kind of event, by which times are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// [`Event::Roam`] to a network with UDP.
    Roam,
    /// [`Event::Roam`] to a network without.
    RoamBlocked,
    /// [`Event::Reboot`].
    Reboot,
    /// [`Event::Renumber`].
    Renumber,
    /// [`Event::MoveHome`].
    MoveHome,
    /// [`Event::Sleep`].
    Sleep,
    /// [`Event::Flap`].
    Flap,
    /// [`Event::Block`].
    Block,
    /// [`Event::Unblock`].
    Unblock,
    /// [`Event::Kill`].
    Kill,
    /// [`Event::PowerCycle`].
    PowerCycle,
    /// [`Event::KillCoordinator`].
    KillCoordinator,
    /// [`Event::StartCoordinator`].
    StartCoordinator,
    /// [`Event::KillRelay`].
    KillRelay,
    /// [`Event::StartRelay`].
    StartRelay,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Roam { node, to, away } => write!(f, "{node} roams to {to} in {away:?}"),
            Self::Reboot { site } => write!(f, "the router of {site} reboots"),
            Self::Renumber { site, to } => write!(f, "{site} gets the address {to}"),
            Self::MoveHome { to } => write!(f, "the coordinator's home gets the address {to}"),
            Self::Sleep { node, length } => write!(f, "{node} sleeps for {length:?}"),
            Self::Flap { node, length } => write!(f, "the link of {node} is down for {length:?}"),
            Self::Block { site } => write!(f, "{site} lets no UDP out"),
            Self::Unblock { site } => write!(f, "{site} lets UDP out again"),
            Self::Kill { node, length } => write!(f, "the agent of {node} is killed and back in {length:?}"),
            Self::PowerCycle { node, length } => write!(f, "{node} is without power for {length:?}"),
            Self::KillCoordinator => f.write_str("the coordinator is killed"),
            Self::StartCoordinator => f.write_str("the coordinator is started"),
            Self::KillRelay => f.write_str("the relay alone is killed"),
            Self::StartRelay => f.write_str("the relay alone is started"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Roam => "roam",
            Self::RoamBlocked => "roam, no UDP there",
            Self::Reboot => "NAT reboot",
            Self::Renumber => "WAN change",
            Self::MoveHome => "coordinator's move",
            Self::Sleep => "sleep",
            Self::Flap => "link flap",
            Self::Block => "UDP block",
            Self::Unblock => "UDP block ends",
            Self::Kill => "agent killed",
            Self::PowerCycle => "power cycle",
            Self::KillCoordinator => "coordinator killed",
            Self::StartCoordinator => "coordinator back",
            Self::KillRelay => "relay killed",
            Self::StartRelay => "relay back",
        })
    }
}
