//! The board: what the hub knows of every node, put up once for all sessions to read.
//!
//! A node's latest note replaces its older one, and notes are in the order in which they were put up. A reader keeps its
//! place and takes what was put up after it, so that nothing waits for a session: one that is slow finds fewer notes than
//! were put up, but the last of each node, and costs no memory.
//!
//! ```text
//! quiet notes            put up and shown       put up, not shown yet
//! n4 n7 n9 ............. n1 n8 n2 n3 .......... n5
//! ^ a new reader begins        ^ another one    ^ the hub shows it soon, with what comes until then
//! ```
//!
//! What readers at the same place take is one list, written once. A note that nobody has to be told of, because nothing
//! was ever heard of its node, is *quiet*: it is there for those who begin.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Included},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use mesh_proto::{
    control::{PeerState, frame::FrameError},
    netmap::NodeId,
};
use tokio::sync::watch;

use crate::shared::{SharedList, SharedMessage};

/// Notes that are taken at once: with the most candidates each has some 3 KiB, and a message may have 1 MiB.
const NOTES_PER_MESSAGE: usize = 256;
/// Lists that are kept for readers at other places than the last. Most readers are at few places: where the last showings
/// ended, and at the beginning.
const MAX_LISTS: usize = 16;

/// The serial of quiet notes; the first other note has the next.
const QUIET: u64 = 1;

/// All notes. What the hub holds writes it, its clones in readers read it.
#[derive(Debug, Clone)]
pub(super) struct Board {
    notes: Arc<Mutex<Notes>>,
    /// The serial up to which notes are shown.
    shown: watch::Sender<u64>,
}

/// A session's place at the board.
#[derive(Debug)]
pub(super) struct Reader {
    notes: Arc<Mutex<Notes>>,
    shown: watch::Receiver<u64>,
    /// Everything up to here was taken.
    place: Place,
}

/// Notes that are sent in one message.
#[derive(Debug, Clone)]
pub(super) struct News(SharedList);

/// Where a note is; nodes are told apart by their ids where they have the same serial.
type Place = (u64, NodeId);

#[derive(Debug)]
struct Notes {
    /// The serial of the latest note.
    latest: u64,
    /// Each node's latest state, as JSON.
    notes: BTreeMap<Place, Bytes>,
    /// The serial of each node's note.
    serials: BTreeMap<NodeId, u64>,
    /// What readers at a place take now, and where they are after that.
    lists: BTreeMap<Place, (News, Place)>,
}

impl Board {
    /// Makes an empty board.
    pub(super) fn new() -> Self {
        let notes =
            Notes { latest: QUIET, notes: BTreeMap::new(), serials: BTreeMap::new(), lists: BTreeMap::new() };
        Self { notes: Arc::new(Mutex::new(notes)), shown: watch::Sender::new(QUIET) }
    }

    /// Puts up a note, in the place of the node's older one. It is read once it is shown.
    pub(super) fn put(&self, state: &PeerState) {
        self.lock().put(state, |latest| latest + 1);
    }

    /// Puts up a note for those who begin to read.
    pub(super) fn put_quietly(&self, state: &PeerState) {
        self.lock().put(state, |_| QUIET);
    }

    /// Takes down a node's note.
    pub(super) fn remove(&self, id: NodeId) {
        let mut notes = self.lock();
        notes.remove(id);
        notes.lists.clear();
    }

    /// Shows what was put up, to every reader.
    pub(super) fn show(&self) {
        let latest = {
            let mut notes = self.lock();
            notes.lists.clear();
            notes.latest
        };
        self.shown.send_replace(latest);
    }

    /// Begins to read: everything that is shown.
    pub(super) fn read(&self) -> Reader {
        Reader { notes: self.notes.clone(), shown: self.shown.subscribe(), place: (0, NodeId(0)) }
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        lock(&self.notes)
    }
}

impl Reader {
    /// Waits for news and takes them, or as many as one message may have. Cancel-safe.
    pub(super) async fn take(&mut self) -> News {
        loop {
            let shown = *self.shown.borrow_and_update();
            if let Some(news) = self.try_take(shown) {
                return news;
            }
            if self.shown.changed().await.is_err() {
                // The hub has ended, and sessions are about to.
                std::future::pending::<()>().await;
            }
        }
    }

    fn try_take(&mut self, shown: u64) -> Option<News> {
        if self.place.0 > shown {
            return None;
        }
        let (news, place) = lock(&self.notes).after(self.place, shown)?;
        self.place = place;
        Some(news)
    }
}

impl News {
    /// Makes the message for one node, which is told nothing of itself; `None` where that is all.
    ///
    /// # Errors
    /// When it is too long to be sent.
    pub(super) fn message_to(&self, node: NodeId) -> Result<Option<SharedMessage>, FrameError> {
        SharedMessage::of_rest(br#"{"type":"peer_states","peers":["#, &self.0, node, b"]}")
    }
}

impl Notes {
    fn put(&mut self, state: &PeerState, serial_after: impl FnOnce(u64) -> u64) {
        let json = serde_json::to_vec(state).expect("a state has no map with keys other than text");
        self.remove(state.id);
        let serial = serial_after(self.latest);
        self.latest = self.latest.max(serial);
        self.serials.insert(state.id, serial);
        self.notes.insert((serial, state.id), json.into());
    }

