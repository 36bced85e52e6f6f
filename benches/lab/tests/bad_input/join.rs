//! Joins that must not succeed.

use std::{
    net::IpAddr,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use mesh_lab::mesh::wait_until;
use mesh_proto::status::ConnectionState;

use crate::rig::{self, JoinLine, PATIENCE, assert_fails};

/// Longer than `join` tries by itself (30 s), so that its own end is seen.
const JOIN_LIMIT: Duration = Duration::from_secs(45);
/// The one message for everything that may be wrong with a token.
const TOKEN_MESSAGE: &str =
    "the join token is not accepted: it is wrong, expired, used up or of another mesh";
const RACES: usize = 20;

#[test]
fn every_bad_token_gets_the_same_words_and_leaves_nothing() {
    let (_lab, mesh) = rig::mesh(&["a", "b"]);
    let (a, b) = (mesh.node("a").unwrap(), mesh.node("b").unwrap());
    let line = |options: &[&str]| JoinLine::parse(&mesh.token(options).unwrap());
    let expired = line(&["--ttl", "1s"]);
    let expires = Instant::now() + Duration::from_secs(2);
    let used_up = line(&[]);
    used_up.command(b, &b.state_dir()).output().unwrap().success().unwrap();
    let good = line(&[]);

    let (id, secret) = good.token.split_once('.').unwrap();
    let flip = |text: &str| {
        let last = if text.ends_with('0') { '1' } else { '0' };
        format!("{}{last}", &text[..text.len() - 1])
    };
    let bad =
        |token: String| JoinLine { token, coordinator: good.coordinator.clone(), hash: good.hash.clone() };
    let mut cases = vec![
        ("wrong secret", bad(format!("{id}.{}", flip(secret)))),
        ("unknown id, as of another mesh", bad(format!("{}.{secret}", flip(id)))),
        ("truncated", bad(good.token[..good.token.len() - 1].to_owned())),
        ("empty", bad(String::new())),
        ("space before", bad(format!(" {}", good.token))),
        ("space after", bad(format!("{} ", good.token))),
        ("newline after", bad(format!("{}\n", good.token))),
        ("space within", bad(format!("{id}. {secret}"))),
        ("URL-encoded", bad(format!("{id}%2e{secret}"))),
        ("used up", used_up),
    ];
    thread::sleep(expires.saturating_duration_since(Instant::now()));
    cases.push(("expired", expired));

    let mut said = Vec::new();
    for (what, line) in &cases {
        let finished = line.command(a, &a.state_dir()).output().unwrap();
        assert_fails(&finished, 1, &[TOKEN_MESSAGE]);
        assert!(!a.state_dir().exists(), "{what}: something was written");
        assert!(!finished.stderr.contains(secret), "{what}: the secret is shown");
        let error = finished.stderr.lines().last().unwrap_or_default().to_owned();
        said.push((what, error));
    }
    for (what, error) in &said {
        assert_eq!(error, &said[0].1, "{what} differs from {}", said[0].0);
    }
    good.command(a, &a.state_dir()).output().unwrap().success().unwrap();
}

#[test]
fn a_wrong_hash_is_refused_before_any_secret_is_sent() {
    let (_lab, mesh) = rig::mesh(&["a"]);
    let a = mesh.node("a").unwrap();
    let good = JoinLine::parse(&mesh.token(&[]).unwrap());
    let wrong =
        JoinLine { hash: format!("sha256:{}", "0".repeat(64)), ..JoinLine::parse(&mesh.token(&[]).unwrap()) };
    let finished = wrong.command(a, &a.state_dir()).timeout(JOIN_LIMIT).output().unwrap();
    assert_fails(&finished, 1, &["key does not match the given hash"]);
    assert!(!a.state_dir().exists());
    // The coordinator may notice a moment after the agent has ended.
    wait_until(PATIENCE, "the coordinator was reached", || {
        Ok(rig::metrics(&mesh)["mesh_handshake_failures_total"] > 0)
    })
    .unwrap();
    let metrics = rig::metrics(&mesh);
    assert_eq!(metrics["mesh_connections_total"], 0, "nothing beyond the TLS handshake was exchanged");
    assert_eq!(metrics["mesh_joins_total"], 0);
    let refusals: u64 =
        metrics.iter().filter(|(name, _)| name.starts_with("mesh_refusals")).map(|(_, n)| n).sum();
    assert_eq!(refusals, 0);
    for hash in ["sha256:00", "md5:00", "", &good.hash[1..]] {
        let line = JoinLine { hash: hash.to_owned(), ..JoinLine::parse(&mesh.token(&[]).unwrap()) };
        assert_fails(&line.command(a, &a.state_dir()).output().unwrap(), 2, &["--ca-cert-hash"]);
        assert!(!a.state_dir().exists());
    }
    good.command(a, &a.state_dir()).output().unwrap().success().unwrap();
}

#[test]
fn of_two_joins_with_a_one_use_token_at_once_one_succeeds() {
    let (_lab, mesh) = rig::mesh(&["a", "b"]);
    for race in 0..RACES {
        let line = JoinLine::parse(&mesh.token(&[]).unwrap());
        let start = Barrier::new(2);
        let run = |name: &str| {
            let node = mesh.node(name).unwrap();
            let directory = node.directory().join(format!("race-{race}"));
            let command = line.command(node, &directory).args(["--name", &format!("{name}-{race}")]);
            start.wait();
            let finished = command.output().unwrap();
            assert_eq!(directory.exists(), finished.status.success(), "{finished:?}");
            finished
        };
        let mut both = thread::scope(|scope| {
            let other = scope.spawn(|| run("b"));
            [run("a"), other.join().unwrap()]
        });
        both.sort_by_key(|finished| finished.code());
        assert_eq!(both[0].code(), 0, "{both:?}");
        assert_fails(&both[1], 1, &[TOKEN_MESSAGE]);
    }
    let listed = mesh.administer(["node", "list", "--json"]).unwrap().success().unwrap().stdout;
    let nodes: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(nodes.as_array().unwrap().len(), RACES, "{listed}");
}

#[test]
fn a_coordinator_that_is_not_there_is_named_and_run_goes_on_trying() {
    let (_lab, mesh) = rig::mesh(&["a", "b"]);
    let (a, b) = (mesh.node("a").unwrap(), mesh.node("b").unwrap());
    let good = JoinLine::parse(&mesh.token(&[]).unwrap());
    good.command(a, &a.state_dir()).output().unwrap().success().unwrap();
    mesh.coordinator().stop().unwrap();

    let address = mesh.coordinator().host().unwrap().address();
    b.host().set_hosts_entry("gone.example", Some(IpAddr::from(address))).unwrap();
    let there = format!("{address}:7443");
    let cases: [(&str, &[&str]); 3] = [
        ("nowhere.invalid", &["nowhere.invalid"]),
        ("gone.example:7443", &["gone.example", &there]),
        (&there, &[&there]),
    ];
    thread::scope(|scope| {
        for (number, (coordinator, words)) in cases.into_iter().enumerate() {
            let (token, hash) = (&good.token, &good.hash);
            scope.spawn(move || {
                let line = JoinLine {
                    coordinator: coordinator.to_owned(),
                    token: token.clone(),
                    hash: hash.clone(),
                };
                let directory = b.directory().join(format!("try-{number}"));
                let begun = Instant::now();
                let finished = line.command(b, &directory).timeout(JOIN_LIMIT).output().unwrap();
                assert_fails(&finished, 1, words);
                assert_fails(&finished, 1, &["not reached in 30 s"]);
                assert!(
                    begun.elapsed() >= Duration::from_secs(29),
                    "it goes on trying for as long as it says"
                );
                assert!(!directory.exists());
            });
        }
        a.start().unwrap();
        let state = || Ok::<_, anyhow::Error>(a.status()?.this.coordinator);
        wait_until(PATIENCE, "run says what it tries", || {
            let coordinator = state()?;
            let address = coordinator.address.unwrap_or_default();
            Ok(coordinator.state != ConnectionState::Connected && address.contains(&there))
        })
        .unwrap();
    });
    assert!(a.agent().is_running(), "half a minute is no reason to give up");
    mesh.start_coordinator().unwrap();
    // Its backoff has grown meanwhile.
    wait_until(Duration::from_secs(60), "run connects when the coordinator is back", || {
        Ok(a.status()?.this.coordinator.state == ConnectionState::Connected)
    })
    .unwrap();
}

#[test]
fn names_that_are_no_labels_are_refused_everywhere() {
    let (_lab, mesh) = rig::mesh(&["a"]);
    let a = mesh.node("a").unwrap();
    let good = JoinLine::parse(&mesh.token(&[]).unwrap());
    let long = "x".repeat(64);
    let names =
        ["", "../x", "a/b", "a.b", "-a", "a-", "a_b", "a b", "é", "a\nb", "%n", "$(id)", ".", "..", &long];
    for name in names {
        let finished = good.command(a, &a.state_dir()).arg(format!("--name={name}")).output().unwrap();
        assert_fails(&finished, 2, &["--name"]);
        assert!(!a.state_dir().exists(), "{name:?}: something was written");
    }
    good.command(a, &a.state_dir()).args(["--name", "a"]).output().unwrap().success().unwrap();
    for name in names {
        // A flag cannot follow `--`, without which some of these names are flags themselves.
        let finished = mesh
            .coordinator_command()
            .unwrap()
            .env("MESH_STATE_DIR", mesh.coordinator_dir())
            .args(["node", "rename", "--", "a", name])
            .output()
            .unwrap();
        assert_fails(&finished, 2, &[]);
    }
    let listed = mesh.administer(["node", "list", "--json"]).unwrap().success().unwrap().stdout;
    let nodes: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(nodes.as_array().unwrap().len(), 1, "{listed}");
    assert!(listed.contains("\"a\""), "{listed}");
}
