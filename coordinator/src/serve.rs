//! `mesh-coordinator serve`: puts the parts together, and takes them apart in order.
//!
//! ```text
//! start:  identity -> registry -> UDP and TCP ports -> relay, hub, metrics, admin, control -> READY
//! stop:   control stops accepting, every session is told ShuttingDown -> QUIC closes -> the ports close
//! ```
//!
//! Tasks: the front, the observer, the hub, the control server and its connections, the TCP port, the admin socket and the
//! metrics. One token ends what speaks to clients; a second one, cancelled after that, ends what the first
//! needs to say goodbye. A task that ends by itself stops the rest.

use std::{
    collections::BTreeSet,
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use mesh_proto::{control::SERVICE_ACCOUNTS, key::KeyPin, netmap::NodeId};
use quinn::VarInt;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{AdminInfo, AdminServer},
    backup,
    control::{ControlServer, ControlStats, Coordinator, Door, Hub, Ports, server_config},
    dyndns::{self, DynDnsOptions},
    front::{
        Front, FrontSocket,
        observer::{self, Observer},
    },
    identity::Identity,
    kubernetes::{KubernetesOptions, Reviewer},
    metrics::{MetricsServer, Sources},
    registry::{MeshOptions, Registry},
    relay::{Limits, RelayCore, RelayHandle},
    tcp::{StreamTls, Streams, TcpFront},
};

/// How long clients have to take their goodbye.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(3);
/// How long QUIC and the other tasks have to end.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// What `serve` needs to know.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Where keys and state are.
    pub state_dir: PathBuf,
    /// The UDP port.
    pub listen_udp: SocketAddr,
    /// The TCP port.
    pub listen_tcp: SocketAddr,
    /// A second UDP port, which answers STUN.
    pub listen_stun: Option<SocketAddr>,
    /// Where metrics are shown: a loopback address, or nowhere.
    pub metrics: Option<SocketAddr>,
    /// What the mesh is called and which addresses it has.
    pub mesh: MeshOptions,
    /// What the relay grants.
    pub relay: Limits,
    /// The name that is kept pointing here.
    pub dyndns: Option<DynDnsOptions>,
    /// Whose tokens stand in for join tokens, if any do.
    pub kubernetes: Option<KubernetesOptions>,
}

/// A coordinator that is running.
pub struct Server {
    registry: Registry,
    pin: KeyPin,
    online: watch::Receiver<BTreeSet<NodeId>>,
    udp: SocketAddr,
    tcp: SocketAddr,
    metrics: Option<SocketAddr>,
    endpoint: quinn::Endpoint,
    clients: Group,
    background: Group,
}

/// Tasks that end together.
#[derive(Clone, Default)]
pub(crate) struct Group {
    pub(crate) tracker: TaskTracker,
    pub(crate) cancel: CancellationToken,
}

impl Group {
    /// Runs a task that lives as long as the group; when it ends, the group ends.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let guard = self.cancel.clone().drop_guard();
        self.tracker.spawn(async move {
            let _guard = guard;
            task.await;
        });
    }

    /// Ends the group; `false` if its tasks were still running after the deadline.
    pub(crate) async fn stop(&self, deadline: Duration) -> bool {
        self.cancel.cancel();
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok()
    }
}

