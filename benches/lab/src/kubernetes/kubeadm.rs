//! Machines as they are before somebody sets up a cluster with kubeadm on them: containerd, kubeadm, kubelet, kubectl and helm
//! are installed, and nothing is configured. Where this departs from a machine of somebody's own, the lab's machine is the
//! reason, and all of it is here and in [`crate::machine`]:
//!
//! - The programs are built from source and bound into the machine, with the units of Kubernetes' own packages.
//! - There is no registry: images are made of the same programs, under the names that kubeadm asks for, and imported.
//! - Control groups are those of version 1, and nothing may make the kernel's out-of-memory killer spare a process. A
//!   drop-in of containerd says so in the configuration that is there when it starts, one of kubelet adds a directory
//!   of settings. kubeadm itself is run as it is.
//! - kube-proxy may not set the size of the table of connections, which is the kernel's: see [`PROXY_WITHOUT_TABLE`].

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use super::binaries::Binaries;
use super::image::{self, Image, Start};
use crate::machine::{CONTAINERS, Disk};
use crate::run::Lab;

/// As Kubernetes' packages have it.
const UNIT: &str = "[Unit]\n\
    Description=kubelet: The Kubernetes Node Agent\n\
    Documentation=https://kubernetes.io/docs/\n\
    Wants=network-online.target\n\
    After=network-online.target\n\n\
    [Service]\n\
    ExecStart=/usr/bin/kubelet\n\
    Restart=always\n\
    StartLimitInterval=0\n\
    RestartSec=10\n\n\
    [Install]\n\
    WantedBy=multi-user.target\n";
/// Likewise.
const DROP_IN: &str = "[Service]\n\
    Environment=\"KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf\"\n\
    Environment=\"KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml\"\n\
    EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env\n\
    EnvironmentFile=-/etc/default/kubelet\n\
    ExecStart=\n\
    ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS\n";
/// What the lab's machine takes of kubelet.
const LAB_DROP_IN: &str = "[Service]\n\
    Environment=\"KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml --config-dir=/etc/lab-kubelet\"\n";
/// Likewise: a full disk of the lab's machine is not the cluster's.
const LAB_SETTINGS: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\n\
    kind: KubeletConfiguration\n\
    cgroupDriver: cgroupfs\n\
    failCgroupV1: false\n\
    failSwapOn: false\n\
    oomScoreAdj: 0\n\
    localStorageCapacityIsolation: false\n\
    imageGCHighThresholdPercent: 100\n\
    evictionHard: {memory.available: \"0%\", nodefs.available: \"0%\", nodefs.inodesFree: \"0%\", imagefs.available: \"0%\"}\n";
/// What it takes of containerd.
const CONTAINERD_DROP_IN: &str = "[Service]\n\
    ExecStartPre=/bin/sed -i -e 's/SystemdCgroup = true/SystemdCgroup = false/' \
    -e 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' -e 's/disable_apparmor = false/disable_apparmor = true/' \
    /etc/containerd/config.toml\n\
    OOMScoreAdjust=0\n";
/// What kubeadm's ConfigMap says to kube-proxy, and what the lab says instead.
pub const PROXY_WITHOUT_TABLE: [(&str, &str); 2] =
    [("maxPerCore: null", "maxPerCore: 0"), ("min: null", "min: 0")];
/// What containerd of Debian takes for the sandbox of a pod, unless it is told otherwise.
const OLD_PAUSE: &str = "registry.k8s.io/pause:3.6";
/// What the sandbox of a pod does. A shell waits for a signal, its child for ever.
const LAST: &str = "trap 'exit 0' TERM INT; /busybox sleep 2147483647 & wait";
/// Of iptables there are more than one, of which kube-proxy takes this.
const IPTABLES: &str = "/usr/sbin/xtables-nft-multi";
/// By which names it is called.
const IPTABLES_NAMES: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];

