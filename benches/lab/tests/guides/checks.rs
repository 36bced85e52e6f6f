//! What a guide promises of the cluster that comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesh_lab::kubernetes::pods::POD_PORT;
use mesh_lab::kubernetes::{Families, condition, items};
use mesh_lab::mesh::wait_until;
use serde_json::Value;

use crate::rig::Rig;

/// For what has no budget here: machines that share two processors.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
/// The test's pods.
const PODS: &str = include_str!("pods.yaml");
/// The name of their Service.
const SERVICE_NAME: &str = "web.default.svc.cluster.local";

/// One of the test's pods.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) name: String,
    /// One of each family that the cluster has, its own first.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) uid: String,
}

impl Pod {
    /// Its address of the cluster's own family.
    pub(crate) fn address(&self) -> anyhow::Result<IpAddr> {
        self.addresses.first().copied().with_context(|| format!("{self:?} has no address"))
    }
}

/// Runs kubectl as the guide's reader does, and returns what it prints.
pub(crate) fn kubectl(rig: &Rig, args: &[&str]) -> anyhow::Result<String> {
    let config = ["--kubeconfig=/etc/kubernetes/admin.conf"];
    Ok(rig.first().run("kubectl", config.iter().chain(args))?.success()?.stdout)
}

/// What `kubectl get` knows of these.
fn get(rig: &Rig, args: &[&str]) -> anyhow::Result<Value> {
    let said = kubectl(rig, &[&["get", "-o", "json"], args].concat())?;
    serde_json::from_str(&said).context("kubectl get -o json")
}

/// By which address a cluster knows its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// That in the mesh.
    InTheMesh,
    /// Whichever kubelet has found.
    Anywhere,
}

/// As [`all_nodes_are_ready_at`], by their addresses in the mesh, where each machine's agent connects the pods itself: it
/// says so, and has nothing to complain of.
pub(crate) fn all_nodes_are_ready(rig: &Rig, names: &[&str]) -> anyhow::Result<()> {
    all_nodes_are_ready_at(rig, names, Known::InTheMesh)?;
    for name in names {
        let status = rig.machine(name).shell("meshctl status")?;
        ensure!(
            status.lines().any(|line| line.trim_start().starts_with("kubernetes")),
            "no line `kubernetes` on {name}: {status}"
        );
        ensure!(!status.contains("warning:"), "{name} is not content: {status}");
    }
    Ok(())
}

/// Waits until these are the cluster's Nodes and each is Ready and connected; checks by which addresses they are known.
pub(crate) fn all_nodes_are_ready_at(rig: &Rig, names: &[&str], known: Known) -> anyhow::Result<()> {
    wait_until(PATIENCE, "all Nodes are Ready and connected", || {
        let list = get(rig, &["nodes"])?;
        let present: BTreeSet<&str> =
            items(&list).filter_map(|node| node["metadata"]["name"].as_str()).collect();
        ensure!(present == names.iter().copied().collect(), "the Nodes are {present:?}");
        for node in items(&list) {
            let name = &node["metadata"]["name"];
            let says = |kind| condition(node, kind).map(|told| told["status"].as_str().unwrap_or_default());
            ensure!(says("Ready") == Some("True"), "{name} is not Ready: {:?}", condition(node, "Ready"));
            ensure!(says("NetworkUnavailable") == Some("False"), "{name} is not connected");
        }
        Ok(true)
    })
    .with_context(|| why(rig))?;
    if known == Known::Anywhere {
        return Ok(());
    }
    wait_until(PATIENCE, "all Nodes are known by their addresses in the mesh", || {
        let list = get(rig, &["nodes"])?;
        for node in items(&list) {
            let name = node["metadata"]["name"].as_str().context("a Node has a name")?;
            let addresses = node["status"]["addresses"].as_array().context("a Node has addresses")?;
            let internal = addresses.iter().find(|address| address["type"] == "InternalIP");
            let internal = internal.with_context(|| format!("{name} has no InternalIP"))?;
            let own = mesh_address(rig, name)?;
            ensure!(internal["address"] == own.as_str(), "{name} is known at {internal}, and is at {own}");
        }
        Ok(true)
    })
}

/// A machine's address in the mesh, as its kernel has it.
pub(crate) fn mesh_address(rig: &Rig, name: &str) -> anyhow::Result<String> {
    rig.machine(name).shell("ip -o -4 address show dev mesh0 | awk '{print $4}' | cut -d/ -f1")
}

