//! The way back from a byte pipe to UDP, beside a session that goes on.
//!
//! ```text
//!  trying --- QUIC answers ---> moving --- its time is over, or the pipe ends ---> moved
//!    ^  every 60 s, and when the network changes        (the relay channel is bound over UDP meanwhile)
//! ```

use std::{net::SocketAddr, time::Duration};

use futures_util::future::OptionFuture;
use tokio::time::Instant;

use super::{attempt::DialError, dial::Dialed, race::QuicAttempt};

/// UDP is tried again this often from within a byte pipe.
const INTERVAL: Duration = Duration::from_secs(60);
/// Time for a channel to be bound over UDP before the byte pipe is left, or ten round trips if that is longer.
const MOVE_TIME: Duration = Duration::from_millis(500);

/// How far it is. Nothing ever happens here to a session that is over QUIC.
#[derive(Default)]
pub(super) struct Upgrade {
    /// An attempt over QUIC, and when there is to be one again.
    attempt: Option<QuicAttempt>,
    again_at: Option<Instant>,
    /// A connection over QUIC, and when the session moves there.
    moving: Option<(Instant, Dialed)>,
}

/// What has happened.
pub(super) enum Progress {
    /// It is time for another attempt: [`Upgrade::start`].
    Due,
    /// UDP is let through: [`Upgrade::start_moving`].
    Reached(Dialed),
    /// It is not.
    Failed(DialError),
    /// The session may move now: [`Upgrade::into_dialed`].
    Moved,
}

impl Upgrade {
    /// For a session in a byte pipe; `attempt` was slower than the pipe, and goes on.
    pub(super) fn from_pipe(attempt: Option<QuicAttempt>) -> Self {
        Self { attempt, again_at: Some(Instant::now() + INTERVAL), moving: None }
    }

    /// Waits until something happens. Cancel-safe.
    pub(super) async fn next(&mut self) -> Progress {
        tokio::select! {
            biased;
            Some(dialed) = OptionFuture::from(self.attempt.as_mut()) => {
                self.attempt = None;
                match dialed {
                    Ok(dialed) => Progress::Reached(dialed),
                    Err(error) => Progress::Failed(error),
                }
            }
            () = at(self.moving.as_ref().map(|(at, _)| *at)) => Progress::Moved,
            () = at(self.again_at) => {
                self.again_at = Some(Instant::now() + INTERVAL);
                Progress::Due
            }
        }
    }

    /// Starts an attempt, unless there is one or UDP has answered already.
    pub(super) fn start(&mut self, attempt: QuicAttempt) {
        if self.attempt.is_none() && self.moving.is_none() {
            self.again_at = Some(Instant::now() + INTERVAL);
            self.attempt = Some(attempt);
        }
    }

    /// The same at once, whatever an attempt before has come to: the network is another one.
    pub(super) fn restart(&mut self, attempt: QuicAttempt) {
        self.attempt = None;
        self.start(attempt);
    }

    /// UDP is let through: the session moves there soon.
    pub(super) fn start_moving(&mut self, dialed: Dialed) {
        let time = MOVE_TIME.max(dialed.connection.rtt() * 10);
        self.again_at = None;
        self.moving = Some((Instant::now() + time, dialed));
    }

    /// Returns where UDP was answered, while the session moves.
    pub(super) fn remote(&self) -> Option<SocketAddr> {
        self.moving.as_ref().map(|(_, dialed)| dialed.connection.remote_address())
    }

    /// Returns the connection to go on with, if there is one.
    pub(super) fn into_dialed(self) -> Option<Dialed> {
        self.moving.map(|(_, dialed)| dialed)
    }
}

/// Waits for a time; for ever, if there is none. Cancel-safe.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
