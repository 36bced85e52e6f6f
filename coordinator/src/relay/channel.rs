//! One node's channel: what it is bound to, and its share of the relay.

use std::time::{Duration, Instant};

use mesh_proto::{
    netmap::NodeId,
    relay::{CHANNEL_KEY_LEN, ChannelId, MAC_LEN, bind_mac},
};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{
    stats::DropReason,
    way::{StreamId, Way},
};
use crate::limit::TokenBucket;

/// A channel that was opened and never bound is closed after this: a Bind follows within a round trip.
const UNBOUND_LIFETIME: Duration = Duration::from_secs(60);
/// Without a Bind for so many seconds the address is forgotten. Agents are told, and bind as seldom as their NATs' mappings
/// allow, which is every few minutes at best: three such Binds were lost.
pub const BIND_LIFETIME_S: u32 = 900;
/// The same, as a duration.
const BIND_LIFETIME: Duration = Duration::from_secs(BIND_LIFETIME_S as u64);
/// Without a Bind for this long the channel is closed; until then, a node that slept can go on with it.
const CHANNEL_LIFETIME: Duration = Duration::from_secs(1200);

/// A channel.
pub(super) struct Channel {
    pub(super) node: NodeId,
    pub(super) bucket: TokenBucket,
    key: Zeroizing<[u8; CHANNEL_KEY_LEN]>,
    opened_at: Instant,
    bound: Option<Binding>,
    /// The byte stream that bound it last. Its other side proved both keys, so what it sends needs no other proof,
    /// even when the channel has moved on to UDP and something is still on its way.
    stream: Option<StreamId>,
    /// Outlives `bound`, so that a Bind cannot be replayed after the address was forgotten.
    last_counter: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Binding {
    way: Way,
    at: Instant,
}

/// What a Bind frame says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bind {
    pub(super) channel: ChannelId,
    pub(super) counter: u64,
    pub(super) mac: [u8; MAC_LEN],
}

impl Channel {
    pub(super) fn new(now: Instant, node: NodeId, key: [u8; CHANNEL_KEY_LEN]) -> Self {
        Self {
            node,
            bucket: TokenBucket::new(now),
            key: Zeroizing::new(key),
            opened_at: now,
            bound: None,
            stream: None,
            last_counter: None,
        }
    }

    /// Binds the channel to what the Bind came through.
    pub(super) fn handle_bind(&mut self, now: Instant, way: Way, bind: Bind) -> Result<(), DropReason> {
        let expected = bind_mac(&self.key, bind.channel, bind.counter);
        if !bool::from(expected.ct_eq(&bind.mac)) {
            return Err(DropReason::BadProof);
        }
        if self.last_counter.is_some_and(|last| bind.counter <= last) {
            return Err(DropReason::OldBind);
        }
        self.last_counter = Some(bind.counter);
        self.bound = Some(Binding { way, at: now });
        if let Way::Stream { id, .. } = way {
            self.stream = Some(id);
        }
        Ok(())
    }

    /// Returns where the channel's node is reached, unless its last Bind is too old.
    pub(super) fn bound_to(&self, now: Instant) -> Option<Way> {
        let binding = self.bound?;
        (now.saturating_duration_since(binding.at) < BIND_LIFETIME).then_some(binding.way)
    }

    /// Says whether frames that come this way are of the channel's node.
    ///
    /// # Errors
    /// When they are not, or the last Bind is too old.
    pub(super) fn check_sender(&self, now: Instant, way: Way) -> Result<(), DropReason> {
        let bound = self.bound_to(now).ok_or(DropReason::Unbound)?;
        let is_sender = match (way, bound) {
            (Way::Stream { id, .. }, _) => self.stream == Some(id),
            (Way::Udp(source), Way::Udp(bound)) => source.address == bound.address,
            (Way::Udp(_), Way::Stream { .. }) => false,
        };
        if is_sender { Ok(()) } else { Err(DropReason::WrongAddress) }
    }

    /// Forgets a byte stream that has ended.
    pub(super) fn handle_stream_ended(&mut self, ended: StreamId) {
        if self.stream == Some(ended) {
            self.stream = None;
        }
        if let Some(Binding { way: Way::Stream { id, .. }, .. }) = self.bound
            && id == ended
        {
            self.bound = None;
        }
    }

    /// Says whether the channel is to be closed.
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        match self.bound {
            Some(binding) => now.saturating_duration_since(binding.at) >= CHANNEL_LIFETIME,
            None => now.saturating_duration_since(self.opened_at) >= UNBOUND_LIFETIME,
        }
    }
}
