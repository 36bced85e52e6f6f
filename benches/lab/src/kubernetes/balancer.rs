//! A port of a host's loopback that leads to the API server, as k3s has one on each node without an API server.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::socket::{Shutdown as Ends, shutdown};

use crate::topology::Network;

/// How long the API server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// It leads there until it is dropped, and every connection with it.
#[derive(Debug)]
pub(super) struct Balancer {
    listener: Arc<TcpListener>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Balancer {
    /// Opens a port of a host that leads to this address, as seen from there.
    pub(super) fn start(
        network: &Arc<Network>,
        host: &str,
        port: u16,
        to: SocketAddr,
    ) -> anyhow::Result<Self> {
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let listener = Arc::new(network.host(host)?.netns().enter(bind)?.context("the balancer's port")?);
        let open = Arc::new(Mutex::new(Vec::new()));
        let (accepted, held) = (Arc::clone(&listener), Arc::clone(&open));
        let (network, host) = (Arc::clone(network), host.to_owned());
        let serve = move || {
            // It ends when the listener is shut down.
            while let Ok((client, _)) = accepted.accept() {
                let connect = || TcpStream::connect_timeout(&to, PATIENCE);
                let Ok(Ok(Ok(server))) = network.host(&host).map(|host| host.netns().enter(connect)) else {
                    continue;
                };
                // A connection that has ended is one that cannot be joined: whoever asked sees it closed.
                let _ = join(&client, &server);
                lock(&held).extend([client, server]);
            }
        };
        let thread = std::thread::Builder::new().name("balancer".to_owned()).spawn(serve)?;
        Ok(Self { listener, open, thread: Some(thread) })
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // What is closed already needs no end.
        let _ = shutdown(self.listener.as_raw_fd(), Ends::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in lock(&self.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Copies both ways, on threads that end with the connection.
fn join(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    for (from, to) in [(client, server), (server, client)] {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        std::thread::spawn(move || {
            // However it ends, the other side has to know.
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    Ok(())
}

fn lock(open: &Mutex<Vec<TcpStream>>) -> MutexGuard<'_, Vec<TcpStream>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}
