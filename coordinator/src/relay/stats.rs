//! What the relay counts.

/// Why the relay dropped a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropReason {
    /// Too short, of an unknown type, or of a type that only relays send.
    Malformed,
    /// A channel that does not exist (any more).
    UnknownChannel,
    /// A Bind whose code does not prove the channel's key.
    BadProof,
    /// A Bind whose counter did not rise: a replay, or overtaken on its way.
    OldBind,
    /// Data on a channel that is bound to no address.
    Unbound,
    /// Data from another address than the channel is bound to.
    WrongAddress,
    /// Sender and receiver are not in each other's map.
    NotPeer,
    /// The receiver has no bound channel at this relay.
    PeerAbsent,
    /// The sender is over its rate.
    RateLimited,
    /// The receiver's queue was full: the oldest was dropped.
    QueueFull,
    /// The system refused to send it.
    SendFailed,
}

impl DropReason {
    /// Every reason, in order.
    pub const ALL: [Self; 11] = [
        Self::Malformed,
        Self::UnknownChannel,
        Self::BadProof,
        Self::OldBind,
        Self::Unbound,
        Self::WrongAddress,
        Self::NotPeer,
        Self::PeerAbsent,
        Self::RateLimited,
        Self::QueueFull,
        Self::SendFailed,
    ];

    /// Returns the reason as metrics show it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownChannel => "unknown_channel",
            Self::BadProof => "bad_proof",
            Self::OldBind => "old_bind",
            Self::Unbound => "unbound",
            Self::WrongAddress => "wrong_address",
            Self::NotPeer => "not_peer",
            Self::PeerAbsent => "peer_absent",
            Self::RateLimited => "rate_limited",
            Self::QueueFull => "queue_full",
            Self::SendFailed => "send_failed",
        }
    }
}

/// The relay's counters since it started, and its gauges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayStats {
    /// Data frames that were sent on.
    pub forwarded_packets: u64,
    /// Their payload's bytes.
    pub forwarded_bytes: u64,
    /// Binds that were taken.
    pub binds: u64,
    /// Channels that were opened.
    pub opened: u64,
    /// Channels there are now.
    pub channels: u64,
    /// Bytes that wait now in the queues of all receivers.
    pub queued_bytes: u64,
    pub(super) dropped: [u64; DropReason::ALL.len()],
}

impl RelayStats {
    /// Returns how many frames were dropped for a reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    pub(super) fn count_drop(&mut self, reason: DropReason, packets: u64) {
        self.dropped[reason as usize] += packets;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter() {
        let mut stats = RelayStats::default();
        for (index, reason) in (1..).zip(DropReason::ALL) {
            stats.count_drop(reason, index);
        }
        for (index, reason) in (1..).zip(DropReason::ALL) {
            assert_eq!(stats.dropped(reason), index, "{}", reason.as_str());
        }
    }
}
