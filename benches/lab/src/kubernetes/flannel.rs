//! Flannel as its own manifest runs it: images under the names that it asks for, made of its programs.
//!
//! Flannel and its manifest are the real ones, of one version. Its CNI plugin is a program of another repository, whose
//! module is not to be had everywhere; what stands in for it does as much: it reads what flannel has written of the node,
//! and hands all that on to `bridge`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::binaries::Binaries;
use super::image::{Image, Start, executable};
use super::kubeadm::add_iptables;

/// Flannel's manifest, beside its programs.
pub const MANIFEST: &str = "kube-flannel.yml";
/// Kubelet's runtime gives a plugin its configuration and takes its answer; flannel's writes another configuration and runs
/// the plugin that this one is for. `hairpinMode` and `isDefaultGateway` are what the manifest says of it.
const PLUGIN: &str = r#"#!/bin/sh
set -eu
asked=$(cat)
[ "$CNI_COMMAND" != VERSION ] || { echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}'; exit; }
. /run/flannel/subnet.env
name=$(printf %s "$asked" | tr -d '\n' | sed 's/.*"name" *: *"\([^"]*\)".*/\1/')
masquerade=true
[ "$FLANNEL_IPMASQ" = true ] && masquerade=false
cat <<END | "${0%/*}/bridge"
{"cniVersion":"1.0.0","name":"$name","type":"bridge","bridge":"cni0","mtu":$FLANNEL_MTU,"ipMasq":$masquerade,
"hairpinMode":true,"isGateway":true,"isDefaultGateway":true,
"ipam":{"type":"host-local","ranges":[[{"subnet":"${FLANNEL_SUBNET%.*}.0/${FLANNEL_SUBNET#*/}"}]],"routes":[{"dst":"$FLANNEL_NETWORK"}]}}
END
"#;
/// In which image a manifest expects the plugin.
const PLUGIN_IMAGE: &str = "flannel-cni-plugin";

/// Makes the images that flannel's manifest names, and returns their archives.
///
/// # Errors
///
/// If flannel was not built, or its manifest names an image that is not known.
pub fn images(directory: &Path, binaries: &Binaries) -> anyhow::Result<Vec<PathBuf>> {
    let manifest = binaries.path(MANIFEST);
    let manifest = std::fs::read_to_string(&manifest)
        .with_context(|| format!("{}: run benches/lab/kubernetes/build flannel", manifest.display()))?;
    let mut names: Vec<&str> =
        manifest.lines().filter_map(|line| line.trim().strip_prefix("image: ")).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(|name| image(directory, binaries, name)).collect()
}

fn image(directory: &Path, binaries: &Binaries, name: &str) -> anyhow::Result<PathBuf> {
    let (path, _) = name.rsplit_once(':').with_context(|| format!("an image without a version: {name}"))?;
    let (_, program) = path.rsplit_once('/').with_context(|| format!("an image of nobody: {name}"))?;
    let image = Image::new(directory, program, &[name], Start::Command(&[]))?;
    match program {
        "flannel" => {
            image.add(&binaries.path("flanneld"), "opt/bin/flanneld")?;
            image.add(&binaries.path("install_conf"), "opt/bin/install-conf")?;
            add_iptables(&image)?;
        }
        PLUGIN_IMAGE => {
            image.add_linked(Path::new("/bin/busybox"), "bin/cp")?;
            executable(&image.root().join("flannel"), PLUGIN)?;
        }
        other => bail!("flannel asks for an image of {other}, which is not known here"),
    }
    image.write()
}
