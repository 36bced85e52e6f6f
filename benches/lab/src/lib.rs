//! The network lab: real binaries in network namespaces, behind real NATs, over simulated links.
//!
//! The parts, from the ground up:
//!
//! - [`run`]: a [`Lab`] is one run. It owns a run id that everything it makes carries, and removes all of it on
//!   drop, panic, SIGINT, SIGTERM and process exit. What a killed run left is removed when the next one starts.
//! - [`netns`] and [`process`]: namespaces, and processes in them with their own `resolv.conf`, `hosts` and host name.
//! - [`nat`]: the nine RFC 4787 NAT types as nftables rules, and a probe that measures which type a router really is.
//! - [`linksim`]: the internet. A star of TUN devices joined by one thread that delays, loses and shapes packets.
//! - [`dns`]: a small authoritative name server whose records can move at run time.
//! - [`topology`]: a description of sites and hosts, and the [`Network`] that it becomes.
//! - [`mesh`]: a coordinator and agents, started on a network from the real binaries.
//! - [`machine`]: hosts with a Debian of their own: systemd as process 1, packages, reboots.
//! - [`guide`]: a guide in Markdown, read for its commands.
//! - [`pods`]: namespaces behind a bridge of a node, as Kubernetes has them.
//! - [`kubernetes`]: a real Kubernetes whose workers are nodes of a mesh.
//! - [`capture`]: a sniffer that judges checksums.
//! - [`traffic`]: echoes between all pairs, and a file over TCP, from inside the namespaces.
//! - [`village`]: the reference deployment, and the supervisor that leaves it running in the background.
//! - [`events`]: what may happen to the village, at random, and the model that says what must be well afterwards.
//! - [`told`]: how much random tests do, and from which seed.
//! - [`report`]: a page with a picture of all that, for people.
//! - [`demo`]: the village's story, told and checked.
//! - [`cli`]: the command `mesh-lab`.
//!
//! ```no_run
//! use mesh_lab::{Filtering, Lab, Mapping, Nat, Site, Topology};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::new("example")?;
//! let network = lab.build(
//!     Topology::new()
//!         .site(Site::behind("home", Nat::new(Mapping::Eim, Filtering::Apdf)).host("pc"))
//!         .site(Site::public("server")),
//! )?;
//! network.host("pc")?.ping(network.host("server")?.address())?;
//! # Ok(())
//! # }
//! ```
//!
//! Everything needs root, or a kernel that lets a plain user make user namespaces; see [`run::rootless`].

pub mod capture;
mod cgroups;
pub mod cli;
pub mod demo;
pub mod dns;
pub mod events;
pub mod guide;
pub mod kubernetes;
pub mod linksim;
pub mod machine;
pub mod matrix;
pub mod mesh;
pub mod nat;
pub mod netns;
pub mod pods;
pub mod process;
pub mod report;
pub mod run;
pub mod told;
pub mod topology;
pub mod traffic;
pub mod village;

pub use capture::Capture;
pub use linksim::{Impairment, Loss, Order, Rate};
pub use mesh::{Mesh, MeshOptions, Node};
pub use nat::{Filtering, Mapping, Nat, NatType};
pub use netns::Netns;
pub use pods::Pod;
pub use process::{Finished, HostCommand, Process};
pub use run::Lab;
pub use topology::{Host, Network, Site, Topology};
pub use village::Village;
