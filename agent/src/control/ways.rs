//! The ways to the coordinator or to a relay that stands alone, and what was learned of them: what is tried first, and where.

use std::{future::Future, net::SocketAddr, sync::Arc};

use ipnet::IpNet;
use mesh_proto::{key::KeyPin, netmap::RelayId};
use tokio::time::Instant;

use super::{
    address::HostPort,
    attempt::DialError,
    dial::{DIAL_TIMEOUT, Target},
    namebook::NameBook,
    race::{self, First, QuicAttempt, Reached, Refused},
    stream::{StreamOptions, StreamTarget, WebSocketUrl},
    tls,
    winners::WinnerBook,
};
use crate::{identity::Identity, nat64::Nat64, os::NetworkId};

/// How a server is reached.
pub(super) struct Ways {
    relay: Option<RelayId>,
    quic: quinn::ClientConfig,
    pipe: Arc<rustls::ClientConfig>,
    options: StreamOptions,
    nat64: Nat64,
    winners: WinnerBook,
    names: NameBook,
    /// UDP has gone silent: nothing is waited for before a byte pipe is tried.
    in_a_hurry: bool,
}

/// Who is to be reached, and by whom.
pub(super) struct Server<'a> {
    /// This node.
    pub(super) identity: &'a Identity,
    /// The way to IPv4 from a network without it.
    pub(super) nat64: &'a Nat64,
    /// What is known of names.
    pub(super) names: &'a NameBook,
    /// The server's key.
    pub(super) pin: KeyPin,
    /// Which relay it is; `None` for the coordinator.
    pub(super) relay: Option<RelayId>,
}

/// Where the server is, as far as it is known now.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Where it says that it is.
    pub(super) names: Vec<HostPort>,
    /// Where it was, the last place first.
    pub(super) known: Vec<SocketAddr>,
    /// The mesh's own ranges, through which it is not reached.
    pub(super) mesh: Vec<IpNet>,
}

impl Ways {
    pub(super) fn new(server: &Server<'_>, options: StreamOptions, winners: WinnerBook) -> Self {
        let Server { identity, nat64, names, pin, relay } = *server;
        let usable = "an identity's node key can be used for TLS";
        Self {
            relay,
            quic: tls::client_config(identity, pin).expect(usable),
            pipe: tls::stream_config(identity, pin).expect(usable),
            options,
            nat64: nat64.clone(),
            names: names.clone(),
            winners,
            in_a_hurry: false,
        }
    }

    /// Has the next race start everything at once.
    pub(super) fn hurry(&mut self) {
        self.in_a_hurry = true;
    }

    /// Reaches the server from a network, the way that has won there before first; for a relay
    /// a pipe, too, if one has won there on the way to the coordinator.
    pub(super) fn race(
        &mut self,
        place: Place,
        network: Option<&NetworkId>,
    ) -> impl Future<Output = Result<Reached, DialError>> + use<> {
        let last = self.winners.pipe_in(network, self.relay);
        let first = match (self.winners.is_blocked(network, self.relay), std::mem::take(&mut self.in_a_hurry))
        {
            (_, true) => First::Both,
            (true, false) => First::Pipe,
            (false, false) => First::Quic,
        };
        let target = StreamTarget {
            config: self.pipe.clone(),
            options: self.options.clone(),
            names: place.names.clone(),
            known: place.known.clone(),
            mesh: place.mesh.clone(),
            last,
            nat64: self.nat64.clone(),
            book: self.names.clone(),
        };
        race::race(self.target(place), target, first, Refused::Patient, Instant::now() + DIAL_TIMEOUT)
    }

    /// Starts an attempt over QUIC.
    pub(super) fn try_quic(&self, place: Place) -> QuicAttempt {
        race::quic(self.target(place), Instant::now() + DIAL_TIMEOUT)
    }

    /// Remembers what has won in a network: a pipe, or with `None` QUIC.
    pub(super) fn handle_won(&self, network: Option<&NetworkId>, pipe: Option<&WebSocketUrl>) {
        self.winners.set(network, self.relay, pipe);
    }

    fn target(&self, place: Place) -> Target {
        let Place { names, known, mesh } = place;
        let (config, nat64, book) = (self.quic.clone(), self.nat64.clone(), self.names.clone());
        Target { config, names, known, mesh, nat64, book }
    }
}
