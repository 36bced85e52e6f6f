//! The commands that people and scripts use, as DESIGN section 7 promises them.

use std::time::{Duration, Instant};

use mesh_lab::mesh::wait_until;
use mesh_lab::traffic::Echo;
use mesh_lab::{Lab, Mesh, Node, Village, village};
use nix::sys::signal::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(15);
const INTERVAL: Duration = Duration::from_millis(200);

#[test]
fn check_answers_by_exit_code_alone() {
    let lab = Lab::new("check").unwrap();
    let village = Village::prepare(&lab).unwrap();
    let check = |node: &Node, what: &str| {
        let finished = node.meshctl(["status", "--check", what]).unwrap();
        assert_eq!(finished.stdout, "", "--check prints nothing");
        finished.code()
    };
    let node = village.node("country").unwrap();
    assert_eq!(check(node, "live"), 1, "nothing runs yet");
    assert_eq!(check(node, "ready"), 1, "nothing runs yet");
    assert_eq!(check(node, "well"), 2, "wrong usage");

    village.mesh().start().unwrap();
    for node in village.nodes() {
        assert_eq!(check(node, "live"), 0, "{}", node.name());
        assert_eq!(check(node, "ready"), 0, "{}", node.name());
    }
    node.kill(Signal::SIGKILL).unwrap();
    assert_eq!(check(node, "live"), 1, "killed");
    village.check_logs(&[]).unwrap();
}

#[test]
fn meshctl_pings_and_says_why() {
    let lab = Lab::new("meshctl").unwrap();
    let village = Village::start_relayed(&lab).unwrap();
    let node = village.node("home-a").unwrap();

    let finished = node.meshctl(["ping", "--until-direct", "country"]).unwrap().success().unwrap();
    let last = finished.stdout.lines().last().unwrap();
    assert!(last.starts_with("pong from country (10.90.") && last.contains(" via 198.51.100.20:"), "{last}");

    let office = village.node("office").unwrap();
    let relayed = office.meshctl(["ping", "--until-direct", "-c", "4", "country"]).unwrap();
    assert_eq!(relayed.code(), 1, "office to country must not be direct: {relayed:?}");
    let report: Value = json(office, &["ping", "--json", "-c", "2", "country"]).unwrap();
    assert_eq!((&report["sent"], &report["received"]), (&Value::from(2), &Value::from(2)), "{report}");
    assert!(report["replies"].as_array().unwrap().iter().all(|reply| reply["relay"] == "pi"), "{report}");

    let why = json(office, &["why", "--json", "country"]).unwrap();
    assert_eq!(why["node"], "country");
    assert!(!why["reason"].as_str().unwrap().is_empty(), "{why}");
    assert!(why["paths"].as_array().unwrap().iter().any(|path| path["primary"] == true), "{why}");
    let text = office.meshctl(["why", "country"]).unwrap().success().unwrap().stdout;
    assert!(text.contains(why["reason"].as_str().unwrap()), "{text}");

    let unknown = node.meshctl(["ping", "-c", "1", "nobody"]).unwrap();
    assert_eq!(unknown.code(), 1);
    assert!(unknown.stderr.contains("nobody") && unknown.stderr.contains("country"), "{}", unknown.stderr);

    let table = node.meshctl(["status"]).unwrap().success().unwrap().stdout;
    assert!(table.lines().all(|line| line.chars().count() <= 100), "fits 100 columns:\n{table}");
    for name in village::NODES {
        assert!(table.contains(name), "{name} is missing:\n{table}");
    }
    village.check_logs(&[]).unwrap();
}

