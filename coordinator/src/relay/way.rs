//! What frames come and go through.

use std::net::SocketAddr;

use mesh_pipe::Train;

use crate::front::Source;

/// Names a byte stream of a node, for as long as the relay runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// What a frame comes or goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The UDP port.
    Udp(Source),
    /// A byte stream.
    Stream {
        /// Which one.
        id: StreamId,
        /// The other side's address.
        remote: SocketAddr,
    },
}

/// A train that came through a byte stream.
#[derive(Debug)]
pub struct StreamTrain {
    /// Through which: a [`Way::Stream`].
    pub way: Way,
    /// The train.
    pub train: Train,
}

impl Way {
    /// Returns the other side's address.
    #[must_use]
    pub fn remote(self) -> SocketAddr {
        match self {
            Self::Udp(source) => source.address,
            Self::Stream { remote, .. } => remote,
        }
    }
}

impl From<Source> for Way {
    fn from(source: Source) -> Self {
        Self::Udp(source)
    }
}
