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
use mesh_proto::nat64::{Nat64Prefix, WELL_KNOWN_ADDRESSES, WELL_KNOWN_NAME};
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
    /// What IPv4 addresses are written behind for those who ask over IPv6 (DNS64).
    dns64: Option<Nat64Prefix>,
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
        let records =
            BTreeMap::from([(WELL_KNOWN_NAME.to_owned(), WELL_KNOWN_ADDRESSES.map(IpAddr::V4).to_vec())]);
        let zone = Zone { records, ttl: DEFAULT_TTL, queries: 0, is_silent: false, dns64: None };
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

    /// Makes IPv6 addresses of IPv4 ones for those who ask over IPv6, or makes none (RFC 6147).
    pub fn set_dns64(&self, prefix: Option<Nat64Prefix>) {
        self.zone().dns64 = prefix;
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

impl Zone {
    /// The addresses of a name, for who asks from an address.
    fn lookup(&self, name: &str, from: IpAddr) -> Option<Vec<IpAddr>> {
        let mut addresses = self.records.get(name)?.clone();
        if let Some(prefix) = self.dns64.filter(|_| from.is_ipv6())
            && addresses.iter().all(IpAddr::is_ipv4)
        {
            let behind = |address: &IpAddr| match address {
                IpAddr::V4(v4) => prefix.embed(*v4).map(IpAddr::V6),
                IpAddr::V6(_) => None,
            };
            addresses.extend(addresses.iter().filter_map(behind).collect::<Vec<_>>());
        }
        Some(addresses)
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
            query.answer(zone.lookup(query.name(), from.ip().to_canonical()).as_deref(), zone.ttl)
        };
        let _ = socket.send_to(&answer, from);
    }
}
