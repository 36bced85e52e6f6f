//! What one attempt to reach somebody may take, and how attempts fail.

use std::{fmt, io, net::SocketAddr, time::Duration};

use quinn::ConnectionError;

use super::{address::ResolveError, stream::open::PipeError};

/// Head start of each attempt before the next one (RFC 8305, section 5).
pub(super) const STAGGER: Duration = Duration::from_millis(250);
/// Four transmissions of the first packet fit into it.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(8);
/// Lookups that take longer are not waited for once everything that was known has failed. Where nothing answers, no
/// resolver does either, and it is better to try what is known again.
pub(super) const LOOKUP_PATIENCE: Duration = ATTEMPT_TIMEOUT;
/// Addresses tried in one dial; what goes beyond is cut.
pub(super) const MAX_ATTEMPTS: usize = 16;

/// Why nothing was reached: every name and address that was tried.
#[derive(Debug, Default)]
pub struct DialError {
    attempts: Vec<Attempt>,
}

#[derive(Debug)]
struct Attempt {
    /// The name or address that was tried.
    what: String,
    /// It, as an address.
    address: Option<SocketAddr>,
    /// The name that led to the address.
    name: Option<String>,
    error: AttemptError,
}

/// Why one attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The name.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// This host has no way to the address.
    #[error("not reachable from here: {0}")]
    Socket(#[from] io::Error),
    /// Nobody answered in time.
    #[error("no answer")]
    Timeout,
    /// Somebody else answered.
    #[error("the coordinator's key does not match the pinned key")]
    PinMismatch,
    /// The coordinator speaks no version of the control protocol that this agent does.
    #[error(
        "the coordinator speaks another version of the control protocol than this agent, {}: upgrade the older of the two",
        env!("CARGO_PKG_VERSION")
    )]
    Version,
    /// The connection failed.
    #[error("{0}")]
    Connection(ConnectionError),
    /// The byte pipe failed.
    #[error(transparent)]
    Pipe(#[from] PipeError),
}

impl DialError {
    /// Returns whether somebody answered who does not have the pinned key.
    pub(super) fn is_pin_mismatch(&self) -> bool {
        self.attempts.iter().any(|attempt| matches!(attempt.error, AttemptError::PinMismatch))
    }

    /// Returns whether a proxy has refused, in plain words, to lead to the coordinator.
    pub(super) fn is_proxy_refusal(&self) -> bool {
        let pipes = self.attempts.iter().filter_map(|attempt| match &attempt.error {
            AttemptError::Pipe(error) => Some(error),
            AttemptError::Resolve(_)
            | AttemptError::Socket(_)
            | AttemptError::Timeout
            | AttemptError::PinMismatch
            | AttemptError::Version
            | AttemptError::Connection(_) => None,
        });
        let mut pipes = pipes.peekable();
        let is_refusal =
            |error: &PipeError| matches!(error, PipeError::Proxy(refusal) if refusal.is_refusal());
        pipes.peek().is_some() && pipes.all(is_refusal)
    }

    /// Returns the address that failed last, if any was tried.
    pub(super) fn last_address(&self) -> Option<SocketAddr> {
        self.attempts.iter().rev().find_map(|attempt| attempt.address)
    }

    /// Adds what else than an address was tried, and how it failed.
    pub(super) fn push(&mut self, what: String, error: AttemptError) {
        self.attempts.push(Attempt { what, address: None, name: None, error });
    }

    /// Adds an address that was tried, the name that led to it if one did, and how it failed.
    pub(super) fn push_address(&mut self, address: SocketAddr, name: Option<String>, error: AttemptError) {
        self.attempts.push(Attempt { what: address.to_string(), address: Some(address), name, error });
    }

    /// Adds everything of another.
    pub(super) fn append(&mut self, mut other: Self) {
        self.attempts.append(&mut other.attempts);
    }

    /// Whether it tells already how this failed.
    pub(super) fn is_of(&self, what: &impl ToString) -> bool {
        let what = what.to_string();
        self.attempts.iter().any(|attempt| attempt.what == what)
    }
}

impl std::error::Error for DialError {}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attempts.is_empty() {
            return f.write_str("there is no address to try");
        }
        for (index, Attempt { what, address: _, name, error }) in self.attempts.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { "; " })?;
            match name {
                Some(name) => write!(f, "{name} ({what}): {error}")?,
                None => write!(f, "{what}: {error}")?,
            }
        }
        Ok(())
    }
}
