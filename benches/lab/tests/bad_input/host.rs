//! Hosts and settings with which an agent or a coordinator cannot run: what is said then helps.

use std::fs;

use mesh_lab::HostCommand;

use crate::rig::{self, PATIENCE, Run, assert_fails, scripted, without_capabilities};

/// Hides the TUN driver's device node from the command that follows.
const WITHOUT_TUN: &str = r#"mount -t tmpfs none /dev/net && exec "$@""#;

#[test]
fn what_another_agent_has_is_named_with_the_flag_to_change() {
    let (_lab, mesh) = rig::mesh(&["a", "b"]);
    let (a, b) = (mesh.node("a").unwrap(), mesh.node("b").unwrap());
    b.join(&mesh.token(&[]).unwrap()).unwrap();
    mesh.join("a").unwrap();
    mesh_lab::mesh::wait_until(PATIENCE, "a is ready", || Ok(a.is_ready())).unwrap();
    // The second agent is another node, on the first one's host.
    let fails = |second: &Run, words: &[&str]| {
        assert_fails(&second.after(a.agent_command()).output().unwrap(), 1, words);
        assert!(!b.socket().exists(), "a failed start leaves no socket");
        assert!(a.is_ready(), "the first agent is not disturbed");
    };
    let second = Run::of(b);
    fails(&second, &["UDP port 51820 is taken by another program", "--listen-port"]);
    let second = Run { port: 51821, ..second };
    fails(&second, &["the interface mesh0 is in use by another program", "--interface"]);
    let second = Run { interface: "mesh1", ..second };
    let (socket, state_dir) = (a.socket(), a.state_dir());
    fails(
        &Run { socket: socket.clone(), ..second },
        &["another agent listens on", &socket.display().to_string(), "--socket"],
    );
    let second = Run { interface: "mesh1", port: 51821, ..Run::of(b) };
    fails(
        &Run { state_dir: state_dir.clone(), ..second },
        &["in use by another mesh-agent", &state_dir.display().to_string()],
    );
}

#[test]
fn an_interface_of_another_kind_is_left_alone() {
    let (_lab, mesh) = rig::mesh(&["a"]);
    let a = mesh.node("a").unwrap();
    a.join(&mesh.token(&[]).unwrap()).unwrap();
    a.host().netns().ip("link add mesh0 type bridge").unwrap();
    let finished = Run::of(a).after(a.agent_command()).output().unwrap();
    assert_fails(&finished, 1, &["an interface mesh0 of another kind", "ip link del mesh0", "--interface"]);
    a.host().netns().ip("link del mesh0").unwrap();
    a.start().unwrap();
    mesh.wait_ready(PATIENCE).unwrap();
}

#[test]
fn without_tun_or_permission_it_is_said_what_to_do() {
    let (_lab, mesh) = rig::mesh(&["a"]);
    let a = mesh.node("a").unwrap();
    let (host, agent) = (a.host(), &mesh.binaries().agent);
    a.join(&mesh.token(&[]).unwrap()).unwrap();
    let fails = |command: HostCommand, port: u16, words: &[&str]| {
        assert_fails(&Run { port, ..Run::of(a) }.after(command).output().unwrap(), 1, words);
        assert!(!a.socket().exists(), "a failed start leaves no socket");
    };
    fails(scripted(host, WITHOUT_TUN, agent), 51820, &["/dev/net/tun is missing", "modprobe tun"]);
    let no_admin = without_capabilities(host, &["net_admin"], agent);
    fails(no_admin, 51820, &["no permission to make the interface mesh0", "CAP_NET_ADMIN"]);
    let no_low_port = without_capabilities(host, &["net_bind_service"], agent);
    fails(no_low_port, 80, &["no permission to use UDP port 80", "--listen-port"]);
}

#[test]
fn a_second_coordinator_is_told_which_port_is_taken() {
    let (_lab, mesh) = rig::mesh(&[]);
    let other = mesh.coordinator_dir().with_extension("other");
    let serve = |flags: &[&str], words: &[&str]| {
        let command = mesh.coordinator_command().unwrap().arg("serve").args(flags);
        let finished = command.arg("--state-dir").arg(&other).timeout(PATIENCE).output().unwrap();
        assert_fails(&finished, 1, words);
    };
    serve(&[], &["cannot listen on UDP", ":7443", "another program", "--listen-udp"]);
    serve(&["--listen-udp", "7444"], &["cannot listen on TCP", ":7443", "another program", "--listen-tcp"]);
    let ports = ["--listen-udp", "7444", "--listen-tcp", "7444"];
    serve(&ports, &["cannot listen on metrics", "127.0.0.1:9743", "another program", "--metrics"]);
    let elsewhere = ["--listen-udp", "192.0.2.99:7444"];
    serve(
        &elsewhere,
        &["cannot listen on UDP 192.0.2.99:7444", "no interface of this machine", "--listen-udp"],
    );
    let host = mesh.coordinator().host().unwrap();
    let command = without_capabilities(host, &["net_bind_service"], &mesh.binaries().coordinator);
    let command = command.args(["serve", "--listen-udp", "443", "--state-dir"]).arg(&other).timeout(PATIENCE);
    assert_fails(&command.output().unwrap(), 1, &["cannot listen on UDP", "CAP_NET_BIND_SERVICE"]);
    mesh.administer(["node", "list"]).unwrap().success().unwrap();
}

#[test]
fn everything_that_is_wrong_with_the_settings_is_said_at_once() {
    let (lab, mesh) = rig::mesh(&["a"]);
    let a = mesh.node("a").unwrap();
    let file = lab.directory().join("settings.toml");
    fs::write(&file, "interface = 'far-too-long-a-name'\nsocket = ''\ncolour = 'red'\nlisten-prot = 1\n")
        .unwrap();
    let run = || a.agent_command().arg("run").arg("--config").arg(&file);
    let finished = run().args(["--listen-port", "70000"]).env("MESH_STATE_DIR", "").output().unwrap();
    let wrong = ["--listen-port: ", "MESH_STATE_DIR: ", "interface: ", "socket: ", "colour: unknown key"];
    assert_fails(&finished, 2, &wrong);
    assert_fails(&finished, 2, &["listen-prot: unknown key"]);
    fs::write(&file, "interface = \n").unwrap();
    assert_fails(&run().output().unwrap(), 2, &["config file"]);
    fs::remove_file(&file).unwrap();
    assert_fails(&run().output().unwrap(), 1, &["cannot read config file", &file.display().to_string()]);
    let join = a.agent_command().args(["join", "a b", "--ca-cert-hash", "x", "--name", "A!"]);
    let wrong = ["--token: is required", "--ca-cert-hash: ", "--name: ", "coordinator: "];
    assert_fails(&join.arg("--state-dir").arg("").output().unwrap(), 2, &wrong);

    fs::write(&file, "metrics = 1.5\nlisten = 'x'\n").unwrap();
    let serve = mesh.coordinator_command().unwrap().arg("serve").arg("--config").arg(&file);
    let finished = serve.args(["--listen-udp", "x", "--name", "a b"]).output().unwrap();
    assert_fails(&finished, 2, &["--listen-udp: ", "--name: ", "metrics: ", "listen: unknown key"]);
    assert!(!a.state_dir().exists());
}
