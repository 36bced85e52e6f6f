//! All engines of a node, as if they were one.
//!
//! The system's steering is the worst there can be: every packet and every datagram goes to a shard that is drawn at
//! random. What is handed over arrives at once.

use std::{collections::BTreeSet, num::NonZeroU32, time::Instant};

use mesh_engine::{
    Engine,
    batch::{RxBatch, RxTrain, SocketId, TunFrame, TxArena, Via},
    command::Command,
    config::Config,
    event::{Event, Wakeup},
    snapshot::Snapshot,
};

/// Most handovers that one input leads to.
const MAX_HANDOVERS: usize = 1000;

/// The engines.
pub(crate) struct Engines {
    shards: Vec<Engine>,
    /// The sockets beside the main one that each wants open.
    sockets: Vec<BTreeSet<SocketId>>,
    /// What draws the shard (splitmix64).
    dice: u64,
}

impl Engines {
    pub(crate) fn new(config: &Config, shards: u32, seed: [u8; 32], now: Instant) -> Self {
        let count = NonZeroU32::new(shards).expect("a node has an engine");
        let shards = match shards {
            1 => vec![Engine::new(config.clone(), seed, now)],
            _ => Engine::shards(config, seed, count, now),
        };
        Self { sockets: vec![BTreeSet::new(); shards.len()], shards, dice: seed[0].into() }
    }

    pub(crate) fn handle_tun(&mut self, frame: TunFrame<'_>, now: Instant, out: &mut TxArena) {
        let shard = self.draw();
        self.shards[shard].handle_tun(frame, now, out);
        assert_eq!(self.exchange(now, out), Vec::<Vec<u8>>::new(), "nothing was received");
    }

    /// Takes a train of datagrams and returns the inner packets.
    pub(crate) fn handle_datagrams(
        &mut self,
        mut train: RxTrain<'_>,
        now: Instant,
        out: &mut TxArena,
    ) -> Vec<Vec<u8>> {
        let shard = match train.via {
            Via::Punched { socket, .. } => socket.0 as usize % self.shards.len(),
            Via::Udp { .. } | Via::Stream(_) => self.draw(),
        };
        let mut batch = RxBatch::default();
        self.shards[shard].handle_datagrams(&mut train, now, out, &mut batch);
        let mut packets: Vec<_> =
            batch.packets().iter().map(|range| train.bytes[range.clone()].to_vec()).collect();
        packets.extend(self.exchange(now, out));
        packets
    }

    /// Does what is due, in each that is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant, out: &mut TxArena) {
        for engine in &mut self.shards {
            if engine.poll_timeout().is_some_and(|wakeup| wakeup.at <= now) {
                engine.handle_timeout(now);
            }
        }
        self.exchange(now, out);
    }

    pub(crate) fn handle_command(&mut self, command: &Command, now: Instant, out: &mut TxArena) {
        for engine in &mut self.shards {
            engine.handle_command(command.clone(), now);
        }
        self.exchange(now, out);
    }

    pub(crate) fn poll_transmit(&mut self, now: Instant, out: &mut TxArena) -> bool {
        self.shards.iter_mut().any(|engine| engine.poll_transmit(now, out))
    }

    pub(crate) fn poll_packet(&mut self) -> Option<Vec<u8>> {
        self.shards.iter_mut().find_map(Engine::poll_packet)
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.shards.iter_mut().find_map(Engine::poll_event)
    }

    pub(crate) fn poll_sockets(&mut self) -> Option<BTreeSet<SocketId>> {
        let mut changed = false;
        for (engine, sockets) in self.shards.iter_mut().zip(&mut self.sockets) {
            if let Some(open) = engine.poll_sockets() {
                sockets.clone_from(open);
                changed = true;
            }
        }
        changed.then(|| self.sockets.iter().flatten().copied().collect())
    }

    pub(crate) fn poll_timeout(&self) -> Option<Wakeup> {
        self.shards.iter().filter_map(Engine::poll_timeout).min()
    }

    pub(crate) fn snapshot(&self, now: Instant) -> Snapshot {
        let mut snapshots = self.shards.iter().map(|engine| engine.snapshot(now));
        let home = snapshots.next().expect("a node has an engine");
        snapshots.fold(home, Snapshot::merge)
    }

    /// Takes what is to be handed over where it belongs, until nothing is; returns the inner packets.
    fn exchange(&mut self, now: Instant, out: &mut TxArena) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let mut count = 0;
        while let Some((to, mut handover)) = self.shards.iter_mut().find_map(Engine::poll_handover) {
            let (engine, mut batch) = (&mut self.shards[to as usize], RxBatch::default());
            engine.handle_handover(&mut handover, now, out, &mut batch);
            while engine.poll_backlog(now, out).is_some() {}
            let bytes = handover.bytes_mut();
            packets.extend(batch.packets().iter().map(|range| bytes[range.clone()].to_vec()));
            count += 1;
            assert!(count < MAX_HANDOVERS, "engines hand over for ever");
        }
        packets
    }

    fn draw(&mut self) -> usize {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.dice ^ (self.dice >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed >> 33) % self.shards.len() as u64) as usize
    }
}
