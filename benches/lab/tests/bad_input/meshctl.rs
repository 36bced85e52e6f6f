//! `meshctl` against what is no agent, or does not answer.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use mesh_lab::Finished;
use nix::sys::signal::Signal;

use crate::rig::{self, PATIENCE, assert_fails};

/// `meshctl` allows an agent 5 s, and 5 s more for a peer's answer to a ping; the rest is for a busy machine.
const IN_TIME: Duration = Duration::from_secs(15);

#[test]
fn what_is_no_agent_gets_a_clear_error_in_time() {
    let (_lab, mesh) = rig::mesh(&["a"]);
    mesh.join("a").unwrap();
    mesh.wait_ready(PATIENCE).unwrap();
    let a = mesh.node("a").unwrap();
    let ask = |socket: &Path, args: &[&str]| -> Finished {
        let begun = Instant::now();
        let command = a.host().command(&mesh.binaries().meshctl).arg("--socket").arg(socket).args(args);
        let finished = command.output().unwrap();
        assert!(begun.elapsed() < IN_TIME, "{args:?} took {:?}", begun.elapsed());
        finished
    };
    let commands: [&[&str]; 4] =
        [&["status"], &["status", "--json"], &["ping", "b", "-c", "1"], &["why", "b"]];

    let missing = a.directory().join("missing");
    let file = a.directory().join("file");
    std::fs::write(&file, "").unwrap();
    for socket in [&missing, &file] {
        for command in commands {
            assert_fails(&ask(socket, command), 1, &["no agent answers at", &socket.display().to_string()]);
        }
        assert_fails(&ask(socket, &["status", "--check", "live"]), 1, &[]);
    }

    for (name, answer) in [
        ("garbage", &b"\0\xff not HTTP at all\r\n\r\n"[..]),
        ("closing", b""),
        ("other", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"),
        ("refusing", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    ] {
        let path = a.directory().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // As a server does: the request is read before it is answered.
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(answer);
            }
        });
        for command in commands {
            assert_fails(&ask(&path, command), 1, &["makes no sense"]);
        }
    }

    // The kernel takes connections for a process that is stopped.
    a.kill(Signal::SIGSTOP).unwrap();
    thread::scope(|scope| {
        for command in commands {
            scope.spawn(move || assert_fails(&ask(&a.socket(), command), 1, &["does not answer"]));
        }
        scope.spawn(|| assert_fails(&ask(&a.socket(), &["status", "--check", "live"]), 1, &[]));
    });
    a.kill(Signal::SIGCONT).unwrap();
    assert_eq!(ask(&a.socket(), &["status", "--check", "ready"]).code(), 0);
}
