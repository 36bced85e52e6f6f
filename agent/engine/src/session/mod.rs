//! WireGuard sessions. The only room that names the Noise library (boringtun).
//!
//! A [`Session`] is made when there is first traffic with a peer, in either direction, and dropped when its keys
//! are of no more use. It turns the library's habits into a contract of its own:
//!
//! - It holds no packets: [`Session::seal`] refuses while there are no keys, and the caller keeps the packet.
//! - It is never called "again with an empty datagram"; one call has one outcome.
//! - Its wakeups are exact ([`timers`]); the library's own timers, which want a tick every 250 ms, only see the
//!   moments of handshakes, where they have nothing of their own to do.
//! - The library takes a datagram from one buffer to another; [`Session::open`] still opens in place.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use boringtun::{
    noise::{Tunn, TunnResult, errors::WireGuardError},
    x25519,
};
use mesh_proto::{disco::SESSION_NAME_LEN, key::PublicKey};

mod clock;
mod initiation;
mod keys;
mod source_limit;
mod timers;

pub(crate) use initiation::{Initiation, Timestamp};
pub(crate) use keys::{Admission, Keys, Source};
pub(crate) use timers::{Due, REJECT_AFTER_TIME, REKEY_TIMEOUT};
use timers::{KEEPALIVE_TIMEOUT, REKEY_AFTER_TIME, RETRY_JITTER, SEAL_TIME, Timers};

use crate::drops::DropReason;

/// What a sealed packet has more than its inner packet: a 16-byte header and a 16-byte tag.
pub(crate) const OVERHEAD: usize = 32;
/// Inner packets are padded to a multiple of this (whitepaper, section 5.4.6).
pub(crate) const PADDING: usize = 16;
/// Length of an initiation, the longest message of a handshake.
pub(crate) const INITIATION_LEN: usize = 148;
/// Type byte of handshake initiations.
pub(crate) const TYPE_INITIATION: u8 = 1;
/// Type byte of handshake responses.
pub(crate) const TYPE_RESPONSE: u8 = 2;
/// Type byte of cookie replies.
pub(crate) const TYPE_COOKIE: u8 = 3;
/// Type byte of data.
pub(crate) const TYPE_DATA: u8 = 4;

/// The library numbers a peer's sessions cyclically in the low 8 bits of an index and keeps this many of them.
const KEPT_SESSIONS: usize = 8;
/// Counters from here on are not taken (whitepaper, REJECT_AFTER_MESSAGES).
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// A peer's WireGuard session, from before its first handshake to the end of its last keys.
pub(crate) struct Session {
    tunn: Tunn,
    timers: Timers,
    /// When the keys in each of the library's slots were made.
    made: [Option<Keypair>; KEPT_SESSIONS],
    /// What the keys would be called that the initiation in each of them leads to.
    initiated: [SessionName; KEPT_SESSIONS],
    /// The keys that data is sealed with.
    current: Option<Keypair>,
    /// When the newest keys were made that the peer has sealed something with.
    heard: Option<Instant>,
    rekey_due: bool,
    jitter: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Keypair {
    index: u32,
    name: SessionName,
    at: Instant,
    role: Role,
}

/// What both sides can call the keys of one handshake, and those of no other: a part of the initiator's ephemeral key.
/// Indices begin anew with each process.
pub(crate) type SessionName = [u8; SESSION_NAME_LEN];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Initiator,
    Responder,
}

/// What a handshake message led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// The peer's initiation was good: the reply is to be sent back.
    Responded,
    /// The peer's response was good: there are keys; the reply (a keepalive) tells the peer so.
    Established,
    /// The peer is under load: the next initiation will carry its cookie.
    Cookie,
    /// This side is under load: the reply is a cookie.
    Challenge,
}

/// What was in a data message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opened {
    /// An inner packet; it lies at the beginning of the datagram's bytes and has this length.
    Packet(usize),
    /// Nothing: the peer is there.
    Keepalive,
}

