//! Where the coordinator is: where its names lead, and where it was met before.
//!
//! Names are looked up as agents do it ([`mesh_names`]): by the system's resolvers, over the underlay, never through the
//! mesh, and what leads into the mesh is not followed. Where the coordinator was met is kept on disk, the last place first:
//! a relay that starts while no resolver answers finds it all the same. Whoever is met proves the pinned key.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use mesh_proto::netmap::NetworkMap;
use tokio::time::timeout;

/// The file.
const FILE_NAME: &str = "relay-coordinator.json";
/// It says where the coordinator is, which is nobody else's business.
const MODE: u32 = 0o600;
/// Places that are remembered.
const MAX_MET: usize = 4;
/// Resolvers that take longer are not waited for where another place is known.
const PATIENCE: Duration = Duration::from_secs(5);

/// The names, and the places.
pub(super) struct Places {
    /// `host:port`, in order.
    names: Vec<String>,
    path: PathBuf,
    met: Vec<SocketAddr>,
}

/// Places to try, and the names that lead nowhere.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) failures: Vec<String>,
}

impl Places {
    /// Reads what is known. A file that cannot be read is left out: the names are there.
    pub(super) fn load(names: Vec<String>, folder: &Path) -> Self {
        let path = folder.join(FILE_NAME);
        let met = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, "where the coordinator was before is not known");
                }
                Vec::new()
            }
        };
        Self { names, path, met }
    }

    /// Looks the names up, outside the mesh's ranges; the places at which the coordinator was met before come last.
    pub(super) async fn find(&self, mesh: &[IpNet]) -> Found {
        let mut found = Found::default();
        for name in &self.names {
            let lookup = resolve(name, mesh);
            let answer = if self.met.is_empty() {
                lookup.await
            } else {
                timeout(PATIENCE, lookup)
                    .await
                    .unwrap_or_else(|_| Err("no resolver has answered yet".to_owned()))
            };
            match answer {
                Ok(addresses) => found.addresses.extend(addresses),
                Err(error) => found.failures.push(format!("{name}: {error}")),
            }
        }
        found.addresses.extend(&self.met);
        let is_inside = |ip: IpAddr| mesh.iter().any(|range| range.contains(&ip));
        let mut distinct = Vec::new();
        for address in found.addresses {
            if !is_inside(address.ip()) && !distinct.contains(&address) {
                distinct.push(address);
            }
        }
        Found { addresses: distinct, ..found }
    }

    /// The coordinator has been met there.
    pub(super) async fn note_met(&mut self, address: SocketAddr) {
        if self.met.first() == Some(&address) {
            return;
        }
        self.met.retain(|met| *met != address);
        self.met.insert(0, address);
        self.met.truncate(MAX_MET);
        let (path, met) = (self.path.clone(), self.met.clone());
        let write = move || mesh_durable::replace(&path, MODE, &serde_json::to_vec(&met)?);
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "where the coordinator is cannot be kept on disk"),
            Err(error) => tracing::warn!(%error, "where the coordinator is could not be kept on disk"),
        }
    }
}

/// Returns the ranges of a mesh, as far as they are known.
pub(super) fn mesh_ranges(map: Option<&NetworkMap>) -> Vec<IpNet> {
    map.map(|map| vec![map.mesh.ipv4.into(), map.mesh.ipv6.into()]).unwrap_or_default()
}

async fn resolve(name: &str, mesh: &[IpNet]) -> Result<Vec<SocketAddr>, String> {
    if let Ok(literal) = name.parse() {
        return Ok(vec![literal]);
    }
    let parts = name.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let (host, port) = parts.ok_or_else(|| "this is no host:port".to_owned())?;
    let answer = mesh_names::lookup(host, mesh).await.map_err(|error| error.to_string())?;
    Ok(answer.addresses.into_iter().map(|ip| SocketAddr::new(ip.to_canonical(), port)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn where_it_was_met_is_tried_as_well_also_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let names = vec!["192.0.2.1:7443".to_owned(), "nonsense".to_owned()];
        let load = || Places::load(names.clone(), folder.path());
        let mut places = load();
        assert_eq!(places.find(&[]).await.addresses, [at("192.0.2.1:7443")]);
        for last in 1..=9 {
            places.note_met(at(&format!("198.51.100.{last}:7443"))).await;
        }
        places.note_met(at("192.0.2.1:7443")).await;
        let found = load().find(&[]).await;
        let expected =
            ["192.0.2.1:7443", "198.51.100.9:7443", "198.51.100.8:7443", "198.51.100.7:7443"].map(at);
        assert_eq!(found.addresses, expected);
        assert_eq!(found.failures, ["nonsense: this is no host:port"]);
        fs::write(folder.path().join(FILE_NAME), b"[").unwrap();
        assert_eq!(load().find(&[]).await.addresses.len(), 1);
    }

    #[tokio::test]
    async fn nothing_inside_the_mesh_is_tried() {
        let folder = tempfile::tempdir().unwrap();
        let names = vec!["10.90.0.1:7443".to_owned(), "[2001:db8::1]:7443".to_owned()];
        let places = Places::load(names, folder.path());
        let mesh = ["10.90.0.0/16".parse().unwrap()];
        assert_eq!(places.find(&mesh).await.addresses, [at("[2001:db8::1]:7443")]);
    }
}
