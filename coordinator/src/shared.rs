//! Lists that many receivers are sent, written as JSON once, and the messages that are made of them.
//!
//! What one node of a thousand does is told to a thousand others, and after a restart of the coordinator a thousand nodes
//! ask for the same map. Each receiver gets a message of its own, but only its head and its tail are: between them are
//! pieces of one buffer, which is neither copied nor held twice while receivers take it.
//!
//! ```text
//! length | {"type":"map","map":{"version":…,"this":…,"peers":[ | node,node | ,node,node | ],"relays":[…]}}
//!          head, own                                             shared      shared       tail, own
//! ```
//!
//! The receiver itself is in the list and left out by cutting there. The bytes are those that [`frame::encode`] makes.

use bytes::Bytes;
use mesh_proto::{
    control::frame::{self, FrameError},
    netmap::NodeId,
};

/// Things that belong to nodes, one each, as JSON with commas between them.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedList {
    json: Bytes,
    /// Where each node's begins and ends, by ascending id.
    items: Vec<(NodeId, usize, usize)>,
}

/// A framed message in the pieces in which it is sent.
#[derive(Debug, Clone)]
pub(crate) struct SharedMessage(Vec<Bytes>);

impl SharedList {
    /// Joins what is JSON already.
    pub(crate) fn new<J: AsRef<[u8]>>(items: impl IntoIterator<Item = (NodeId, J)>) -> Self {
        let mut joined = Vec::new();
        let mut places = Vec::new();
        for (id, json) in items {
            if !joined.is_empty() {
                joined.push(b',');
            }
            let start = joined.len();
            joined.extend_from_slice(json.as_ref());
            places.push((id, start, joined.len()));
        }
        places.sort_unstable();
        Self { json: joined.into(), items: places }
    }

    /// Returns the list without what belongs to a node, in two pieces that follow each other.
    fn without(&self, id: NodeId) -> [Bytes; 2] {
        let Ok(index) = self.items.binary_search_by_key(&id, |(id, ..)| *id) else {
            return [self.json.clone(), Bytes::new()];
        };
        let (_, start, end) = self.items[index];
        // One comma goes, too: that before it, or of the first one that after it.
        match start.checked_sub(1) {
            Some(comma) => [self.json.slice(..comma), self.json.slice(end..)],
            None => [Bytes::new(), self.json.slice((end + 1).min(self.json.len())..)],
        }
    }
}

impl SharedMessage {
    /// Makes the message that has a list, without what belongs to one node, between a head and a tail; `None` where nothing
    /// of the list is left.
    ///
    /// # Errors
    /// When the message is too long to be sent.
    pub(crate) fn of_rest(
        head: &[u8],
        list: &SharedList,
        left_out: NodeId,
        tail: &[u8],
    ) -> Result<Option<Self>, FrameError> {
        let [before, after] = list.without(left_out);
        if before.is_empty() && after.is_empty() {
            return Ok(None);
        }
        Self::join(head, [before, after], tail).map(Some)
    }

    /// As [`Self::of_rest`], with an empty list where nothing is left.
    ///
    /// # Errors
    /// When the message is too long to be sent.
    pub(crate) fn new(
        head: &[u8],
        list: &SharedList,
        left_out: NodeId,
        tail: &[u8],
    ) -> Result<Self, FrameError> {
        Self::join(head, list.without(left_out), tail)
    }

    fn join(head: &[u8], [before, after]: [Bytes; 2], tail: &[u8]) -> Result<Self, FrameError> {
        let len = head.len() + before.len() + after.len() + tail.len();
        let mut start = Vec::with_capacity(frame::LENGTH_LEN + head.len());
        start.extend_from_slice(&frame::length(len)?);
        start.extend_from_slice(head);
        let pieces = [start.into(), before, after, Bytes::copy_from_slice(tail)];
        Ok(Self(pieces.into_iter().filter(|piece| !piece.is_empty()).collect()))
    }

    /// Returns the pieces, in order.
    pub(crate) fn into_pieces(self) -> Vec<Bytes> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ids: &[u32]) -> SharedList {
        SharedList::new(ids.iter().map(|id| (NodeId(*id), id.to_string())))
    }

    fn rest(ids: &[u32], left_out: u32) -> String {
        String::from_utf8(list(ids).without(NodeId(left_out)).concat()).unwrap()
    }

    #[test]
    fn one_is_left_out_wherever_it_is() {
        assert_eq!(rest(&[30, 10, 20], 30), "10,20");
        assert_eq!(rest(&[30, 10, 20], 10), "30,20");
        assert_eq!(rest(&[30, 10, 20], 20), "30,10");
        assert_eq!(rest(&[30, 10, 20], 5), "30,10,20");
        assert_eq!(rest(&[30], 30), "");
        assert_eq!(rest(&[], 30), "");
    }

    #[test]
    fn a_message_is_framed_shared_and_bounded() {
        let list = list(&[1, 2, 3]);
        let message = SharedMessage::of_rest(b"[", &list, NodeId(2), b"]").unwrap().unwrap();
        let pieces = message.into_pieces();
        assert_eq!(pieces.concat(), b"\0\0\0\x05[1,3]");
        assert_eq!(pieces[1].as_ptr(), list.json.as_ptr(), "not copied");
        assert!(SharedMessage::of_rest(b"[", &self::list(&[7]), NodeId(7), b"]").unwrap().is_none());
        let long = SharedList::new([(NodeId(1), vec![b'1'; frame::MAX_MESSAGE_LEN])]);
        assert!(matches!(SharedMessage::new(b"[", &long, NodeId(2), b"]"), Err(FrameError::TooLong(_))));
    }
}
