//! What somebody's hand breaks. Each is told in one sentence: by `meshctl status`, in the agent's log, and as an Event on the
//! Node. No pod that talks notices.

use std::process::Command;

use anyhow::{Context as _, ensure};
use mesh_lab::kubernetes::{Credentials, SERVICE_RANGE, items};
use mesh_lab::mesh::wait_until;
use mesh_proto::kubernetes::{ApiState, NetworkPolicies, PodNetworkState};

use crate::remade::{Range, range};
use crate::rig::{PATIENCE, Rig, WORKERS};
use crate::talk::{goes_on, stream};

/// Whose Node is made with ranges that it cannot have; its provider's addresses are a carrier's.
const WITHOUT_RANGE: &str = "macbook";
/// Where files and credentials are broken.
const WITHOUT_FILES: &str = "home-a";
/// What the runtime reads.
const CNI: &str = "/etc/cni/net.d";
const OWN_FILE: &str = "05-mesh.conflist";
const OTHER_FILE: &str = "00-hand.conflist";
/// A network as one finds it in a tutorial.
const OTHER_NETWORK: &str = r#"{"cniVersion":"1.0.0","name":"hand","plugins":[{"type":"bridge","bridge":"hand0",
    "ipam":{"type":"host-local","ranges":[[{"subnet":"172.29.0.0/24"}]]}}]}"#;
/// Somebody who may say that something is wrong, and nothing else.
const STRANGER: &str = "stranger";
const MAY_TELL: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: stranger, namespace: default}
rules: [{apiGroups: [''], resources: [events], verbs: [create]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: stranger, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: stranger}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: stranger}]
";
/// It would forbid something to nobody.
const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nothing-in, namespace: default}
spec: {podSelector: {matchLabels: {app: nobody}}, policyTypes: [Ingress]}
";

/// One after the other, on two workers at the same time.
pub(crate) fn each_is_told_and_nothing_stops(rig: &Rig) -> anyhow::Result<()> {
    let web = rig.cluster.pods("web")?;
    rig.cluster.kubectl()?.apply(MAY_TELL)?;
    let streams = [
        stream(&rig.cluster, &web["country"], &web[WITHOUT_RANGE])?,
        stream(&rig.cluster, &web["office"], &web[WITHOUT_FILES])?,
    ];
    std::thread::scope(|scope| {
        let ranges = scope.spawn(|| ranges_that_cannot_be(rig));
        let files = scope.spawn(|| files_of_another_hand(rig).and_then(|()| credentials_that_fail(rig)));
        let ended = [ranges, files].map(|thread| thread.join().expect("a thread does not panic"));
        ended.into_iter().collect::<anyhow::Result<()>>()
    })?;
    for stream in streams {
        goes_on(&stream)?;
        println!("gap while somebody breaks things: {:.0?}", stream.take_longest());
        stream.finish().context("the stream")?;
    }
    Ok(())
}

/// Before agents start anew: they ask for policies seldom.
pub(crate) fn somebody_makes_a_policy(rig: &Rig) -> anyhow::Result<()> {
    rig.cluster.kubectl()?.apply(POLICY)
}

/// Whoever has policies learns that nothing enforces them.
pub(crate) fn policies_are_told(rig: &Rig) -> anyhow::Result<()> {
    for worker in WORKERS {
        rig.is_told_by_status(worker, "the cluster has NetworkPolicies, which the mesh does not enforce: ")?;
        rig.is_told_in_cluster(worker, "the cluster has NetworkPolicies, which the mesh does not enforce: ")?;
        let kubernetes = rig.village.node(worker)?.peek()?.this.kubernetes;
        let kubernetes = kubernetes.context("nothing of Kubernetes in the status")?;
        ensure!(
            kubernetes.network_policies == NetworkPolicies::NotEnforced
                && kubernetes.state == PodNetworkState::Ready,
            "{kubernetes:?}"
        );
    }
    Ok(())
}

