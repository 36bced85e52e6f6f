//! kubeadm, on the hosts, with both families: the steps for kubeadm, and what the section says in place of some.

use mesh_lab::guide::Step;
use mesh_lab::kubernetes::Binaries;

use crate::checks;
use crate::kubeadm::{spare_the_table, start};
use crate::rig::{MACHINES, Rig, guide};

/// Begin the steps of kubeadm's section, by number.
const STEPS: [&str; 4] =
    ["**1. The mesh.**", "**2. kubelet**", "**3. The control plane**", "**4. The pod network**"];

/// What the section of both families has for each.
#[derive(Debug)]
struct Differences<'a> {
    /// For every machine, before the first step.
    kernel: &'a Step,
    /// Done after the coordinator's package was installed.
    coordinator: &'a Step,
    /// In place of step 2.
    kubelet: &'a Step,
    /// In place of the first command of step 3.
    init: &'a Step,
    /// In place of the line with `service-ranges`, in step 4.
    services: &'a Step,
    /// What is to be seen at the end.
    seen: &'a Step,
}

#[test]
fn both_families_from_bare_machines_on() {
    let binaries = Binaries::find().unwrap();
    let guide = guide().unwrap();
    let [kernel, coordinator, kubelet, init, services, seen] = guide.section("IPv4 and IPv6").unwrap()[..]
    else {
        panic!("the section of both families has other steps");
    };
    let differences = Differences { kernel, coordinator, kubelet, init, services, seen };
    let mut rig = start("both", &binaries);
    follow(&mut rig, &guide.section("kubeadm, on the hosts").unwrap(), &differences);

    checks::all_nodes_are_ready(&rig, &MACHINES).unwrap();
    checks::every_node_has_both(&rig, &MACHINES).unwrap();
    rig.said("all Nodes are Ready, by their mesh addresses, with ranges of both families");
    checks::start_pods(&rig, &MACHINES).unwrap();
    checks::pods_reach_pods_and_services(&rig, &MACHINES).unwrap();
    let pods = checks::pods(&rig).unwrap();
    assert!(pods.values().all(|pod| pod.addresses.len() == 2), "{pods:?}");
    checks::kubelets_are_reached(&rig, &MACHINES).unwrap();
    rig.said("pods reach pods by both families, Services and names; logs and exec reach every node");
}

/// Does what a reader of both sections does.
fn follow(rig: &mut Rig, steps: &[&Step], differences: &Differences<'_>) {
    let mut number = 0;
    for step in steps {
        if let Some(begun) = STEPS.iter().position(|begins| step.before.contains(begins)) {
            number = begun + 1;
            if number == 1 {
                rig.follow(differences.kernel, None).unwrap();
            }
        }
        let own = match number {
            2 => differences.kubelet.clone(),
            3 => in_place(step, "sudo kubeadm init", differences.init),
            4 => in_place(step, "service-ranges", differences.services),
            _ => (*step).clone(),
        };
        rig.follow(&own, None).unwrap();
        if own.text.contains("apt install ./mesh-coordinator") {
            rig.follow(differences.coordinator, None).unwrap();
        }
        if own.text.contains("kubeadm init") {
            spare_the_table(rig);
        }
    }
    rig.follow(differences.seen, None).unwrap();
}

/// The step with another command in place of the line that has this in it; as it is, if none has.
fn in_place(step: &Step, has: &str, other: &Step) -> Step {
    let lines = step.text.lines().map(|line| if line.contains(has) { &other.text } else { line });
    Step { text: lines.collect::<Vec<_>>().join("\n"), ..step.clone() }
}
