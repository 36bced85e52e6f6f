//! One TCP stream between two pods that goes on for as long as nobody ends it, and how long it was silent meanwhile.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::pods::ECHO_PORT;
use crate::netns::Netns;

/// Between two requests.
const INTERVAL: Duration = Duration::from_millis(10);
/// Longer than any outage of which a stream is expected to recover.
const PATIENCE: Duration = Duration::from_secs(60);

/// A stream that runs.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    thread: JoinHandle<anyhow::Result<()>>,
}

#[derive(Debug)]
struct Shared {
    ends: AtomicBool,
    heard: Mutex<Heard>,
}

#[derive(Debug)]
struct Heard {
    last: Instant,
    longest: Duration,
    count: u64,
}

impl Stream {
    /// Connects from a namespace to a pod's server that sends everything back, and goes on asking it.
    ///
    /// # Errors
    ///
    /// If there is no connection.
    pub fn start(from: &Netns, to: IpAddr) -> anyhow::Result<Self> {
        let mut stream = from
            .enter(|| TcpStream::connect_timeout(&(to, ECHO_PORT).into(), PATIENCE))?
            .with_context(|| format!("connection to {to}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let heard = Heard { last: Instant::now(), longest: Duration::ZERO, count: 0 };
        let shared = Arc::new(Shared { ends: AtomicBool::new(false), heard: Mutex::new(heard) });
        let seen = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for number in 0_u64.. {
                if seen.ends.load(Ordering::Relaxed) {
                    break;
                }
                stream.write_all(&number.to_be_bytes()).context("a request")?;
                let mut answer = [0; 8];
                stream.read_exact(&mut answer).context("an answer")?;
                if answer != number.to_be_bytes() {
                    bail!("request {number} is answered by {}", u64::from_be_bytes(answer));
                }
                seen.note();
                std::thread::sleep(INTERVAL);
            }
            Ok(())
        });
        Ok(Self { shared, thread })
    }

    /// How many requests were answered.
    pub fn count(&self) -> u64 {
        self.shared.heard().count
    }

    /// The longest time without an answer since this was asked last, the present silence included.
    pub fn take_longest(&self) -> Duration {
        let mut heard = self.shared.heard();
        let longest = heard.longest.max(heard.last.elapsed());
        heard.longest = Duration::ZERO;
        longest
    }

    /// Ends the stream.
    ///
    /// # Errors
    ///
    /// If it had broken, or answered something else than was asked.
    pub fn finish(self) -> anyhow::Result<()> {
        self.shared.ends.store(true, Ordering::Relaxed);
        self.thread.join().expect("a stream's thread does not panic")
    }
}

impl Shared {
    fn note(&self) {
        let mut heard = self.heard();
        let silence = heard.last.elapsed();
        heard.longest = heard.longest.max(silence);
        heard.last = Instant::now();
        heard.count += 1;
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
