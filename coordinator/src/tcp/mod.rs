//! The coordinator's one TCP port.
//!
//! It is where the control protocol will run inside a WebSocket, for networks that let no UDP out. Nothing
//! speaks on it yet: what connects is read for a while, counted and closed without a reply, so that the port
//! is held and garbage on it costs a bounded number of sockets.
//!
//! Tasks: the listener, and one per connection; both end when cancelled. Accepting and reading are
//! cancel-safe.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections at once; what comes beyond is closed at once.
const MAX_CONNECTIONS: usize = 128;
/// How long a connection that says nothing of use is kept.
const DEADLINE: Duration = Duration::from_secs(10);
/// How much of it is read.
const MAX_BYTES: usize = 4096;
/// Pause after accepting failed, as it does while the process is out of file descriptors.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// The TCP port.
pub struct TcpFront {
    listener: TcpListener,
    stats: Arc<TcpStats>,
}

/// The port's counters since it started.
#[derive(Debug, Default)]
pub struct TcpStats {
    accepted: AtomicU64,
    turned_away: AtomicU64,
}

impl TcpFront {
    /// Binds the port.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, stats: Arc::default() })
    }

    /// Returns the bound address.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Returns the counters.
    #[must_use]
    pub fn stats(&self) -> Arc<TcpStats> {
        self.stats.clone()
    }

    /// Serves the port until it is cancelled.
    pub async fn run(self, tracker: TaskTracker, cancel: CancellationToken) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            };
            self.stats.accepted.fetch_add(1, Relaxed);
            let Ok(place) = places.clone().try_acquire_owned() else {
                self.stats.turned_away.fetch_add(1, Relaxed);
                continue;
            };
            let cancel = cancel.clone();
            tracker.spawn(async move {
                let _place = place;
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => {}
                    _ = tokio::time::timeout(DEADLINE, discard(stream)) => {}
                }
            });
        }
    }
}

impl TcpStats {
    /// Returns how many connections were accepted.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Returns how many of them were closed at once because there were too many.
    #[must_use]
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Relaxed)
    }
}

/// Reads until the other side is done, or has said too much.
async fn discard(mut stream: TcpStream) {
    let mut chunk = [0; 512];
    let mut total = 0;
    while let Ok(len @ 1..) = stream.read(&mut chunk).await {
        total += len;
        if total >= MAX_BYTES {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn garbage_is_closed_without_a_reply() {
        let front = TcpFront::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, stats) = (front.local_addr().unwrap(), front.stats());
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        tracker.spawn(front.run(tracker.clone(), cancel.clone()));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&[b'x'; 2 * MAX_BYTES]).await.unwrap();
        let mut reply = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(5), client.read_to_end(&mut reply)).await;
        assert!(closed.is_ok(), "closed before its deadline");
        assert!(reply.is_empty());
        assert_eq!(stats.accepted(), 1);
        cancel.cancel();
        tracker.close();
        tracker.wait().await;
    }
}
