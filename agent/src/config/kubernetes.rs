//! The settings of the pod network: the table `[kubernetes]` of the file, flags with `--kubernetes-` before the key, and
//! variables with `MESH_KUBERNETES_`.
//!
//! The table is enough to turn it on, and so is any one of the flags and variables; `--kubernetes=false` turns it off
//! whatever else is set.

use std::ffi::OsString;

use clap::Args;
use ipnet::IpNet;

use mesh_settings::Settings;

use super::{MIN_MTU, parse_flag, parse_path};
use crate::kubernetes::KubernetesConfig;

/// Where container runtimes look for the configuration of the pod network when they are not told.
const CNI_CONF_DIR: &str = "/etc/cni/net.d";
/// Where they look for plugins.
const CNI_BIN_DIR: &str = "/opt/cni/bin";
/// The largest MTU that makes sense within a host.
const MAX_POD_MTU: u16 = 9000;
/// Longest name of a Node (RFC 1123, as Kubernetes has it).
const MAX_NODE_NAME: usize = 253;

/// Flags of the pod network.
#[derive(Debug, Clone, Default, Args)]
pub struct KubernetesArgs {
    /// Be the pod network of this node of a Kubernetes cluster; any of the flags below turns it on, too
    /// [env: MESH_KUBERNETES] [default: false].
    #[arg(long = "kubernetes", value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub enabled: Option<String>,
    /// Whose credentials the API server is asked with [env: MESH_KUBERNETES_KUBECONFIG] [default: the ServiceAccount's in a
    /// pod, else kubelet's].
    #[arg(long = "kubernetes-kubeconfig", value_name = "FILE")]
    pub kubeconfig: Option<String>,
    /// This node's name in the cluster [env: MESH_KUBERNETES_NODE_NAME] [default: the host name, as kubelet has it].
    #[arg(long = "kubernetes-node-name", value_name = "NAME")]
    pub node_name: Option<String>,
    /// The whole cluster's ranges for pods, with commas [env: MESH_KUBERNETES_POD_RANGES] [default: what the mesh has].
    #[arg(long = "kubernetes-pod-ranges", value_name = "PREFIX[,PREFIX]")]
    pub pod_ranges: Option<String>,
    /// The cluster's ranges for Services, with commas [env: MESH_KUBERNETES_SERVICE_RANGES] [default: what the API server
    /// says].
    #[arg(long = "kubernetes-service-ranges", value_name = "PREFIX[,PREFIX]")]
    pub service_ranges: Option<String>,
    /// Where the container runtime finds its networks [env: MESH_KUBERNETES_CNI_CONF_DIR] [default: /etc/cni/net.d].
    #[arg(long = "kubernetes-cni-conf-dir", value_name = "DIR")]
    pub cni_conf_dir: Option<String>,
    /// Where the container runtime finds plugins [env: MESH_KUBERNETES_CNI_BIN_DIR] [default: /opt/cni/bin].
    #[arg(long = "kubernetes-cni-bin-dir", value_name = "DIR")]
    pub cni_bin_dir: Option<String>,
    /// Where missing or older plugins are copied from, before the usual places [env: MESH_KUBERNETES_CNI_PLUGIN_SOURCE]
    /// [default: /usr/lib/mesh/cni, /usr/lib/cni, /usr/libexec/cni].
    #[arg(long = "kubernetes-cni-plugin-source", value_name = "DIR")]
    pub cni_plugin_source: Option<String>,
    /// The MTU of pods, 1280 to 9000 [env: MESH_KUBERNETES_POD_MTU] [default: the interface's].
    #[arg(long = "kubernetes-pod-mtu", value_name = "BYTES")]
    pub pod_mtu: Option<String>,
}

/// Takes the settings; what is wrong is noted with the others. `None` while it is off.
pub(super) fn take<E: Fn(&str) -> Option<OsString>>(
    settings: &mut Settings<E>,
    args: &KubernetesArgs,
) -> Option<KubernetesConfig> {
    let enabled = settings.take("kubernetes", args.enabled.as_deref(), parse_flag);
    let kubeconfig = settings.take("kubernetes.kubeconfig", args.kubeconfig.as_deref(), parse_path);
    let node_name = settings.take("kubernetes.node-name", args.node_name.as_deref(), parse_node_name);
    let pod_ranges = settings.take("kubernetes.pod-ranges", args.pod_ranges.as_deref(), parse_ranges);
    let service_ranges =
        settings.take("kubernetes.service-ranges", args.service_ranges.as_deref(), parse_ranges);
    let cni_conf_dir = settings.take("kubernetes.cni-conf-dir", args.cni_conf_dir.as_deref(), parse_path);
    let cni_bin_dir = settings.take("kubernetes.cni-bin-dir", args.cni_bin_dir.as_deref(), parse_path);
    let cni_plugin_source =
        settings.take("kubernetes.cni-plugin-source", args.cni_plugin_source.as_deref(), parse_path);
    let pod_mtu = settings.take("kubernetes.pod-mtu", args.pod_mtu.as_deref(), parse_pod_mtu);
    let paths = [&kubeconfig, &cni_conf_dir, &cni_bin_dir, &cni_plugin_source];
    let is_told = node_name.is_some()
        || pod_ranges.is_some()
        || service_ranges.is_some()
        || pod_mtu.is_some()
        || paths.into_iter().any(Option::is_some);
    if !enabled.unwrap_or(is_told) {
        return None;
    }
    let node_name = node_name.or_else(|| {
        let host = rustix::system::uname().nodename().to_string_lossy().trim().to_ascii_lowercase();
        settings.check("kubernetes.node-name", &host, |name| {
            parse_node_name(name).map_err(|why| format!("this host's name is no name of a Node: {why}"))
        })
    })?;
    Some(KubernetesConfig {
        kubeconfig,
        node_name,
        pod_ranges: pod_ranges.unwrap_or_default(),
        service_ranges: service_ranges.unwrap_or_default(),
        cni_conf_dir: cni_conf_dir.unwrap_or_else(|| CNI_CONF_DIR.into()),
        cni_bin_dir: cni_bin_dir.unwrap_or_else(|| CNI_BIN_DIR.into()),
        cni_plugin_source,
        pod_mtu,
    })
}

