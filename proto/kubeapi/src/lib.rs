//! A small client of Kubernetes' API server, for the agent and the coordinator: requests as `kube` makes them, over the
//! TLS and HTTP that are there anyway.
//!
//! ```text
//! Access: kubeconfig, or what a pod is given --> Target: host, TLS, token     read again when a file is another one
//! Client: request --> one connection per request --> Exchange: code, and the body as it comes, or ApiError
//! ```
//!
//! Every step has a deadline of its own. Errors are sentences for people, by who can change it; no token is in any of them.

mod access;
mod client;
mod connection;
mod error;
mod token;

pub use access::{Access, AccessError, Target, is_pod};
pub use client::{Caller, Client};
pub use connection::Exchange;
pub use error::ApiError;
pub use token::{Claims, claims};
