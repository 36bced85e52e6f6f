//! The driver: owns one engine, and moves bytes and time between it and the sockets.
//!
//! A node has one or, on machines with many cores, several ([`mesh_engine::shard`]): each with a thread, sockets and, if the
//! system can, a queue of the TUN of its own. They share no state but their inboxes, in which they find what came to
//! another one, and the ends of byte streams. The first one drives the home shard, reads the byte streams, and tells
//! when the TUN is lost. Outside of this room they look like one.
//!
//! No runtime is on that thread, so that nothing else in the process delays a packet. It turns like this:
//!
//! ```text
//! wait for any of: UDP readable, TUN readable (unless the backlog is full), UDP writable (if full), a backlog (unless
//!                  UDP is full), the timer, the doorbell (cancellation, a request, a train of a byte stream,
//!                  something in the inbox)
//! now = clock                                            once per turn
//! requests -> engine
//! inbox: datagrams, up to 64             -> engine, inner packets -> TUN
//! byte streams, up to 64 trains          -> engine, inner packets -> TUN
//! UDP, up to 8 trains per socket         -> engine, inner packets -> TUN
//! TUN, up to 64 reads                    -> engine, up to 256 KiB to be sealed, the rest to the backlog
//! inbox: packets from the TUN, backlog, what is left of the 256 KiB -> engine
//! timer                                  -> engine
//! drain: trains -> UDP, packets of the engine's own -> TUN, events -> outbox, what is others' -> inboxes, next timer
//! ```
//!
//! Every source gets its share of every turn, so none starves another, and after each turn the thread looks at all of
//! them anew: a bulk transfer one way does not keep the answers of the other way waiting.
//!
//! What is read from the TUN is sealed at once. Where that is more than a turn's worth, or a UDP socket is full, it waits
//! in the engine's backlog, which is short and fair between flows; when that is full too, nothing is read, and the TUN's
//! queue and TCP's own limits push back. What is laid out is never dropped for want of room, so no half train is lost.
//!
//! Buffers are made once. Events wait in an `Outbox` that keeps the latest of each kind, so a slow listener costs
//! neither memory nor packets.
//!
//! Tasks, for each driver: the thread; and one that waits for its end, so that the tracker knows of it. The thread ends at
//! cancellation only; if it panics, it cancels the rest.

mod counters;
mod crossing;
mod outbox;
mod pace;
mod poller;
mod punched;
mod sending;
mod silence;
mod streams;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;
mod turn;

use std::{net::IpAddr, num::NonZeroU32, sync::Arc, thread, time::Instant};

use anyhow::Context;
use mesh_engine::{Engine, command::Command, config::Config, event::Event, snapshot::Snapshot};
use mesh_pipe::{Train, TrainSender};
use mesh_proto::netmap::RelayId;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::io::{stream::RelayPipe, tun::Tun, udp::UdpSockets};

pub use counters::{Arrivals, Counter, Counters};
pub use outbox::Events;

use crossing::Crossing;
use outbox::{Outbox, outbox};
use poller::Poller;
use turn::Driver;

/// Requests that wait for the driver; whoever sends more waits.
const REQUEST_QUEUE: usize = 64;

/// What there is to say where nobody answers.
const ENDED: &str = "the driver has ended";

/// The thread's stack: the deepest calls are the kernel's message headers (about 10 KiB) and the handshake.
const STACK_LEN: usize = 512 * 1024;

/// What the drivers are made of.
pub struct Parts<T> {
    /// The engines' settings.
    pub config: Config,
    /// The engines' seed: from the system's randomness.
    pub seed: [u8; 32],
    /// The queues of the TUN: one for each driver, or one for all of them, which the first one reads.
    pub tun: Vec<T>,
    /// The sockets of each driver.
    pub udp: Vec<UdpSockets>,
    /// When reading begins.
    pub reading: Reading,
}

/// When TUN and sockets are read for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// At once.
    AtOnce,
    /// When the peers are known. What has been waiting in a TUN and sockets that were kept over a restart is for them, and
    /// would be dropped before.
    WithPeers,
}