    fn remove(&mut self, id: NodeId) {
        if let Some(serial) = self.serials.remove(&id) {
            self.notes.remove(&(serial, id));
        }
    }

    /// Returns what comes after a place and is shown, and the place after that.
    fn after(&mut self, place: Place, shown: u64) -> Option<(News, Place)> {
        if let Some(known) = self.lists.get(&place) {
            return Some(known.clone());
        }
        let end = (shown, NodeId(u32::MAX));
        if place >= end {
            return None;
        }
        let range = self.notes.range((Excluded(place), Included(end)));
        let taken: Vec<_> = range.take(NOTES_PER_MESSAGE).collect();
        let (last, _) = taken.last()?;
        let next = if taken.len() < NOTES_PER_MESSAGE { end } else { **last };
        let list = SharedList::new(taken.iter().map(|((_, id), json)| (*id, *json)));
        let found = (News(list), next);
        if self.lists.len() < MAX_LISTS {
            self.lists.insert(place, found.clone());
        }
        Some(found)
    }
}

fn lock(notes: &Mutex<Notes>) -> MutexGuard<'_, Notes> {
    // Nothing panics while it is held.
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use mesh_proto::control::{ServerMessage, frame::Decoder};
    use proptest::prelude::*;

    use super::*;

    /// The id of the node that reads.
    const OWN: NodeId = NodeId(0);

    fn state(id: u32, relays: u32) -> PeerState {
        PeerState {
            id: NodeId(id),
            online: relays > 0,
            candidates: vec![],
            relays: (0..relays).map(mesh_proto::netmap::RelayId).collect(),
            home: None,
            observed: None,
        }
    }

    /// Reads all that is shown, and what it says of each node.
    fn read(reader: &mut Reader) -> Vec<(u32, usize)> {
        let shown = *reader.shown.borrow_and_update();
        let mut read = Vec::new();
        while let Some(news) = reader.try_take(shown) {
            let Some(message) = news.message_to(OWN).unwrap() else { continue };
            let mut decoder = Decoder::default();
            decoder.handle_bytes(&message.into_pieces().concat());
            let Some(ServerMessage::PeerStates { peers }) = decoder.poll_message().unwrap() else {
                panic!("it is a message of states")
            };
            assert!(peers.len() <= NOTES_PER_MESSAGE);
            read.extend(peers.iter().map(|peer| (peer.id.0, peer.relays.len())));
        }
        read
    }

    #[test]
    fn who_begins_sees_everybody_and_then_what_is_new() {
        let board = Board::new();
        board.put_quietly(&state(4, 0));
        board.put(&state(2, 1));
        board.put(&state(OWN.0, 1));
        board.show();
        let mut reader = board.read();
        assert_eq!(read(&mut reader), [(4, 0), (2, 1)]);
        board.put_quietly(&state(5, 0));
        board.put(&state(2, 2));
        assert_eq!(read(&mut reader), [], "not shown yet");
        board.put(&state(3, 1));
        board.put(&state(2, 3));
        board.show();
        assert_eq!(read(&mut reader), [(3, 1), (2, 3)], "the latest of each, and nothing quiet");
        board.put(&state(OWN.0, 2));
        board.show();
        assert_eq!(read(&mut reader), [], "nobody is told of itself");
        assert_eq!(read(&mut board.read()).len(), 4);
        board.remove(NodeId(3));
        assert_eq!(read(&mut board.read()), [(4, 0), (5, 0), (2, 3)]);
    }

    #[test]
    fn readers_at_one_place_share_what_they_take() {
        let board = Board::new();
        for id in 1..=1000 {
            board.put_quietly(&state(id, 0));
        }
        let (mut first, mut second) = (board.read(), board.read());
        for _ in 0..4 {
            let pieces = [&mut first, &mut second].map(|reader| {
                reader.try_take(QUIET).unwrap().message_to(OWN).unwrap().unwrap().into_pieces()
            });
            assert_eq!(pieces[0][1].as_ptr(), pieces[1][1].as_ptr());
        }
        assert!(first.try_take(QUIET).is_none());
    }

    #[tokio::test]
    async fn a_reader_is_woken_when_something_is_shown() {
        let board = Board::new();
        let mut reader = board.read();
        let reading = tokio::spawn(async move { reader.take().await.message_to(OWN).unwrap().is_some() });
        tokio::task::yield_now().await;
        board.put(&state(1, 1));
        board.show();
        assert!(reading.await.unwrap());
    }

    proptest! {
        /// However seldom a reader comes, and however much is put up at once: in the end it knows the last of each node.
        #[test]
        fn the_last_state_of_each_node_is_never_lost(
            steps in prop::collection::vec((1..600_u32, 1..5_u32, any::<bool>(), any::<bool>()), 1..400),
        ) {
            let board = Board::new();
            let (mut known, mut expected) = (BTreeMap::new(), BTreeMap::new());
            let mut reader = board.read();
            for (id, relays, shows, reads) in steps {
                board.put(&state(id, relays));
                expected.insert(id, relays as usize);
                if shows {
                    board.show();
                }
                if reads {
                    known.extend(read(&mut reader));
                }
            }
            board.show();
            known.extend(read(&mut reader));
            prop_assert_eq!(known, expected);
        }
    }
}