/// The cluster gives the Node what the host, the mesh or another Node has.
fn ranges_that_cannot_be(rig: &Rig) -> anyhow::Result<()> {
    let own = rig.pod_ranges(WITHOUT_RANGE)?;
    let others = rig.pod_ranges("country")?[0];
    let [a, b, c, _] = rig.village.network().host(WITHOUT_RANGE)?.address().octets();
    let lan = format!("{a}.{b}.{c}.0/24");
    for (bad, sentence) in [
        (lan.clone(), format!("the podCIDR {lan} clashes with {lan}, the network of this host's eth0: ")),
        (
            "100.99.0.0/24".to_owned(),
            "the podCIDR 100.99.0.0/24 lies in 100.64.0.0/10, which this host's provider uses itself (eth0): "
                .to_owned(),
        ),
        (
            "10.96.77.0/24".to_owned(),
            format!(
                "the podCIDR 10.96.77.0/24 clashes with the range {SERVICE_RANGE} of the cluster's Services"
            ),
        ),
        (
            others.to_string(),
            format!("the podCIDR {others} is refused by the mesh: it overlaps {others} of country"),
        ),
    ] {
        rig.make_again(WITHOUT_RANGE, &[range(&bad)?])?;
        rig.is_told(WITHOUT_RANGE, &sentence)?;
        ensure!(!rig.village.node(WITHOUT_RANGE)?.is_ready(), "{WITHOUT_RANGE} is ready with {bad}");
    }
    let routes = rig.village.administer(["route", "list"])?.success()?.stdout;
    let of_node = routes.lines().find(|line| line.contains(WITHOUT_RANGE) && line.contains("refused"));
    ensure!(of_node.is_some_and(|line| line.contains("of country")), "the operator sees {routes}");
    rig.cluster.kill_controllers()?;
    rig.make_again(WITHOUT_RANGE, &[])?;
    let sentence = format!(
        "the Node {WITHOUT_RANGE} has no podCIDR: kube-controller-manager runs without --allocate-node-cidrs"
    );
    rig.is_told(WITHOUT_RANGE, &sentence)?;
    rig.cluster.resume_control_plane()?;
    one_family_cannot_be(rig, &own)?;
    rig.make_again(WITHOUT_RANGE, &own)?;
    rig.is_well(WITHOUT_RANGE)
}

/// The other one goes on; so does what the node had of this one.
fn one_family_cannot_be(rig: &Rig, own: &[Range]) -> anyhow::Result<()> {
    let others = rig.pod_ranges("country")?[1];
    rig.make_again(WITHOUT_RANGE, &[own[0], others])?;
    let sentence = format!("the podCIDR {others} is refused by the mesh: it overlaps {others} of country");
    // So soon after all the others this one is no Event: an agent makes six in ten minutes.
    rig.is_told_on_node(WITHOUT_RANGE, &sentence)?;
    let node = rig.village.node(WITHOUT_RANGE)?;
    wait_until(PATIENCE, "the good family is the node's own", || Ok(node.is_ready()))?;
    let kubernetes = node.peek()?.this.kubernetes.context("nothing of Kubernetes in the status")?;
    ensure!(
        kubernetes.pod_ranges == own
            && kubernetes.state == PodNetworkState::Ready
            && kubernetes.problems == [sentence],
        "{kubernetes:?}"
    );
    Ok(())
}

/// The runtime's directory cannot be written, and there is a network of somebody else's.
fn files_of_another_hand(rig: &Rig) -> anyhow::Result<()> {
    let directory = rig.cluster.worker(WITHOUT_FILES)?.directory(CNI);
    let (own, other) = (directory.join(OWN_FILE), directory.join(OTHER_FILE));
    let wanted = std::fs::read_to_string(&own)?;
    remount(rig, "ro")?;
    std::fs::write(&own, format!("{wanted}\n"))?;
    rig.is_told(WITHOUT_FILES, &format!("the network configuration {CNI}/{OWN_FILE} cannot be written: "))?;
    remount(rig, "rw")?;
    wait_until(PATIENCE, "the file is put right", || Ok(std::fs::read_to_string(&own)? == wanted))?;
    rig.is_well(WITHOUT_FILES)?;

    std::fs::write(&other, OTHER_NETWORK)?;
    let sentence = format!("pods get their network from {CNI}/{OTHER_FILE}, which sorts before {OWN_FILE}");
    rig.is_told(WITHOUT_FILES, &sentence)?;
    std::fs::remove_file(other)?;
    rig.is_well(WITHOUT_FILES)
}