impl Session {
    /// Makes a session without keys. `index` (24 bits) comes back in the receiver index of the peer's messages.
    pub(crate) fn new(keys: &Keys, peer: &PublicKey, index: u32, now: Instant) -> Self {
        let peer = x25519::PublicKey::from(peer.0);
        let tunn = clock::at_origin(now, || {
            Tunn::new(keys.private.clone(), peer, None, None, index, Some(keys.limiter.clone()))
        });
        Self {
            tunn,
            timers: Timers::default(),
            made: [None; KEPT_SESSIONS],
            initiated: [[0; SESSION_NAME_LEN]; KEPT_SESSIONS],
            current: None,
            heard: None,
            rekey_due: false,
            jitter: Duration::ZERO,
        }
    }

    /// Returns the peer's index that a message is addressed to: the one given to [`Session::new`].
    pub(crate) fn receiver(datagram: &[u8]) -> Option<u32> {
        let at = if *datagram.first()? == TYPE_RESPONSE { 8 } else { 4 };
        read_u32(datagram, at).map(|index| index >> 8)
    }

    /// Sets the random part (0 to 1) of the next wait for a response.
    pub(crate) fn set_jitter(&mut self, fraction: f64) {
        self.jitter = RETRY_JITTER.mul_f64(fraction.clamp(0.0, 1.0));
    }

    /// Whether there are keys to seal with.
    pub(crate) fn is_established(&self, now: Instant) -> bool {
        self.current.is_some_and(|keypair| now.duration_since(keypair.at) < SEAL_TIME)
    }

    /// Returns how old the keys are that data is sealed with; `None` without any.
    pub(crate) fn age(&self, now: Instant) -> Option<Duration> {
        self.current.map(|keypair| now.saturating_duration_since(keypair.at))
    }

    /// Returns what the keys are called that data is sealed with.
    pub(crate) fn name(&self) -> Option<SessionName> {
        self.current.map(|keypair| keypair.name)
    }

    /// Returns when the keys were made that data is sealed with.
    pub(crate) fn made_at(&self) -> Option<Instant> {
        self.current.map(|keypair| keypair.at)
    }

    /// Returns when the keys of this name were made, if the peer may seal with them: it has used no newer ones.
    pub(crate) fn made_as(&self, name: SessionName, now: Instant) -> Option<Instant> {
        let mut made = self.made.iter().flatten();
        let found = made.find(|keypair| keypair.name == name).map(|keypair| keypair.at);
        let is_left = |at: Instant| self.heard.is_some_and(|heard| heard > at);
        found.filter(|at| now.duration_since(*at) < REJECT_AFTER_TIME && !is_left(*at))
    }

    /// Whether an initiation waits for its answer.
    pub(crate) fn is_attempting(&self) -> bool {
        self.timers.is_attempting()
    }

    /// Whether it has keys, confirmed or not, or makes some.
    pub(crate) fn is_of_use(&self) -> bool {
        self.timers.is_attempting() || self.timers.has_keys()
    }

    /// Returns how many initiations of the present attempt were sent again.
    pub(crate) fn retries(&self) -> usize {
        self.timers.retries()
    }

