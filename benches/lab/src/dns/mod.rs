//! The lab's name server: authoritative for whatever it is told, over UDP, from a namespace that every site reaches.
//!
//! Records may change at any time, as a DuckDNS name does that follows its owner; the TTL is low, so that whoever
//! honours it sees the change soon. A name that is not known does not exist; a name without an address of the asked
//! family has no data.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;

use crate::netns::Netns;

mod wire;

/// The TTL of all records unless told otherwise.
const DEFAULT_TTL: Duration = Duration::from_secs(2);

/// A running name server; dropping it stops it.
#[derive(Debug)]
pub struct DnsServer {
    zone: Arc<Mutex<Zone>>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// What the server knows.
#[derive(Debug)]
struct Zone {
    /// Lower-case names without a final dot.
    records: BTreeMap<String, Vec<IpAddr>>,
    ttl: Duration,
    queries: u64,
    is_silent: bool,
}

impl DnsServer {
    /// Starts a server on `address` in `netns`.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound there.
    pub fn start(netns: &Netns, address: SocketAddr) -> anyhow::Result<Self> {
        let socket = netns.enter(|| UdpSocket::bind(address))?;
        let socket = socket.with_context(|| format!("name server on {address}"))?;
        let zone = Zone { records: BTreeMap::new(), ttl: DEFAULT_TTL, queries: 0, is_silent: false };
        let zone = Arc::new(Mutex::new(zone));
        let stop = Arc::new(EventFd::new()?);
        let thread = {
            let (zone, stop) = (Arc::clone(&zone), Arc::clone(&stop));
            std::thread::Builder::new().name("dns".into()).spawn(move || {
                if let Err(error) = serve(&socket, &stop, &zone) {
                    tracing::error!(%error, "the name server gives up");
                }
            })?
        };
        Ok(Self { zone, stop, thread: Some(thread) })
    }

    /// Sets the addresses of a name, replacing the former ones.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        self.zone().records.insert(name.to_ascii_lowercase(), addresses.to_vec());
    }

    /// Makes a name unknown.
    pub fn remove(&self, name: &str) {
        self.zone().records.remove(&name.to_ascii_lowercase());
    }

    /// Sets the TTL of all records; whole seconds.
    pub fn set_ttl(&self, ttl: Duration) {
        self.zone().ttl = ttl;
    }

    /// Makes the server deaf, or hear again.
    pub fn set_silent(&self, silent: bool) {
        self.zone().is_silent = silent;
    }

    /// How many queries have been answered.
    pub fn queries(&self) -> u64 {
        self.zone().queries
    }

    fn zone(&self) -> MutexGuard<'_, Zone> {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, stop: &EventFd, zone: &Mutex<Zone>) -> io::Result<()> {
    let mut buffer = [0; wire::MAX_QUERY];
    loop {
        let mut fds =
            [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, None, None) {
            Ok(_) if fds[0].any().unwrap_or(true) => return Ok(()),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        // An ICMP error about an earlier answer comes back here; it concerns nobody.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let Some(query) = wire::Query::parse(&buffer[..length]) else { continue };
        let answer = {
            let mut zone = zone.lock().unwrap_or_else(PoisonError::into_inner);
            if zone.is_silent {
                continue;
            }
            zone.queries += 1;
            query.answer(zone.records.get(query.name()).map(Vec::as_slice), zone.ttl)
        };
        let _ = socket.send_to(&answer, from);
    }
}
