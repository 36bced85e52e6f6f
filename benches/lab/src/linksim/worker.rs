//! The thread of the simulator: reads, waits, writes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use super::model::{Direction, Verdict};
use super::{Command, Counters, MAX_MTU, packet, tun};

/// Packets read from one device before the others have their turn.
const READ_BATCH: usize = 64;
/// Packets under way at once; beyond, the oldest rule of routers holds and new ones are dropped.
const MAX_UNDER_WAY: usize = 65_536;

/// Everything the thread owns.
pub(super) struct Worker {
    started: Instant,
    wake: Arc<EventFd>,
    inbox: Receiver<(Command, SyncSender<()>)>,
    ports: Vec<Port>,
    /// Whole-address routes, which nearly all are.
    hosts: BTreeMap<IpAddr, usize>,
    /// The others, longest prefix first.
    prefixes: Vec<(IpNet, usize)>,
    /// Pairs of sites that are cut off from each other, smaller index first.
    cut_pairs: BTreeSet<(usize, usize)>,
    under_way: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    sequence: u64,
    rng: ChaCha8Rng,
}

struct Port {
    tun: OwnedFd,
    up: Direction,
    down: Direction,
    routes: Vec<IpNet>,
    is_connected: bool,
    counters: Arc<Counters>,
}

/// A packet under way, or room for one.
struct Slot {
    buffer: Box<[u8; MAX_MTU as usize]>,
    length: usize,
    to: usize,
    next: Next,
}

#[derive(Clone, Copy)]
enum Next {
    /// It comes to the head of the receiver's line.
    EnterDown,
    /// It comes out at the receiver.
    Deliver,
}

