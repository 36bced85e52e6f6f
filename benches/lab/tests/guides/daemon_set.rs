//! The agent as a DaemonSet, on a cluster of kubeadm: beside agents on the hosts, and with the agent in the pod.
//!
//! The image is built before machines are booted, and not by `make bins` again.

use mesh_lab::guide::{Step, put};
use mesh_lab::kubernetes::Binaries;
use mesh_lab::nat::Protocol;

use crate::checks;
use crate::kubeadm::{LAST_STEP, spare_the_table, start};
use crate::rig::{MACHINES, Rig, guide};

/// How the step that builds the image is told from others.
const BUILDS: &str = "make bins";
/// With which step of kubeadm's the mesh begins, and with which the cluster.
const MESH: &str = "**1. The mesh.**";
const CLUSTER: &str = "**3. The control plane**";
/// With which command the DaemonSet's own part begins.
const OBJECTS: &str = "kubectl create namespace";
/// What is left to the reader where nodes are told their addresses.
const ADDRESS: &str = "ADDRESS-IN-THE-MESH";
/// Where the API server listens.
const API_SERVER: u16 = 6443;
/// The node that leaves the cluster.
const LEAVING: &str = "country";

/// The two ways in which a kubelet learns the address that a pod has given its node, by what their commands name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// It finds the address by the node's name.
    ByName,
    /// It is told, and restarted.
    ByFlag,
}

impl Told {
    fn named(self) -> &'static str {
        match self {
            Self::ByName => "/etc/hosts",
            Self::ByFlag => "--node-ip",
        }
    }
}

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
    let mut rig = before_its_objects("inpods", &Binaries::find().unwrap());
    let guide = guide().unwrap();
    let objects = guide.section("With the agent in the pod").unwrap();
    rig.follow(objects.into_iter().find(|step| step.text.contains(OBJECTS)).unwrap(), None).unwrap();
    connect_the_first(&mut rig);
    checks::all_nodes_are_ready_at(&rig, &MACHINES, checks::Known::Anywhere).unwrap();
    rig.said("all Nodes are Ready");
    tell_addresses(&mut rig, Told::ByFlag);
    all_is_well(&rig);

    let range = checks::pod_range(&rig, LEAVING).unwrap();
    rig.follow(guide.section("A node that leaves").unwrap()[0], Some(LEAVING)).unwrap();
    clean_up(&mut rig, LEAVING);
    checks::no_agent_is_left(&rig, LEAVING, &range).unwrap();
    let stayed: Vec<&str> = MACHINES.into_iter().filter(|name| *name != LEAVING).collect();
    checks::all_nodes_are_ready_at(&rig, &stayed, checks::Known::InTheMesh).unwrap();
    checks::wait_pods(&rig, &stayed).unwrap();
    checks::pods_reach_pods_and_services(&rig, &stayed).unwrap();
    rig.said("a node has left, and nothing of the cluster and the mesh is left on it");
}

/// Follows the guide with the agent in the pod up to where the cluster is given its objects: kubelets run, nodes wait for
/// their network, and every machine has the image.
pub(crate) fn before_its_objects(name: &str, binaries: &Binaries) -> Rig {
    let guide = guide().unwrap();
    let mut rig = start(name, binaries);
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
        if step.text.contains(OBJECTS) {
            return rig;
        }
        rig.follow(step, None).unwrap();
        if step.text.contains("kubeadm init") {
            spare_the_table(&rig);
        }
    }
    panic!("{OBJECTS} is not in the guide");
}

/// The first machine's agent is its pod network, by kubeadm's last step.
pub(crate) fn connect_the_first(rig: &mut Rig) {
    for step in guide().unwrap().section("kubeadm, on the hosts").unwrap() {
        if step.before.contains(LAST_STEP) {
            rig.follow_on(step, &MACHINES[..1], None).unwrap();
        }
    }
}

/// Tells kubelets the addresses that pods have given their nodes.
pub(crate) fn tell_addresses(rig: &mut Rig, how: Told) {
    let guide = guide().unwrap();
    let told = guide.section("With the agent in the pod").unwrap();
    let is_it = |step: &&Step| step.text.contains(ADDRESS) && step.text.contains(how.named());
    let told = told.into_iter().find(is_it).unwrap();
    for name in &MACHINES[1..] {
        let address = checks::mesh_address(rig, name).unwrap();
        let told = Step { text: put(&told.text, &[(ADDRESS, &address)]).unwrap(), ..told.clone() };
        rig.follow_on(&told, &[name], None).unwrap();
    }
}

/// Follows the guide where an agent was in its pod, on a machine that leaves.
pub(crate) fn clean_up(rig: &mut Rig, name: &'static str) {
    for step in guide().unwrap().section("Where the agent was in its pod").unwrap() {
        rig.follow(step, Some(name)).unwrap();
    }
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
pub(crate) fn all_is_well(rig: &Rig) {
    checks::all_nodes_are_ready_at(rig, &MACHINES, checks::Known::InTheMesh).unwrap();
    rig.said("all Nodes are Ready, by their mesh addresses");
    checks::start_pods(rig, &MACHINES).unwrap();
    checks::pods_reach_pods_and_services(rig, &MACHINES).unwrap();
    checks::kubelets_are_reached(rig, &MACHINES).unwrap();
    rig.said("pods reach pods, Services and names; logs and exec reach every node");
}
