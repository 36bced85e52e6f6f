//! Networks behind nodes: offered by agents, approved or not by the coordinator, reached by everybody.

use std::{net::IpAddr, time::Duration};

use mesh_lab::mesh::wait_until;
use mesh_lab::{Finished, Host, Lab, Mesh, MeshOptions, Site, Topology};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(15);
/// A network that node `a` has beside it, and its address there.
const SHED: (&str, &str) = ("192.168.7.0/24", "192.168.7.1");

struct Rig {
    mesh: Mesh,
    _lab: Lab,
}

/// Two nodes on public addresses; both offer [`SHED`], which `a` has.
fn start(coordinator_args: &[&str]) -> anyhow::Result<Rig> {
    let lab = Lab::new("routes")?;
    let topology =
        ["coord", "a", "b"].into_iter().fold(Topology::new(), |all, name| all.site(Site::public(name)));
    let network = lab.build(topology)?;
    let mut options = MeshOptions::new("coord", &network.outside("coord")?.to_string(), &["a", "b"]);
    options.coordinator_args = coordinator_args.iter().map(|&arg| arg.to_owned()).collect();
    options.agent_args_of.insert("a".to_owned(), vec![format!("--advertise={}", SHED.0)]);
    let mesh = Mesh::new(network, &options)?;
    let shed: &Host = mesh.node("a")?.host();
    shed.netns()
        .ip(&format!("link add shed type bridge\naddr add {}/24 dev shed\nlink set shed up\n", SHED.1))?;
    mesh.start()?;
    Ok(Rig { mesh, _lab: lab })
}

impl Rig {
    fn route(&self, args: &[&str]) -> anyhow::Result<Finished> {
        self.mesh.administer(["route"].iter().chain(args))
    }

    /// What `route list` says: node, prefix, state.
    fn list(&self) -> anyhow::Result<Vec<[String; 3]>> {
        let list: Vec<Value> = serde_json::from_str(&self.route(&["list", "--json"])?.success()?.stdout)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(list
            .iter()
            .map(|route| [text(&route["node"]), text(&route["prefix"]), text(&route["state"])])
            .collect())
    }

    fn wait_reached(&self, is_reached: bool) -> anyhow::Result<()> {
        let b = self.mesh.node("b")?;
        let what = if is_reached { "the network behind a is reached" } else { "it is not reached" };
        wait_until(PATIENCE, what, || {
            let route = b.host().command("ip").args(["route", "get", SHED.1]).output()?;
            Ok(route.stdout.contains("mesh0") == is_reached
                && b.host().ping(SHED.1.parse::<IpAddr>()?).is_ok() == is_reached)
        })
    }
}

#[test]
fn an_operator_approves_and_revokes() {
    let rig = start(&[]).unwrap();
    let a = rig.mesh.node("a").unwrap();
    wait_until(PATIENCE, "the offer has come", || Ok(rig.list()? == [["a", SHED.0, "pending"]])).unwrap();
    rig.wait_reached(false).unwrap();
    let warnings = a.status().unwrap().this.warnings.join("\n");
    assert!(warnings.contains("route 192.168.7.0/24 is pending: it waits for the operator"), "{warnings}");

    rig.route(&["approve", "a", SHED.0]).unwrap().success().unwrap();
    rig.wait_reached(true).unwrap();
    wait_until(PATIENCE, "the node is told", || {
        let status = a.status_json()?;
        Ok(status["self"]["advertised"][0]["state"] == "approved"
            && status["self"]["warnings"] == Value::Array(vec![]))
    })
    .unwrap();
    let allowed = rig.mesh.node("b").unwrap().peer("a").unwrap().allowed_ips;
    assert!(allowed.contains(&SHED.0.parse().unwrap()), "{allowed:?}");

    // It is not another's now, whoever approves that.
    let taken = rig.route(&["approve", "b", "192.168.0.0/20"]).unwrap();
    assert_eq!(taken.code(), 0, "b does not offer it");
    rig.route(&["revoke", "a", SHED.0]).unwrap().success().unwrap();
    rig.wait_reached(false).unwrap();
    let table = rig.route(&["list"]).unwrap().success().unwrap().stdout;
    assert!(table.contains("the operator has revoked it"), "{table}");
    for wrong in [["approve", "a", "192.168.7.0"], ["approve", "../x", SHED.0]] {
        assert_eq!(rig.route(&wrong).unwrap().code(), 2, "{wrong:?}");
    }
    assert_eq!(rig.route(&["approve", "nobody", SHED.0]).unwrap().code(), 1);
    rig.mesh.check_logs(&[]).unwrap();
}

#[test]
fn policy_approves_and_all_of_it_outlives_restarts() {
    let rig = start(&["--approve-routes=192.168.0.0/16"]).unwrap();
    rig.wait_reached(true).unwrap();
    rig.mesh.coordinator().restart().unwrap();
    rig.mesh.node("a").unwrap().restart().unwrap();
    rig.wait_reached(true).unwrap();
    assert_eq!(rig.list().unwrap(), [["a", SHED.0, "approved"]]);
    rig.mesh.check_logs(&[]).unwrap();
}
