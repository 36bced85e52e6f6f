//! The commands of administrators.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use mesh_coordinator::admin::NodeEntry;
use mesh_proto::{key::KeyPin, token::JoinToken};

use crate::rig::{Serving, command, done, failed};

/// How long a relay may take to connect.
const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn a_token_is_one_line_that_joins_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let serving = Serving::start(dir.path(), &["pi.example", "192.0.2.1"]);
    let line = done(dir.path(), &["token", "create", "--ttl", "30m", "--uses", "2", "--tag", "gpu"]);
    let words: Vec<_> = line.strip_suffix('\n').unwrap().split(' ').collect();
    let ["mesh-agent", "join", "pi.example", "--token", token, "--ca-cert-hash", pin] = words[..] else {
        panic!("{line}");
    };
    token.parse::<JoinToken>().unwrap();
    pin.parse::<KeyPin>().unwrap();
    assert!(failed(dir.path(), &["token", "create", "--tag", "a b"], 1).contains("a tag is"));
    failed(dir.path(), &["token", "create", "--uses", "0"], 2);
    failed(dir.path(), &["token", "create", "--ttl", "soon"], 2);
    assert!(serving.stop());
    let again = Serving::start(dir.path(), &["pi.example"]);
    let line = done(dir.path(), &["token", "create"]);
    assert!(line.ends_with(&format!(" {pin}\n")), "the key is the same after a restart: {line}");
    again.kill();
}

#[test]
fn nodes_are_listed_for_people_and_for_scripts() {
    let dir = tempfile::tempdir().unwrap();
    let _serving = Serving::start(dir.path(), &["pi.example"]);
    assert_eq!(done(dir.path(), &["node", "list"]), "ID  NAME  ADDRESSES  ONLINE  TAGS\n");
    assert_eq!(done(dir.path(), &["node", "list", "--json"]), "[]\n");
    let complaint = failed(dir.path(), &["node", "remove", "nobody"], 1);
    assert_eq!(complaint, "mesh-coordinator: there is no node named nobody\n");
    assert!(failed(dir.path(), &["node", "rename", "nobody", "pi"], 1).contains("nobody"));
    failed(dir.path(), &["node", "remove", "../etc"], 2);
}

#[test]
fn without_a_coordinator_the_commands_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let complaint = failed(dir.path(), &["node", "list"], 1);
    assert!(complaint.contains("is `mesh-coordinator serve` running with this --state-dir?"), "{complaint}");
    assert!(complaint.contains(dir.path().to_str().unwrap()), "{complaint}");
}

#[test]
fn everything_wrong_with_the_settings_is_reported_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("coordinator.toml");
    fs::write(&file, "metrics = 1.5\nlisten = 'x'\n").unwrap();
    let file = file.to_str().unwrap();
    let complaint = failed(dir.path(), &["serve", "--config", file, "--listen-udp", "x", "--name", "a b"], 2);
    for setting in ["--listen-udp: ", "metrics: ", "--name: ", "listen: unknown key"] {
        assert!(complaint.contains(setting), "{setting} is missing in: {complaint}");
    }
    assert!(failed(dir.path(), &["serve", "--config", "/missing.toml"], 1).contains("/missing.toml"));
}

#[test]
fn a_second_coordinator_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let _serving = Serving::start(dir.path(), &["pi.example"]);
    let second = ["serve", "--listen-udp", "127.0.0.1:0", "--listen-tcp", "127.0.0.1:0", "--metrics", "off"];
    let complaint = failed_start(dir.path(), &second);
    assert!(complaint.contains("in use by another mesh-coordinator"), "{complaint}");
    done(dir.path(), &["node", "list"]);
}

#[test]
fn state_that_cannot_be_used_is_named() {
    let serve = ["serve", "--listen-udp", "127.0.0.1:0", "--listen-tcp", "127.0.0.1:0", "--metrics", "off"];
    for name in ["coordinator.key", "coordinator.db"] {
        let dir = tempfile::tempdir().unwrap();
        assert!(Serving::start(dir.path(), &["pi.example"]).stop());
        assert!(!dir.path().join("coordinator.db-wal").exists(), "what stops in order leaves one file");
        let file = dir.path().join(name);
        let path = file.to_str().unwrap();
        let whole = fs::read(&file).unwrap();
        for len in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&file, &whole[..len]).unwrap();
            let complaint = failed_start(dir.path(), &serve);
            assert!(complaint.contains(path) && complaint.contains("backup"), "{complaint}");
        }
        fs::write(&file, &whole).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let complaint = failed_start(dir.path(), &serve);
        assert!(complaint.contains(&format!("{path}: has mode 0644")), "{complaint}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(Serving::start(dir.path(), &["pi.example"]).stop());
    fs::remove_file(dir.path().join("coordinator.key")).unwrap();
    assert!(failed_start(dir.path(), &serve).contains("coordinator.key: missing"));
    assert!(!dir.path().join("coordinator.key").exists(), "no new identity");
}

