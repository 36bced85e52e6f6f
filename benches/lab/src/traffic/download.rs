//! One TCP connection that goes on for as long as a run, at a low rate, with a checksum at both ends.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

use super::transfer::{Transfer, hex};
use crate::topology::Host;

/// How long the connection may take to be made.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may stand still: after a long outage TCP itself waits for minutes between its repetitions, and may meet the
/// next outage with them.
const STILL: Duration = Duration::from_secs(900);
/// Bytes per write, and how long it rests after each: 200 KB/s, little enough to leave the machine to what is measured.
const CHUNK: usize = 4096;
const REST: Duration = Duration::from_millis(20);

/// A download that runs until [`Download::finish`].
#[derive(Debug)]
pub struct Download {
    control: Arc<Control>,
    started: Instant,
    sending: Option<JoinHandle<anyhow::Result<String>>>,
    receiving: Option<JoinHandle<anyhow::Result<(u64, String)>>>,
}

#[derive(Debug, Default)]
struct Control {
    stop: AtomicBool,
    paused: AtomicBool,
}

impl Download {
    /// Has one host download from an address of another.
    ///
    /// # Errors
    ///
    /// If the connection cannot be made.
    pub fn start(to: &Host, from: (&Host, IpAddr)) -> anyhow::Result<Self> {
        let (server, address) = from;
        let listener = server.netns().enter(|| TcpListener::bind((address, 0)))??;
        let target = listener.local_addr()?;
        let stream = to.netns().enter(|| TcpStream::connect_timeout(&target, PATIENCE))?;
        let stream = stream.with_context(|| format!("{} connects to {target}", to.name()))?;
        let (served, _) = listener.accept()?;
        let control = Arc::new(Control::default());
        let sending = {
            let control = Arc::clone(&control);
            std::thread::Builder::new().name("download".into()).spawn(move || send(served, &control))?
        };
        let receiving = std::thread::Builder::new().name("download".into()).spawn(move || receive(stream))?;
        Ok(Self { control, started: Instant::now(), sending: Some(sending), receiving: Some(receiving) })
    }

    /// Sends nothing for a while, or goes on: what was sent is still repeated by TCP.
    pub fn set_paused(&self, paused: bool) {
        self.control.paused.store(paused, Ordering::Relaxed);
    }

    /// Ends it in order. Checksums that differ are no error: they are the caller's to compare.
    ///
    /// # Errors
    ///
    /// If the connection broke.
    pub fn finish(mut self) -> anyhow::Result<Transfer> {
        self.control.stop.store(true, Ordering::Relaxed);
        let (Some(sending), Some(receiving)) = (self.sending.take(), self.receiving.take()) else {
            return Err(anyhow!("it was ended before"));
        };
        let sent = sending.join().map_err(|_| anyhow!("the sender panicked"))??;
        let (bytes, received) = receiving.join().map_err(|_| anyhow!("the receiver panicked"))??;
        ensure!(bytes > 0, "nothing arrived");
        Ok(Transfer { bytes, duration: self.started.elapsed(), sent, received })
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // Its threads see that at their next write, or by the end of their patience.
        self.control.stop.store(true, Ordering::Relaxed);
    }
}

fn send(mut stream: TcpStream, control: &Control) -> anyhow::Result<String> {
    stream.set_write_timeout(Some(STILL))?;
    stream.set_read_timeout(Some(STILL))?;
    let mut random = ChaCha8Rng::seed_from_u64(u64::from(stream.local_addr()?.port()));
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    while !control.stop.load(Ordering::Relaxed) {
        if !control.paused.load(Ordering::Relaxed) {
            random.fill_bytes(&mut chunk);
            hash.update(&chunk);
            stream.write_all(&chunk).context("the download breaks")?;
        }
        std::thread::sleep(REST);
    }
    stream.shutdown(Shutdown::Write)?;
    // Until the other side has everything and closes.
    stream.read_to_end(&mut Vec::new()).context("the end of the download is not confirmed")?;
    Ok(hex(hash))
}

fn receive(mut stream: TcpStream) -> anyhow::Result<(u64, String)> {
    stream.set_read_timeout(Some(STILL))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let length = stream.read(&mut chunk).context("the download stops")?;
        if length == 0 {
            return Ok((bytes, hex(hash)));
        }
        hash.update(&chunk[..length]);
        bytes += length as u64;
    }
}