/// An agent that is started with them goes on from what it remembers.
fn credentials_that_fail(rig: &Rig) -> anyhow::Result<()> {
    let agent = rig.village.node(WITHOUT_FILES)?;
    for (credentials, sentence) in [
        (
            Credentials::User(STRANGER),
            format!("RBAC does not permit this agent to list the Node {WITHOUT_FILES}: "),
        ),
        (Credentials::OtherAuthority, "shows a certificate of another CA than the one in ".to_owned()),
        (
            Credentials::ExpiredToken,
            "the API server does not take this agent's credentials: the token of ".to_owned(),
        ),
    ] {
        rig.cluster.set_credentials(WITHOUT_FILES, credentials)?;
        agent.restart()?;
        rig.is_told_on_node(WITHOUT_FILES, &sentence)?;
        let kubernetes = agent.peek()?.this.kubernetes.context("nothing of Kubernetes in the status")?;
        ensure!(
            kubernetes.state == PodNetworkState::Ready
                && kubernetes.from_cache
                && kubernetes.api.state == ApiState::Refuses,
            "{credentials:?}: {kubernetes:?}"
        );
        match credentials {
            // The API server knows who this is.
            Credentials::User(_) => rig.is_told_in_cluster(WITHOUT_FILES, &sentence)?,
            Credentials::Kubelet
            | Credentials::KubeletOf(_)
            | Credentials::OtherAuthority
            | Credentials::ExpiredToken => {}
        }
        rig.cluster.set_credentials(WITHOUT_FILES, Credentials::Kubelet)?;
        rig.is_told_in_cluster(WITHOUT_FILES, &sentence)?;
        rig.is_well(WITHOUT_FILES)?;
    }
    Ok(())
}

impl Rig {
    /// Waits until a sentence is in the status, for programs and for people, in the log, and in the cluster.
    pub(crate) fn is_told(&self, worker: &str, sentence: &str) -> anyhow::Result<()> {
        self.is_told_on_node(worker, sentence)?;
        self.is_told_in_cluster(worker, sentence)
    }

    pub(crate) fn is_told_on_node(&self, worker: &str, sentence: &str) -> anyhow::Result<()> {
        self.is_told_by_status(worker, sentence)?;
        let agent = self.village.node(worker)?.agent();
        wait_until(PATIENCE, &format!("{worker}'s log says: {sentence}"), || {
            Ok(agent.log()?.lines().any(|line| line.contains("WARN") && line.contains(sentence)))
        })
    }

    pub(crate) fn is_told_by_status(&self, worker: &str, sentence: &str) -> anyhow::Result<()> {
        let node = self.village.node(worker)?;
        wait_until(PATIENCE, &format!("{worker}'s status says: {sentence}"), || {
            let kubernetes = node.peek()?.this.kubernetes.context("nothing of Kubernetes in the status")?;
            let said = kubernetes.problems.iter().filter(|problem| problem.contains(sentence)).count();
            ensure!(said == 1, "{kubernetes:?}");
            Ok(true)
        })?;
        let text = node.meshctl(["status"])?.success()?.stdout;
        let said =
            text.lines().filter(|line| line.starts_with("warning: ") && line.contains(sentence)).count();
        ensure!(said == 1, "meshctl status on {worker} does not say {sentence:?}:\n{text}");
        Ok(())
    }

    pub(crate) fn is_told_in_cluster(&self, worker: &str, sentence: &str) -> anyhow::Result<()> {
        let about = format!("--field-selector=involvedObject.kind=Node,involvedObject.name={worker}");
        wait_until(PATIENCE, &format!("an Event on {worker} says: {sentence}"), || {
            let events = self.cluster.kubectl()?.get(["events", "--namespace=default", &about])?;
            let said: Vec<_> = items(&events).filter_map(|event| event["message"].as_str()).collect();
            ensure!(said.iter().any(|message| message.contains(sentence)), "{said:?}");
            Ok(true)
        })
    }

    /// Waits until a worker has nothing to say, and the cluster and whoever waits for it know.
    pub(crate) fn is_well(&self, worker: &str) -> anyhow::Result<()> {
        let node = self.village.node(worker)?;
        wait_until(PATIENCE, &format!("{worker} is well again"), || {
            let kubernetes = node.peek()?.this.kubernetes.context("nothing of Kubernetes in the status")?;
            ensure!(
                kubernetes.problems.is_empty()
                    && kubernetes.state == PodNetworkState::Ready
                    && kubernetes.api.state == ApiState::Answers,
                "{kubernetes:?}"
            );
            Ok(node.is_ready())
        })?;
        self.cluster.wait_ready(&[worker], PATIENCE)
    }
}

/// Mounts the runtime's directory anew, for the agent alone.
fn remount(rig: &Rig, how: &str) -> anyhow::Result<()> {
    let pid = rig.village.node(WITHOUT_FILES)?.agent().pid().context("the agent does not run")?;
    let mounted = Command::new("nsenter")
        .args(["-t", &pid.to_string(), "-m", "mount", "-o", &format!("remount,bind,{how}"), CNI])
        .output()?;
    ensure!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
    Ok(())
}
