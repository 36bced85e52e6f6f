//! Two machines with one name, as two Debians are that nobody named. Whoever came first goes on; who has to act is told.

use anyhow::{Context as _, ensure};
use mesh_lab::kubernetes::{Credentials, condition};
use mesh_lab::mesh::{Service, wait_until};
use mesh_proto::kubernetes::PodNetworkState;

use crate::rig::{PATIENCE, Rig, WORKERS};
use crate::talk::{goes_on, stream};

/// Who has the name.
const FIRST: &str = "country";
/// Who comes with it, too.
const SECOND: &str = "home-a";
/// Who talks with the first one's pods.
const OTHER: &str = "office";

/// In the mesh it is refused, and in the cluster told; pods that talk do not notice.
pub(crate) fn the_first_one_stays(rig: &Rig) -> anyhow::Result<()> {
    let web = rig.cluster.pods("web")?;
    let stream = stream(&rig.cluster, &web[OTHER], &web[FIRST])?;
    the_mesh_refuses_the_second(rig)?;
    goes_on(&stream)?;
    a_second_kubelet_is_told(rig)?;
    goes_on(&stream)?;
    rig.asks(&web[OTHER], &web[FIRST])?;
    println!("gap while two machines had one name: {:.0?}", stream.take_longest());
    stream.finish().context("the stream")
}

fn the_mesh_refuses_the_second(rig: &Rig) -> anyhow::Result<()> {
    let before = rig.village.administer(["node", "list"])?.success()?.stdout;
    let state = rig.directory().join("second-of-a-name");
    let line = rig.village.token(&[])?;
    let words = line.split_whitespace().skip(1);
    let join = rig.village.node(SECOND)?.agent_command().args(words).args(["--name", FIRST]);
    let refused = join.arg("--state-dir").arg(&state).output()?;
    let sentence = format!("the name {FIRST} is taken by another node");
    ensure!(
        refused.code() == 1 && refused.stderr.matches(&sentence).count() == 1,
        "a second {FIRST} is not refused because of its name: {refused:?}"
    );
    ensure!(!state.exists(), "a refused join leaves something");
    let after = rig.village.administer(["node", "list"])?.success()?.stdout;
    ensure!(before.lines().count() == after.lines().count(), "the mesh has other nodes: {after}");
    println!("a second {FIRST} is told by the mesh: {}", refused.stderr.trim());
    Ok(())
}

/// A machine that has another name in the mesh, but whose kubelet and agent go by the name of its host.
fn a_second_kubelet_is_told(rig: &Rig) -> anyhow::Result<()> {
    let (first, second) = (rig.village.node(FIRST)?, rig.village.node(SECOND)?);
    let ranges = rig.pod_ranges(FIRST)?;
    second.agent().stop()?;
    rig.cluster.set_credentials(SECOND, Credentials::KubeletOf(FIRST))?;
    let service = Service::new(second)?;
    service.start_with(&[&format!("--kubernetes-node-name={FIRST}")])?;
    rig.cluster.worker(SECOND)?.set_node_name(FIRST)?;

    let other_machine = format!("the Node {FIRST} belongs to another machine with the same name: ");
    // Both kubelets write the Node in turn.
    rig.is_told(FIRST, &other_machine)?;
    rig.is_told_on_node(SECOND, &other_machine)?;
    for range in &ranges {
        let refused = format!("the podCIDR {range} is refused by the mesh: it overlaps {range} of {FIRST}");
        rig.is_told_on_node(SECOND, &refused)?;
    }
    let routes = rig.village.administer(["route", "list"])?.success()?.stdout;
    let of_second = routes.lines().find(|line| line.contains(SECOND) && line.contains("refused"));
    ensure!(
        of_second.is_some_and(|line| line.contains(&format!("of {FIRST}"))),
        "the operator sees {routes}"
    );
    let kubernetes = first.peek()?.this.kubernetes.context("nothing of Kubernetes in the status")?;
    ensure!(kubernetes.state == PodNetworkState::Ready && kubernetes.pod_ranges == ranges, "{kubernetes:?}");
    let node = rig.cluster.kubectl()?.get(["node", FIRST])?;
    let unavailable = condition(&node, "NetworkUnavailable").context("nothing of the Node's network")?;
    ensure!(unavailable["status"] == "False", "pods are kept away from {FIRST}: {unavailable}");

    // The second one's name is put right.
    service.stop()?;
    rig.cluster.set_credentials(SECOND, Credentials::Kubelet)?;
    rig.cluster.worker(SECOND)?.set_node_name(SECOND)?;
    second.start()?;
    for worker in [SECOND, FIRST] {
        rig.is_well(worker)?;
    }
    rig.cluster.wait_ready(&WORKERS, PATIENCE)?;
    wait_until(PATIENCE, "the cluster knows every pod and kubelet where it is", || {
        let web = rig.cluster.pods("web")?;
        ensure!(web.len() == WORKERS.len(), "there are no pods but {web:?}");
        let other = &web[OTHER];
        for pod in web.values() {
            rig.asks(other, pod)?;
            rig.asks(pod, other)?;
        }
        Ok(true)
    })
}
