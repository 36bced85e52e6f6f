//! One file's worth of TCP, with a checksum at both ends.
//!
//! The bytes are drawn from a seeded generator, so nothing between the ends can make them up or compress them. The
//! receiver answers with the SHA-256 of what it got.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

use crate::topology::Host;

/// How long the connection may take to be made, and each read or write.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes per write.
const CHUNK: usize = 64 * 1024;

/// A finished transfer.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// Bytes that arrived.
    pub bytes: u64,
    /// From the connection's first packet to the receiver's answer.
    pub duration: Duration,
    /// SHA-256 of what was sent, in hexadecimal.
    pub sent: String,
    /// SHA-256 of what arrived.
    pub received: String,
}

impl Transfer {
    /// Megabits per second.
    #[must_use]
    pub fn mbit_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e6 / self.duration.as_secs_f64()
    }
}

/// Sends `bytes` bytes from one host to an address of another over TCP.
///
/// # Errors
///
/// If the connection cannot be made or breaks. Checksums that differ are no error: they are the caller's to compare.
pub fn transfer(from: &Host, to: (&Host, impl Into<IpAddr>), bytes: u64) -> anyhow::Result<Transfer> {
    let (receiver, address) = (to.0, to.1.into());
    let listener = receiver.netns().enter(|| TcpListener::bind((address, 0)))??;
    let to = listener.local_addr()?;
    let started = Instant::now();
    let stream = from.netns().enter(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    let stream = stream.with_context(|| format!("{} connects to {to}", from.name()))?;
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&listener));
        let (sent, received) = send(stream, bytes)?;
        let duration = started.elapsed();
        let arrived = receiving.join().map_err(|_| anyhow!("the receiver panicked"))??;
        Ok(Transfer { bytes: arrived, duration, sent, received })
    })
}

/// Sends, and returns both checksums: of what was sent, and the receiver's.
fn send(mut stream: TcpStream, bytes: u64) -> anyhow::Result<(String, String)> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut random = ChaCha8Rng::seed_from_u64(bytes);
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        random.fill_bytes(&mut chunk);
        let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        hash.update(&chunk[..length]);
        stream.write_all(&chunk[..length]).context("the stream breaks")?;
        left -= length as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the receiver does not answer")?;
    Ok((hex(hash), answer))
}

/// Receives one stream, answers with its checksum, and returns its length.
fn receive(listener: &TcpListener) -> anyhow::Result<u64> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let length = stream.read(&mut chunk).context("the stream stops")?;
        if length == 0 {
            break;
        }
        hash.update(&chunk[..length]);
        bytes += length as u64;
    }
    stream.write_all(hex(hash).as_bytes())?;
    ensure!(bytes > 0, "nothing arrived");
    Ok(bytes)
}

pub(super) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
