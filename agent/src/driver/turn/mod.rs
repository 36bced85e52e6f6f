//! One turn after another: what the driver's thread does.

use std::{
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use mesh_engine::{Engine, batch::RxBatch, command::Command};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{
    DriverEvent, Part, Queue, Reading, Request,
    counters::{Counter, Counters},
    crossing::Crossing,
    outbox::Outbox,
    pace::{self, Moved, Pace, Side},
    poller::{Poller, Ready, Source},
    sending::{Outlet, Sending},
    silence::Silence,
    streams::Streams,
};
use crate::io::{
    tun::{self, Tun},
    udp::{RECV_BATCH, RECV_BUFFER_LEN},
};

mod inbound;
mod outbound;
mod sharing;

/// Requests per turn.
const REQUESTS: usize = 16;

/// The driver's state.
pub(super) struct Driver<T: Tun> {
    engine: Engine,
    /// This node's mesh addresses: no datagram of the underlay may come to them.
    overlay: Vec<IpAddr>,
    poller: Poller,
    ready: Ready,
    tun: Option<Queue<T>>,
    sending: Sending,
    /// Whether TUN and sockets are watched.
    is_reading: bool,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    requests: mpsc::Receiver<Request<T>>,
    outbox: Outbox,
    counters: Counters,
    /// When the engine wants to be called.
    timer: Option<Instant>,
    tun_buffer: Box<[u8]>,
    udp_buffer: Box<[u8]>,
    packets: RxBatch,
    pace: Pace,
    moved: Moved,
    streams: Streams,
    silence: Silence,
    /// The way to the other drivers, where there are any.
    crossing: Option<Crossing>,
    /// How many packets had come out of the mesh, at all drivers, when that was looked at last.
    heard_elsewhere: u64,
}

/// What other threads have handed over.
struct Heard<T> {
    cancelled: bool,
    request: Option<Request<T>>,
    stream: bool,
}

impl<T> Heard<T> {
    const NOTHING: Self = Self { cancelled: false, request: None, stream: false };

    fn is_anything(&self) -> bool {
        self.cancelled || self.request.is_some() || self.stream
    }
}

impl<T: Tun> Driver<T> {
    /// Makes a driver.
    pub(super) fn new(
        part: Part<T>,
        overlay: Vec<IpAddr>,
        cancel: CancellationToken,
        requests: mpsc::Receiver<Request<T>>,
    ) -> io::Result<Self> {
        let Part { engine, poller, queue, udp, reading, crossing, outbox } = part;
        let watcher = poller.watcher()?;
        let mut driver = Self {
            overlay,
            engine,
            poller,
            // To hear the doorbell, all that ring it have to be told of it first.
            ready: Ready { rung: true, ..Ready::default() },
            tun: Some(queue),
            sending: Sending::new(udp, watcher),
            is_reading: false,
            cancelled: Box::pin(cancel.cancelled_owned()),
            requests,
            outbox,
            counters: Counters::default(),
            timer: None,
            tun_buffer: vec![0; tun::READ_BUFFER_LEN].into_boxed_slice(),
            udp_buffer: vec![0; RECV_BATCH * RECV_BUFFER_LEN].into_boxed_slice(),
            packets: RxBatch::default(),
            pace: Pace::default(),
            moved: Moved::default(),
            streams: Streams::default(),
            silence: Silence::default(),
            crossing,
            heard_elsewhere: 0,
        };
        match reading {
            Reading::AtOnce => driver.start_reading()?,
            Reading::WithPeers => {}
        }
        Ok(driver)
    }

    /// Has TUN and sockets watched, once.
    fn start_reading(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.is_reading, true) {
            if let Some(queue) = self.tun.as_ref().filter(|queue| queue.is_read) {
                self.sending.watcher.watch(&*queue.tun, Source::Tun)?;
            }
            self.sending.watch()?;
        }
        Ok(())
    }

    /// Turns until cancelled.
    ///
    /// # Errors
    /// When there is no waiting any more.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut now = Instant::now();
        self.drain(now);
        loop {
            self.poller.wait(self.patience(now), &mut self.ready)?;
            let heard = if self.ready.rung { self.hear() } else { Heard::NOTHING };
            if heard.cancelled {
                return Ok(());
            }
            now = Instant::now();
            if self.pace.begin(self.only_side(&heard, now), now) {
                // This thread has nothing else to do; the poller's timer is too coarse.
                std::thread::sleep(pace::WAIT);
                now = Instant::now();
            }
            self.turn(heard, now);
            now = Instant::now();
            self.pace.end(std::mem::take(&mut self.moved), now);
        }
    }

    /// Returns for how long there is nothing to do, if nothing comes.
    fn patience(&self, now: Instant) -> Option<Duration> {
        let ready = &self.ready;
        let is_busy = ready.rung
            || ready.udp()
            || ready.writable
            || self.may_read_tun()
            || self.may_seal()
            || self.has_handovers();
        let until = |at: Instant| at.saturating_duration_since(now);
        if is_busy { Some(Duration::ZERO) } else { self.timer.map(until) }
    }

    fn may_read_tun(&self) -> bool {
        self.ready.tun && !self.engine.is_backlog_full() && !self.is_congested()
    }

    fn may_seal(&self) -> bool {
        self.engine.has_backlog() && !self.sending.is_blocked()
    }

    /// Returns the side that is ready, if nothing else is to be done.
    fn only_side(&self, heard: &Heard<T>, now: Instant) -> Option<Side> {
        let is_due = self.timer.is_some_and(|at| at <= now);
        if heard.is_anything() || is_due || self.ready.writable || self.may_seal() || self.has_handovers() {
            return None;
        }
        match (self.ready.udp(), self.may_read_tun()) {
            (true, false) => Some(Side::Udp),
            (false, true) => Some(Side::Tun),
            (true, true) | (false, false) => None,
        }
    }

    /// Polls what other threads hand over, until nothing is left that would not ring anew.
    fn hear(&mut self) -> Heard<T> {
        let context = &mut Context::from_waker(self.poller.doorbell());
        let cancelled = self.cancelled.as_mut().poll(context).is_ready();
        let request = match self.requests.poll_recv(context) {
            Poll::Ready(request) => request,
            Poll::Pending => None,
        };
        let stream = self.streams.poll_ready(context);
        let heard = Heard { cancelled, request, stream };
        self.ready.rung = heard.is_anything();
        heard
    }

    fn turn(&mut self, heard: Heard<T>, now: Instant) {
        if let Some(request) = heard.request {
            self.handle_request(request, now);
            for _ in 1..REQUESTS {
                let Ok(request) = self.requests.try_recv() else { break };
                self.handle_request(request, now);
            }
        }
        self.take_handovers(now);
        if heard.stream {
            self.receive_streams(now);
        }
        if self.ready.v4 {
            self.receive(Outlet::V4, now);
        }
        if self.ready.v6 {
            self.receive(Outlet::V6, now);
        }
        if !self.ready.punched.is_empty() {
            for socket in self.ready.punched.clone() {
                self.receive(Outlet::Punched(socket), now);
            }
        }
        if std::mem::take(&mut self.ready.writable) && self.sending.is_blocked() {
            self.sending.flush(&mut self.counters);
        }
        let sealed = if self.ready.tun { self.read_tun(now) } else { 0 };
        let sealed = self.take_frames(sealed, now);
        self.seal_backlog(sealed, now);
        if self.timer.is_some_and(|at| at <= now) {
            self.engine.handle_timeout(now);
        }
        self.drain(now);
    }

    fn handle_request(&mut self, request: Request<T>, now: Instant) {
        match request {
            Request::Command(command, reply) => {
                let has_peers = matches!(command, Command::SetPeers(_));
                self.engine.handle_command(command, now);
                if has_peers && let Err(error) = self.start_reading() {
                    tracing::error!(%error, "the tun and the sockets cannot be watched");
                }
                // Whoever asked may have gone.
                let _ = reply.send(());
            }
            Request::Snapshot(reply) => {
                // Whoever asked may have gone.
                let _ = reply.send((now, self.engine.snapshot(now), self.counters.clone()));
            }
            Request::SetStream(relay, outbound, inbound) => {
                self.sending.streams.insert(relay, outbound);
                if let Some(inbound) = inbound {
                    self.streams.set(relay, inbound);
                }
            }
            Request::SetTun(queue) if !(queue.is_read && self.is_reading) => self.tun = Some(queue),
            Request::SetTun(queue) => match self.sending.watcher.watch(&*queue.tun, Source::Tun) {
                Ok(()) => self.tun = Some(queue),
                Err(error) => {
                    tracing::warn!(%error, "the new tun cannot be watched");
                    self.outbox.push(DriverEvent::TunLost);
                }
            },
        }
    }

    /// Takes out all that the engine has to give, and sets the timer anew.
    fn drain(&mut self, now: Instant) {
        if let Some(sockets) = self.engine.poll_sockets() {
            self.sending.set_punched(sockets);
        }
        loop {
            let more = self.engine.poll_transmit(now, &mut self.sending.arena);
            if !self.sending.is_blocked() {
                self.sending.flush(&mut self.counters);
            }
            if !more || self.sending.is_blocked() {
                break;
            }
        }
        while let Some(packet) = self.engine.poll_packet() {
            match &self.tun {
                Some(queue) => {
                    let refused = queue.tun.try_write(&packet).is_err();
                    self.counters.count(Counter::TunWrite, refused.into());
                }
                None => self.counters.count(Counter::TunAway, 1),
            }
        }
        while let Some(event) = self.engine.poll_event() {
            self.outbox.push(DriverEvent::Engine(event));
        }
        self.hand_over();
        self.timer = self.engine.poll_timeout().map(|wakeup| wakeup.at);
    }
}
