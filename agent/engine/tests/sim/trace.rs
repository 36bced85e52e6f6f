//! What happened: the last things in words, and all of it as one number.

use std::{collections::VecDeque, fmt, net::SocketAddr, time::Duration};

use mesh_engine::event::WakeupReason;

use crate::{ledger::Receiver, net::Lost};

/// How many of the last things are kept, and of the last notes.
const KEPT: usize = 400;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    /// A node sent a datagram.
    Sent { node: usize, to: SocketAddr, len: usize, first: u8 },
    /// A datagram of a node did not arrive.
    Lost { node: Option<usize>, why: Lost },
    /// A datagram arrived at a node.
    Arrived { node: usize, from: SocketAddr, len: usize, first: u8 },
    /// A node's timer went off.
    Woke { node: usize, why: WakeupReason },
    /// An inner packet went in at a node.
    PacketIn { node: usize, to: Receiver, number: u64 },
    /// An inner packet came out at a node.
    PacketOut { node: usize, number: u64 },
    /// Something rarer, in words.
    Note(String),
}

/// The trace of a run.
pub(crate) struct Trace {
    lines: VecDeque<(Duration, Line)>,
    /// Notes are rarer and say more: they are kept longer.
    notes: VecDeque<(Duration, String)>,
    hash: u64,
    datagrams: u64,
}

impl Trace {
    /// Starts a trace.
    pub(crate) fn new() -> Self {
        Self { lines: VecDeque::new(), notes: VecDeque::new(), hash: FNV_OFFSET, datagrams: 0 }
    }

    /// Adds a line.
    pub(crate) fn add(&mut self, now: Duration, line: Line) {
        let mut hash = Fnv(self.hash);
        hash.write(now.as_nanos());
        match &line {
            Line::Sent { node, to, len, first } => {
                self.datagrams += 1;
                hash.write_all([1, *node as u128, address(*to), *len as u128, u128::from(*first)]);
            }
            Line::Lost { node, why } => {
                hash.write_all([2, node.map_or(0, |node| node as u128 + 1), *why as u128])
            }
            Line::Arrived { node, from, len, first } => {
                hash.write_all([3, *node as u128, address(*from), *len as u128, u128::from(*first)]);
            }
            Line::Woke { node, .. } => hash.write_all([4, *node as u128]),
            Line::PacketIn { node, number, .. } => hash.write_all([5, *node as u128, u128::from(*number)]),
            Line::PacketOut { node, number } => hash.write_all([6, *node as u128, u128::from(*number)]),
            Line::Note(text) => text.bytes().for_each(|byte| hash.write(u128::from(byte))),
        }
        self.hash = hash.0;
        if let Line::Note(text) = line {
            keep(&mut self.notes, (now, text));
        } else {
            keep(&mut self.lines, (now, line));
        }
    }

    /// Returns a number that is equal for equal runs.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// Returns how many datagrams were sent by nodes.
    pub(crate) fn datagrams(&self) -> u64 {
        self.datagrams
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, line) in &self.lines {
            writeln!(f, "{:>16.6} {line:?}", at.as_secs_f64())?;
        }
        writeln!(f, "--- what was worth a note")?;
        for (at, note) in &self.notes {
            writeln!(f, "{:>16.6} {note}", at.as_secs_f64())?;
        }
        Ok(())
    }
}

fn keep<T>(ring: &mut VecDeque<T>, item: T) {
    if ring.len() == KEPT {
        ring.pop_front();
    }
    ring.push_back(item);
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// FNV-1a, over 128-bit numbers in halves: simple, and equal everywhere.
struct Fnv(u64);

impl Fnv {
    fn write(&mut self, value: u128) {
        for half in [value >> 64, value & u128::from(u64::MAX)] {
            let half = u64::try_from(half).expect("half of 128 bits");
            self.0 = (self.0 ^ half).wrapping_mul(FNV_PRIME);
            self.0 ^= self.0 >> 29;
        }
    }

    fn write_all<const N: usize>(&mut self, values: [u128; N]) {
        values.into_iter().for_each(|value| self.write(value));
    }
}

fn address(of: SocketAddr) -> u128 {
    let ip = match of.ip() {
        std::net::IpAddr::V4(v4) => u128::from(v4.to_bits()),
        std::net::IpAddr::V6(v6) => v6.to_bits(),
    };
    (ip << 16) | u128::from(of.port())
}
