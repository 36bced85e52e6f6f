//! The network configuration that the container runtime reads, `05-mesh.conflist`.
//!
//! The runtime takes the first file by name that ends in `.conf`, `.conflist` or `.json`. As soon as there is one, the
//! kubelet says that the node is ready; so it is written last, and only once the mesh carries packets. From then on it
//! stays over restarts and upgrades, and is put right whenever it is not as it should be.
//!
//! The version of CNI is the newest that all plugins speak. From 1.1.0 on runtimes ask for STATUS, and so notice when
//! the agent is dead.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path};

use ipnet::IpNet;
use serde::Serialize;

use super::{Desired, problem::Problem};

/// The name of our file: it sorts before what others install, which begins with 10.
pub const FILE: &str = "05-mesh.conflist";
/// The name of the network: host-local's directory is called so.
pub const NETWORK: &str = "mesh";
/// The oldest version of CNI that can be written so; everything of this decade speaks it.
const OLDEST: &str = "0.4.0";
/// What the runtime may be offered, newest first.
const VERSIONS: [&str; 3] = ["1.1.0", "1.0.0", OLDEST];
/// The runtime takes these endings for configurations.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];
/// Root's, readable by all: as the runtime's own files are.
const MODE: u32 = 0o644;
/// The same for the directory.
const DIR_MODE: u32 = 0o755;

/// The whole file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Conflist<'a> {
    cni_version: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    cni_versions: Vec<&'a str>,
    name: &'a str,
    plugins: Vec<Plugin<'a>>,
}

/// One plugin of the chain.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
enum Plugin<'a> {
    Bridge { bridge: &'a str, is_gateway: bool, hairpin_mode: bool, ip_masq: bool, mtu: u16, ipam: Ipam<'a> },
    Portmap { capabilities: PortmapCapabilities },
    MeshCni { socket: &'a Path, data_dir: &'a Path },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ipam<'a> {
    r#type: &'static str,
    ranges: Vec<[Range; 1]>,
    routes: Vec<Route>,
    data_dir: &'a Path,
}

#[derive(Debug, Serialize)]
struct Range {
    subnet: IpNet,
}

#[derive(Debug, Serialize)]
struct Route {
    dst: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PortmapCapabilities {
    port_mappings: bool,
}

/// Returns the versions of CNI that every plugin speaks, newest first.
#[must_use]
pub(super) fn common_versions(spoken: &[Vec<String>]) -> Vec<&'static str> {
    let by_all = |version: &&str| spoken.iter().all(|plugin| plugin.iter().any(|spoken| spoken == version));
    VERSIONS.into_iter().filter(by_all).collect()
}

/// Returns the content of the file.
pub(super) fn render(desired: &Desired, data_dir: &Path, versions: &[&'static str]) -> Vec<u8> {
    let bridge = desired.bridge();
    let any = |range: &IpNet| Route { dst: if range.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" } };
    let plugins = vec![
        Plugin::Bridge {
            bridge: &bridge,
            is_gateway: true,
            // A pod may be behind a Service that it asks itself.
            hairpin_mode: true,
            // Done in the agent's own table, where Services and other nodes' pods are known.
            ip_masq: false,
            mtu: desired.mtu,
            ipam: Ipam {
                r#type: "host-local",
                ranges: desired.pods.iter().map(|range| [Range { subnet: range.trunc() }]).collect(),
                routes: desired.pods.iter().map(any).collect(),
                data_dir,
            },
        },
        Plugin::Portmap { capabilities: PortmapCapabilities { port_mappings: true } },
        Plugin::MeshCni { socket: &desired.socket, data_dir },
    ];
    // Who knows the list takes the newest of it that it speaks; who does not takes the single one.
    let oldest_safe = versions.iter().find(|version| **version != VERSIONS[0]).or(versions.first());
    let mut offered = versions.to_vec();
    offered.reverse();
    let conflist = Conflist {
        cni_version: oldest_safe.copied().unwrap_or(OLDEST),
        cni_versions: if offered.contains(&VERSIONS[0]) { offered } else { Vec::new() },
        name: NETWORK,
        plugins,
    };
    let mut text =
        serde_json::to_vec_pretty(&conflist).expect("invariant: strings, numbers and paths of text are JSON");
    text.push(b'\n');
    text
}

/// Returns what a foreign file in the directory is in the way of ours.
pub(super) fn others_first(dir: &Path) -> io::Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if is_configuration(&path) && path.file_name() < Some(FILE.as_ref()) {
            problems.push(Problem::OtherConfigurationFirst { path, ours: FILE });
        }
    }
    problems.sort();
    Ok(problems)
}

/// Whether files of others tell the runtime about networks.
pub(super) fn others_present(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let mut paths = entries.map(|entry| entry.path());
    paths.any(|path| is_configuration(&path) && path.file_name() != Some(FILE.as_ref()))
}

/// What [`write()`] does with a file that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IfMissing {
    /// It is made: the network carries packets.
    Make,
    /// It is not made yet.
    Leave,
}

