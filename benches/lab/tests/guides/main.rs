//! The guides of `deploy/k8s/README.md`, followed word by word: `make test-guides`.
//!
//! Each machine is a Debian that boots by its own systemd, in the village's network, behind a NAT of its own; commands are
//! taken out of the guide and run by a user with `sudo` where the guide says, in one terminal per machine. What a test
//! puts in is what the text leaves to the reader: a line that some command has printed, the name of a node, and `yes` to apt.
//!
//! Not taken from the guide: that an image is built (it is, before machines are booted), and what is said in words only, such as
//! that a router forwards a port.
//!
//! What differs from machines of somebody's own is said in [`mesh_lab::machine`] and [`mesh_lab::kubernetes::kubeadm`].

#![expect(clippy::unwrap_used, reason = "a test may fail that way")]

mod beneath;
mod checks;
mod daemon_set;
mod dual_stack;
mod kubeadm;
mod neighbours;
mod rig;
mod unit;
mod vouched;
