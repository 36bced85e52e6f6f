//! Where the container runtime of k3s looks for networks and plugins.
//!
//! k3s writes the configuration of its containerd at each start. With flannel it names directories of its own; without
//! (`--flannel-backend=none`) it names none, and containerd looks where everybody's does. Who has left flannel on would
//! otherwise see a pod network that is ready, and pods that are not in it.

use std::path::{Path, PathBuf};

use super::{Places, problem::Problem};

/// Where k3s keeps what is its containerd's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct K3s {
    /// It is there while containerd runs, and not after a reboot.
    pub socket: PathBuf,
    /// What k3s tells it.
    pub configuration: PathBuf,
}

impl Default for K3s {
    fn default() -> Self {
        Self {
            socket: "/run/k3s/containerd/containerd.sock".into(),
            configuration: "/var/lib/rancher/k3s/agent/etc/containerd/config.toml".into(),
        }
    }
}

/// Returns what k3s' containerd looks for at another place than ours. Nothing, where none runs.
pub(super) fn looks_elsewhere(places: &Places) -> Vec<Problem> {
    let Places { k3s: K3s { socket, configuration }, cni_conf_dir, cni_bin_dir, .. } = places;
    if !socket.exists() {
        return Vec::new();
    }
    let text = std::fs::read_to_string(configuration).unwrap_or_default();
    let Ok(configuration) = text.parse::<toml::Table>() else { return Vec::new() };
    let Told { networks, plugins } = told(&configuration);
    let mut problems = Vec::new();
    if let Some(theirs) = networks.filter(|theirs| theirs != cni_conf_dir) {
        problems.push(elsewhere("networks", theirs, cni_conf_dir, "cni-conf-dir"));
    }
    if !plugins.contains(cni_bin_dir)
        && let Some(theirs) = plugins.into_iter().next()
    {
        problems.push(elsewhere("their plugins", theirs, cni_bin_dir, "cni-bin-dir"));
    }
    problems
}

fn elsewhere(what: &'static str, theirs: PathBuf, ours: &Path, setting: &'static str) -> Problem {
    Problem::K3sLooksElsewhere { what, theirs, ours: ours.to_owned(), setting }
}

/// What containerd is told of networks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    networks: Option<PathBuf>,
    plugins: Vec<PathBuf>,
}

/// Reads the table `cni` of whichever plugin has one: its name differs from version to version of the configuration.
fn told(configuration: &toml::Table) -> Told {
    let plugins = configuration.get("plugins").and_then(toml::Value::as_table);
    let tables = plugins.into_iter().flatten().filter_map(|(_, plugin)| plugin.get("cni"));
    let mut told = Told::default();
    for table in tables {
        let text = |key: &str| table.get(key).and_then(toml::Value::as_str).map(PathBuf::from);
        let several = table.get("bin_dirs").and_then(toml::Value::as_array).into_iter().flatten();
        told.networks = text("conf_dir").or(told.networks);
        told.plugins.extend(text("bin_dir"));
        told.plugins.extend(several.filter_map(toml::Value::as_str).map(PathBuf::from));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLANNEL: &str = r#"
version = 3
root = "/var/lib/rancher/k3s/agent/containerd"
[plugins.'io.containerd.cri.v1.runtime']
  enable_selinux = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dir = "/var/lib/rancher/k3s/data/cni"
  conf_dir = "/var/lib/rancher/k3s/agent/etc/cni/net.d"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"#;
    const NONE: &str = r#"
version = 2
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/rancher/k3s/agent/containerd"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_port = "10010"
"#;

    fn places(dir: &Path, configuration: &str) -> Places {
        let k3s = K3s { socket: dir.join("socket"), configuration: dir.join("config.toml") };
        std::fs::write(&k3s.socket, "").unwrap();
        std::fs::write(&k3s.configuration, configuration).unwrap();
        Places { k3s, ..Places::default() }
    }

    #[test]
    fn whoever_has_left_flannel_on_is_told_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let mut places = places(dir.path(), FLANNEL);
        let said: Vec<_> = looks_elsewhere(&places).iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(
            said[0],
            "k3s' container runtime looks for networks in /var/lib/rancher/k3s/agent/etc/cni/net.d, not in \
             /etc/cni/net.d: start k3s' servers with --flannel-backend=none, or set cni-conf-dir"
        );
        assert!(said[1].contains("/var/lib/rancher/k3s/data/cni, not in /opt/cni/bin"), "{said:?}");
        // A template of one's own may name them, too, and the agent with it.
        places.cni_conf_dir = "/var/lib/rancher/k3s/agent/etc/cni/net.d".into();
        places.cni_bin_dir = "/var/lib/rancher/k3s/data/cni".into();
        assert_eq!(looks_elsewhere(&places), []);
    }

    #[test]
    fn a_runtime_that_is_told_nothing_looks_where_everybody_does() {
        let dir = tempfile::tempdir().unwrap();
        for configuration in [NONE, "", "version = "] {
            assert_eq!(looks_elsewhere(&places(dir.path(), configuration)), [], "{configuration}");
        }
        let several = r#"[plugins."io.containerd.cri.v1.runtime".cni]
            bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]"#;
        assert_eq!(looks_elsewhere(&places(dir.path(), several)), []);
    }

    #[test]
    fn what_a_k3s_has_left_behind_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path(), FLANNEL);
        std::fs::remove_file(&places.k3s.socket).unwrap();
        assert_eq!(looks_elsewhere(&places), []);
    }
}
