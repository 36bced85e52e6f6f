//! One node's channel: what it is bound to, and its share of the relay.

use std::time::{Duration, Instant};

use mesh_proto::{
    netmap::NodeId,
    relay::{CHANNEL_KEY_LEN, ChannelId, MAC_LEN, bind_mac},
};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::stats::DropReason;
use crate::{front::Source, limit::TokenBucket};

/// A channel that was opened and never bound is closed after this: a Bind follows within a round trip.
const UNBOUND_LIFETIME: Duration = Duration::from_secs(60);
/// Without a Bind for this long the address is forgotten. Agents bind every 20 s: three were lost.
const BIND_LIFETIME: Duration = Duration::from_secs(70);
/// Without a Bind for this long the channel is closed; until then, a node that slept can go on with it.
const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);

/// A channel.
pub(super) struct Channel {
    pub(super) node: NodeId,
    pub(super) bucket: TokenBucket,
    key: Zeroizing<[u8; CHANNEL_KEY_LEN]>,
    opened_at: Instant,
    bound: Option<Binding>,
    /// Outlives `bound`, so that a Bind cannot be replayed after the address was forgotten.
    last_counter: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Binding {
    source: Source,
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
            last_counter: None,
        }
    }

    /// Binds the channel to the address that the Bind came from.
    pub(super) fn handle_bind(&mut self, now: Instant, source: Source, bind: Bind) -> Result<(), DropReason> {
        let expected = bind_mac(&self.key, bind.channel, bind.counter);
        if !bool::from(expected.ct_eq(&bind.mac)) {
            return Err(DropReason::BadProof);
        }
        if self.last_counter.is_some_and(|last| bind.counter <= last) {
            return Err(DropReason::OldBind);
        }
        self.last_counter = Some(bind.counter);
        self.bound = Some(Binding { source, at: now });
        Ok(())
    }

    /// Returns where the channel's node is reached, unless its last Bind is too old.
    pub(super) fn bound_to(&self, now: Instant) -> Option<Source> {
        let binding = self.bound?;
        (now.saturating_duration_since(binding.at) < BIND_LIFETIME).then_some(binding.source)
    }

    /// Says whether the channel is to be closed.
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        match self.bound {
            Some(binding) => now.saturating_duration_since(binding.at) >= CHANNEL_LIFETIME,
            None => now.saturating_duration_since(self.opened_at) >= UNBOUND_LIFETIME,
        }
    }
}
