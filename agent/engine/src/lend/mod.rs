//! Nodes that relay for others (the messages: [`mesh_proto::lend`]).
//!
//! | part | what |
//! |---|---|
//! | [`Lender`] | this node as a relay for its peers |
//! | [`borrower`] | this node as one that asks peers to relay for it |
//!
//! A channel at a lender is a [`crate::relay::RelayClient`] like that at any relay, and a path through it is a relayed path like
//! any other. It is chosen before what has not answered only, or for being clearly faster: who lends has other things to do.

pub(crate) mod borrower;
mod lender;

pub(crate) use borrower::Borrower;
pub(crate) use lender::{BIND_LIFETIME, Lender, Onward};

/// Both.
#[derive(Debug, Default)]
pub(crate) struct Lending {
    pub(crate) lender: Lender,
    pub(crate) borrower: Borrower,
}
