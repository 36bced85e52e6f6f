//! The control side: what nodes and the coordinator say to each other, over QUIC or a byte stream.
//!
//! ```text
//!  quinn --> server: TLS --\
//!  TCP port (crate::tcp) ----+-> door: place, deadline, Hello/Welcome --> enter: Join | Connect --> session (one per node)
//!                                                                            |  ^ mailbox, board
//!                                     registry -- changes --> every session  v  |
//!                                            \--------------> hub: who is online, candidates, calls
//!                                                              \--> relay: which nodes there are
//! ```
//!
//! Tasks, all tracked and all ended by cancellation: the *server* accepts connections; one *connection task*
//! each takes a connection from its first packet to its end, and is the session of a node once the node is
//! known; the *hub* is the one place that knows who is connected. What they wait for is cancel-safe:
//! accepting, receiving a message (what was read is kept), taking mail, receiving a change or a command.
//!
//! A session follows the registry by itself: it subscribes to changes, sends the map, and then the changes
//! after it, so no change is lost or sent twice. News of peers come through the hub, which puts them up at a board that
//! all sessions read, where newer news replaces older; what is for one session alone comes into its mailbox. A client
//! that does not read is cut off by the deadline of a write, and has to connect again.

mod board;
mod door;
mod enter;
mod gate;
mod hub;
mod link;
mod mailbox;
mod server;
mod session;
mod stats;

use std::time::SystemTime;

use mesh_proto::control::{Refusal, RefusalCode, ServerMessage};

pub(crate) use self::server::{IDLE_TIMEOUT, KEEP_ALIVE};
pub use self::{
    door::{Door, Service, Stranger},
    enter::{Coordinator, Ports},
    gate::Place,
    hub::{Hub, HubGone, HubHandle},
    link::{Carrier, Link, LinkError},
    server::{ControlServer, server_config},
    stats::{ControlStats, Counter},
};

/// What this program says of itself in Hello and Welcome.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Answers a Ping, with the time.
pub(crate) fn pong(id: u64) -> ServerMessage {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok();
    let time_ms = time.and_then(|time| u64::try_from(time.as_millis()).ok());
    ServerMessage::Pong { id, time_ms }
}

fn refusal(code: RefusalCode, message: &str) -> Refusal {
    Refusal { code, message: message.to_owned(), retry_after_ms: None }
}