#[test]
fn nodes_are_listed_and_renamed() {
    let lab = Lab::new("nodes").unwrap();
    let village = Village::start(&lab).unwrap();
    let mut names = names(&village).unwrap();
    names.sort();
    let mut wanted = village::NODES.map(str::to_owned);
    wanted.sort();
    assert_eq!(names, wanted);
    for node in nodes(&village).unwrap() {
        assert_eq!(node["online"], true, "{node}");
    }

    village.administer(["node", "rename", "country", "farm"]).unwrap().success().unwrap();
    let pi = village.node("pi").unwrap();
    wait_until(PATIENCE, "peers see the new name", || {
        Ok(pi.peer("farm").is_ok() && pi.peer("country").is_err())
    })
    .unwrap();
    let country = village.node("country").unwrap();
    wait_until(PATIENCE, "it sees its own", || Ok(country.status()?.this.name == "farm")).unwrap();
    village.ping("pi", "country").unwrap();
    let taken = village.administer(["node", "rename", "farm", "office"]).unwrap();
    assert_eq!(taken.code(), 1, "the name is taken");
    let missing = village.administer(["node", "remove", "country"]).unwrap();
    assert_eq!(missing.code(), 1, "nobody is called so any more");
    let wrong = village.administer(["node", "rename", "farm", "../../etc"]).unwrap();
    assert_eq!(wrong.code(), 2, "that is no name");
    village.check_logs(&[]).unwrap();
}

#[test]
fn a_removed_node_is_cut_off_and_the_others_do_not_notice() {
    let lab = Lab::new("remove").unwrap();
    let village = Village::start(&lab).unwrap();
    let echo = Echo::all(&village, INTERVAL).unwrap();
    echo.wait_all(Instant::now(), PATIENCE).unwrap();

    village.administer(["node", "remove", "macbook"]).unwrap().success().unwrap();
    let others = || village.nodes().filter(|node| node.name() != "macbook");
    wait_until(PATIENCE, "no one knows it any more", || {
        Ok(others().all(|node| node.peer("macbook").is_err()))
    })
    .unwrap();
    echo.forget();
    std::thread::sleep(Duration::from_secs(2));
    for flow in echo.flows() {
        let is_cut = flow.from == "macbook" || flow.to == "macbook";
        let text = format!("{} to {}: {} of {}", flow.from, flow.to, flow.received, flow.sent);
        assert!(if is_cut { flow.received == 0 } else { flow.received + 3 > flow.sent }, "{text}");
    }
    assert!(!names(&village).unwrap().contains(&"macbook".to_owned()));

    // Its keys do not let it in again, not even after a restart.
    let macbook = village.node("macbook").unwrap();
    macbook.kill(Signal::SIGKILL).unwrap();
    macbook.start().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    echo.forget();
    std::thread::sleep(Duration::from_secs(1));
    let heard: u32 = echo
        .flows()
        .iter()
        .filter(|flow| flow.from == "macbook" || flow.to == "macbook")
        .map(|flow| flow.received)
        .sum();
    assert_eq!(heard, 0);
    village.check_logs(&["this node was removed"]).unwrap();
}

#[test]
fn joining_again_keeps_the_identity() {
    let lab = Lab::new("again").unwrap();
    let village = Village::start(&lab).unwrap();
    let node = village.node("office").unwrap();
    let identity = || {
        let this = node.status()?.this;
        anyhow::Ok((this.node_key, this.public_key, this.addresses))
    };
    let before = identity().unwrap();
    let line = village.token(&[]).unwrap();
    node.join(&line).unwrap();
    assert_eq!(identity().unwrap(), before, "while it runs");
    node.agent().stop().unwrap();
    node.join(&line).unwrap();
    node.start().unwrap();
    wait_until(PATIENCE, "it is ready", || Ok(node.is_ready())).unwrap();
    assert_eq!(identity().unwrap(), before, "after a restart");
    assert_eq!(names(&village).unwrap().len(), village::NODES.len());
    village.wait_connected(PATIENCE).unwrap();
    village.check_logs(&[]).unwrap();
}

/// What `node list --json` says.
fn nodes(mesh: &Mesh) -> anyhow::Result<Vec<Value>> {
    let finished = mesh.administer(["node", "list", "--json"])?.success()?;
    Ok(serde_json::from_str(&finished.stdout)?)
}

fn names(mesh: &Mesh) -> anyhow::Result<Vec<String>> {
    let name = |node: &Value| node["name"].as_str().unwrap_or_default().to_owned();
    Ok(nodes(mesh)?.iter().map(name).collect())
}

/// One document of `meshctl`, whatever the exit code.
fn json(node: &Node, args: &[&str]) -> anyhow::Result<Value> {
    let finished = node.meshctl(args)?;
    Ok(serde_json::from_str(&finished.stdout)?)
}
