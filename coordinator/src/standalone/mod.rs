//! `mesh-coordinator relay`: a relay alone, on another machine.
//!
//! ```text
//!  coordinator <-- uplink: Join (tag "relay"), Connect, ServeRelay -- relay <-- Hello, RelayOpen -- agents
//!              --- the map: which nodes there are ------------------>       <-- relay frames ------
//! ```
//!
//! It registers with a join token that carries the tag `relay`, and is put into the map as a relay, with its
//! node key, which agents pin. From its own map it knows the nodes by their node keys, and which of them may
//! talk. The map is kept on disk, so that the relay serves with the coordinator away and after a restart;
//! what was on disk is replaced as soon as the coordinator answers.
//!
//! A relay has no WireGuard key. As the registry wants one that is unique, its node key stands in its place:
//! nobody is ever told to use it, as a relay is nobody's peer.
//!
//! It listens on UDP and on TCP, as the coordinator does: what is said of either port there ([`crate::tcp`]) holds here.
//!
//! Tasks: the front, the control server and its connections, the TCP port, and the uplink. Each ends when cancelled; what
//! they wait for is cancel-safe. The uplink ends by itself when the coordinator refuses the relay for good,
//! and the process ends with it.

mod cache;
mod places;
mod service;
mod uplink;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Instant};

use anyhow::Context as _;
use mesh_proto::{
    key::KeyPin,
    name::NodeName,
    netmap::{NetworkMap, RelayId},
    token::JoinToken,
};
use tokio::{sync::watch, task::JoinHandle};

use self::{
    cache::MapCache,
    service::RelayService,
    uplink::{Uplink, UplinkError},
};
use crate::{
    control::{ControlServer, ControlStats, Door, server_config},
    front::{Front, FrontSocket},
    identity::Identity,
    relay::{Limits, RelayCore, RelayHandle},
    serve::{Group, explain_bind, say_goodbye, stop_signal},
    tcp::{StreamTls, Streams, TcpFront},
};

/// What `relay` needs to know.
#[derive(Debug, Clone)]
pub struct RelayOptions {
    /// Where key and map are.
    pub state_dir: PathBuf,
    /// The UDP port.
    pub listen_udp: SocketAddr,
    /// The TCP port, for nodes that UDP does not reach.
    pub listen_tcp: SocketAddr,
    /// Where agents reach the UDP port: `host:port`, tried in order.
    pub addresses: Vec<String>,
    /// Where the coordinator is: `host:port`, tried in order.
    pub coordinators: Vec<String>,
    /// The pin of the coordinator's key.
    pub pin: KeyPin,
    /// The name to register with.
    pub name: NodeName,
    /// The right to join; not needed once the relay is registered.
    pub token: Option<JoinToken>,
    /// What the relay grants.
    pub limits: Limits,
}

/// A relay that is running.
pub struct StandaloneRelay {
    udp: SocketAddr,
    tcp: SocketAddr,
    endpoint: quinn::Endpoint,
    clients: Group,
    background: Group,
    uplink: JoinHandle<Result<(), UplinkError>>,
}

impl StandaloneRelay {
    /// Starts a relay; when this returns, it serves the nodes that it knows from its disk.
    ///
    /// # Errors
    /// When the state or the port cannot be used; the error says what to do.
    pub async fn start(options: RelayOptions) -> anyhow::Result<Self> {
        let identity = Identity::load_or_create(&options.state_dir).context("cannot use the relay's key")?;
        let cache = MapCache::new(&options.state_dir);
        let known = cache.load().context("cannot use the relay's map")?;
        let socket = FrontSocket::bind(options.listen_udp)
            .map_err(|error| explain_bind(error, "UDP", options.listen_udp, "--listen-udp"))?;
        let tcp = TcpFront::bind(options.listen_tcp)
            .await
            .map_err(|error| explain_bind(error, "TCP", options.listen_tcp, "--listen-tcp"))?;
        let tcp_addr = tcp.local_addr().context("the TCP port has no address")?;
        let (relay, inbox) = RelayHandle::channel();
        let front = Front::new(socket, RelayCore::new(Instant::now(), options.limits), inbox);
        let quic = server_config(&identity.pkcs8).context("cannot use the relay's key for TLS")?;
        let endpoint = front.endpoint(quic).context("cannot start QUIC")?;
        let udp = front.local_addr();

        let (clients, background) = (Group::default(), Group::default());
        background.spawn(front.run(background.cancel.clone()));
        let maps = watch::Sender::new(None);
        let service = RelayService::new(relay.clone(), maps.subscribe());
        let stats = Arc::new(ControlStats::default());
        let door = Door::new(Arc::new(service), stats);
        let control = ControlServer::new(endpoint.clone(), door.clone());
        let streams = Streams { door, relay: relay.clone(), tls: StreamTls::new(&identity.pkcs8)? };
        clients.spawn(tcp.run(streams, clients.tracker.clone(), clients.cancel.clone()));
        clients.spawn(control.run(clients.tracker.clone(), clients.cancel.clone()));
        let mut uplink = Uplink::new(options, identity, cache, relay, maps)?;
        if let Some(map) = known {
            uplink.set_map(map).await;
        }
        let uplink = tokio::spawn(uplink.run(background.cancel.clone()));
        Ok(Self { udp, tcp: tcp_addr, endpoint, clients, background, uplink })
    }

    /// Returns the address of the UDP port.
    #[must_use]
    pub fn udp_addr(&self) -> SocketAddr {
        self.udp
    }

    /// Returns the address of the TCP port.
    #[must_use]
    pub fn tcp_addr(&self) -> SocketAddr {
        self.tcp
    }

    /// Waits until the relay cannot go on: the coordinator has refused it for good, or a part has ended by
    /// itself. Cancel-safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        match (&mut self.uplink).await {
            Ok(Ok(())) => anyhow::anyhow!("a part of the relay ended by itself; the log says why"),
            Ok(Err(error)) => error.into(),
            Err(error) => {
                anyhow::Error::new(error).context("the connection to the coordinator ended by itself")
            }
        }
    }

    /// Says goodbye to every client and stops.
    pub async fn stop(self) {
        say_goodbye(&self.clients, &self.endpoint, &self.background).await;
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// As [`StandaloneRelay::start`], and when the coordinator refuses the relay for good.
pub async fn run(options: RelayOptions) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    let mut relay = StandaloneRelay::start(options).await?;
    tracing::info!(udp_port = relay.udp.port(), tcp_port = relay.tcp.port(), "relaying");
    // Not being under systemd is no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let result = tokio::select! {
        biased;
        () = stop => Ok(()),
        error = relay.failed() => Err(error),
    };
    tracing::info!("stopping");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    relay.stop().await;
    result
}

/// What the relay is called in the map: its id follows from its node's.
fn relay_id(map: &NetworkMap) -> RelayId {
    RelayId(map.this.id.0)
}
