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
}

/// What is to be done with a handshake initiation.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It authenticates; whether it is new is for its peer to say.
    Admitted(Initiation),
    /// Too many: this cookie is to be sent back instead.
    Challenge([u8; COOKIE_REPLY_LEN]),
}

impl Keys {
    pub(crate) fn new(private: &PrivateKey, now: Instant) -> Self {
        clock::set(now);
        let private = x25519::StaticSecret::from(*private.0);
        let public = x25519::PublicKey::from(&private);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND));
        Self { private, limiter, public }
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
    /// # Errors
    /// When it is malformed or does not authenticate.
    pub(crate) fn admit(
        &self,
        source: IpAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Result<Admission, DropReason> {
        clock::set(now);
        self.limiter.reset_count();
        let mut cookie = [0; COOKIE_REPLY_LEN];
        match self.limiter.verify_packet(Some(source), datagram, &mut cookie) {
            Ok(Packet::HandshakeInit(_)) => {
                Ok(Admission::Admitted(initiation::open(&self.private, &self.public, datagram)?))
            }
            Ok(_) => Err(DropReason::MalformedDatagram),
            Err(TunnResult::WriteToNetwork(_)) => Ok(Admission::Challenge(cookie)),
            Err(TunnResult::Err(error)) => Err(super::drop_reason(&error)),
            Err(_) => Err(DropReason::BadCrypto),
        }
    }
}
