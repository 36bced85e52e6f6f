//! kubeadm, on the hosts: from bare machines to a cluster that works, over a reboot, and until a node has left.

use std::path::PathBuf;

use mesh_lab::kubernetes::Binaries;
use mesh_lab::kubernetes::kubeadm::{self, PROXY_WITHOUT_TABLE};

use crate::rig::{MACHINES, Rig, guide};
use crate::{checks, neighbours, unit};

/// The node that is rebooted.
const REBOOTED: &str = "country";
/// The node that leaves.
const LEAVING: &str = "office";

/// How the step that makes the mesh the pod network is told from others.
pub(crate) const LAST_STEP: &str = "**4. The pod network**";
/// Whose images only the first machine needs.
const CONTROL_PLANE: [&str; 4] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd"];

#[test]
fn from_bare_machines_to_ready_nodes_and_back() {
    let binaries = Binaries::find().unwrap();
    let guide = guide().unwrap();
    let mut rig = start("guides", &binaries);

    for step in guide.section("kubeadm, on the hosts").unwrap() {
        rig.follow(step, None).unwrap();
        if step.text.contains("kubeadm init") {
            spare_the_table(&rig);
        }
    }
    checks::all_nodes_are_ready(&rig, &MACHINES).unwrap();
    rig.said("all Nodes are Ready, by their mesh addresses");
    checks::start_pods(&rig, &MACHINES).unwrap();
    rig.said("a pod runs on each");
    checks::pods_reach_pods_and_services(&rig, &MACHINES).unwrap();
    checks::kubelets_are_reached(&rig, &MACHINES).unwrap();
    rig.said("pods reach pods, Services and names; logs and exec reach every node");
    unit::runs_as_its_drop_in_says(&rig, REBOOTED).unwrap();
    unit::streams_survive_a_restart(&rig, REBOOTED, LEAVING).unwrap();
    rig.said("a stream between pods has survived restarts of the agent");

    neighbours::come_and_stay(&mut rig).unwrap();

    let boot = checks::known_boot(&rig, REBOOTED).unwrap();
    rig.reboot(REBOOTED).unwrap();
    rig.said("country has booted again");
    checks::wait_known_as_rebooted(&rig, REBOOTED, &boot).unwrap();
    checks::all_nodes_are_ready(&rig, &MACHINES).unwrap();
    checks::wait_pods(&rig, &MACHINES).unwrap();
    checks::pods_reach_pods_and_services(&rig, &MACHINES).unwrap();
    checks::kubelets_are_reached(&rig, &MACHINES).unwrap();
    rig.said("everything is as before the reboot");

    let range = checks::pod_range(&rig, LEAVING).unwrap();
    for step in guide.section("A node that leaves").unwrap() {
        rig.follow(step, Some(LEAVING)).unwrap();
    }
    checks::nothing_is_left(&rig, LEAVING, &range).unwrap();
    let stayed = ["pi", "country"];
    checks::all_nodes_are_ready(&rig, &stayed).unwrap();
    // Pods of a Node that is no more are collected some time after it.
    checks::wait_pods(&rig, &stayed).unwrap();
    checks::pods_reach_pods_and_services(&rig, &stayed).unwrap();
    rig.said("office has left, and nothing of the cluster is left on it");
}

/// Boots machines that have all that kubeadm takes, images included.
pub(crate) fn start(name: &str, binaries: &Binaries) -> Rig {
    let rig = Rig::boot(name, |lab, host, shared| kubeadm::disk(lab, host, shared, binaries)).unwrap();
    let images = kubeadm::images(&rig.lab.directory().join("images"), binaries).unwrap();
    import(&rig, &images);
    rig.said("the images are there");
    rig
}

/// Gives every machine what kubeadm and containerd would fetch from a registry.
pub(crate) fn import(rig: &Rig, images: &[PathBuf]) {
    rig.each(|name| {
        let needed = |image: &&PathBuf| {
            let of_the_plane = |part: &str| image.file_stem().is_some_and(|name| name == part);
            name == MACHINES[0] || !CONTROL_PLANE.iter().any(|part| of_the_plane(part))
        };
        for image in images.iter().filter(needed) {
            let args = ["--namespace", "k8s.io", "images", "import", "-"];
            rig.machine(name).feed(image, "ctr", args)?.success()?;
        }
        Ok(())
    })
    .unwrap();
}

/// The size of the table of connections is the kernel's, which is not the machine's own: kube-proxy is told to leave it, as
/// everybody tells it who runs nodes in containers.
pub(crate) fn spare_the_table(rig: &Rig) {
    let kubectl = |args: &[&str]| checks::kubectl(rig, args).unwrap();
    let told = kubectl(&["get", "configmap", "kube-proxy", "--namespace=kube-system", "-o", "json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let mut settings = told["data"]["config.conf"].as_str().unwrap().to_owned();
    for (theirs, ours) in PROXY_WITHOUT_TABLE {
        assert!(settings.contains(theirs), "kube-proxy is not told {theirs:?}: {settings}");
        settings = settings.replace(theirs, ours);
    }
    let patch = serde_json::json!({"data": {"config.conf": settings}}).to_string();
    kubectl(&["patch", "configmap", "kube-proxy", "--namespace=kube-system", "--patch", &patch]);
    kubectl(&["delete", "pods", "--namespace=kube-system", "--selector=k8s-app=kube-proxy", "--wait=false"]);
}