fn parse_node_name(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() <= MAX_NODE_NAME && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err("a Node's name has lower-case letters, digits, '-' and '.', and letters or digits at its ends"
            .to_owned())
    }
}

/// Several prefixes, with commas between them.
fn parse_ranges(text: &str) -> Result<Vec<IpNet>, String> {
    let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
    let parse = |text: &str| {
        let range = text.parse::<IpNet>();
        range.map(|range| range.trunc()).map_err(|_| format!("{text:?} is no prefix such as 10.244.0.0/16"))
    };
    texts.map(parse).collect()
}

fn parse_pod_mtu(text: &str) -> Result<u16, String> {
    let mtu = text.parse().ok().filter(|mtu| (MIN_MTU..=MAX_POD_MTU).contains(mtu));
    mtu.ok_or_else(|| format!("an MTU of pods is a number from {MIN_MTU} to {MAX_POD_MTU}"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn resolve(
        args: &KubernetesArgs,
        variables: &[(&str, &str)],
        file: &str,
    ) -> Result<Option<KubernetesConfig>, String> {
        let environment = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(*value))
        };
        let mut settings = Settings::new(environment, file).unwrap().with_table("kubernetes");
        let config = take(&mut settings, args);
        settings.finish().map(|()| config).map_err(|problems| problems.to_string())
    }

    #[test]
    fn it_is_off_until_something_turns_it_on() {
        let off = KubernetesArgs::default();
        assert_eq!(resolve(&off, &[], "").unwrap(), None);
        assert_eq!(resolve(&off, &[], "kubernetes = false").unwrap(), None);
        assert_eq!(resolve(&off, &[("MESH_KUBERNETES", "false")], "[kubernetes]").unwrap(), None);
        for (variable, value) in [("MESH_KUBERNETES", "true"), ("MESH_KUBERNETES_NODE_NAME", "pi")] {
            assert!(resolve(&off, &[(variable, value)], "").unwrap().is_some(), "{variable}");
        }
        assert!(resolve(&off, &[], "[kubernetes]").unwrap().is_some());
        let config = resolve(&off, &[], "[kubernetes]\nnode-name = 'pi'").unwrap().unwrap();
        assert_eq!((config.node_name.as_str(), config.kubeconfig), ("pi", None));
        assert_eq!(config.cni_conf_dir, PathBuf::from(CNI_CONF_DIR));
    }

    #[test]
    fn flags_win_over_environment_over_the_table() {
        let args = KubernetesArgs { pod_mtu: Some("1300".into()), ..KubernetesArgs::default() };
        let variables =
            [("MESH_KUBERNETES_POD_MTU", "1400"), ("MESH_KUBERNETES_SERVICE_RANGES", "10.43.0.0/16")];
        let file = "[kubernetes]\npod-mtu = 1350\nservice-ranges = ['10.96.0.0/12']\n\
                    pod-ranges = ['10.244.0.0/16', 'fd00:10:244::/56']\nkubeconfig = '/k'";
        let config = resolve(&args, &variables, file).unwrap().unwrap();
        assert_eq!(config.pod_mtu, Some(1300));
        assert_eq!(config.service_ranges, ["10.43.0.0/16".parse().unwrap()]);
        assert_eq!(config.pod_ranges.len(), 2);
        assert_eq!(config.kubeconfig, Some("/k".into()));
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let file =
            "[kubernetes]\nnode-name = 'Pi_1'\npod-ranges = ['10.244.0.0']\npod-mtu = 576\nkubeconfg = '/k'";
        let problems = resolve(&KubernetesArgs::default(), &[], file).unwrap_err();
        for key in ["node-name", "pod-ranges", "pod-mtu", "kubeconfg: unknown key"] {
            assert!(problems.contains(&format!("kubernetes.{key}")), "{key} is missing in: {problems}");
        }
        let args = KubernetesArgs { node_name: Some("-".into()), ..KubernetesArgs::default() };
        assert!(resolve(&args, &[], "").unwrap_err().starts_with("--kubernetes-node-name: "));
        let variable = resolve(&KubernetesArgs::default(), &[("MESH_KUBERNETES_POD_MTU", "x")], "");
        assert!(variable.unwrap_err().starts_with("MESH_KUBERNETES_POD_MTU: "));
    }
}
