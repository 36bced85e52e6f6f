//! Others change what the agent has set at the host: it is put right and said, and what is theirs stays.

use std::time::{Duration, Instant};

use mesh_lab::mesh::wait_until;
use mesh_lab::{Lab, Mesh, MeshOptions, Node, Site, Topology};

/// How soon everything has to be as it was.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the mesh may take to be there.
const START_PATIENCE: Duration = Duration::from_secs(30);
const MESH_ROUTES: &[&str] = &["-4", "route", "show", "proto", "109"];

fn mesh(name: &str) -> anyhow::Result<(Lab, Mesh)> {
    let lab = Lab::new(name)?;
    let topology = ["coord", "a", "b"].iter().fold(Topology::new(), |all, name| all.site(Site::public(name)));
    let network = lab.build(topology)?;
    let address = network.outside("coord")?.to_string();
    let mesh = Mesh::new(network, &MeshOptions::new("coord", &address, &["a", "b"]))?;
    mesh.start()?;
    mesh.wait_connected(START_PATIENCE)?;
    Ok((lab, mesh))
}

fn ip(node: &Node, words: &[&str]) -> anyhow::Result<String> {
    Ok(node.host().command("ip").args(words).output()?.success()?.stdout)
}

/// What the interface looks like: link, addresses and our routes; an error if there is none.
fn look(node: &Node) -> anyhow::Result<Vec<String>> {
    let link = ip(node, &["-o", "link", "show", "mesh0"])?;
    let mtu = link.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
    let mut seen = vec![format!("up {}", link.contains(",UP")), format!("mtu {mtu:?}")];
    let addresses = ip(node, &["-o", "address", "show", "mesh0"])?;
    seen.extend(addresses.lines().filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned)));
    seen.push(ip(node, MESH_ROUTES)?);
    seen.push(ip(node, &["-6", "route", "show", "proto", "109"])?);
    Ok(seen)
}

/// The status, with its warnings.
fn status(node: &Node) -> anyhow::Result<String> {
    Ok(node.status_json()?.to_string())
}

#[test]
fn whatever_is_taken_away_is_back_within_seconds_and_said() {
    let (_lab, mesh) = mesh("meddle").unwrap();
    let a = mesh.node("a").unwrap();
    let own = format!("{}/32", a.address().unwrap());
    let before = look(a).unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&["route", "flush", "proto", "109"], "route"),
        (&["address", "del", &own, "dev", "mesh0"], "address"),
        (&["link", "set", "mesh0", "mtu", "1300"], "the MTU"),
        (&["link", "set", "mesh0", "down"], "being up"),
        (&["-6", "address", "flush", "dev", "mesh0"], "address"),
        (&["link", "del", "mesh0"], "the interface"),
    ];
    for (words, said) in cases {
        let began = Instant::now();
        ip(a, words).unwrap();
        wait_until(PATIENCE, &format!("all is as it was before {words:?}"), || Ok(look(a)? == before))
            .unwrap_or_else(|error| panic!("{error:#}: {:?}, it was {before:?}", look(a)));
        println!("{words:?}: {:?}", began.elapsed());
        wait_until(PATIENCE, "packets pass again", || Ok(mesh.ping("b", "a").is_ok())).unwrap();
        let status = status(a).unwrap();
        assert!(status.contains(said), "{said}: {status}");
    }
    let log = a.agent().log().unwrap();
    assert_eq!(log.matches("it was put back").count(), cases.len(), "each is said once: {log}");
    assert!(!log.contains(&own), "no address in the log");
}

#[test]
fn what_is_not_ours_stays() {
    let (_lab, mesh) = mesh("foreign").unwrap();
    let a = mesh.node("a").unwrap();
    ip(a, &["route", "add", "198.18.5.0/24", "dev", "mesh0"]).unwrap();
    ip(a, &["address", "add", "198.18.7.1/24", "dev", "mesh0"]).unwrap();
    ip(a, &["route", "add", "unreachable", "198.18.6.0/24", "proto", "109"]).unwrap();
    // Something of ours is put back beside them.
    ip(a, &["link", "set", "mesh0", "mtu", "1300"]).unwrap();
    wait_until(PATIENCE, "the MTU is back", || Ok(!ip(a, &["link", "show", "mesh0"])?.contains("mtu 1300")))
        .unwrap();
    assert!(ip(a, &["route", "show"]).unwrap().contains("198.18.5.0/24 dev mesh0"));
    assert!(ip(a, &["route", "show"]).unwrap().contains("unreachable 198.18.6.0/24"));
    assert!(ip(a, &["address", "show", "mesh0"]).unwrap().contains("198.18.7.1/24"));
}

#[test]
fn whoever_deletes_again_and_again_is_not_fought_for_ever() {
    let (_lab, mesh) = mesh("fight").unwrap();
    let a = mesh.node("a").unwrap();
    // For 6 s, another program deletes as soon as it sees the routes.
    let until = Instant::now() + Duration::from_secs(6);
    let mut deleted = 0;
    while Instant::now() < until {
        if !ip(a, MESH_ROUTES).unwrap().is_empty() {
            ip(a, &["-4", "route", "flush", "proto", "109"]).unwrap();
            deleted += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!((7..=9).contains(&deleted), "put back {deleted} times");
    let log = a.agent().log().unwrap();
    assert_eq!(log.matches("again and again").count(), 1, "{log}");
    let status = status(a).unwrap();
    assert!(status.contains("NetworkManager"), "{status}");
    // It has given up: ours is there in the end, without anything else happening.
    wait_until(Duration::from_secs(20), "the routes are back", || Ok(!ip(a, MESH_ROUTES)?.is_empty()))
        .unwrap();
}
