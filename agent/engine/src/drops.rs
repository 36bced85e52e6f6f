//! Why packets are dropped, and how many were.

use std::collections::BTreeMap;

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])* $variant:ident => $name:literal,)*) => {
        /// Why a packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $($(#[doc = $doc])* $variant,)*
        }

        impl DropReason {
            /// Every reason, in order.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Returns the reason's name, as `meshctl status --json` shows it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    /// Outbound: not an IP packet, or one whose lengths lie.
    MalformedPacket => "malformed-packet",
    /// Outbound: no peer owns the destination.
    NoRoute => "no-route",
    /// Outbound: larger than the MTU; answered with ICMP.
    TooBig => "too-big",
    /// Outbound: a queue of packets that wait was full; the oldest went.
    QueueFull => "queue-full",
    /// Outbound: waited too long for a session, or for its path's MTU.
    QueueExpired => "queue-expired",
    /// Outbound: its flow sends more than can go, and had a queue for too long.
    QueueDelay => "queue-delay",
    /// Outbound: the peer has no path.
    NoPath => "no-path",
    /// Outbound: the IO layer left no room in the arena.
    ArenaFull => "arena-full",
    /// Either way: it belongs to another shard, for which more than can be handed over waits.
    HandoverFull => "handover-full",
    /// Inbound: not of any protocol spoken here, or truncated.
    MalformedDatagram => "malformed-datagram",
    /// Inbound: no peer or session is meant by it.
    UnknownSession => "unknown-session",
    /// Inbound: did not authenticate.
    BadCrypto => "bad-crypto",
    /// Inbound: seen before, or too old.
    Replayed => "replayed",
    /// Inbound: too many handshakes.
    RateLimited => "rate-limited",
    /// Inbound: a handshake with a process that is about to end.
    Parting => "parting",
    /// Inbound: the inner source is not the peer's.
    WrongSource => "wrong-source",
    /// Inbound: the inner destination is not this node's.
    WrongDestination => "wrong-destination",
    /// To be relayed for others: this node does not do that, or the sender has not proved that the channel is its own.
    RelayRefused => "relay-refused",
    /// To be relayed for others: the receiver has not asked for it.
    RelayAbsent => "relay-absent",
    /// To be relayed for others: more than a peer, or all, may send.
    RelayRate => "relay-rate",
}

/// Counts of dropped packets by reason.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DropCounters {
    counts: BTreeMap<DropReason, u64>,
}

impl DropCounters {
    /// Counts one dropped packet.
    pub fn count(&mut self, reason: DropReason) {
        self.count_some(reason, 1);
    }

    /// Counts some dropped packets.
    pub fn count_some(&mut self, reason: DropReason, packets: u64) {
        *self.counts.entry(reason).or_default() += packets;
    }

    /// Returns how many packets were dropped for a reason.
    #[must_use]
    pub fn get(&self, reason: DropReason) -> u64 {
        self.counts.get(&reason).copied().unwrap_or_default()
    }

    /// Returns the reasons for which packets were dropped, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> {
        self.counts.iter().map(|(reason, count)| (*reason, *count))
    }
}
