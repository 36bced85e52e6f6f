//! The files in which an agent keeps what it knows, read and written as the agent does it itself.
//!
//! One header line, `mesh1 <file> <generation> <SHA-256 in hex>`, and then JSON; the sum is of
//! `<file> <generation>`, a line end, and the JSON.

use std::path::Path;

use anyhow::{Context as _, ensure};
use mesh_proto::netmap::NetworkMap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Node;

/// First word of the header.
const FORMAT: &str = "mesh1";
/// The file of the last map.
const MAP: &str = "map.json";

/// What [`MAP`] holds.
#[derive(Debug, Serialize, Deserialize)]
struct CachedMap {
    /// Whose map it is: the coordinator's key.
    pin: serde_json::Value,
    map: NetworkMap,
}

impl Node {
    /// Changes the network map with which the agent will start; it must not run meanwhile.
    ///
    /// The coordinator sends what has changed since the version of that map: while nothing of a node changes there,
    /// it stays as it is made here.
    ///
    /// # Errors
    ///
    /// If the agent has no map yet, or its file is not what it should be.
    pub fn edit_map(&self, edit: impl FnOnce(&mut NetworkMap)) -> anyhow::Result<()> {
        ensure!(!self.agent().is_running(), "the agent of {} runs", self.name());
        let file = self.state_dir().join(MAP);
        let (generation, mut cached): (u64, CachedMap) =
            read(&file, MAP).with_context(|| format!("the map of {}", self.name()))?;
        edit(&mut cached.map);
        write(&file, MAP, generation + 1, &cached)
    }

    /// Writes a file of the agent's state directory that it keeps besides the map; the agent must not run meanwhile.
    ///
    /// # Errors
    ///
    /// If the agent runs, or the file cannot be written.
    pub fn write_state(&self, name: &str, content: &impl Serialize) -> anyhow::Result<()> {
        ensure!(!self.agent().is_running(), "the agent of {} runs", self.name());
        write(&self.state_dir().join(name), name, 1, content)
    }
}

fn read<T: DeserializeOwned>(file: &Path, name: &str) -> anyhow::Result<(u64, T)> {
    let text = std::fs::read_to_string(file)?;
    let (header, body) = text.split_once('\n').context("no header")?;
    let words: Vec<&str> = header.split(' ').collect();
    let [FORMAT, kind, generation, sum] = words[..] else { anyhow::bail!("header {header:?}") };
    let generation = generation.parse()?;
    ensure!(kind == name && checksum(name, generation, body) == sum, "the file is damaged");
    Ok((generation, serde_json::from_str(body)?))
}

fn write(file: &Path, name: &str, generation: u64, content: &impl Serialize) -> anyhow::Result<()> {
    let body = serde_json::to_string(content)? + "\n";
    let text = format!("{FORMAT} {name} {generation} {}\n{body}", checksum(name, generation, &body));
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn checksum(name: &str, generation: u64, body: &str) -> String {
    let hash = Sha256::new().chain_update(format!("{name} {generation}\n")).chain_update(body).finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