/// The disk of a machine on which kubeadm can be run, for this host.
///
/// # Errors
///
/// If the system cannot be installed or a program is missing.
pub fn disk(lab: &Lab, host: &str, shared: &Path, binaries: &Binaries) -> anyhow::Result<Disk> {
    let mut disk = Disk::with(lab, host, shared, CONTAINERS)?.for_containers(host)?;
    for name in ["kubeadm", "kubelet", "kubectl", "helm"] {
        disk = disk.program(&binaries.path(name), name);
    }
    for (path, text) in [
        ("/usr/lib/systemd/system/kubelet.service", UNIT),
        ("/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf", DROP_IN),
        ("/etc/systemd/system/kubelet.service.d/20-lab.conf", LAB_DROP_IN),
        ("/etc/lab-kubelet/lab.conf", LAB_SETTINGS),
        ("/etc/systemd/system/containerd.service.d/lab.conf", CONTAINERD_DROP_IN),
    ] {
        disk.write(path, 0o644, text)?;
    }
    Ok(disk)
}

/// Makes all images that kubeadm asks for, and the lab's own tools, and returns their archives.
///
/// # Errors
///
/// If kubeadm asks for one that is not known, or a program is missing.
pub fn images(directory: &Path, binaries: &Binaries) -> anyhow::Result<Vec<PathBuf>> {
    let version = Command::new(binaries.path("kubeadm")).args(["version", "-o", "short"]).output()?;
    let version = String::from_utf8(version.stdout)?;
    let listed = Command::new(binaries.path("kubeadm"))
        .args(["config", "images", "list", "--kubernetes-version", version.trim()])
        .output()
        .context("kubeadm")?;
    ensure!(listed.status.success(), "kubeadm: {}", String::from_utf8_lossy(&listed.stderr));
    let mut archives = vec![image::tools(directory)?];
    for name in String::from_utf8(listed.stdout)?.lines() {
        let (path, _) =
            name.rsplit_once(':').with_context(|| format!("an image without a version: {name}"))?;
        let (_, program) = path.rsplit_once('/').with_context(|| format!("an image of nobody: {name}"))?;
        archives.push(image(directory, binaries, program, name)?);
    }
    Ok(archives)
}

fn image(directory: &Path, binaries: &Binaries, program: &str, name: &str) -> anyhow::Result<PathBuf> {
    match program {
        "kube-apiserver" | "kube-controller-manager" | "kube-scheduler" | "etcd" => {
            let image = Image::new(directory, program, &[name], Start::Command(&[]))?;
            image.add(&binaries.path(program), &format!("usr/local/bin/{program}"))?;
            image.write()
        }
        "coredns" => {
            let image = Image::new(directory, program, &[name], Start::Entrypoint(&["/coredns"]))?;
            image.add(&binaries.path(program), program)?;
            image.write()
        }
        "kube-proxy" => {
            let image = Image::new(directory, program, &[name], Start::Command(&[]))?;
            image.add(&binaries.path(program), &format!("usr/local/bin/{program}"))?;
            add_iptables(&image)?;
            image.write()
        }
        // Nothing is done in it but to last until it is asked to end.
        "pause" => {
            let image = Image::new(
                directory,
                program,
                &[name, OLD_PAUSE],
                Start::Entrypoint(&["/busybox", "sh", "-c", LAST]),
            )?;
            image.add_linked(Path::new("/bin/busybox"), "busybox")?;
            image.write()
        }
        other => bail!("kubeadm asks for an image of {other}, which is not known here"),
    }
}

/// Adds iptables by all its names, with what it loads.
pub(super) fn add_iptables(image: &Image<'_>) -> anyhow::Result<()> {
    image.add_linked(Path::new(IPTABLES), "usr/sbin/xtables-nft-multi")?;
    for name in IPTABLES_NAMES {
        std::os::unix::fs::symlink("xtables-nft-multi", image.root().join("usr/sbin").join(name))?;
    }
    for extension in extensions()? {
        let inside = extension.strip_prefix("/")?.to_string_lossy().into_owned();
        image.add_linked(&extension, &inside)?;
    }
    Ok(())
}

/// What iptables loads when a rule asks for it.
fn extensions() -> anyhow::Result<Vec<PathBuf>> {
    let directory = Path::new("/usr/lib").join(format!("{}-linux-gnu/xtables", std::env::consts::ARCH));
    let entries = std::fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    entries.map(|entry| Ok(entry?.path())).collect()
}
