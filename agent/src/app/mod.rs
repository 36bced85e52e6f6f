//! Assembly of `mesh-agent run`: which part gets what, and in which order they start and stop.
//!
//! ```text
//! lock the state directory (a pod waits for the one before it), read identity and membership
//! UDP sockets, TUN, netlink                          opened, or taken over from the process before (`keep`); errors here
//!                                                    say what to do and end the start
//! drivers (a thread for each engine), control client, local API
//! wiring: cached map -> plan -> reconcile -> READY   the coordinator may be away
//! SIGTERM, SIGINT: control and local API end, routes, peers and addresses go, the drivers end, the TUN with them; where
//! TUN and sockets are kept for a next process, all stays as it is, peers keep what is for this node until that one is
//! there (`parting`), and what they have sent before passes until the last moment
//! ```
//!
//! Tasks: the signal listener (holds nothing), the watchdog (`notify`; holds nothing), the network watch (hands over
//! whole bursts), frugality and crowding (hold nothing), the watch of the clocks (`wakes`, a thread; holds nothing), the
//! memory for the next process (`remembering`; writes with one system call), the wiring (this function; it is stopped
//! between two events), and those of the control client, the port mapping, the driver and the local API. A `kill -9` leaves
//! nothing: interface, addresses and routes go with the last descriptor of the TUN.

mod crowding;
mod face;
mod facts;
mod following;
mod frugality;
mod lifetimes;
mod notify;
mod opening;
mod parting;
mod remembering;
mod report;
mod turn;
mod wakes;
mod wiring;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use mesh_engine::command::Command;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::RunConfig,
    control::{self, ControlConfig, StreamOptions},
    driver,
    identity::{self, StateDir},
    keep::{Inherited, Keeper},
    kubernetes::{self, KubernetesHandle},
    local_api,
    logs::RecentLogs,
    nat64::Nat64,
    os::{
        Host as _,
        linux::{Netlink, Watch},
    },
    portmap,
    reconcile::Reconciler,
};

use crowding::Crowding;
use face::Face;
use facts::Facts;
use following::{Following, Own};
use lifetimes::LifetimeBook;
use opening::Opened;
use remembering::Memory;
use report::Reporter;
use turn::Turn;
use wiring::{Ended, Surroundings, Wiring};

/// How long the parts may take to end; then the process ends without them.
const STOP_DEADLINE: Duration = Duration::from_secs(3);

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, when a part of it ends by itself, or when this node was removed from the mesh.
pub async fn run(config: RunConfig, logs: RecentLogs) -> anyhow::Result<()> {
    let cancel = CancellationToken::new();
    stop_at_signals(&cancel)?;
    frugality::spawn(&cancel);
    let is_pod = kubernetes::is_pod();
    // A pod that has joined is a node's agent: another one's socket is of the pod whose place it takes.
    if let Some(kubernetes) = config.kubernetes.clone().filter(|_| is_pod)
        && identity::node_name(&config.state_dir)?.is_none()
        && kubernetes::beside::is_there(&config.socket).await
    {
        return kubernetes::beside::run(kubernetes, &config.socket, &config.state_dir, &cancel).await;
    }
    let state_dir = StateDir::open(&config.state_dir)?;
    let turn = if is_pod { Turn::Awaited } else { Turn::Now };
    let Some((_lock, handed_on)) = turn::lock(&state_dir, turn, &cancel).await? else { return Ok(()) };
    let reporter = Arc::new(Reporter::new(&config, &logs));
    let mut kept = match turn {
        Turn::Awaited => {
            Kept { keeper: Keeper::for_successor(state_dir.successor_socket()), inherited: handed_on }
        }
        Turn::Now => Kept { keeper: Keeper::from_env(), inherited: Inherited::take_from_env() },
    };
    let mut addresses = None;
    loop {
        match run_once(&config, &state_dir, &reporter, (&mut kept, addresses.take()), &cancel).await? {
            Ended::Stopped => return Ok(()),
            Ended::AddressesChanged(changed) => {
                tracing::info!("this node has new mesh addresses: starting over with them");
                opening::forget_all(&kept.keeper, config.shards);
                addresses = Some(changed);
            }
        }
    }
}

/// What is kept over a restart.
struct Kept {
    keeper: Keeper,
    /// What the process before this one has left.
    inherited: Inherited,
}

