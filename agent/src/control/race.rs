//! UDP or a byte pipe: both are tried, and the first whose session is complete wins.
//!
//! ```text
//! QUIC  ---------------------------------------> wins: the pipe is forgotten
//!        250 ms, or as soon as it has failed
//!        byte pipe ----------------------------> wins: QUIC is tried on beside it
//! ```
//!
//! Where a pipe has won before in the same network it goes first, and QUIC follows. When UDP has just gone silent both
//! start at once.

use std::{future::Future, pin::Pin, time::Duration};

use tokio::time::Instant;

use super::{
    attempt::{DialError, STAGGER},
    dial::{self, Dialed, Target},
    stream::{self, StreamDialed, StreamTarget},
};

/// An attempt that runs whenever it is waited for.
type Running<T> = Pin<Box<dyn Future<Output = Result<T, DialError>> + Send>>;

/// An attempt to reach the target over QUIC.
pub(super) type QuicAttempt = Running<Dialed>;

/// What goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    Quic,
    Pipe,
    Both,
}

/// How long UDP is waited for once a proxy has refused to lead to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// As long as without a proxy: whoever waits tries again and again anyway.
    Patient,
    /// So long: a person waits who can set the proxy right.
    After(Duration),
}

/// How the target was reached.
pub(super) enum Reached {
    /// Over QUIC.
    Quic(Dialed),
    /// In a byte pipe.
    Pipe {
        /// The pipe.
        dialed: Box<StreamDialed>,
        /// QUIC, if it has not failed yet.
        quic: Option<QuicAttempt>,
    },
}

/// Starts an attempt over QUIC.
pub(super) fn quic(target: Target, deadline: Instant) -> QuicAttempt {
    Box::pin(async move { dial::dial(&target, deadline).await })
}

/// Reaches the target either way.
///
/// # Errors
/// When both failed, or neither succeeded until the deadline. When somebody answered over QUIC who has another key, the
/// pipe is not waited for.
pub(super) async fn race(
    target: Target,
    pipe: StreamTarget,
    first: First,
    refused: Refused,
    deadline: Instant,
) -> Result<Reached, DialError> {
    let start = Instant::now();
    let mut give_up_at = None;
    let (quic_at, pipe_at) = match first {
        First::Quic => (start, start + STAGGER),
        First::Pipe => (start + STAGGER, start),
        First::Both => (start, start),
    };
    let mut quic = Attempt::Waiting(quic_at, quic(target, deadline));
    let mut pipe =
        Attempt::Waiting(pipe_at, Box::pin(async move { stream::dial(&pipe, deadline).await.map(Box::new) }));
    loop {
        tokio::select! {
            biased;
            () = sleep_until(give_up_at) => return Err(pipe.into_error()),
            result = quic.poll() => match result {
                Ok(dialed) => return Ok(Reached::Quic(dialed)),
                Err(error) if error.is_pin_mismatch() => return Err(error),
                Err(error) => {
                    quic = Attempt::Failed(error);
                    pipe = pipe.start();
                }
            },
            result = pipe.poll() => match result {
                Ok(dialed) => return Ok(Reached::Pipe { dialed, quic: quic.into_running() }),
                Err(error) => {
                    if let Refused::After(patience) = refused
                        && error.is_proxy_refusal()
                    {
                        give_up_at = Some(Instant::now() + patience);
                    }
                    pipe = Attempt::Failed(error);
                    quic = quic.start();
                }
            },
        }
        match (quic, pipe) {
            (Attempt::Failed(mut error), Attempt::Failed(other)) => {
                error.append(other);
                return Err(error);
            }
            both => (quic, pipe) = both,
        }
    }
}

/// Waits for a time; for ever, if there is none. Cancel-safe.
async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// One of the two.
enum Attempt<T> {
    /// It runs from then on.
    Waiting(Instant, Running<T>),
    Failed(DialError),
}

impl<T> Attempt<T> {
    /// Waits for its end; for ever, if it has failed. Cancel-safe.
    async fn poll(&mut self) -> Result<T, DialError> {
        match self {
            Self::Waiting(at, attempt) => {
                tokio::time::sleep_until(*at).await;
                attempt.await
            }
            Self::Failed(_) => std::future::pending().await,
        }
    }

    /// Has it run at once.
    fn start(self) -> Self {
        match self {
            Self::Waiting(at, attempt) => Self::Waiting(at.min(Instant::now()), attempt),
            Self::Failed(error) => Self::Failed(error),
        }
    }

    /// How it failed; nothing, if it has not.
    fn into_error(self) -> DialError {
        match self {
            Self::Waiting(..) => DialError::default(),
            Self::Failed(error) => error,
        }
    }

    fn into_running(self) -> Option<Running<T>> {
        match self {
            Self::Waiting(_, attempt) => Some(attempt),
            Self::Failed(_) => None,
        }
    }
}
