//! For tests: what a power cut, a full disk or a failing one leaves of a directory.
//!
//! The code under test is the real one, down to its system calls. This crate defines libc's functions that change
//! files (`calls`), and a program's own definition comes before the library's: whatever is linked into the test,
//! SQLite's C as well as the standard library, goes through them. They do what they are asked to, and write down what
//! happened below the directory that a [`Recording`] was started for.
//!
//! ```text
//! code under test --> calls --> kernel            the directory, for real
//!                       |
//!                       +--> Recording            every step in order: written, resized, synced, renamed, ...
//!                               |                 and the moments when something was acknowledged
//!                               v
//!                             Disk                what is safe after a step, and what is only in the cache
//!                               |
//!                               v
//!                       Cut --> Image             one thing that may be found after the power has come back
//!                                 |
//!                                 v
//!                              explore()            every image is started from, once, and judged
//! ```
//!
//! What a [`Disk`] promises is what POSIX does, and no more: content is safe when the file was synced, a name when its
//! directory was. Of all else any part may be lost: whole writes in any order, and 512-byte sectors of a write. A
//! failed sync makes nothing safe, and a later one that succeeds does not make up for it.
//!
//! A recording can also make steps fail ([`Fault`]), as a disk does that is full, read-only or broken.
//!
//! Only Linux's libc is replaced; elsewhere the crate is empty.

#![cfg(target_os = "linux")]

mod calls;
mod cut;
mod disk;
mod explore;
mod image;
mod recorder;
mod step;

pub use cut::Cut;
pub use disk::Disk;
pub use explore::{Explored, explore};
pub use image::{Image, workspace};
pub use recorder::{Fault, Recording};
pub use step::{FileId, Step};
