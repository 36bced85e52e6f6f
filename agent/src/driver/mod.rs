//! The driver: owns one engine, and moves bytes and time between it and the sockets.
//!
//! It has a thread of its own and no runtime, so that nothing else in the process delays a packet. The thread turns
//! like this:
//!
//! ```text
//! wait for any of: UDP readable, TUN readable (unless the backlog is full), UDP writable (if full), a backlog (unless
//!                  UDP is full), the timer, the doorbell (cancellation, a request, a train of a byte stream)
//! now = clock                                            once per turn
//! requests -> engine
//! byte streams, up to 64 trains          -> engine, inner packets -> TUN
//! UDP, up to 8 trains per socket         -> engine, inner packets -> TUN
//! TUN, up to 64 reads                    -> engine, up to 256 KiB to be sealed, the rest to the backlog
//! backlog, what is left of the 256 KiB   -> engine
//! timer                                  -> engine
//! drain: trains -> UDP, packets of the engine's own -> TUN, events -> outbox, next timer
//! ```
//!
//! Every source gets its share of every turn, so none starves another, and after a long turn the thread looks at all of
//! them anew: a bulk transfer one way does not keep the answers of the other way waiting.
//!
//! What is read from the TUN is sealed at once. Where that is more than a turn's worth, or a UDP socket is full, it waits
//! in the engine's backlog, which is short and fair between flows; when that is full too, nothing is read, and the TUN's
//! queue and TCP's own limits push back. What is laid out is never dropped for want of room, so no half train is lost.
//!
//! Buffers are made once. Events wait in an `Outbox` that keeps the latest of each kind, so a slow listener costs
//! neither memory nor packets.
//!
//! Tasks: the thread; and one that waits for its end, so that the tracker knows of it. The thread ends at
//! cancellation only; if it panics, it cancels the rest.

mod counters;
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

use std::{thread, time::Instant};

use anyhow::Context;
use mesh_engine::{command::Command, config::Config, event::Event, snapshot::Snapshot};
use mesh_proto::netmap::RelayId;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::io::{stream::RelayPipe, tun::Tun, udp::UdpSockets};

pub use counters::{Counter, Counters};
pub use outbox::Events;

use outbox::outbox;
use turn::Driver;

/// Requests that wait for the driver; whoever sends more waits.
const REQUEST_QUEUE: usize = 64;

/// The thread's stack: the deepest calls are the kernel's message headers (about 10 KiB) and the handshake.
const STACK_LEN: usize = 512 * 1024;

/// What a driver is made of.
pub struct Parts<T> {
    /// The engine's settings.
    pub config: Config,
    /// The engine's seed: from the system's randomness.
    pub seed: [u8; 32],
    /// The TUN.
    pub tun: T,
    /// The sockets.
    pub udp: UdpSockets,
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

/// Speaks to the driver.
pub struct EngineHandle<T> {
    requests: mpsc::Sender<Request<T>>,
}

/// What is asked of the driver.
enum Request<T> {
    /// The reply says that the engine has it.
    Command(Command, oneshot::Sender<()>),
    Snapshot(oneshot::Sender<(Instant, Snapshot, Counters)>),
    SetTun(T),
    SetStream(RelayId, RelayPipe),
}

impl<T> Clone for EngineHandle<T> {
    fn clone(&self) -> Self {
        Self { requests: self.requests.clone() }
    }
}

impl<T: Tun> EngineHandle<T> {
    /// Gives the engine a command, and waits until it has it: packets that come after that are treated accordingly.
    ///
    /// # Errors
    /// When the driver has ended.
    pub async fn command(&self, command: Command) -> anyhow::Result<()> {
        let (reply, done) = oneshot::channel();
        self.request(Request::Command(command, reply)).await?;
        done.await.context("the driver has ended")
    }

    /// Returns what the engine looks like, when it looked so, and what the driver has counted.
    ///
    /// # Errors
    /// When the driver has ended.
    pub async fn snapshot(&self) -> anyhow::Result<(Instant, Snapshot, Counters)> {
        let (reply, answer) = oneshot::channel();
        self.request(Request::Snapshot(reply)).await?;
        answer.await.context("the driver has ended")
    }

    /// Replaces the TUN.
    ///
    /// # Errors
    /// When the driver has ended.
    pub async fn set_tun(&self, tun: T) -> anyhow::Result<()> {
        self.request(Request::SetTun(tun)).await
    }

    /// Gives the driver a relay's byte stream, in place of its older one.
    ///
    /// # Errors
    /// When the driver has ended.
    pub async fn set_stream(&self, relay: RelayId, pipe: RelayPipe) -> anyhow::Result<()> {
        self.request(Request::SetStream(relay, pipe)).await
    }

    async fn request(&self, request: Request<T>) -> anyhow::Result<()> {
        self.requests.send(request).await.ok().context("the driver has ended")
    }
}

/// Starts a driver; it ends at cancellation.
///
/// # Errors
/// When the system gives no thread, or no descriptors.
pub fn spawn<T: Tun>(
    parts: Parts<T>,
    cancel: &CancellationToken,
    tracker: &TaskTracker,
) -> anyhow::Result<(EngineHandle<T>, Events)> {
    let (requests, inbox) = mpsc::channel(REQUEST_QUEUE);
    let (outbox, events) = outbox();
    let (started, running) = std::sync::mpsc::channel();
    let (ending, ended) = oneshot::channel::<()>();
    let stop = cancel.clone();
    thread::Builder::new()
        .name("mesh-driver".to_owned())
        .stack_size(STACK_LEN)
        .spawn(move || {
            // Dropped at the very end, also by a panic: then the rest of the agent ends too.
            let _ending = ending;
            match Driver::new(parts, stop, inbox, outbox) {
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
            tracing::error!("the driver ended by itself");
            cancel.cancel();
        }
    });
    Ok((EngineHandle { requests }, events))
}