    /// Seals a packet (or a keepalive, if it is empty) into `out`, which has [`OVERHEAD`] bytes more than it.
    ///
    /// Returns the length, or `None` when there are no keys.
    pub(crate) fn seal(&mut self, packet: &[u8], out: &mut [u8], now: Instant) -> Option<usize> {
        let current = self.current.filter(|keypair| now.duration_since(keypair.at) < SEAL_TIME)?;
        clock::set(now);
        let len = match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(sealed) if sealed.first() == Some(&TYPE_DATA) => sealed.len(),
            // The library has no keys where this side thought so.
            _ => {
                self.current = None;
                return None;
            }
        };
        if packet.is_empty() {
            self.timers.on_keepalive_sent();
        } else {
            self.timers.on_data_sent(now);
            if current.role == Role::Initiator && now.duration_since(current.at) >= REKEY_AFTER_TIME {
                self.rekey_due = true;
            }
        }
        Some(len)
    }

    /// Opens a data message in place; `scratch` is used as a second buffer.
    ///
    /// # Errors
    /// When it is not for keys that are in use, does not authenticate, was seen before, or holds no IP packet.
    pub(crate) fn open(
        &mut self,
        datagram: &mut [u8],
        scratch: &mut Vec<u8>,
        now: Instant,
    ) -> Result<Opened, DropReason> {
        let (Some(index), Some(counter)) = (read_u32(datagram, 4), read_u64(datagram, 8)) else {
            return Err(DropReason::MalformedDatagram);
        };
        if datagram.len() < OVERHEAD {
            return Err(DropReason::MalformedDatagram);
        }
        let keypair = self.made[slot(index)]
            .filter(|made| made.index == index && now.duration_since(made.at) < REJECT_AFTER_TIME)
            .ok_or(DropReason::UnknownSession)?;
        // The library adds to the counter, which would overflow.
        if counter >= REJECT_AFTER_MESSAGES {
            return Err(DropReason::Replayed);
        }
        clock::set(now);
        scratch.clear();
        scratch.extend_from_slice(datagram);
        let opened = match self.tunn.decapsulate(None, scratch, datagram) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Ok(Opened::Packet(packet.len()))
            }
            TunnResult::Done => Ok(Opened::Keepalive),
            // It authenticated, but is not an IP packet.
            TunnResult::Err(WireGuardError::InvalidPacket) => Err(DropReason::MalformedPacket),
            TunnResult::Err(error) => return Err(drop_reason(&error)),
            TunnResult::WriteToNetwork(_) => return Err(DropReason::MalformedDatagram),
        };
        self.confirm(keypair);
        self.heard = self.heard.max(Some(keypair.at));
        match opened {
            Ok(Opened::Packet(_)) => {
                self.timers.on_data_received(now);
                let age = now.duration_since(keypair.at);
                if keypair.role == Role::Initiator
                    && age >= REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT
                {
                    self.rekey_due = true;
                }
            }
            Ok(Opened::Keepalive) | Err(_) => self.timers.on_received(),
        }
        opened
    }

    /// Takes a handshake message; `reply` is overwritten with what is to be sent back, if anything.
    ///
    /// # Errors
    /// When it does not authenticate, is a replay, or answers nothing.
    pub(crate) fn handle_handshake(
        &mut self,
        source: IpAddr,
        datagram: &[u8],
        now: Instant,
        reply: &mut Vec<u8>,
    ) -> Result<Handshake, DropReason> {
        let stray = self.tick(now).is_some();
        reply.clear();
        reply.resize(INITIATION_LEN, 0);
        let len = match self.tunn.decapsulate(Some(source), datagram, reply) {
            TunnResult::WriteToNetwork(out) => out.len(),
            TunnResult::Done => 0,
            TunnResult::Err(error) => return Err(drop_reason(&error)),
            TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                return Err(DropReason::MalformedDatagram);
            }
        };
        reply.truncate(len);
        match (datagram.first().copied(), reply.first().copied()) {
            (Some(TYPE_COOKIE), _) => {
                self.timers.on_received();
                Ok(Handshake::Cookie)
            }
            (_, Some(TYPE_COOKIE)) => Ok(Handshake::Challenge),
            (Some(TYPE_INITIATION), Some(TYPE_RESPONSE)) => {
                if let (Some(index), Some(name)) = (read_u32(reply, 4), name_of(datagram)) {
                    self.made[slot(index)] = Some(Keypair { index, name, at: now, role: Role::Responder });
                }
                self.timers.on_keys(now);
                Ok(Handshake::Responded)
            }
            (Some(TYPE_RESPONSE), Some(TYPE_DATA)) => {
                let index = read_u32(datagram, 8).ok_or(DropReason::MalformedDatagram)?;
                let name = self.initiated[slot(index)];
                let keypair = Keypair { index, name, at: now, role: Role::Initiator };
                self.made[slot(index)] = Some(keypair);
                self.timers.on_keys(now);
                self.confirm(keypair);
                // The library has begun a handshake of its own; a proper one takes its place.
                self.rekey_due |= stray;
                Ok(Handshake::Established)
            }
            _ => Err(DropReason::MalformedDatagram),
        }
    }

    /// Makes a new initiation, in place of one that may wait for its answer.
    pub(crate) fn initiate(&mut self, now: Instant) -> Option<[u8; INITIATION_LEN]> {
        let mut out = [0; INITIATION_LEN];
        let made = match self.tick(now) {
            Some(initiation) => {
                out = initiation;
                true
            }
            None => {
                matches!(self.tunn.format_handshake_initiation(&mut out, true), TunnResult::WriteToNetwork(_))
            }
        };
        if let (Some(index), Some(name)) = (read_u32(&out, 4).filter(|_| made), name_of(&out)) {
            self.initiated[slot(index)] = name;
        }
        self.rekey_due = false;
        self.timers.on_initiation_sent(now, self.jitter);
        made.then_some(out)
    }

    /// Whether an initiation is due because of the age of the keys that were just used.
    pub(crate) fn is_rekey_due(&self) -> bool {
        self.rekey_due && !self.timers.is_attempting()
    }

    /// Returns when [`Session::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.poll_timeout()
    }

    /// Says what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Due {
        self.timers.handle_timeout(now)
    }

    /// Shows the library the time; it may think that an initiation is due.
    ///
    /// Called only where a handshake begins or goes on: at other moments the library would act by its own, coarse
    /// timers.
    fn tick(&mut self, now: Instant) -> Option<[u8; INITIATION_LEN]> {
        clock::set(now);
        let mut out = [0; INITIATION_LEN];
        match self.tunn.update_timers(&mut out) {
            TunnResult::WriteToNetwork(sent) => (sent.first() == Some(&TYPE_INITIATION)).then_some(out),
            // The library has forgotten all keys.
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                self.current = None;
                self.made = [None; KEPT_SESSIONS];
                None
            }
            _ => None,
        }
    }

    /// Uses a keypair for sending from now on, unless a newer one is in use: the library's rule.
    fn confirm(&mut self, keypair: Keypair) {
        self.timers.on_confirmed(keypair.at);
        if self.current.is_none_or(|current| keypair.at >= current.at) {
            self.current = Some(keypair);
        }
    }
}

fn drop_reason(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::InvalidCounter
        | WireGuardError::DuplicateCounter
        | WireGuardError::WrongTai64nTimestamp => DropReason::Replayed,
        WireGuardError::UnderLoad => DropReason::RateLimited,
        WireGuardError::NoCurrentSession
        | WireGuardError::WrongIndex
        | WireGuardError::UnexpectedPacket
        | WireGuardError::ConnectionExpired => DropReason::UnknownSession,
        WireGuardError::InvalidAeadTag
        | WireGuardError::InvalidMac
        | WireGuardError::InvalidTai64nTimestamp
        | WireGuardError::WrongKey => DropReason::BadCrypto,
        WireGuardError::DestinationBufferTooSmall
        | WireGuardError::IncorrectPacketLength
        | WireGuardError::WrongPacketType
        | WireGuardError::InvalidPacket
        | WireGuardError::LockFailed => DropReason::MalformedDatagram,
    }
}

/// Returns what the keys are called that an initiation leads to: the beginning of its ephemeral key.
fn name_of(initiation: &[u8]) -> Option<SessionName> {
    initiation.get(8..)?.first_chunk().copied()
}

fn slot(index: u32) -> usize {
    index as usize % KEPT_SESSIONS
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
