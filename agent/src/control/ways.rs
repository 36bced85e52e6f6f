//! The ways to the coordinator, and what was learned of them: what is tried first, and where.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ControlConfig,
    address::HostPort,
    attempt::DialError,
    dial::{DIAL_TIMEOUT, Target},
    race::{self, First, QuicAttempt, Reached},
    stream::{StreamOptions, StreamTarget, WebSocketUrl},
    tls,
    winners::Winners,
};
use crate::{nat64::Nat64, netmap::Saver, os::NetworkId};

/// How the coordinator is reached.
pub(super) struct Ways {
    quic: quinn::ClientConfig,
    pipe: Arc<rustls::ClientConfig>,
    options: StreamOptions,
    nat64: Nat64,
    winners: Winners,
    saver: Saver<Winners>,
    /// UDP has gone silent: nothing is waited for before a byte pipe is tried.
    in_a_hurry: bool,
}

/// Where the coordinator is, as far as it is known now.
pub(super) struct Place {
    /// Where it says that it is.
    pub(super) names: Vec<HostPort>,
    /// Where it was, the last place first.
    pub(super) known: Vec<SocketAddr>,
    /// The mesh's own ranges, through which it is not reached.
    pub(super) mesh: Vec<IpNet>,
}

impl Ways {
    pub(super) fn new(config: &ControlConfig, cancel: &CancellationToken, tracker: &TaskTracker) -> Self {
        let (identity, pin) = (&config.identity, config.membership.pin);
        let usable = "an identity's node key can be used for TLS";
        Self {
            quic: tls::client_config(identity, pin).expect(usable),
            pipe: tls::stream_config(identity, pin).expect(usable),
            options: config.stream.clone(),
            nat64: config.nat64.clone(),
            winners: Winners::load(&config.state_dir),
            saver: Saver::spawn(Winners::file(&config.state_dir), Duration::ZERO, cancel, tracker),
            in_a_hurry: false,
        }
    }

    /// Has the next race start everything at once.
    pub(super) fn hurry(&mut self) {
        self.in_a_hurry = true;
    }

    /// Reaches the coordinator from a network, the way that has won there before first.
    pub(super) fn race(
        &mut self,
        place: Place,
        network: Option<&NetworkId>,
    ) -> impl Future<Output = Result<Reached, DialError>> + use<> {
        let last = self.winners.pipe_in(network);
        let first = match (&last, std::mem::take(&mut self.in_a_hurry)) {
            (_, true) => First::Both,
            (Some(_), false) => First::Pipe,
            (None, false) => First::Quic,
        };
        let target = StreamTarget {
            config: self.pipe.clone(),
            options: self.options.clone(),
            names: place.names.clone(),
            known: place.known.clone(),
            mesh: place.mesh.clone(),
            nat64: self.nat64.clone(),
            last,
        };
        race::race(self.target(place), target, first, Instant::now() + DIAL_TIMEOUT)
    }

    /// Starts an attempt over QUIC.
    pub(super) fn try_quic(&self, place: Place) -> QuicAttempt {
        race::quic(self.target(place), Instant::now() + DIAL_TIMEOUT)
    }

    /// Remembers what has won in a network: a pipe, or with `None` QUIC.
    pub(super) fn handle_won(&mut self, network: Option<&NetworkId>, pipe: Option<&WebSocketUrl>) {
        if self.winners.set(network, pipe) {
            self.saver.save(Arc::new(self.winners.clone()));
        }
    }

    fn target(&self, place: Place) -> Target {
        let Place { names, known, mesh } = place;
        Target { config: self.quic.clone(), names, known, mesh, nat64: self.nat64.clone() }
    }
}
