//! The local API: HTTP/1 over a unix socket, which `meshctl` speaks to the daemon.
//!
//! | request | answer | who |
//! |---|---|---|
//! | `GET /v1/status` | [`mesh_proto::status::Status`] | anyone on this host |
//! | `GET /v1/why/NODE` | [`Why`] | anyone on this host |
//! | `POST /v1/netcheck` | [`mesh_proto::netreport::NetReport`] | anyone on this host |
//! | `POST /v1/ping/NODE?timeout_ms=N` | [`PingReply`] | anyone on this host |
//! | `GET /v1/live` | 204 | anyone on this host |
//! | `PUT /v1/kubernetes` with [`Beside`] | 204 | [`Operator`](mesh_unixapi::Caller) |
//! | `GET /v1/report` | [`Report`] | [`Operator`](mesh_unixapi::Caller) |
//!
//! NODE is a name or a mesh address. Errors are an [`ApiError`] with a fitting status code. A request with
//! `Origin`, `Referer` or a `Host` other than [`HOST`] comes from a web page that was led here, and is refused.
//! The kernel tells who called (`SO_PEERCRED`): [`Caller`](mesh_unixapi::Caller) says what it may do.

mod client;
mod server;
#[cfg(test)]
mod tests;
mod types;

use std::{future::Future, time::Duration};

use mesh_proto::{netreport::NetReport, status::Status};

pub use client::{Client, ClientError};
pub use server::serve;
pub use types::{ApiError, Beside, HOST, PingReply, Report, StateFileInfo, Why, WhyDecision, WhyPath};

/// What the daemon answers with.
pub trait Agent: Send + Sync + 'static {
    /// Returns the status document.
    fn status(&self) -> impl Future<Output = anyhow::Result<Status>> + Send;

    /// Checks the network around this node.
    fn netcheck(&self) -> impl Future<Output = Result<NetReport, ApiError>> + Send;

    /// Pings a peer, by name or mesh address, on its primary path.
    fn ping(&self, node: &str, timeout: Duration)
    -> impl Future<Output = Result<PingReply, ApiError>> + Send;

    /// Tells why a peer, by name or mesh address, is on the path it is on.
    fn why(&self, node: &str) -> impl Future<Output = Result<Why, ApiError>> + Send;

    /// Takes over what a pod beside this agent does for it.
    fn set_kubernetes(&self, beside: Beside) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Tells what a report of a problem needs of the process itself.
    fn report(&self) -> impl Future<Output = anyhow::Result<Report>> + Send;
}
