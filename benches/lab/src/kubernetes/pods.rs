//! The lab's pods on a cluster, and what they can be asked: see `manifests/web.yaml`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::{Cluster, Families, Kubectl, condition, items};
use crate::cgroups;
use crate::mesh::wait_until;
use crate::netns::Netns;
use crate::topology::Host;

/// What every worker runs: servers, servers that are asked for by their node's port, and servers in the node's network.
pub const WEB: &str = include_str!("manifests/web.yaml");
/// The cluster's DNS, but for its address.
const DNS: &str = include_str!("manifests/dns.yaml");
/// What stands for that in the manifest.
const DNS_ADDRESS: &str = "DNS_ADDRESS";
/// Where pods' servers tell who asks.
pub const POD_PORT: u16 = 8080;
/// And those in the nodes' networks.
pub const HOST_PORT: u16 = 18080;
/// Where pods' servers send back what they get.
pub const ECHO_PORT: u16 = 9000;
/// How long one question may take, with the seconds that TCP waits before it tries again.
const ANSWER: u32 = 5;

/// A pod that runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunningPod {
    /// Its name, which it calls itself by, too.
    pub name: String,
    /// Where it runs.
    pub node: String,
    /// Its address; where it has two, the one of the cluster's first family.
    pub address: IpAddr,
    /// All of them.
    pub addresses: Vec<IpAddr>,
    /// What the API server knows it by.
    pub uid: String,
}

/// What a server said of a question: `None` if there was no answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    /// Whom the server saw.
    pub source: IpAddr,
    /// What it calls itself.
    pub server: String,
}

/// The cluster's DNS, at the address at which kubelets say that it is.
pub fn dns(families: Families) -> String {
    DNS.replace(DNS_ADDRESS, &families.dns().to_string())
}

impl RunningPod {
    /// Its address of the family that another one is of.
    ///
    /// # Errors
    ///
    /// If it has none.
    pub fn address_like(&self, other: IpAddr) -> anyhow::Result<IpAddr> {
        let found = self.addresses.iter().find(|own| own.is_ipv4() == other.is_ipv4());
        found.copied().with_context(|| format!("{self:?} has no address of the family of {other}"))
    }
}

impl Cluster {
    /// The pods with this label `app`, which run and are ready, by their nodes.
    ///
    /// # Errors
    ///
    /// If the API server does not answer.
    pub fn pods(&self, app: &str) -> anyhow::Result<BTreeMap<String, RunningPod>> {
        self.pods_with(&format!("app={app}"))
    }

    /// As [`Cluster::pods`], by any label.
    ///
    /// # Errors
    ///
    /// If the API server does not answer.
    pub fn pods_with(&self, label: &str) -> anyhow::Result<BTreeMap<String, RunningPod>> {
        let list = self.kubectl()?.get(["pods", "--all-namespaces", "-l", label])?;
        let mut pods = BTreeMap::new();
        for pod in items(&list).filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()) {
            let is_ready = condition(pod, "Ready").is_some_and(|ready| ready["status"] == "True");
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let Ok(address) = text(&pod["status"]["podIP"]).parse() else { continue };
            let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
            let addresses = addresses.filter_map(|own| own["ip"].as_str()?.parse().ok()).collect();
            let (name, node) = (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]));
            if is_ready {
                let uid = text(&pod["metadata"]["uid"]);
                pods.insert(node.clone(), RunningPod { name, node, address, addresses, uid });
            }
        }
        Ok(pods)
    }

    /// Waits until so many pods with this label are ready.
    ///
    /// # Errors
    ///
    /// If they are not within `patience`, with what kubelets say of them.
    pub fn wait_pods(
        &self,
        app: &str,
        count: usize,
        patience: Duration,
    ) -> anyhow::Result<BTreeMap<String, RunningPod>> {
        let mut found = BTreeMap::new();
        wait_until(patience, &format!("{count} pods of {app} are ready"), || {
            found = self.pods(app)?;
            Ok(found.len() == count)
        })
        .with_context(|| self.why(app))?;
        Ok(found)
    }

    /// The network namespace of a pod, for traffic of the lab's own.
    ///
    /// # Errors
    ///
    /// If no process of the pod is found.
    pub fn netns(&self, pod: &RunningPod) -> anyhow::Result<Netns> {
        let pids = self.processes(pod);
        Netns::of_process(*pids.first().with_context(|| format!("no process of {}", pod.name))?)
    }

    /// The processes of a pod, by the machine's numbers; that of its sandbox is among them.
    pub fn processes(&self, pod: &RunningPod) -> Vec<i32> {
        cgroups::processes_of_pod(&cgroups::of(self.network.lab().id(), &pod.node), &pod.uid)
    }

    /// What the cluster says of pods that are not ready.
    fn why(&self, app: &str) -> String {
        let label = format!("app={app}");
        let said = |args: &[&str]| {
            self.kubectl().and_then(|kubectl| kubectl.run(args)).unwrap_or_else(|error| format!("{error:#}"))
        };
        let events = said(&[
            "get",
            "events",
            "--all-namespaces",
            "--field-selector",
            "type=Warning",
            "--sort-by=.lastTimestamp",
        ]);
        let events: Vec<&str> = events.lines().rev().take(10).collect();
        format!(
            "{}{}",
            said(&["get", "pods", "--all-namespaces", "-o", "wide", "-l", &label]),
            events.join("\n")
        )
    }
}

