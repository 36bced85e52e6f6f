//! The agent as a DaemonSet, on a cluster of kubeadm: beside agents on the hosts, and with the agent in the pod.
//!
//! The image is built before machines are booted, and not by `make bins` again.

use mesh_lab::guide::{Step, put};
use mesh_lab::kubernetes::Binaries;
use mesh_lab::nat::Protocol;

use crate::checks;
use crate::kubeadm::{spare_the_table, start};
use crate::rig::{MACHINES, Rig, guide};

/// How the step that builds the image, and that which comes last for kubeadm, are told from others.
const BUILDS: &str = "make bins";
const LAST_STEP: &str = "**4. The pod network**";
/// With which step of kubeadm's the mesh begins, and with which the cluster.
const MESH: &str = "**1. The mesh.**";
const CLUSTER: &str = "**3. The control plane**";
/// What is left to the reader where nodes are told their addresses.
const ADDRESS: &str = "ADDRESS-IN-THE-MESH";
/// Where the API server listens.
const API_SERVER: u16 = 6443;

#[test]
fn a_pod_beside_each_agent() {
    let binaries = Binaries::find().unwrap();
    let guide = guide().unwrap();
    let mut rig = start("beside", &binaries);
    for step in guide.section("kubeadm, on the hosts").unwrap() {
        if step.before.contains(LAST_STEP) {
            break;
        }
        rig.follow(step, None).unwrap();
        if step.text.contains("kubeadm init") {
            spare_the_table(&rig);
        }
    }
    import(&mut rig);
    for step in guide.section("Beside agents on the hosts").unwrap() {
        rig.follow(step, None).unwrap();
    }
    all_is_well(&rig);
}

#[test]
fn the_agent_in_the_pod() {
    let binaries = Binaries::find().unwrap();
    let guide = guide().unwrap();
    let mut rig = start("inpods", &binaries);
    let [first, ..] = MACHINES;
    let network = rig.village.network();
    let nat = network.nat(first).unwrap().forward(Protocol::Tcp, API_SERVER, first);
    network.set_nat(first, nat).unwrap();
    // Every machine is prepared; steps 1 and 2 are the first one's.
    let mut among: &[&str] = &MACHINES;
    for step in guide.section("kubeadm, on the hosts").unwrap() {
        if step.before.contains(CLUSTER) {
            break;
        }
        if step.before.contains(MESH) {
            among = &MACHINES[..1];
        }
        rig.follow_on(step, among, None).unwrap();
    }
    import(&mut rig);
    for step in guide.section("With the agent in the pod").unwrap() {
        // From here on it is about the addresses by which kubelets are reached.
        if step.text.contains(ADDRESS) {
            break;
        }
        rig.follow(step, None).unwrap();
        if step.text.contains("kubeadm init") {
            spare_the_table(&rig);
        }
    }
    // The first machine's agent is its pod network, by the last step.
    for step in guide.section("kubeadm, on the hosts").unwrap() {
        if step.before.contains(LAST_STEP) {
            rig.follow_on(step, &MACHINES[..1], None).unwrap();
        }
    }
    checks::all_nodes_are_ready_at(&rig, &MACHINES, checks::Known::Anywhere).unwrap();
    rig.said("all Nodes are Ready");
    // Of the two ways in which kubelets are told, that which outlives a restart of theirs.
    let told = guide.section("With the agent in the pod").unwrap();
    let told =
        told.into_iter().find(|step| step.text.contains(ADDRESS) && step.text.contains("--node-ip")).unwrap();
    for name in &MACHINES[1..] {
        let address = checks::mesh_address(&rig, name).unwrap();
        let told = Step { text: put(&told.text, &[(ADDRESS, &address)]).unwrap(), ..told.clone() };
        rig.follow_on(&told, &[name], None).unwrap();
    }
    all_is_well(&rig);
}

/// Gives every machine the agent's image, as the guide says it.
fn import(rig: &mut Rig) {
    for step in guide().unwrap().section("As a DaemonSet").unwrap() {
        if !step.text.contains(BUILDS) {
            rig.follow(step, None).unwrap();
        }
    }
}

/// What holds of every cluster whose Nodes are known by their mesh addresses.
fn all_is_well(rig: &Rig) {
    checks::all_nodes_are_ready_at(rig, &MACHINES, checks::Known::InTheMesh).unwrap();
    rig.said("all Nodes are Ready, by their mesh addresses");
    checks::start_pods(rig, &MACHINES).unwrap();
    checks::pods_reach_pods_and_services(rig, &MACHINES).unwrap();
    checks::kubelets_are_reached(rig, &MACHINES).unwrap();
    rig.said("pods reach pods, Services and names; logs and exec reach every node");
}