/// Starts a pod on each of these nodes, and a Service.
pub(crate) fn start_pods(rig: &Rig, names: &[&str]) -> anyhow::Result<()> {
    let file = rig.lab.directory().join("pods.yaml");
    std::fs::write(&file, PODS)?;
    let args = ["--kubeconfig=/etc/kubernetes/admin.conf", "apply", "-f", "-"];
    rig.first().feed(&file, "kubectl", args)?.success()?;
    wait_pods(rig, names)
}

/// Waits until the test's pods and the cluster's DNS are ready: one pod on each of these nodes.
pub(crate) fn wait_pods(rig: &Rig, names: &[&str]) -> anyhow::Result<()> {
    wait_until(PATIENCE, "a pod is ready on each node", || {
        let pods = pods(rig)?;
        ensure!(pods.keys().eq(names.iter().collect::<BTreeSet<_>>()), "pods are ready on {:?}", pods.keys());
        let dns = get(rig, &["pods", "--namespace=kube-system", "--selector=k8s-app=kube-dns"])?;
        let ready = items(&dns).filter(|pod| is_ready(pod)).count();
        ensure!(ready == 2, "{ready} of two pods of CoreDNS are ready");
        Ok(true)
    })
    .with_context(|| why(rig))
}

/// By which boot of its machine the API server knows a node.
pub(crate) fn known_boot(rig: &Rig, name: &str) -> anyhow::Result<String> {
    let node = get(rig, &["node", name])?;
    Ok(node["status"]["nodeInfo"]["bootID"].as_str().context("a Node tells its boot")?.to_owned())
}

/// Waits until the API server knows that a node was booted since, and that its pods were started again: for a while it
/// takes all of them for well as they were.
pub(crate) fn wait_known_as_rebooted(rig: &Rig, name: &str, before: &str) -> anyhow::Result<()> {
    wait_until(PATIENCE, "the node is known to have booted", || {
        let field = format!("--field-selector=spec.nodeName={name}");
        let list = get(rig, &["pods", "--all-namespaces", &field])?;
        let again = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64() > Some(0);
        Ok(known_boot(rig, name)? != before && items(&list).all(again))
    })
    .with_context(|| why(rig))
}

/// The test's pods that are ready, by their nodes.
pub(crate) fn pods(rig: &Rig) -> anyhow::Result<BTreeMap<String, Pod>> {
    let list = get(rig, &["pods", "--selector=app=web"])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let addresses = |pod: &Value| {
        let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
        addresses.filter_map(|own| own["ip"].as_str()?.parse().ok()).collect()
    };
    let pod = |pod: &Value| Pod {
        name: text(&pod["metadata"]["name"]),
        addresses: addresses(pod),
        uid: text(&pod["metadata"]["uid"]),
    };
    let found = items(&list).filter(|pod| is_ready(pod)).map(|it| (text(&it["spec"]["nodeName"]), pod(it)));
    Ok(found.collect())
}

fn is_ready(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null()
        && condition(pod, "Ready").is_some_and(|told| told["status"] == "True")
}

/// Each pod reaches each other, by each address that both have, with its own address seen.
pub(crate) fn pods_reach_pods(rig: &Rig, names: &[&str]) -> anyhow::Result<()> {
    let pods = pods(rig)?;
    ensure!(pods.len() == names.len(), "{pods:?}");
    for from in pods.values() {
        for to in pods.values() {
            ensure!(from.addresses.len() == to.addresses.len(), "{from:?} and {to:?} have other families");
            for (own, at) in from.addresses.iter().zip(&to.addresses) {
                let server = SocketAddr::new(*at, POD_PORT);
                let said = inside(rig, from, &format!("timeout 10 wget -qO- 'http://{server}/cgi-bin/who'"));
                let said = said.with_context(|| format!("{from:?} asks {to:?}"))?;
                let wanted = format!("{own} {}", to.name);
                let told: Vec<String> = said
                    .split_whitespace()
                    .map(|word| word.trim_matches(['[', ']']).replace("::ffff:", ""))
                    .collect();
                ensure!(told.join(" ") == wanted, "{from:?} asks {to:?} at {at}: {said}");
            }
        }
    }
    Ok(())
}

