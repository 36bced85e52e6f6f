//! HTTP/1 with JSON over a unix socket: how a daemon's own commands speak to it.
//!
//! The daemon binds the socket and says what is answered ([`Api`]); [`serve`] does the rest. A connection carries one request.
//! The kernel tells who called (`SO_PEERCRED`), and [`Caller`] what that is allowed. What a web page could have sent is told
//! from what the commands send by [`is_from`]: each daemon has a `Host` that no page has.

mod access;
mod client;
mod server;

pub use access::{Caller, Credentials, is_from};
pub use client::{Failure, Outgoing, exchange};
pub use server::{Answer, Api, Listening, answer, body, empty, serve};
