//! One turn after another: what the driver's thread does.

use std::{
    future::poll_fn,
    io,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use mesh_engine::{
    Engine,
    batch::{RxBatch, SocketId},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
    time::Sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    DriverEvent, Parts, Request,
    counters::{Counter, Counters},
    outbox::Outbox,
    pace::{self, Moved, Pace, Side},
    sending::{Outlet, Sending},
    silence::Silence,
    streams::Streams,
};
use crate::io::{
    registered::register,
    tun::{self, Tun},
    udp::{RECV_BATCH, RECV_BUFFER_LEN, Socket},
};

mod inbound;
mod outbound;

/// A turn that has moved so many bytes may have missed that another source became ready.
const LONG_TURN: usize = 64 * 1024;

/// Requests per turn.
const REQUESTS: usize = 16;

/// The driver's state.
pub(super) struct Driver<T: Tun> {
    engine: Engine,
    /// This node's mesh addresses: no datagram of the underlay may come to them.
    overlay: Vec<IpAddr>,
    tun: Option<AsyncFd<T>>,
    sending: Sending,
    requests: mpsc::Receiver<Request<T>>,
    outbox: Outbox,
    counters: Counters,
    timer: Pin<Box<Sleep>>,
    /// Whether the timer stands for something.
    armed: Option<Instant>,
    tun_buffer: Box<[u8]>,
    udp_buffer: Box<[u8]>,
    packets: RxBatch,
    pace: Pace,
    moved: Moved,
    streams: Streams,
    silence: Silence,
}

/// What a turn has to look at.
struct Ready<T> {
    request: Option<Request<T>>,
    v4: bool,
    v6: bool,
    punched: Vec<SocketId>,
    tun: bool,
    stream: bool,
    timer: bool,
    writable: bool,
    backlog: bool,
}

impl<T> Ready<T> {
    /// Returns the side that is ready, if nothing else is.
    fn only_side(&self) -> Option<Side> {
        if self.request.is_some() || self.stream || self.timer || self.writable || self.backlog {
            return None;
        }
        match (self.v4 || self.v6 || !self.punched.is_empty(), self.tun) {
            (true, false) => Some(Side::Udp),
            (false, true) => Some(Side::Tun),
            (true, true) | (false, false) => None,
        }
    }
}

impl<T: Tun> Driver<T> {
    /// Makes a driver. Must be called within the driver's runtime.
    pub(super) fn new(
        parts: Parts<T>,
        requests: mpsc::Receiver<Request<T>>,
        outbox: Outbox,
    ) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            overlay: parts.config.addresses.clone(),
            engine: Engine::new(parts.config, parts.seed, now),
            tun: Some(register(parts.tun, Interest::READABLE)?),
            sending: Sending::new(parts.udp)?,
            requests,
            outbox,
            counters: Counters::default(),
            timer: Box::pin(tokio::time::sleep_until(now.into())),
            armed: None,
            tun_buffer: vec![0; tun::READ_BUFFER_LEN].into_boxed_slice(),
            udp_buffer: vec![0; RECV_BATCH * RECV_BUFFER_LEN].into_boxed_slice(),
            packets: RxBatch::default(),
            pace: Pace::default(),
            moved: Moved::default(),
            streams: Streams::default(),
            silence: Silence::default(),
        })
    }

    /// Turns until cancelled.
    pub(super) async fn run(mut self, cancel: &CancellationToken) {
        self.drain(Instant::now());
        let cancelled = cancel.cancelled();
        tokio::pin!(cancelled);
        loop {
            let ready = tokio::select! {
                biased;
                () = &mut cancelled => break,
                ready = poll_fn(|context| self.poll_ready(context)) => ready,
            };
            let mut now = Instant::now();
            if self.pace.begin(ready.only_side(), now) {
                // This thread has nothing else to do; the runtime's timer is too coarse.
                std::thread::sleep(pace::WAIT);
                now = Instant::now();
            }
            self.turn(ready, now);
            let moved = std::mem::take(&mut self.moved);
            self.pace.end(moved, Instant::now());
            if moved.bytes >= LONG_TURN {
                // A source that stays ready would keep the runtime from looking at the others.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Waits until at least one source is ready, and tells all that are.
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Ready<T>> {
        let readable = |socket: &Option<AsyncFd<Socket>>, context: &mut Context<'_>| {
            socket.as_ref().is_some_and(|socket| socket.poll_read_ready(context).is_ready())
        };
        let mut ready = Ready {
            v4: false,
            v6: false,
            punched: self.sending.punched.poll_ready(context),
            request: None,
            tun: false,
            stream: self.streams.poll_ready(context),
            timer: false,
            writable: false,
            backlog: false,
        };
        if let Poll::Ready(request) = self.requests.poll_recv(context) {
            ready.request = request;
        }
        ready.v4 = readable(&self.sending.v4, context);
        ready.v6 = readable(&self.sending.v6, context);
        match self.sending.blocked() {
            Some(socket) => ready.writable = socket.poll_write_ready(context).is_ready(),
            None => ready.backlog = self.engine.has_backlog(),
        }
        if !self.engine.is_backlog_full() {
            let tun = self.tun.as_ref();
            ready.tun = tun.is_some_and(|tun| tun.poll_read_ready(context).is_ready());
        }
        if self.armed.is_some() {
            ready.timer = self.timer.as_mut().poll(context).is_ready();
        }
        let udp = ready.v4 || ready.v6 || !ready.punched.is_empty();
        let readable = udp || ready.tun || ready.stream;
        let writable = ready.writable || ready.backlog;
        let any = ready.request.is_some() || readable || writable || ready.timer;
        if any { Poll::Ready(ready) } else { Poll::Pending }
    }

    fn turn(&mut self, ready: Ready<T>, now: Instant) {
        if let Some(request) = ready.request {
            self.handle_request(request, now);
            for _ in 1..REQUESTS {
                let Ok(request) = self.requests.try_recv() else { break };
                self.handle_request(request, now);
            }
        }
        if ready.stream {
            self.receive_streams(now);
        }
        if ready.v4 {
            self.receive(Outlet::V4, now);
        }
        if ready.v6 {
            self.receive(Outlet::V6, now);
        }
        for socket in ready.punched {
            self.receive(Outlet::Punched(socket), now);
        }
        if ready.writable {
            self.sending.flush(&mut self.counters);
        }
        let sealed = if ready.tun { self.read_tun(now) } else { 0 };
        self.seal_backlog(sealed, now);
        if self.armed.is_some_and(|at| at <= now) {
            self.armed = None;
            self.engine.handle_timeout(now);
        }
        self.drain(now);
    }

    fn handle_request(&mut self, request: Request<T>, now: Instant) {
        match request {
            Request::Command(command, reply) => {
                self.engine.handle_command(command, now);
                // Whoever asked may have gone.
                let _ = reply.send(());
            }
            Request::Snapshot(reply) => {
                // Whoever asked may have gone.
                let _ = reply.send((now, self.engine.snapshot(now), self.counters.clone()));
            }
            Request::SetStream(relay, pipe) => {
                let outbound = self.streams.set(relay, pipe);
                self.sending.streams.insert(relay, outbound);
            }
            Request::SetTun(tun) => match register(tun, Interest::READABLE) {
                Ok(tun) => self.tun = Some(tun),
                Err(error) => {
                    tracing::warn!(%error, "the new tun cannot be registered");
                    self.outbox.push(DriverEvent::TunLost);
                }
            },
        }
    }

    /// Takes out all that the engine has to give, and sets the timer anew.
    fn drain(&mut self, now: Instant) {
        if let Some(sockets) = self.engine.poll_sockets() {
            self.sending.punched.set(sockets);
        }
        loop {
            let more = self.engine.poll_transmit(now, &mut self.sending.arena);
            if self.sending.blocked().is_none() {
                self.sending.flush(&mut self.counters);
            }
            if !more || self.sending.blocked().is_some() {
                break;
            }
        }
        while let Some(packet) = self.engine.poll_packet() {
            match &self.tun {
                Some(tun) => {
                    let refused = tun.get_ref().try_write(&packet).is_err();
                    self.counters.count(Counter::TunWrite, refused.into());
                }
                None => self.counters.count(Counter::TunAway, 1),
            }
        }
        while let Some(event) = self.engine.poll_event() {
            self.outbox.push(DriverEvent::Engine(event));
        }
        let next = self.engine.poll_timeout().map(|wakeup| wakeup.at);
        if let Some(at) = next.filter(|_| next != self.armed) {
            self.timer.as_mut().reset(at.into());
        }
        self.armed = next;
    }
}