/// A queue of the TUN, as a driver has it.
struct Queue<T> {
    tun: Arc<T>,
    /// Whether it is read here; else it is another driver's, too.
    is_read: bool,
}

/// What one driver is made of.
struct Part<T> {
    engine: Engine,
    poller: Poller,
    queue: Queue<T>,
    udp: UdpSockets,
    reading: Reading,
    /// Where it has others beside it.
    crossing: Option<Crossing>,
    outbox: Outbox,
}

/// What a driver tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverEvent {
    /// The engine's own.
    Engine(Event),
    /// Somebody deleted the interface: give the driver a new TUN.
    TunLost,
    /// The host has been sending into the mesh for a while, and nothing at all came back.
    Unanswered,
}

/// Speaks to the drivers.
pub struct EngineHandle<T> {
    /// To each, the home shard's first.
    drivers: Arc<[mpsc::Sender<Request<T>>]>,
}

/// What is asked of a driver.
enum Request<T> {
    /// The reply says that the engine has it.
    Command(Command, oneshot::Sender<()>),
    Snapshot(oneshot::Sender<(Instant, Snapshot, Counters)>),
    SetTun(Queue<T>),
    /// What comes out of the stream is for the first driver.
    SetStream(RelayId, TrainSender, Option<mpsc::Receiver<Train>>),
}

impl<T> Clone for EngineHandle<T> {
    fn clone(&self) -> Self {
        Self { drivers: Arc::clone(&self.drivers) }
    }
}

impl<T: Tun> EngineHandle<T> {
    /// Gives the engines a command, and waits until all have it: packets that come after that are treated accordingly.
    ///
    /// # Errors
    /// When a driver has ended.
    pub async fn command(&self, command: Command) -> anyhow::Result<()> {
        let mut done = Vec::with_capacity(self.drivers.len());
        for driver in self.drivers.iter() {
            let (reply, has_it) = oneshot::channel();
            request(driver, Request::Command(command.clone(), reply)).await?;
            done.push(has_it);
        }
        for has_it in done {
            has_it.await.context(ENDED)?;
        }
        Ok(())
    }

    /// Returns what the engines look like together, when they looked so, and what the drivers have counted.
    ///
    /// # Errors
    /// When a driver has ended.
    pub async fn snapshot(&self) -> anyhow::Result<(Instant, Snapshot, Counters)> {
        let mut answers = Vec::with_capacity(self.drivers.len());
        for driver in self.drivers.iter() {
            let (reply, answer) = oneshot::channel();
            request(driver, Request::Snapshot(reply)).await?;
            answers.push(answer);
        }
        let mut whole: Option<(Instant, Snapshot, Counters)> = None;
        for answer in answers {
            let (at, snapshot, counters) = answer.await.context(ENDED)?;
            whole = Some(match whole {
                None => (at, snapshot, counters),
                Some((before, home, mut counted)) => {
                    counted.merge(&counters);
                    (at.max(before), Snapshot::merge(home, snapshot), counted)
                }
            });
        }
        whole.context(ENDED)
    }

    /// Replaces the queues of the TUN: one for each driver, or one for all of them.
    ///
    /// # Errors
    /// When a driver has ended.
    pub async fn set_tun(&self, queues: Vec<T>) -> anyhow::Result<()> {
        for (driver, queue) in self.drivers.iter().zip(share_out(queues, self.drivers.len())) {
            request(driver, Request::SetTun(queue)).await?;
        }
        Ok(())
    }

    /// Gives the drivers a relay's byte stream, in place of its older one.
    ///
    /// # Errors
    /// When a driver has ended.
    pub async fn set_stream(&self, relay: RelayId, pipe: RelayPipe) -> anyhow::Result<()> {
        let mut inbound = Some(pipe.inbound);
        for driver in self.drivers.iter() {
            let set = Request::SetStream(relay, pipe.outbound.clone(), inbound.take());
            request(driver, set).await?;
        }
        Ok(())
    }
}

async fn request<T>(driver: &mpsc::Sender<Request<T>>, request: Request<T>) -> anyhow::Result<()> {
    driver.send(request).await.ok().context(ENDED)
}

