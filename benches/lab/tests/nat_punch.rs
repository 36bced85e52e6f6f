//! Pairs of NATs that plain probing does not get through, one at a time: many sockets and ports, and prediction.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use mesh_lab::mesh::wait_until;
use mesh_lab::nat::Step;
use mesh_lab::traffic::Echo;
use mesh_lab::{Filtering, Lab, Mapping, Mesh, MeshOptions, Nat, Site, Topology};
use mesh_proto::status::{PathKind, PathReason};

const COORDINATOR: &str = "coordinator";
/// What each site adds to a round trip.
const LATENCY: Duration = Duration::from_millis(20);
/// Between the requests of a pair.
const INTERVAL: Duration = Duration::from_millis(100);
/// A second of plain probing, and what birthday probing takes at 500 probes a second in all but 1 of 100,000 cases.
const BIRTHDAY_PATIENCE: Duration = Duration::from_secs(1 + 6 + 3);
/// A second of plain probing, and what prediction takes, on a busy machine.
const PREDICTED_PATIENCE: Duration = Duration::from_secs(1 + 2 + 3);

/// Both sides' halves of an attempt at 500 probes a second, which finds nothing.
const FAILURE_PATIENCE: Duration = Duration::from_secs(1 + 10 + 5);

/// Two nodes behind these NATs, and a public coordinator.
fn pair(lab: &Lab, nats: [Nat; 2]) -> anyhow::Result<Mesh> {
    let [a, b] = nats;
    let topology = Topology::new()
        .site(Site::public(COORDINATOR).latency(LATENCY))
        .site(Site::behind("near", a).host("a").latency(LATENCY))
        .site(Site::behind("far", b).host("b").latency(LATENCY));
    let network = lab.build(topology)?;
    let address = network.host(COORDINATOR)?.address().to_string();
    let mesh = Mesh::new(network, &MeshOptions::new(COORDINATOR, &address, &["a", "b"]))?;
    mesh.start()?;
    Ok(mesh)
}

fn wait_direct(mesh: &Mesh, patience: Duration) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let _echo = Echo::start(mesh, INTERVAL, |from, _| from == "a")?;
    wait_until(patience, "both sides are direct", || {
        let paths = [("a", "b"), ("b", "a")].map(|(node, peer)| Ok(mesh.node(node)?.peer(peer)?.path));
        let paths = paths.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        anyhow::ensure!(paths.iter().all(|path| path.kind == PathKind::Direct), "{paths:?}");
        Ok(true)
    })?;
    Ok(start.elapsed())
}

/// Starts a pair and waits until it is direct.
fn check(nats: [Nat; 2], patience: Duration) -> anyhow::Result<()> {
    let names = nats.each_ref().map(|nat| format!("{} {:?}", nat.kind, nat.allocator));
    let what = names.join(" with ");
    let lab = Lab::new("punch")?;
    let mesh = pair(&lab, nats)?;
    let took = wait_direct(&mesh, patience).with_context(|| what.clone())?;
    println!("{what}: {took:?}");
    mesh.check_logs(&[])
}

fn easy() -> Nat {
    Nat::new(Mapping::Eim, Filtering::Apdf)
}

#[test]
fn many_sockets_and_many_ports_meet() {
    for mapping in [Mapping::Adm, Mapping::Apdm] {
        let hard = Nat::new(mapping, Filtering::Apdf);
        check([easy(), hard.clone()], BIRTHDAY_PATIENCE).unwrap();
        check([hard, easy()], BIRTHDAY_PATIENCE).unwrap();
    }
}

#[test]
fn two_that_vary_stay_relayed_and_say_what_could_be_done() {
    let hard = || Nat::new(Mapping::Apdm, Filtering::Apdf);
    let lab = Lab::new("relayed").unwrap();
    let mesh = pair(&lab, [hard(), hard()]).unwrap();
    let _echo = Echo::all(&mesh, INTERVAL).unwrap();
    let wanted = "relayed: a: symmetric NAT with port filtering; b: same; forward UDP 51820 on either side";
    // With one observer only, that both vary is known when an attempt has failed.
    wait_until(FAILURE_PATIENCE, "it is said why", || {
        let path = mesh.node("a")?.peer("b")?.path;
        anyhow::ensure!(path.code == PathReason::NatsVary && path.kind == PathKind::Relay, "{path:?}");
        anyhow::ensure!(path.reason == wanted, "{}", path.reason);
        Ok(true)
    })
    .unwrap();
    let why = mesh.node("a").unwrap().meshctl(["why", "b"]).unwrap().success().unwrap().stdout;
    assert!(why.starts_with(&format!("b: {wanted}")), "{why}");
    mesh.check_logs(&[]).unwrap();
}

#[test]
fn ports_that_count_on_are_predicted() {
    for step in Step::ALL {
        check([easy(), Nat::sequential(step)], PREDICTED_PATIENCE).unwrap();
    }
    check([Nat::sequential(Step::Up1), Nat::sequential(Step::Down1)], PREDICTED_PATIENCE).unwrap();
    check([Nat::sequential(Step::Up256), Nat::sequential(Step::Up2)], PREDICTED_PATIENCE).unwrap();
}