/// Waits until each Node is known by a mesh address of either family, IPv4 first, and has a range of either, which its agent
/// has, too.
pub(crate) fn every_node_has_both(rig: &Rig, names: &[&str]) -> anyhow::Result<()> {
    wait_until(PATIENCE, "every Node has both families", || {
        for name in names {
            let node = get(rig, &["node", name])?;
            let addresses = node["status"]["addresses"].as_array().context("a Node has addresses")?;
            let internal = addresses.iter().filter(|address| address["type"] == "InternalIP");
            let known: Vec<&str> = internal.filter_map(|address| address["address"].as_str()).collect();
            let line = "ip -o address show dev mesh0 scope global | awk '{print $4}' | cut -d/ -f1";
            let own = rig.machine(name).shell(line)?;
            let mut own: Vec<&str> = own.lines().collect();
            own.sort_by_key(|address| address.contains(':'));
            ensure!(known.len() == 2 && known == own, "{name} is known at {known:?}, and is at {own:?}");
            let ranges = node["spec"]["podCIDRs"].as_array().context("a Node has ranges")?;
            let ranges: Vec<&str> = ranges.iter().filter_map(Value::as_str).collect();
            let status = rig.machine(name).shell("meshctl status")?;
            let told = status.lines().find(|line| line.trim_start().starts_with("kubernetes"));
            let told = told.unwrap_or_default();
            let is_told = ranges.iter().all(|range| told.contains(range));
            ensure!(ranges.len() == 2 && is_told, "{name} has {ranges:?}, and says {told:?}");
        }
        Ok(true)
    })
}

/// As [`pods_reach_pods`]; and each reaches the Service by its address, and finds its name.
pub(crate) fn pods_reach_pods_and_services(rig: &Rig, names: &[&str]) -> anyhow::Result<()> {
    pods_reach_pods(rig, names)?;
    let pods = pods(rig)?;
    let service = get(rig, &["service", "web"])?;
    let service = service["spec"]["clusterIP"].as_str().context("the Service has an address")?.to_owned();
    let dns = Families::Ipv4.dns();
    for from in pods.values() {
        // A Service leads to any pod; so often it is another's, too.
        for _ in 0..2 * pods.len() {
            inside(rig, from, &format!("timeout 10 wget -qO- http://{service}/cgi-bin/who"))
                .with_context(|| format!("{from:?} asks the Service"))?;
        }
        let found = inside(rig, from, &format!("timeout 10 nslookup {SERVICE_NAME} {dns}"))
            .with_context(|| format!("{from:?} asks for a name"))?;
        ensure!(found.contains(&service), "{} finds {SERVICE_NAME} at {found}", from.name);
    }
    Ok(())
}

/// Runs a line of shell in a pod.
fn inside(rig: &Rig, pod: &Pod, line: &str) -> anyhow::Result<String> {
    kubectl(rig, &["exec", &pod.name, "--", "/bin/sh", "-c", line])
}

/// `kubectl logs` and `exec` reach every node.
pub(crate) fn kubelets_are_reached(rig: &Rig, names: &[&str]) -> anyhow::Result<()> {
    let pods = pods(rig)?;
    for name in names {
        let pod = pods.get(*name).with_context(|| format!("no pod on {name}"))?;
        let logs = kubectl(rig, &["logs", &pod.name])?;
        ensure!(logs == "started\n", "{} logs {logs:?}", pod.name);
        let told = kubectl(rig, &["exec", &pod.name, "--", "hostname"])?;
        ensure!(told.trim() == pod.name, "{} is called {told:?}", pod.name);
    }
    Ok(())
}

/// What somebody has noted of a node.
pub(crate) fn annotation(rig: &Rig, name: &str, key: &str) -> anyhow::Result<String> {
    let node = get(rig, &["node", name])?;
    let noted = node["metadata"]["annotations"][key].as_str();
    Ok(noted.with_context(|| format!("{key} is not noted of {name}"))?.to_owned())
}

/// The range of a node's pods.
pub(crate) fn pod_range(rig: &Rig, name: &str) -> anyhow::Result<String> {
    let node = get(rig, &["node", name])?;
    Ok(node["spec"]["podCIDR"].as_str().context("a Node has a range for its pods")?.to_owned())
}