impl Server {
    /// Starts a coordinator; when this returns, it serves.
    ///
    /// # Errors
    /// When the state or a port cannot be used; the error says what to do.
    pub async fn start(options: ServeOptions) -> anyhow::Result<Self> {
        backup::resume(&options.state_dir).context("an interrupted restore cannot be ended")?;
        let identity =
            Identity::load_or_create(&options.state_dir).context("cannot use the coordinator's key")?;
        let coordinators = options.mesh.coordinators.clone();
        let registry = Registry::open(&options.state_dir, options.mesh)
            .await
            .with_context(|| format!("cannot open the state in {}", options.state_dir.display()))?;
        let socket = FrontSocket::bind(options.listen_udp)
            .map_err(|error| explain_bind(error, "UDP", options.listen_udp, "--listen-udp"))?;
        let second = observer::bind(options.listen_stun, options.listen_udp).map_err(|error| {
            let wanted = options.listen_stun.unwrap_or(options.listen_udp);
            explain_bind(error, "UDP", wanted, "--listen-stun")
        })?;
        let observer = Observer::new(second);
        let knocker = observer.knocker();
        // A port that nobody chose is open to nobody behind a router.
        let announced = options.listen_stun.map(|_| knocker.port());
        let tcp = TcpFront::bind(options.listen_tcp)
            .await
            .map_err(|error| explain_bind(error, "TCP", options.listen_tcp, "--listen-tcp"))?;

        let (relay, inbox) = RelayHandle::channel();
        let front = Front::new(socket, RelayCore::new(Instant::now(), options.relay), inbox);
        let quic = server_config(&identity.pkcs8).context("cannot use the coordinator's key for TLS")?;
        let endpoint = front.endpoint(quic).context("cannot start QUIC")?;
        let stats = Arc::new(ControlStats::default());
        let (hub, hub_handle) = Hub::new(registry.clone(), relay.clone(), stats.clone());
        let (online, outside) = (hub_handle.online(), hub_handle.outside());
        let sources = Sources {
            front: front.stats(),
            control: stats.clone(),
            tcp: tcp.stats(),
            relay: relay.clone(),
            registry: registry.clone(),
            online: online.clone(),
        };
        let metrics = match options.metrics {
            Some(address) => Some(
                MetricsServer::bind(address, sources)
                    .await
                    .map_err(|error| explain_bind(error, "metrics", address, "--metrics"))?,
            ),
            None => None,
        };
        let info = AdminInfo { identity: identity.clone(), coordinators, online: online.clone() };
        let admin = AdminServer::bind(&options.state_dir, registry.clone(), info)?;
        let stream_relay = relay.clone();
        let ports = Ports { relay, knocker };
        let reviewer = options.kubernetes.map(Reviewer::new);
        let takes_service_accounts = reviewer.is_some();
        let coordinator =
            Coordinator::new(registry.clone(), hub_handle, ports, stats.clone()).with_reviewer(reviewer);
        let mut door = Door::new(Arc::new(coordinator), stats).with_observers(announced);
        if takes_service_accounts {
            door = door.with_feature(SERVICE_ACCOUNTS);
        }
        let control = ControlServer::new(endpoint.clone(), door.clone());
        let streams = Streams { door, relay: stream_relay, tls: StreamTls::new(&identity.pkcs8)? };

        let (clients, background) = (Group::default(), Group::default());
        let server = Self {
            registry,
            pin: identity.pin,
            online,
            udp: front.local_addr(),
            tcp: tcp.local_addr().context("the TCP port has no address")?,
            metrics: metrics.as_ref().map(MetricsServer::local_addr).transpose()?,
            endpoint,
            clients: clients.clone(),
            background: background.clone(),
        };
        background.spawn(front.run(background.cancel.clone()));
        background.spawn(observer.run(background.cancel.clone()));
        let hub_cancel = background.cancel.clone();
        background.spawn(async move {
            if let Err(error) = hub.run(hub_cancel).await {
                tracing::error!(%error, "the hub failed");
            }
        });
        background.spawn(admin.run(background.cancel.clone()));
        if let Some(metrics) = metrics {
            background.spawn(metrics.run(background.tracker.clone(), background.cancel.clone()));
        }
        if let Some(options) = options.dyndns {
            let kept = dyndns::keep(options, outside, background.cancel.clone());
            // The mesh goes on without.
            background.tracker.spawn(async move {
                if let Err(error) = kept.await {
                    tracing::error!(%error, "the dynamic DNS name cannot be kept");
                }
            });
        }
        clients.spawn(tcp.run(streams, clients.tracker.clone(), clients.cancel.clone()));
        clients.spawn(control.run(clients.tracker.clone(), clients.cancel.clone()));
        Ok(server)
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

    /// Returns where metrics are shown.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// Returns the pin of the coordinator's key.
    #[must_use]
    pub fn pin(&self) -> KeyPin {
        self.pin
    }

    /// Returns the registry.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns who is connected, now and as it changes.
    #[must_use]
    pub fn online(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        self.online.clone()
    }

    /// Waits until a part has ended by itself: the server is to be stopped then. Cancel-safe.
    pub async fn failed(&self) {
        tokio::select! {
            () = self.clients.cancel.cancelled() => {}
            () = self.background.cancel.cancelled() => {}
        }
    }

    /// Says goodbye to every client and stops.
    pub async fn stop(self) {
        say_goodbye(&self.clients, &self.endpoint, &self.background).await;
        match tokio::time::timeout(STOP_DEADLINE, self.registry.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the store was not closed"),
            Err(_) => tracing::warn!("the store did not close in time; nothing is lost"),
        }
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// As [`Server::start`]; and when a part of the server ended by itself.
pub async fn run(options: ServeOptions) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    let server = Server::start(options).await?;
    tracing::info!(udp_port = server.udp.port(), tcp_port = server.tcp.port(), "serving");
    // Not being under systemd is no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let failed = tokio::select! {
        biased;
        () = stop => false,
        () = server.failed() => true,
    };
    tracing::info!("stopping");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    server.stop().await;
    anyhow::ensure!(!failed, "a part of the coordinator ended by itself; the log says why");
    Ok(())
}

/// Ends what speaks to clients, then QUIC, then what both needed.
pub(crate) async fn say_goodbye(clients: &Group, endpoint: &quinn::Endpoint, background: &Group) {
    if !clients.stop(GOODBYE_DEADLINE).await {
        tracing::warn!("some clients did not take their goodbye in time");
    }
    endpoint.close(VarInt::from_u32(0), b"stopping");
    let _ = tokio::time::timeout(STOP_DEADLINE, endpoint.wait_idle()).await;
    if !background.stop(STOP_DEADLINE).await {
        tracing::warn!("some tasks did not end in time");
    }
}

/// Returns what waits for SIGTERM or SIGINT, whichever comes first from now on.
pub(crate) fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Says what to do about a port that cannot be had.
pub(crate) fn explain_bind(error: io::Error, what: &str, address: SocketAddr, flag: &str) -> anyhow::Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another program (perhaps another coordinator) has it: stop that, or choose another port with {flag}"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 need CAP_NET_BIND_SERVICE: grant it, or choose a higher port with {flag}"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("no interface of this machine has this address: choose one with {flag}, such as [::]")
        }
        _ => format!("choose another address with {flag}"),
    };
    anyhow::Error::new(error).context(format!("cannot listen on {what} {address}: {advice}"))
}
