//! The byte streams of relays that are not reached over UDP.

use std::{
    collections::BTreeMap,
    task::{Context, Poll},
};

use mesh_pipe::Train;
use mesh_proto::netmap::RelayId;
use tokio::sync::mpsc;

/// The streams' inbound ends.
#[derive(Default)]
pub(super) struct Streams {
    inbound: BTreeMap<RelayId, mpsc::Receiver<Train>>,
    /// What was found by polling and not yet taken.
    ready: Option<(RelayId, Train)>,
}

impl Streams {
    /// Takes over a relay's stream in place of its older one.
    pub(super) fn set(&mut self, relay: RelayId, inbound: mpsc::Receiver<Train>) {
        self.inbound.insert(relay, inbound);
    }

    /// Looks whether a train is there; streams that have ended are forgotten.
    pub(super) fn poll_ready(&mut self, context: &mut Context<'_>) -> bool {
        let ready = &mut self.ready;
        self.inbound.retain(|relay, inbound| {
            if ready.is_some() {
                return true;
            }
            match inbound.poll_recv(context) {
                Poll::Ready(Some(train)) => *ready = Some((*relay, train)),
                Poll::Ready(None) => return false,
                Poll::Pending => {}
            }
            true
        });
        ready.is_some()
    }

    /// Takes a train, without waiting.
    pub(super) fn take(&mut self) -> Option<(RelayId, Train)> {
        self.ready.take().or_else(|| {
            self.inbound.iter_mut().find_map(|(relay, inbound)| Some((*relay, inbound.try_recv().ok()?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::io::stream::RelayPipe;

    #[test]
    fn every_stream_is_heard_and_one_that_has_ended_is_forgotten() {
        let mut context = Context::from_waker(Waker::noop());
        let mut streams = Streams::default();
        assert!(!streams.poll_ready(&mut context));
        let (one, _, sender_one) = RelayPipe::new();
        let (two, _, sender_two) = RelayPipe::new();
        streams.set(RelayId(1), one.inbound);
        streams.set(RelayId(2), two.inbound);
        let train = |byte| Train { bytes: vec![byte], stride: 1 };
        sender_two.try_send(train(2)).unwrap();
        sender_one.try_send(train(1)).unwrap();
        drop(sender_one);
        let mut got = Vec::new();
        while streams.poll_ready(&mut context) {
            got.extend(streams.take().map(|(relay, train)| (relay, train.bytes[0])));
        }
        assert_eq!(got, [(RelayId(1), 1), (RelayId(2), 2)]);
        assert_eq!(streams.inbound.len(), 1);
    }
}