impl Kubectl {
    /// Lets a pod ask servers, one after the other, each `times` times.
    ///
    /// # Errors
    ///
    /// If nothing can be run in the pod. No answer is no error.
    pub fn ask(&self, pod: &str, servers: &[String], times: usize) -> anyhow::Result<Vec<Option<Answer>>> {
        let line = format!(
            "for s in {}; do for i in $(seq {times}); do timeout {ANSWER} wget -qO- \"http://$s/cgi-bin/who\" 2>/dev/null || echo -; done; done",
            // Addresses of IPv6 have brackets, which mean something to a shell.
            servers.iter().map(|server| format!("'{server}'")).collect::<Vec<_>>().join(" ")
        );
        let said = self.shell(pod, &line)?;
        let answers: Vec<_> = said.lines().map(parse).collect::<anyhow::Result<_>>()?;
        ensure!(answers.len() == servers.len() * times, "{pod} says {said:?}");
        Ok(answers)
    }

    /// Lets a pod ask a Service until all of these have answered.
    ///
    /// # Errors
    ///
    /// If one does not, with the last answers.
    pub fn ask_all(&self, pod: &str, service: &str, servers: &BTreeSet<String>) -> anyhow::Result<()> {
        /// With five servers, the chance to miss one of them in all these tries is 10^-8.
        const ROUNDS: usize = 8;
        let mut seen = BTreeSet::new();
        for _ in 0..ROUNDS {
            for answer in self.ask(pod, &[service.to_owned()], 10)? {
                let answer = answer.with_context(|| format!("{pod} has no answer from {service}"))?;
                seen.insert(answer.server);
            }
            if seen.is_superset(servers) {
                return Ok(());
            }
        }
        bail!("{pod} asks {service} and is answered by {seen:?} alone")
    }
}

/// Asks a server from a host.
///
/// # Errors
///
/// If there is no answer.
pub fn ask_from(host: &Host, server: &str) -> anyhow::Result<Answer> {
    let url = format!("http://{server}/cgi-bin/who");
    let args = ["timeout", &ANSWER.to_string(), "wget", "-qO-", &url];
    let said = host.command("busybox").args(args).output()?.success()?;
    parse(said.stdout.trim())?.with_context(|| format!("{} has no answer from {server}", host.name()))
}

fn parse(line: &str) -> anyhow::Result<Option<Answer>> {
    if line == "-" {
        return Ok(None);
    }
    let (source, server) = line.split_once(' ').with_context(|| format!("not an answer: {line:?}"))?;
    let source = source
        .trim_matches(['[', ']'])
        .parse::<IpAddr>()
        .with_context(|| format!("not an answer: {line:?}"))?;
    Ok(Some(Answer { source: source.to_canonical(), server: server.to_owned() }))
}
