//! What all sessions of an engine share: the private key and the limit on handshakes.

use std::{net::IpAddr, sync::Arc, time::Instant};

use boringtun::{
    noise::{Packet, TunnResult, rate_limiter::RateLimiter},
    x25519,
};
use mesh_proto::key;

use super::{
    clock,
    initiation::{self, Initiation},
    source_limit::SourceLimit,
};
use crate::{config::PrivateKey, drops::DropReason};

/// Handshake messages that are taken per second before senders have to prove their address by a cookie. An
/// initiation is counted twice: when it is admitted here and again in the session.
const HANDSHAKES_PER_SECOND: u64 = 200;

/// Length of a cookie reply.
const COOKIE_REPLY_LEN: usize = 64;

/// The private key, and what is checked with it before a peer is known.
pub(crate) struct Keys {
    pub(super) private: x25519::StaticSecret,
    pub(super) limiter: Arc<RateLimiter>,
    public: x25519::PublicKey,
    sources: SourceLimit,
}

/// What is to be done with a handshake initiation.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It authenticates; whether it is new is for its peer to say.
    Admitted(Initiation),
    /// Too many: this cookie is to be sent back instead.
    Challenge([u8; COOKIE_REPLY_LEN]),
}

/// Where an initiation came from, for limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Straight from this address.
    Direct(IpAddr),
    /// Through a relay at this address.
    Relay(IpAddr),
}

impl Keys {
    pub(crate) fn new(private: &PrivateKey, now: Instant) -> Self {
        clock::set(now);
        let private = x25519::StaticSecret::from(*private.0);
        let public = x25519::PublicKey::from(&private);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND));
        Self { private, limiter, public, sources: SourceLimit::default() }
    }

    /// Returns the same keys for another shard, with the same limit on all handshakes: the library makes it to be shared.
    /// So a cookie that one shard has sent is good at every other.
    pub(crate) fn share(&self) -> Self {
        Self {
            private: self.private.clone(),
            limiter: Arc::clone(&self.limiter),
            public: self.public,
            sources: SourceLimit::default(),
        }
    }

    /// Returns the public half.
    pub(crate) fn public(&self) -> key::PublicKey {
        key::PublicKey(self.public.to_bytes())
    }

    /// Computes what this key and a peer's give both sides.
    pub(crate) fn shared_secret(&self, peer: &key::PublicKey) -> x25519::SharedSecret {
        self.private.diffie_hellman(&x25519::PublicKey::from(peer.0))
    }

    /// Checks a handshake initiation as far as can be done before its peer is known, and finds that peer.
    ///
    /// A relay limits each of its clients by itself, and all of them share its address.
    ///
    /// # Errors
    /// When it is malformed or does not authenticate.
    pub(crate) fn admit(
        &mut self,
        source: Source,
        datagram: &[u8],
        now: Instant,
    ) -> Result<Admission, DropReason> {
        clock::set(now);
        self.limiter.reset_count();
        let mut cookie = [0; COOKIE_REPLY_LEN];
        let (Source::Direct(address) | Source::Relay(address)) = source;
        match self.limiter.verify_packet(Some(address), datagram, &mut cookie) {
            Ok(Packet::HandshakeInit(_)) => {
                if matches!(source, Source::Direct(_)) && !self.sources.admit(address, now) {
                    return Err(DropReason::RateLimited);
                }
                Ok(Admission::Admitted(initiation::open(&self.private, &self.public, datagram)?))
            }
            Ok(_) => Err(DropReason::MalformedDatagram),
            Err(TunnResult::WriteToNetwork(_)) => Ok(Admission::Challenge(cookie)),
            Err(TunnResult::Err(error)) => Err(super::drop_reason(&error)),
            Err(_) => Err(DropReason::BadCrypto),
        }
    }
}
