//! The byte pipe for networks that let no UDP out.
//!
//! ```text
//! control messages, trains of relay frames      [`carry()`], framed as in [`mesh_proto::stream`]
//! TLS 1.3, both sides' keys proved              the callers'
//! WebSocket, binary messages cut anywhere       [`WebSocketPipe`]
//! TLS of whoever stands in between, TCP         the callers'
//! ```
//!
//! Only the inner TLS session is trusted. What is below it may be cut off, delayed or read by anyone.
//!
//! Nothing here grows: the control stream pushes back on who writes it, and the trains that wait are dropped, the
//! oldest first ([`trains()`]).

mod carry;
mod socket;
mod trains;
mod websocket;

pub use carry::{CONTROL_ROOM, CarryError, Ends, carry};
pub use socket::prepare;
pub use trains::{Train, TrainReceiver, TrainSender, trains};
pub use websocket::{AcceptError, Accepted, ConnectError, WebSocketPipe, accept, connect};

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream of any kind.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> ByteStream for T {}

/// A byte stream whose kind does not matter.
pub type BoxedStream = Box<dyn ByteStream>;