/// Gives each of so many drivers its queue; the first queue to all, if there are fewer.
fn share_out<T>(queues: Vec<T>, drivers: usize) -> Vec<Queue<T>> {
    let queues: Vec<_> = queues.into_iter().map(Arc::new).collect();
    let has_own = queues.len() >= drivers;
    let queue = |number: usize| {
        let tun = if has_own { queues.get(number) } else { queues.first() };
        tun.map(|tun| Queue { tun: Arc::clone(tun), is_read: has_own || number == 0 })
    };
    (0..drivers).filter_map(queue).collect()
}

/// Starts the drivers; they end at cancellation, and all of them if one does.
///
/// # Errors
/// When the system gives no threads, or no descriptors.
pub fn spawn<T: Tun>(
    parts: Parts<T>,
    cancel: &CancellationToken,
    tracker: &TaskTracker,
) -> anyhow::Result<(EngineHandle<T>, Events)> {
    let Parts { config, seed, tun, udp, reading } = parts;
    let count = u32::try_from(udp.len()).ok().and_then(NonZeroU32::new).context("no sockets for a driver")?;
    let engines = match count.get() {
        1 => vec![Engine::new(config.clone(), seed, Instant::now())],
        _ => Engine::shards(&config, seed, count, Instant::now()),
    };
    let pollers: Vec<_> =
        udp.iter().map(|_| Poller::new()).collect::<Result<_, _>>().context("the driver cannot start")?;
    let doorbells = pollers.iter().map(|poller| poller.doorbell().clone()).collect();
    let crossings: Vec<_> = match count.get() {
        1 => vec![None],
        _ => Crossing::between(doorbells).map(Some).collect(),
    };
    let queues = share_out(tun, udp.len());
    anyhow::ensure!(queues.len() == udp.len(), "no tun for a driver");
    let (outbox, events) = outbox();
    let mut drivers = Vec::with_capacity(udp.len());
    let parts = engines.into_iter().zip(pollers).zip(queues).zip(udp).zip(crossings);
    for (number, ((((engine, poller), queue), udp), crossing)) in parts.enumerate() {
        let part = Part { engine, poller, queue, udp, reading, crossing, outbox: outbox.clone() };
        drivers.push(spawn_one(number, part, config.addresses.clone(), (cancel, tracker))?);
    }
    Ok((EngineHandle { drivers: drivers.into() }, events))
}

/// Starts one driver.
fn spawn_one<T: Tun>(
    number: usize,
    part: Part<T>,
    overlay: Vec<IpAddr>,
    (cancel, tracker): (&CancellationToken, &TaskTracker),
) -> anyhow::Result<mpsc::Sender<Request<T>>> {
    let (requests, inbox) = mpsc::channel(REQUEST_QUEUE);
    let (started, running) = std::sync::mpsc::channel();
    let (ending, ended) = oneshot::channel::<()>();
    let stop = cancel.clone();
    let name = if number == 0 { "mesh-driver".to_owned() } else { format!("mesh-driver-{number}") };
    thread::Builder::new()
        .name(name)
        .stack_size(STACK_LEN)
        .spawn(move || {
            // Dropped at the very end, also by a panic: then the rest of the agent ends too.
            let _ending = ending;
            match Driver::new(part, overlay, stop, inbox) {
                Ok(driver) => {
                    drop(started.send(Ok(())));
                    if let Err(error) = driver.run() {
                        tracing::error!(%error, "the driver cannot wait any more");
                    }
                }
                Err(error) => drop(started.send(Err(error))),
            }
        })
        .context("no thread for the driver")?;
    running.recv().context("the driver's thread died")?.context("the driver cannot start")?;
    let cancel = cancel.clone();
    tracker.spawn(async move {
        // Nothing is ever sent: this waits for the sender to be dropped.
        let _ = ended.await;
        if !cancel.is_cancelled() {
            tracing::error!(number, "a driver ended by itself");
            cancel.cancel();
        }
    });
    Ok(requests)
}