/// Has the file be this, unless it is; returns whether it was written.
pub(super) fn write(dir: &Path, content: &[u8], if_missing: IfMissing) -> Result<bool, Problem> {
    let path = dir.join(FILE);
    let problem =
        |error: io::Error| Problem::ConflistUnwritable { path: path.clone(), reason: error.to_string() };
    match fs::read(&path) {
        Ok(present) if present == content => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound && if_missing == IfMissing::Leave => {
            return Ok(false);
        }
        // One that cannot be read is replaced, too.
        Ok(_) | Err(_) => {}
    }
    make_dir(dir).and_then(|()| super::plugins::place(&path, MODE, content)).map_err(problem)?;
    Ok(true)
}

/// Makes a directory that all may read, whatever this process' mask is.
pub(super) fn make_dir(dir: &Path) -> io::Result<()> {
    for made in mesh_durable::make_directories(dir, DIR_MODE)? {
        fs::set_permissions(made, fs::Permissions::from_mode(DIR_MODE))?;
    }
    Ok(())
}

fn is_configuration(path: &Path) -> bool {
    // Editors and writers leave hidden files; runtimes read them all the same.
    path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::podnet::fixtures;

    #[test]
    fn the_file_is_what_runtimes_and_plugins_read() {
        let text = render(&fixtures::desired(), Path::new("/run/cni/mesh"), &["1.1.0", "1.0.0", "0.4.0"]);
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "cniVersion": "1.0.0",
                "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
                "name": "mesh",
                "plugins": [
                    {
                        "type": "bridge", "bridge": "cni-mesh0", "isGateway": true, "hairpinMode": true, "ipMasq": false,
                        "mtu": 1420,
                        "ipam": {
                            "type": "host-local",
                            "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]],
                            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                            "dataDir": "/run/cni/mesh",
                        },
                    },
                    {"type": "portmap", "capabilities": {"portMappings": true}},
                    {"type": "mesh-cni", "socket": "/run/mesh-agent/agent.sock", "dataDir": "/run/cni/mesh"},
                ],
            })
        );
    }

    #[test]
    fn families_are_in_the_order_of_the_node_and_what_it_has_not_is_left_out() {
        let ipam = |ranges: &[&str]| {
            let pods = ranges.iter().map(|range| range.parse().unwrap()).collect();
            let desired = Desired { pods, ..fixtures::desired() };
            let text = render(&desired, Path::new("/run/cni/mesh"), &["1.0.0"]);
            let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
            let ipam = &value["plugins"][0]["ipam"];
            (ipam["ranges"].to_string(), ipam["routes"].to_string())
        };
        assert_eq!(
            ipam(&["fd00:10:244:1::/64", "10.244.1.0/24"]),
            (
                r#"[[{"subnet":"fd00:10:244:1::/64"}],[{"subnet":"10.244.1.0/24"}]]"#.to_owned(),
                r#"[{"dst":"::/0"},{"dst":"0.0.0.0/0"}]"#.to_owned()
            )
        );
        assert_eq!(
            ipam(&["fd00:10:244:1::/64"]),
            (r#"[[{"subnet":"fd00:10:244:1::/64"}]]"#.to_owned(), r#"[{"dst":"::/0"}]"#.to_owned())
        );
    }

    #[test]
    fn old_plugins_are_not_asked_for_what_they_do_not_speak() {
        let old = ["0.4.0", "1.0.0"].map(str::to_owned).to_vec();
        let new = ["0.4.0", "1.0.0", "1.1.0"].map(str::to_owned).to_vec();
        assert_eq!(common_versions(&[new.clone(), old.clone()]), ["1.0.0", "0.4.0"]);
        assert_eq!(common_versions(std::slice::from_ref(&new)), ["1.1.0", "1.0.0", "0.4.0"]);
        let text = render(&fixtures::desired(), Path::new("/run/cni/mesh"), &common_versions(&[new, old]));
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["cniVersion"], "1.0.0");
        assert!(value.get("cniVersions").is_none());
    }

    #[test]
    fn it_is_made_when_the_network_works_and_put_right_at_any_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(!write(dir.path(), b"right", IfMissing::Leave).unwrap());
        assert!(!path.exists());
        assert!(write(dir.path(), b"right", IfMissing::Make).unwrap());
        assert!(!write(dir.path(), b"right", IfMissing::Make).unwrap(), "it is so already");
        fs::write(&path, "{ broken by hand").unwrap();
        assert!(write(dir.path(), b"right", IfMissing::Leave).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"right");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_directory_that_is_none_is_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let problem = write(&file, b"x", IfMissing::Make).unwrap_err();
        assert!(problem.to_string().starts_with("the network configuration "), "{problem}");
    }

    #[test]
    fn a_file_that_sorts_first_is_named_and_left() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["00-loopback.json", "04-other.conf", "05-mesh.conflist", "10-flannel.conflist", "01-notes.txt"]
        {
            fs::write(dir.path().join(name), "{}").unwrap();
        }
        let names: Vec<_> = others_first(dir.path()).unwrap();
        let of = |name: &str| Problem::OtherConfigurationFirst { path: dir.path().join(name), ours: FILE };
        assert_eq!(names, [of("00-loopback.json"), of("04-other.conf")]);
        assert!(others_present(dir.path()));
    }
}
