//! What the next process has to know of this one: a small document in a file that is only in memory.
//!
//! ```text
//! 0 length of the document, u32 little endian    4 the document, JSON
//! ```
//!
//! It is written over with one system call, so whoever is killed leaves the older one or the newer one. One that cannot
//! be read is none: then everything begins anew.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    num::NonZeroU32,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use mesh_proto::{control::InstanceId, key::NodeKey, netmap::NodeId};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::io::offload::Offloads;

/// Longest document: with all of a large mesh's peers in it.
const MAX_LEN: usize = 256 * 1024;
/// Bytes of the length.
const LENGTH_LEN: usize = 4;

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Whose descriptors these are.
    pub node_key: NodeKey,
    /// Which run of the agent it is, of which every process is a part that goes on with the same descriptors.
    pub instance: InstanceId,
    /// What they were opened for.
    pub asked: Asked,
    /// Peers with whom there was a session lately.
    #[serde(default)]
    pub companions: Vec<Companion>,
}

/// The settings by which descriptors are opened. Those that were opened for others are of no use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The TUN's name.
    pub interface: String,
    /// The UDP port that was asked for; 0 for any.
    pub listen_port: u16,
    /// How many engines.
    pub shards: NonZeroU32,
    /// Which offloads.
    pub offloads: Offloads,
}

/// A peer with whom there was a session lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Companion {
    /// The peer.
    pub id: NodeId,
    /// Where it was, if that was no relay.
    #[serde(default)]
    pub address: Option<SocketAddr>,
}

/// The file that the document is in.
#[derive(Debug)]
pub struct RecordFile {
    file: File,
    written: Vec<u8>,
}

impl RecordFile {
    /// Makes an empty one.
    ///
    /// # Errors
    /// When the system has no memory for it.
    pub fn create() -> io::Result<Self> {
        let memory = memfd_create("mesh-record", MemfdFlags::CLOEXEC)?;
        Ok(Self { file: memory.into(), written: Vec::new() })
    }

    /// Takes over one that was kept, with what it says.
    #[must_use]
    pub fn adopt(kept: OwnedFd) -> Option<(Self, Record)> {
        let file = File::from(kept);
        let mut length = [0; LENGTH_LEN];
        file.read_exact_at(&mut length, 0).ok()?;
        let length = usize::try_from(u32::from_le_bytes(length)).ok().filter(|length| *length <= MAX_LEN)?;
        let mut document = vec![0; length];
        file.read_exact_at(&mut document, LENGTH_LEN as u64).ok()?;
        let record = serde_json::from_slice(&document).ok()?;
        Some((Self { file, written: Vec::new() }, record))
    }

    /// Replaces what it says, unless that is what it says already.
    ///
    /// # Errors
    /// When the system has no memory for it, or it is too long.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let document = serde_json::to_vec(record).map_err(io::Error::other)?;
        let length = u32::try_from(document.len()).ok().filter(|_| document.len() <= MAX_LEN);
        let length = length.ok_or(io::ErrorKind::FileTooLarge)?;
        if document != self.written {
            let bytes: Vec<u8> = length.to_le_bytes().into_iter().chain(document.iter().copied()).collect();
            self.file.write_all_at(&bytes, 0)?;
            self.written = document;
        }
        Ok(())
    }
}

impl AsFd for RecordFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(companions: u32) -> Record {
        let address = Some(([192, 0, 2, 1], 51820).into());
        Record {
            node_key: NodeKey([1; 32]),
            instance: InstanceId([2; 16]),
            asked: Asked {
                interface: "mesh0".to_owned(),
                listen_port: 0,
                shards: NonZeroU32::MIN,
                offloads: Offloads::ALL,
            },
            companions: (0..companions).map(|id| Companion { id: NodeId(id), address }).collect(),
        }
    }

    fn kept(file: &RecordFile) -> OwnedFd {
        file.file.try_clone().unwrap().into()
    }

    #[test]
    fn the_latest_is_read_back_also_after_a_longer_one() {
        let mut file = RecordFile::create().unwrap();
        assert!(RecordFile::adopt(kept(&file)).is_none(), "nothing is in it");
        for companions in [0, 2, 1000, 1] {
            file.write(&record(companions)).unwrap();
            let (_, read) = RecordFile::adopt(kept(&file)).unwrap();
            assert_eq!(read, record(companions));
        }
        assert!(file.write(&record(100_000)).is_err(), "too long");
        assert_eq!(RecordFile::adopt(kept(&file)).unwrap().1, record(1));
    }

    #[test]
    fn what_makes_no_sense_is_none() {
        let mut file = RecordFile::create().unwrap();
        file.write(&record(2)).unwrap();
        file.file.write_all_at(b"\xff\xff\xff\xff", 0).unwrap();
        assert!(RecordFile::adopt(kept(&file)).is_none());
        file.file.write_all_at(b"\x10\0\0\0{\"node_key\": nonse", 0).unwrap();
        assert!(RecordFile::adopt(kept(&file)).is_none());
        assert!(RecordFile::adopt(File::open("/dev/null").unwrap().into()).is_none());
    }
}
