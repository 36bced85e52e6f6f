//! No join token: the cluster vouches for its nodes. First by an overlay, then by the chart in its place, to its end.

use std::time::Duration;

use mesh_lab::kubernetes::Binaries;

use crate::checks;
use crate::daemon_set::{Told, all_is_well, before_its_objects, clean_up, connect_the_first, tell_addresses};
use crate::rig::{MACHINES, guide};
use crate::unit;

/// Between which nodes a stream runs while the image is another one.
const STREAM: [&str; 2] = ["country", "office"];
/// For how long it may be silent.
const SILENCE: Duration = Duration::from_secs(5);
/// The image that was imported, and the next one of the guide: here the same by another name.
const NEXT_IMAGE: &str =
    "ctr -n k8s.io images tag docker.io/library/mesh-agent:1 docker.io/library/mesh-agent:2";

#[test]
fn without_a_join_token_and_by_helm() {
    let mut rig = before_its_objects("vouched", &Binaries::find().unwrap());
    let guide = guide().unwrap();
    for step in guide.section("Without a join token").unwrap() {
        rig.follow(step, None).unwrap();
    }
    connect_the_first(&mut rig);
    checks::all_nodes_are_ready_at(&rig, &MACHINES, checks::Known::Anywhere).unwrap();
    rig.said("the cluster has vouched for its nodes: all are Ready");
    tell_addresses(&mut rig, Told::ByName);
    all_is_well(&rig);

    // What the text says in words, of the overlay that was applied.
    let overlay = rig.shared().join("deploy/k8s/overlays/service-account");
    checks::kubectl(&rig, &["delete", "-k", &overlay.to_string_lossy()]).unwrap();
    rig.said("the overlay's objects are deleted");
    let [install, upgrade, uninstall] = guide.section("By Helm").unwrap()[..] else {
        panic!("the guide does not install, upgrade and uninstall");
    };
    rig.follow(install, None).unwrap();
    checks::wait_agents(&rig, &MACHINES[1..], "mesh-agent:1").unwrap();
    all_is_well(&rig);

    rig.each(|name| rig.machine(name).shell(NEXT_IMAGE)).unwrap();
    let stream = unit::stream(&rig, STREAM).unwrap();
    rig.follow(upgrade, None).unwrap();
    checks::wait_agents(&rig, &MACHINES[1..], "mesh-agent:2").unwrap();
    let silence = stream.take_longest();
    println!("another image, on both nodes: nothing for {} ms", silence.as_millis());
    assert!(silence < SILENCE, "a stream was silent for {silence:?}");
    stream.finish().unwrap();
    all_is_well(&rig);

    let ranges = rig.each(|name| checks::pod_range(&rig, name)).unwrap();
    rig.follow(uninstall, None).unwrap();
    let left = checks::kubectl(&rig, &["get", "namespaces,clusterroles,clusterrolebindings", "-o", "name"]);
    let left = left.unwrap();
    assert!(!left.contains("mesh-agent") && !left.contains("mesh-system"), "left in the cluster: {left}");
    for name in &MACHINES[1..] {
        clean_up(&mut rig, name);
        checks::no_agent_is_left(&rig, name, &ranges[name]).unwrap();
    }
    rig.said("nothing of the chart is left in the cluster, and nothing of the mesh on its nodes");
}