/// Of the cluster's network nothing is left on a machine that has left it, and nobody goes there for its range; as a node
/// of the mesh it is well.
pub(crate) fn nothing_is_left(rig: &Rig, name: &str, range: &str) -> anyhow::Result<()> {
    let machine = rig.machine(name);
    let left = machine.shell(
        "ls /etc/cni/net.d /opt/cni/bin /run/cni 2>/dev/null | grep -v : | grep . || true; \
         ip -o link | grep -E 'cni-mesh|veth' || true; nft list tables | grep mesh || true; \
         pgrep -a 'kubelet|kube-proxy|httpd' || true",
    )?;
    ensure!(left.is_empty(), "left on {name}: {left}");
    wait_until(PATIENCE, "the agent is ready", || {
        Ok(machine.run("meshctl", ["status", "--check", "ready"])?.status.success())
    })?;
    let status = machine.shell("meshctl status")?;
    ensure!(!status.contains("kubernetes"), "{name} is of a cluster still: {status}");
    nobody_goes_to(rig, range)
}

/// As [`nothing_is_left`], where the agent was in its pod: nothing of the mesh is left either.
pub(crate) fn no_agent_is_left(rig: &Rig, name: &str, range: &str) -> anyhow::Result<()> {
    let left = rig.machine(name).shell(
        "ls /etc/cni/net.d /opt/cni/bin /run/cni 2>/dev/null | grep -v : | grep . || true; \
         ls -d /var/lib/mesh-agent* /run/mesh-agent* 2>/dev/null || true; \
         ip -o link | grep -E 'mesh|veth' || true; nft list tables | grep mesh || true; \
         ip route show table all proto 109; ip -6 route show table all proto 109; ip rule | grep -v 'from all lookup' || true; \
         pgrep -a 'kubelet|kube-proxy|httpd|mesh-agent' || true; ctr -n k8s.io containers list -q",
    )?;
    ensure!(left.is_empty(), "left on {name}: {left}");
    let nodes = rig.first().shell("mesh-coordinator node list")?;
    ensure!(!nodes.contains(name), "{name} is a node of the mesh still: {nodes}");
    nobody_goes_to(rig, range)
}

/// No machine has a route to a range of pods.
fn nobody_goes_to(rig: &Rig, range: &str) -> anyhow::Result<()> {
    wait_until(PATIENCE, "nobody has a route to its range", || {
        for (other, machine) in rig.machines() {
            let route = machine.shell(&format!("ip route show table all {range}"))?;
            ensure!(route.is_empty(), "{other} has a route: {route}");
        }
        Ok(true)
    })
}

/// Waits until the DaemonSet has a pod on each of these nodes and nowhere else, ready, with an image that ends so.
pub(crate) fn wait_agents(rig: &Rig, names: &[&str], image: &str) -> anyhow::Result<()> {
    wait_until(PATIENCE, "the agent's pods are those that were asked for", || {
        let list = get(rig, &["pods", "--namespace=mesh-system"])?;
        let nodes: Vec<&str> = items(&list).filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
        ensure!(
            nodes.iter().copied().collect::<BTreeSet<_>>() == names.iter().copied().collect()
                && nodes.len() == names.len(),
            "pods of the agent are on {nodes:?}"
        );
        for pod in items(&list) {
            let runs = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
            ensure!(runs.ends_with(image) && is_ready(pod), "{runs} on {}", pod["spec"]["nodeName"]);
        }
        Ok(true)
    })
    .with_context(|| why(rig))
}

/// What there is to see when something is not as it should be.
fn why(rig: &Rig) -> String {
    let mut said = Vec::new();
    for args in [
        &["get", "nodes", "-o", "wide"][..],
        &["get", "pods", "--all-namespaces", "-o", "wide"],
        &["get", "events", "--all-namespaces", "--field-selector=type=Warning", "--sort-by=.lastTimestamp"],
    ] {
        said.push(kubectl(rig, args).unwrap_or_else(|error| format!("{error:#}")));
    }
    for (name, machine) in rig.machines() {
        let line = "meshctl status; journalctl -u kubelet -u containerd -u mesh-agent --no-pager -n 25 -o cat | cut -c1-400";
        said.push(format!(
            "--- {name}\n{}",
            machine.shell(line).unwrap_or_else(|error| format!("{error:#}"))
        ));
    }
    said.join("\n")
}
