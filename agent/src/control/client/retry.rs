//! What the client does when there is no connection: how long it waits, what ends the wait, and what is said of it.

use std::time::Duration;

use mesh_proto::control::{Refusal, RefusalCode};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    super::{
        ControlEvent,
        attempt::DialError,
        backoff,
        link::LinkError,
        shared::{Gone, LinkState},
    },
    Client,
};

/// A sign of the coordinator that is older says nothing any more.
const SIGN_TTL: Duration = Duration::from_secs(5);

/// What to do after a failure.
pub(super) enum Next {
    /// Try again after this time, or soon once there is a sign of the coordinator.
    Retry(Duration),
    /// Keep away for this time: the coordinator wants it so.
    Obey(Duration),
    /// Stop, for this reason.
    GiveUp(String),
}

impl Client {
    /// Waits before the next attempt; not longer once the network changed, and not much longer after a sign of the
    /// coordinator: its relay answers, but no longer knows this node.
    pub(super) async fn rest(&mut self, next: Next) -> Result<(), Gone> {
        let (wait, heeds_signs) = match next {
            Next::Retry(wait) => (wait, true),
            Next::Obey(wait) => (wait, false),
            Next::GiveUp(reason) => {
                // Nobody who listens is as good as somebody who knows.
                let _ = self.emit(ControlEvent::Fatal(reason)).await;
                return Err(Gone);
            }
        };
        debug!(?wait, "the next attempt waits");
        let (cancel, shared) = (self.cancel.clone(), self.shared.clone());
        let mut until = Instant::now() + wait;
        self.watch_names(None);
        loop {
            if heeds_signs && self.sign_at.take().is_some_and(|at| at.elapsed() < SIGN_TTL) {
                debug!("the coordinator's relay answers: the wait is short");
                until = until.min(Instant::now() + backoff::after_sign(backoff::random()));
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(Gone),
                () = shared.changed() => if self.handle_local_news().await? { return Ok(()) },
                news = self.watch.next() => {
                    let is_its_own = self.is_coordinator(&news.name);
                    self.handle_news(news);
                    self.emit_observers().await?;
                    if heeds_signs && is_its_own {
                        debug!("the coordinator's name leads elsewhere: the wait is over");
                        return Ok(());
                    }
                }
                () = tokio::time::sleep_until(until) => return Ok(()),
            }
        }
    }

    /// What this host has seen of its network says that the connection may be lost: if it is, that is no failure of the
    /// other side's, after others of which one would wait for long.
    pub(in crate::control) fn suspect_network(&mut self) {
        self.backoff.reset();
    }

    /// A connection that was lost is no news before it cannot be made again.
    pub(super) fn handle_lost(&mut self, error: &LinkError) -> Next {
        let mut wait = self.backoff.next_wait(backoff::random());
        if matches!(error, LinkError::Silent | LinkError::Slept) && self.backoff.failures() == 1 {
            // Time was lost already, and whoever is silent is not overrun by those who come back.
            wait = Duration::ZERO;
            self.ways.hurry();
        }
        debug!(%error, "the connection to the coordinator is gone");
        self.set_down(error.to_string());
        Next::Retry(wait)
    }

    pub(super) fn handle_unreachable(&mut self, error: &DialError) -> Next {
        let wait = self.backoff.next_wait(backoff::random());
        self.warn_once(error, "the coordinator is not reached: trying on");
        self.tried = error.last_address().or(self.tried);
        self.set_down(error.to_string());
        Next::Retry(wait)
    }

    pub(super) fn handle_refusal(&mut self, refusal: Refusal) -> Next {
        let random = backoff::random();
        let wait = match (refusal.code, refusal.retry_after_ms) {
            (RefusalCode::NotRegistered, _) => return Next::GiveUp(refusal.message),
            (RefusalCode::Replaced, _) => {
                warn!("another agent uses this node's identity");
                self.backoff.longest_wait(random)
            }
            (_, Some(asked)) => self.backoff.next_wait_asked(Duration::from_millis(asked), random),
            (
                RefusalCode::Token
                | RefusalCode::ServiceAccount
                | RefusalCode::NameTaken
                | RefusalCode::Busy
                | RefusalCode::ShuttingDown
                | RefusalCode::Protocol
                | RefusalCode::Duplicate
                | RefusalCode::Unknown,
                None,
            ) => self.backoff.next_wait(random),
        };
        if refusal.code == RefusalCode::ShuttingDown {
            // If it stays away, that will be warned of.
            info!("the coordinator is stopping");
        } else {
            self.warn_once(&refusal, "the coordinator refuses: trying on");
        }
        self.set_down(refusal.to_string());
        Next::Obey(wait)
    }

    fn warn_once(&mut self, error: &dyn std::error::Error, what: &'static str) {
        if self.warned {
            debug!(%error, "{what}");
        } else {
            warn!(%error, "{what}");
        }
        self.warned = true;
    }

    fn set_down(&self, error: String) {
        let address = self.tried.or_else(|| self.book.known().as_slice().first().copied());
        self.shared.set_link(LinkState::Down { address, error, failures: self.backoff.failures() });
    }
}