impl Worker {
    pub(super) fn new(seed: u64, wake: Arc<EventFd>, inbox: Receiver<(Command, SyncSender<()>)>) -> Self {
        Self {
            started: Instant::now(),
            wake,
            inbox,
            ports: Vec::new(),
            hosts: BTreeMap::new(),
            prefixes: Vec::new(),
            cut_pairs: BTreeSet::new(),
            under_way: BinaryHeap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// Runs until told to stop.
    pub(super) fn run(mut self) {
        tun::set_exact_timers();
        let mut ready = Vec::new();
        loop {
            self.release();
            let told = match self.wait(&mut ready) {
                Ok(told) => told,
                Err(error) => {
                    tracing::error!(%error, "the link simulator gives up");
                    return;
                }
            };
            if told && !self.obey() {
                return;
            }
            for port in ready.drain(..) {
                self.read(port);
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Sleeps until a packet is due, a device has packets, or there is a command (then true).
    fn wait(&self, ready: &mut Vec<usize>) -> io::Result<bool> {
        let mut fds = Vec::with_capacity(self.ports.len() + 1);
        fds.push(PollFd::new(self.wake.as_fd(), PollFlags::POLLIN));
        fds.extend(self.ports.iter().map(|port| PollFd::new(port.tun.as_fd(), PollFlags::POLLIN)));
        let timeout = self.under_way.peek().map(|Reverse((due, ..))| {
            TimeSpec::from_duration(Duration::from_nanos(due.saturating_sub(self.now())))
        });
        match ppoll(&mut fds, timeout, None) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let is_ready =
            |fd: &PollFd<'_>| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLIN));
        ready.extend((0..self.ports.len()).filter(|port| is_ready(&fds[port + 1])));
        Ok(is_ready(&fds[0]))
    }

    /// Moves on every packet whose time has come.
    fn release(&mut self) {
        while let Some(&Reverse((due, _, slot))) = self.under_way.peek()
            && due <= self.now()
        {
            self.under_way.pop();
            match self.slots[slot].next {
                Next::EnterDown => self.enter_down(slot, due),
                Next::Deliver => self.deliver(slot),
            }
        }
    }

    fn read(&mut self, from: usize) {
        for _ in 0..READ_BATCH {
            let slot = self.take_slot();
            let read = nix::unistd::read(&self.ports[from].tun, &mut self.slots[slot].buffer[..]);
            match read {
                Ok(length) if length > 0 => {
                    self.slots[slot].length = length;
                    self.enter_up(slot, from);
                }
                _ => {
                    self.free.push(slot);
                    return;
                }
            }
        }
    }

    fn enter_up(&mut self, slot: usize, from: usize) {
        let now = self.now();
        count(&self.ports[from].counters.sent);
        let to = self.route(slot);
        let Slot { buffer, length, .. } = &mut self.slots[slot];
        let length = *length;
        let (Some(to), Some(())) = (to, to.and_then(|_| packet::take_hop(&mut buffer[..length]))) else {
            count(&self.ports[from].counters.unroutable);
            self.free.push(slot);
            return;
        };
        self.slots[slot].to = to;
        if !self.are_connected(from, to) || self.under_way.len() >= MAX_UNDER_WAY {
            count(&self.ports[from].counters.cut);
            self.free.push(slot);
            return;
        }
        let verdict = self.ports[from].up.admit(now, length, &mut self.rng);
        let Some(due) = self.judge(verdict, slot, from) else { return };
        if self.ports[to].down.is_shaped() && due > now {
            self.slots[slot].next = Next::EnterDown;
            self.push(due, slot);
        } else {
            self.enter_down(slot, due);
        }
    }

    /// Decides about the receiver's line for a packet that reaches it at `at`.
    fn enter_down(&mut self, slot: usize, at: u64) {
        let Slot { length, to, .. } = self.slots[slot];
        let verdict = self.ports[to].down.admit(at, length, &mut self.rng);
        let Some(due) = self.judge(verdict, slot, to) else { return };
        if due <= self.now() {
            self.deliver(slot);
        } else {
            self.slots[slot].next = Next::Deliver;
            self.push(due, slot);
        }
    }

    /// Counts and forgets a packet that a line drops.
    fn judge(&mut self, verdict: Verdict, slot: usize, line: usize) -> Option<u64> {
        let counters = &self.ports[line].counters;
        match verdict {
            Verdict::Due(due) => return Some(due),
            Verdict::Lost => count(&counters.lost),
            Verdict::QueueFull => count(&counters.queue_full),
        }
        self.free.push(slot);
        None
    }

    fn deliver(&mut self, slot: usize) {
        let Slot { buffer, length, to, .. } = &self.slots[slot];
        let port = &self.ports[*to];
        // A cut line loses what is under way too; a device that is down refuses the write.
        if port.is_connected && nix::unistd::write(&port.tun, &buffer[..*length]).is_ok() {
            count(&port.counters.received);
            port.counters.received_bytes.fetch_add(*length as u64, Ordering::Relaxed);
        } else {
            count(&port.counters.cut);
        }
        self.free.push(slot);
    }

    fn route(&self, slot: usize) -> Option<usize> {
        let Slot { buffer, length, .. } = &self.slots[slot];
        let destination = packet::destination(&buffer[..*length])?;
        let by_prefix =
            || self.prefixes.iter().find(|(prefix, _)| prefix.contains(&destination)).map(|(_, to)| *to);
        self.hosts.get(&destination).copied().or_else(by_prefix)
    }

    fn are_connected(&self, a: usize, b: usize) -> bool {
        self.ports[a].is_connected
            && self.ports[b].is_connected
            && (self.cut_pairs.is_empty() || !self.cut_pairs.contains(&(a.min(b), a.max(b))))
    }

    fn push(&mut self, due: u64, slot: usize) {
        self.sequence += 1;
        self.under_way.push(Reverse((due, self.sequence, slot)));
    }

    fn take_slot(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            let buffer = Box::new([0; MAX_MTU as usize]);
            self.slots.push(Slot { buffer, length: 0, to: 0, next: Next::Deliver });
            self.slots.len() - 1
        })
    }

    /// Carries out all waiting commands; false if it is time to stop.
    fn obey(&mut self) -> bool {
        let _ = self.wake.read();
        loop {
            let (command, done) = match self.inbox.try_recv() {
                Ok(order) => order,
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            };
            match command {
                Command::Attach { tun, line, counters } => self.ports.push(Port {
                    tun,
                    up: Direction::new(line.up),
                    down: Direction::new(line.down),
                    routes: Vec::new(),
                    is_connected: true,
                    counters,
                }),
                Command::SetLine { id, line } => {
                    self.ports[id].up.set(line.up);
                    self.ports[id].down.set(line.down);
                }
                Command::SetRoutes { id, routes } => {
                    self.ports[id].routes = routes;
                    self.index_routes();
                }
                Command::SetConnected { id, connected } => self.ports[id].is_connected = connected,
                Command::SetPair { a, b, connected } => {
                    let pair = (a.min(b), a.max(b));
                    if connected {
                        self.cut_pairs.remove(&pair)
                    } else {
                        self.cut_pairs.insert(pair)
                    };
                }
                Command::Stop => {
                    let _ = done.send(());
                    return false;
                }
            }
            let _ = done.send(());
        }
    }

    fn index_routes(&mut self) {
        let all = self
            .ports
            .iter()
            .enumerate()
            .flat_map(|(id, port)| port.routes.iter().map(move |net| (*net, id)));
        let (hosts, mut prefixes): (Vec<_>, Vec<_>) =
            all.partition(|(net, _)| net.prefix_len() == net.max_prefix_len());
        self.hosts = hosts.into_iter().map(|(net, id)| (net.addr(), id)).collect();
        prefixes.sort_by_key(|(net, _)| Reverse(net.prefix_len()));
        self.prefixes = prefixes;
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