/// Runs the agent with mesh addresses that do not change.
async fn run_once(
    config: &RunConfig,
    state_dir: &StateDir,
    reporter: &Arc<Reporter>,
    (kept, addresses): (&mut Kept, Option<Vec<IpAddr>>),
    cancel: &CancellationToken,
) -> anyhow::Result<Ended> {
    let (identity, mut membership) = identity::load(state_dir)?;
    if let Some(addresses) = addresses {
        membership.node.addresses = addresses;
    }
    let keeper = kept.keeper.clone();
    let inherited = std::mem::take(&mut kept.inherited);
    let Opened { tun, udp, reading, memory, companions, instance } =
        opening::open(config, identity.node_key(), &keeper, inherited)?;
    let port = udp.first().map_or(config.listen_port, |sockets| sockets.port);
    let netlink = Netlink::open(&config.interface)?;
    let watch = Watch::open()?;

    let (tracker, drivers) = (TaskTracker::new(), TaskTracker::new());
    let front = cancel.child_token();
    let back = CancellationToken::new();
    let parts = driver::Parts {
        config: engine_config(&identity, &membership, config),
        seed: seed()?,
        tun,
        udp,
        reading,
    };
    let (engine, driver_events) = driver::spawn(parts, &back, &drivers)?;
    engine.command(Command::SetLending { allowed: config.relay }).await?;
    let facts = Arc::new(Facts::new(&membership));
    let nat64 = Nat64::new(config.nat64);
    nat64.spawn(&front, &tracker);
    let control_config = ControlConfig {
        identity,
        membership: membership.clone(),
        state_dir: state_dir.clone(),
        stream: stream_options(config, &membership),
        stun: config.stun.clone(),
        nat64: nat64.clone(),
        lends: config.relay,
        // What cannot be told now is found out on the way.
        network: netlink.networks().await.ok().and_then(|networks| networks.id()),
        instance,
    };
    let (control, control_events) = control::spawn(control_config, &front, &tracker);
    control.set_routes(face::offers(&config.advertise, &[]));
    let lifetimes = LifetimeBook::load(state_dir, &front, &tracker);
    let port_map = portmap::spawn(config.port_mapping, port, state_dir, &front, &tracker);
    let kubernetes = config.kubernetes.as_ref().map(KubernetesHandle::new);
    let face = Arc::new(Face {
        engine: engine.clone(),
        control: control.clone(),
        facts: Arc::clone(&facts),
        reporter: Arc::clone(reporter),
        interface: config.interface.clone(),
        mtu: config.mtu,
        port_map: port_map.clone(),
        nat64: nat64.clone(),
        proxy: config.stream.proxy.clone(),
        portal_url: config.portal_url.clone(),
        subnets: config.advertise.clone(),
        kubernetes: kubernetes.clone(),
        beside: std::sync::Mutex::default(),
        checking: tokio::sync::Mutex::default(),
        crowding: Crowding::spawn(&front),
    });
    if let (Some(kubernetes_config), Some(handle)) = (&config.kubernetes, &kubernetes) {
        let start = kubernetes::Start {
            config: kubernetes_config.clone(),
            mesh: Arc::clone(&face),
            handle: handle.clone(),
            state_dir: state_dir.clone(),
            socket: config.socket.clone(),
        };
        kubernetes::spawn(start, &front, &tracker)?;
    }
    local_api::serve(config.socket.clone(), face, front.clone(), &tracker)?;
    notify::spawn_watchdog(engine.clone(), &front, &tracker);
    remembering::spawn(memory, engine.clone(), &front, &tracker);
    let changes = wiring::spawn_watch(watch, &front, &tracker);
    let wakes = wakes::spawn(&front).context("the clocks cannot be watched")?;
    tracing::info!(interface = config.interface, port, engines = config.shards, "agent runs");

    let reconciler = Reconciler::new(netlink, engine.clone(), config.mtu);
    let own = Own {
        interface: config.interface.clone(),
        offloads: config.offloads,
        shards: config.shards,
        addresses: membership.node.addresses,
        port,
        keeper: keeper.clone(),
    };
    let following = Following::new(engine.clone(), Arc::clone(&facts), reconciler, own);
    let surroundings = Surroundings {
        port_map,
        nat64: nat64.changes(),
        lifetimes,
        kubernetes,
        is_resumed: reading == driver::Reading::WithPeers,
        companions,
    };
    let mut wiring = Wiring::new(engine.clone(), control, facts, following, surroundings);
    let inputs = wiring::Inputs { control: control_events, driver: driver_events, changes, wakes };
    let ended = wiring.run(inputs, &front, &back).await;

    notify::stopping();
    let keeps = matches!(ended, Ok(Ended::Stopped)) && keeper.hand_on();
    let parting = if keeps { parting::announce(&engine).await } else { None };
    front.cancel();
    tracker.close();
    if !keeps {
        match timeout(STOP_DEADLINE, wiring.clear()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "not everything was taken back; it goes with the interface")
            }
            Err(_) => tracing::warn!("the system does not answer; what is left goes with the interface"),
        }
    }
    end(&tracker).await;
    if let Some(until) = parting {
        sleep_until(until.into()).await;
    }
    back.cancel();
    drivers.close();
    end(&drivers).await;
    ended
}

/// Waits for tasks that were told to end.
async fn end(tasks: &TaskTracker) {
    if timeout(STOP_DEADLINE, tasks.wait()).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
}

/// What this run was told goes before what the join was told.
fn stream_options(config: &RunConfig, membership: &identity::Membership) -> StreamOptions {
    let mut options = config.stream.clone();
    let joined_with = membership.websocket_url.as_deref().and_then(|url| url.parse().ok());
    options.url = options.url.or(joined_with);
    options
}

fn engine_config(
    identity: &identity::Identity,
    membership: &identity::Membership,
    config: &RunConfig,
) -> mesh_engine::config::Config {
    mesh_engine::config::Config {
        id: membership.node.id,
        private_key: identity.wireguard_key().clone(),
        addresses: membership.node.addresses.clone(),
        allowed_ips: membership.node.allowed_ips.clone(),
        mtu: config.mtu,
        punch: config.punch,
        real_time: real_time(),
    }
}

/// Real time in milliseconds; a clock from before 1970 says nothing.
fn real_time() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn seed() -> anyhow::Result<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("the system has no random numbers")?;
    Ok(seed)
}

/// Cancels at SIGTERM and SIGINT. Whoever sends one twice waits all the same: the stop has a deadline of its own.
fn stop_at_signals(cancel: &CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;
    let cancel = cancel.clone();
    tokio::spawn(async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        cancel.cancel();
    });
    Ok(())
}
