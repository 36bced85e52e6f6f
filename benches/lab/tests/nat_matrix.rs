//! The 81 ordered pairs of NAT types, all at once: two sites of each type, and everyone of the first nine speaks to
//! everyone of the second nine.

use std::time::Duration;

use mesh_lab::mesh::wait_until;
use mesh_lab::topology::Reach;
use mesh_lab::traffic::Echo;
use mesh_lab::{Lab, Mesh, MeshOptions, Nat, NatType, Site, Topology};

const COORDINATOR: &str = "coordinator";
/// What each site adds to a round trip.
const LATENCY: Duration = Duration::from_millis(20);
/// Between the requests of a pair.
const INTERVAL: Duration = Duration::from_millis(500);
/// For the first answers of 81 pairs at once, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Within this time of the first packets, pairs are direct whose NATs let it happen. Nineteen daemons share the machine.
const DIRECT_PATIENCE: Duration = Duration::from_secs(10);
/// For those that take many sockets and ports; a node tries with one after the other.
const PUNCH_PATIENCE: Duration = Duration::from_secs(40);
/// For so long, pairs that must stay relayed are watched.
const WATCH: Duration = Duration::from_secs(5);

#[test]
fn pairs_are_direct_exactly_where_the_model_says_so() {
    let lab = Lab::new("matrix").unwrap();
    let mesh = matrix(&lab).unwrap();
    mesh.start().unwrap();
    let is_wanted = |from: &str, to: &str| from.starts_with("a-") && to.starts_with("b-");
    let echo = Echo::start(&mesh, INTERVAL, is_wanted).unwrap();
    assert_eq!(echo.flows().len(), 81);
    echo.wait_first(PATIENCE).unwrap();

    // Either side says what it sees.
    let speaks = |from: &str, to: &str| from.starts_with("a-") != to.starts_with("a-");
    let network = mesh.network();
    let is_plain =
        |from: &str, to: &str| speaks(from, to) && network.reach(from, to).unwrap() != Reach::Punched;
    wait_until(DIRECT_PATIENCE, "pairs that plain probing gets through are on the path of the model", || {
        let wrong = mesh.wrong_paths(is_plain)?;
        anyhow::ensure!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
        Ok(true)
    })
    .unwrap();
    wait_until(PUNCH_PATIENCE, "every pair is on the path of the model", || {
        let wrong = mesh.wrong_paths(speaks)?;
        anyhow::ensure!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
        Ok(true)
    })
    .unwrap();
    echo.forget();
    std::thread::sleep(WATCH);
    let wrong = mesh.wrong_paths(speaks).unwrap();
    assert!(wrong.is_empty(), "paths do not stay:\n{}", wrong.join("\n"));
    for flow in echo.flows() {
        assert!(flow.received + 2 > flow.sent, "{} to {} loses: {flow:?}", flow.from, flow.to);
    }
    mesh.check_logs(&[]).unwrap();
}

/// Eighteen sites around a public coordinator: `a-EIMxEIF`, `b-EIMxEIF` and so on, in lower case.
fn matrix(lab: &Lab) -> anyhow::Result<Mesh> {
    let mut topology = Topology::new().site(Site::public(COORDINATOR).latency(LATENCY));
    let mut names = Vec::new();
    for side in ["a", "b"] {
        for kind in NatType::all() {
            let name = format!("{side}-{kind}").to_lowercase();
            let site = Site::behind(&format!("at-{name}"), Nat::of(kind)).host(&name).latency(LATENCY);
            topology = topology.site(site);
            names.push(name);
        }
    }
    let network = lab.build(topology)?;
    let address = network.host(COORDINATOR)?.address().to_string();
    let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
    Mesh::new(network, &MeshOptions::new(COORDINATOR, &address, &nodes))
}