#[test]
fn a_relay_alone_joins_by_its_command() {
    let (dir, relay_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    drop(socket);
    let _serving = Serving::start_at(dir.path(), &address, &[&address]);
    let line = done(dir.path(), &["token", "create", "--tag", "relay"]);
    let words: Vec<_> = line.trim_end().split(' ').collect();
    let mut relay = command(relay_dir.path());
    relay.arg("relay").args(&words[2..]);
    relay.args(["--name", "outpost", "--address", "relay.example", "--listen-udp", "127.0.0.1:0"]);
    let relay = Serving::spawn(relay);
    let deadline = Instant::now() + DEADLINE;
    loop {
        let nodes: Vec<NodeEntry> =
            serde_json::from_str(&done(dir.path(), &["node", "list", "--json"])).unwrap();
        if let [outpost] = &nodes[..]
            && outpost.online
        {
            assert_eq!(
                (outpost.node.name.as_str(), &outpost.node.tags[..]),
                ("outpost", &["relay".to_owned()][..])
            );
            break;
        }
        assert!(Instant::now() < deadline, "the relay does not connect");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(relay.stop());
    let complaint = failed(relay_dir.path(), &["relay", "--name", "A"], 2);
    for setting in ["--coordinator: is required", "--ca-cert-hash: is required", "--name: "] {
        assert!(complaint.contains(setting), "{complaint}");
    }
}

#[test]
fn a_backup_makes_the_same_coordinator_elsewhere_and_a_restore_keeps_what_was_there() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = dir.path().join("mesh.backup");
    let path = file.to_str().unwrap();
    let complaint = failed(dir.path(), &["backup", path], 1);
    assert!(complaint.contains("is `mesh-coordinator serve` running"), "{complaint}");
    let serving = Serving::start(dir.path(), &["pi.example"]);
    assert_eq!(done(dir.path(), &["backup", path]), "");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let pin = pin_of(&done(dir.path(), &["token", "create"]));
    let complaint = failed(dir.path(), &["restore", path], 1);
    assert!(complaint.contains("in use by another mesh-coordinator"), "{complaint}");
    assert!(serving.stop());

    assert_eq!(done(other.path(), &["restore", path]), "", "there was nothing before");
    let elsewhere = Serving::start(other.path(), &["pi.example"]);
    assert_eq!(pin_of(&done(other.path(), &["token", "create"])), pin);
    assert!(elsewhere.stop());

    let output = command(dir.path()).args(["restore", path]).output().unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    let kept = said.trim_end().strip_prefix("mesh-coordinator: the state that was there is in ").unwrap();
    for name in ["coordinator.key", "coordinator.db"] {
        assert!(std::path::Path::new(kept).join(name).exists(), "{kept} lacks {name}");
    }
    assert!(Serving::start(dir.path(), &["pi.example"]).stop());
}

#[test]
fn a_backup_that_is_damaged_or_foreign_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Serving::start(dir.path(), &["pi.example"]).stop());
    let database = fs::read(dir.path().join("coordinator.db")).unwrap();
    let file = dir.path().join("x");
    for (content, reason) in
        [("", "not a backup"), ("{}", "not a backup"), ("mesh-coordinator-backup 1 00\n{}\n", "damaged")]
    {
        fs::write(&file, content).unwrap();
        let complaint = failed(dir.path(), &["restore", file.to_str().unwrap()], 1);
        assert!(complaint.contains(reason), "{complaint}");
    }
    assert!(failed(dir.path(), &["restore", "/missing"], 1).contains("cannot read /missing"));
    assert_eq!(fs::read(dir.path().join("coordinator.db")).unwrap(), database);
}

/// Returns the pin in a join command.
fn pin_of(join: &str) -> KeyPin {
    join.trim_end().rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn completions_are_a_script() {
    let dir = tempfile::tempdir().unwrap();
    assert!(done(dir.path(), &["completions", "bash"]).contains("mesh-coordinator"));
}

/// Runs a `serve` that must fail.
fn failed_start(state_dir: &std::path::Path, args: &[&str]) -> String {
    let output = command(state_dir).args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}
