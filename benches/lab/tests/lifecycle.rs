//! Nothing of a run is left, however it ends.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mesh_lab::mesh::wait_until;
use mesh_lab::{Lab, netns, village};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(10);

/// A run in a process of its own, with a program on every host.
struct Held {
    process: Child,
    id: String,
}

impl Held {
    fn start() -> anyhow::Result<Self> {
        let mut process = Command::new(env!("CARGO_BIN_EXE_mesh-lab"))
            .args(["hold", "--", "sleep", "1000"])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = process.stdout.as_mut() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let held = Self { process, id: line.trim().to_owned() };
        assert_eq!(held.sleepers().len(), village::NODES.len() + 1, "a sleeper on every host");
        Ok(held)
    }

    fn end_by(&mut self, signal: Signal) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.process.id().cast_signed()), signal)?;
        self.process.wait()?;
        Ok(())
    }

    fn namespaces(&self) -> Vec<String> {
        netns::list(&format!("mesh-{}-", self.id))
    }

    fn sleepers(&self) -> Vec<i32> {
        self.namespaces().iter().flat_map(|name| netns::processes(name)).collect()
    }

    fn directory(&self) -> bool {
        Path::new("/run/mesh-lab").join(&self.id).exists()
    }
}

#[test]
fn signals_leave_nothing_behind() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut held = Held::start().unwrap();
        let sleepers = held.sleepers();
        held.end_by(signal).unwrap();
        assert_eq!(held.namespaces(), Vec::<String>::new(), "{signal}");
        assert!(!held.directory(), "{signal}");
        for pid in sleepers {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{signal}: {pid} still runs");
        }
    }
}

#[test]
fn what_a_killed_run_left_goes_when_the_next_starts() {
    let mut held = Held::start().unwrap();
    held.end_by(Signal::SIGKILL).unwrap();
    wait_until(PATIENCE, "processes die with the lab", || Ok(held.sleepers().is_empty())).unwrap();
    assert!(!held.namespaces().is_empty(), "nobody was left to remove the namespaces");
    let _next = Lab::new("next").unwrap();
    assert_eq!(held.namespaces(), Vec::<String>::new());
    assert!(!held.directory());
}

#[test]
fn living_runs_are_left_alone() {
    let mut held = Held::start().unwrap();
    let namespaces = held.namespaces();
    drop(Lab::new("other").unwrap());
    assert_eq!(held.namespaces(), namespaces);
    assert_eq!(held.sleepers().len(), village::NODES.len() + 1);
    held.end_by(Signal::SIGTERM).unwrap();
}

#[test]
fn drop_and_panic_leave_nothing_behind() {
    let (sender, ids) = std::sync::mpsc::channel();
    let run = move |is_to_panic: bool| {
        let lab = Lab::new("drop").unwrap();
        let network = lab.build(village::topology()).unwrap();
        let process = network.host("pi").unwrap().command("sleep").arg("1000").spawn("sleep").unwrap();
        sender.send((lab.id().to_owned(), process.pid())).unwrap();
        assert!(!is_to_panic, "on purpose");
    };
    let panicking = run.clone();
    std::thread::spawn(move || run(false)).join().unwrap();
    std::thread::spawn(move || panicking(true)).join().unwrap_err();
    for (id, pid) in ids {
        assert_eq!(netns::list(&format!("mesh-{id}-")), Vec::<String>::new());
        assert!(!Path::new("/run/mesh-lab").join(&id).exists());
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
