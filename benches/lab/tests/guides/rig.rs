//! What guides are followed on: machines of the village, each with a terminal, and the reader, who remembers what was printed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use mesh_lab::guide::{Step, fill, has_word, put};
use mesh_lab::machine::{Disk, Machine, Terminal};
use mesh_lab::village::COORDINATOR_HOST;
use mesh_lab::{Host, Lab, Village};

/// The machines: the one that others can reach, one behind a NAT as at home, one behind a symmetric NAT.
pub(crate) const MACHINES: [&str; 3] = [COORDINATOR_HOST, "country", "office"];
/// The name of the first, in the guide.
const NAME: &str = "pi.duckdns.org";
/// Who follows the guide.
const USER: &str = "user";
/// For one block of commands; `kubeadm init` is the longest.
const PATIENCE: Duration = Duration::from_secs(400);
/// What only the simulated network keeps over a reboot; a kernel of the machine's own would not.
const DEVICES: [&str; 2] = ["lo", "eth0"];

/// Machines of the village that run.
pub(crate) struct Rig {
    terminals: BTreeMap<&'static str, Mutex<Terminal>>,
    machines: BTreeMap<&'static str, Machine>,
    disks: BTreeMap<&'static str, Disk>,
    pub(crate) village: Village,
    /// All lines that were printed.
    printed: Vec<String>,
    started: Instant,
    shared: PathBuf,
    pub(crate) lab: Lab,
}

/// Where a guide wants something to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On every machine.
    All,
    /// On all but the first.
    Others,
    /// On the first.
    First,
    /// On the one that leaves.
    Leaving,
}

/// How guides say that.
const PHRASES: [(&str, Place); 5] = [
    ("every machine", Place::All),
    ("every other machine", Place::Others),
    ("on `pi`", Place::First),
    ("the machine that others can reach (here `pi`, by the name `pi.duckdns.org`)", Place::First),
    ("the machine that leaves", Place::Leaving),
];

/// The name of the machine that leaves a cluster, in guides.
pub(crate) const NODE: &str = "NODE";

impl Rig {
    /// Boots the machines from these disks, which share the directory in which the terminals are: packages lie there, the
    /// image of the agent, and `deploy`.
    pub(crate) fn boot(
        name: &str,
        disk: impl Fn(&Lab, &'static str, &Path) -> anyhow::Result<Disk>,
    ) -> anyhow::Result<Self> {
        let started = Instant::now();
        let lab = Lab::new(name)?;
        let shared = share(&lab)?;
        let village = Village::prepare(&lab)?;
        let network = village.network();
        network.dns().set(NAME, &[network.outside(COORDINATOR_HOST)?.into()]);
        let first = network.host(COORDINATOR_HOST)?;
        first.set_hosts_entry(NAME, Some(first.address().into()))?;
        let disks: BTreeMap<&'static str, Disk> = MACHINES
            .into_iter()
            .map(|name| Ok((name, disk(&lab, name, &shared)?)))
            .collect::<anyhow::Result<_>>()?;
        for disk in disks.values() {
            disk.write("/etc/apt/apt.conf.d/90lab", 0o644, "APT::Get::Assume-Yes \"true\";\n")?;
            disk.write(
                &format!("/etc/sudoers.d/{USER}"),
                0o440,
                &format!("{USER} ALL=(ALL) NOPASSWD: ALL\n"),
            )?;
        }
        let mut rig = Self {
            terminals: BTreeMap::new(),
            machines: BTreeMap::new(),
            disks,
            village,
            printed: Vec::new(),
            started,
            shared,
            lab,
        };
        rig.machines = rig.each(|name| rig.disks[name].boot(rig.host(name)?))?;
        for (name, machine) in &rig.machines {
            machine.shell(&format!("useradd --create-home --shell /bin/bash {USER}"))?;
            rig.terminals.insert(name, machine.terminal(USER, &rig.shared)?.into());
        }
        rig.said("the machines run");
        Ok(rig)
    }

    /// Does what a block of a guide says, where it says so, with this node's name for [`NODE`], if it is the matter.
    pub(crate) fn follow(&mut self, step: &Step, leaving: Option<&'static str>) -> anyhow::Result<()> {
        self.follow_on(step, &MACHINES, leaving)
    }

    /// As [`Rig::follow`], on those of the machines alone that the step means for these.
    pub(crate) fn follow_on(
        &mut self,
        step: &Step,
        among: &[&str],
        leaving: Option<&'static str>,
    ) -> anyhow::Result<()> {
        let place = step
            .said_last(&PHRASES)
            .with_context(|| format!("the text does not say where: line {}", step.line))?;
        let mut on: Vec<&str> = match (place, leaving) {
            (Place::All, _) => MACHINES.to_vec(),
            (Place::Others, _) => MACHINES[1..].to_vec(),
            (Place::First, _) => vec![COORDINATOR_HOST],
            (Place::Leaving, Some(node)) => vec![node],
            (Place::Leaving, None) => bail!("no machine leaves: line {}", step.line),
        };
        on.retain(|name| among.contains(name));
        let text = self.complete(step, leaving)?;
        let run = |terminal: &Mutex<Terminal>| {
            terminal.lock().unwrap_or_else(PoisonError::into_inner).run(&text, PATIENCE)
        };
        let printed = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .terminals
                .iter()
                .filter(|(name, _)| on.contains(*name))
                .map(|(_, terminal)| scope.spawn(move || run(terminal)))
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<String>>| {
                thread.join().expect("a terminal's thread does not panic")
            };
            threads.into_iter().map(join).collect::<anyhow::Result<Vec<_>>>()
        })
        .with_context(|| format!("the block at line {}{}", step.line, self.journals(&on)))?;
        for text in printed {
            // A line that goes on in the next one is one.
            self.printed.extend(text.replace("\\\n", " ").lines().map(|line| line.trim().to_owned()));
        }
        self.said(&format!(
            "line {}, {}: {}",
            step.line,
            on.join(", "),
            text.lines().next().unwrap_or_default()
        ));
        Ok(())
    }

    /// What these machines noted last.
    fn journals(&self, names: &[&str]) -> String {
        let told = names.iter().map(|name| {
            let line = "journalctl --no-pager --output=cat --lines=40 | cut -c1-300";
            let said = self.machines[name].shell(line).unwrap_or_else(|error| format!("{error:#}"));
            format!("\n--- the journal of {name}:\n{said}")
        });
        told.collect()
    }

    /// A block as its reader types it.
    fn complete(&self, step: &Step, leaving: Option<&str>) -> anyhow::Result<String> {
        let mut lines = Vec::new();
        for line in step.text.lines() {
            let is_gap = line.contains("...");
            let filled = if is_gap {
                let printed = self.printed.iter().rev().find_map(|printed| fill(line, printed).ok());
                printed.with_context(|| format!("nothing was printed that fits into {line:?}"))?
            } else {
                line.to_owned()
            };
            lines.push(filled);
        }
        let text = lines.join("\n");
        let token = self.printed_after("--token");
        let hash = self.printed_after("--ca-cert-hash");
        let hash = hash.map(|hash| hash.trim_start_matches("sha256:"));
        [(NODE, leaving), ("TOKEN", token), ("HASH", hash)].into_iter().try_fold(
            text,
            |text, (word, meaning)| match meaning {
                Some(meaning) if has_word(&text, word) => put(&text, &[(word, meaning)]),
                Some(_) | None => Ok(text),
            },
        )
    }

    /// What was printed last behind this flag in a line to join the mesh.
    fn printed_after(&self, flag: &str) -> Option<&str> {
        let line = self.printed.iter().rev().find(|line| line.starts_with("mesh-agent join "))?;
        line.split_whitespace().skip_while(|word| *word != flag).nth(1)
    }

    /// A machine by name.
    pub(crate) fn machine(&self, name: &str) -> &Machine {
        &self.machines[name]
    }

    /// The first one, on which kubectl is used.
    pub(crate) fn first(&self) -> &Machine {
        self.machine(COORDINATOR_HOST)
    }

    /// Gives the reader a file in the home directory of the first machine, as if it had been fetched there.
    pub(crate) fn put_home(&self, file: &Path, name: &str) -> anyhow::Result<()> {
        let home = format!("/home/{USER}/{name}");
        self.first().feed(file, "tee", [&home])?.success()?;
        self.first().shell(&format!("chown {USER}: {home}")).map(drop)
    }

    /// The directory that they share, in which the terminals are.
    pub(crate) fn shared(&self) -> &Path {
        &self.shared
    }

    /// All of them.
    pub(crate) fn machines(&self) -> impl Iterator<Item = (&'static str, &Machine)> {
        self.machines.iter().map(|(name, machine)| (*name, machine))
    }

    /// Shuts a machine down and boots it again. What a kernel of its own would forget is forgotten.
    pub(crate) fn reboot(&mut self, name: &'static str) -> anyhow::Result<()> {
        self.terminals.remove(name);
        self.machines.remove(name).context("no such machine")?.shut_down()?;
        let host = self.host(name)?;
        host.netns().nft("flush ruleset\n")?;
        mesh_lab::mesh::wait_until(PATIENCE, "the machine's devices are gone", || {
            let links = host.command("ip").args(["-j", "link", "show"]).output()?.success()?;
            let links: Vec<serde_json::Value> = serde_json::from_str(&links.stdout)?;
            let names = links.iter().filter_map(|link| link["ifname"].as_str());
            let made_later: Vec<&str> = names.filter(|name| !DEVICES.contains(name)).collect();
            for name in &made_later {
                // It may go by itself.
                let _ = host.netns().ip(&format!("link del {name}\n"));
            }
            Ok(made_later.is_empty())
        })?;
        let machine = self.disks[name].boot(host)?;
        self.terminals.insert(name, machine.terminal(USER, &self.shared)?.into());
        self.machines.insert(name, machine);
        Ok(())
    }

    /// Does something for all machines at the same time.
    pub(crate) fn each<T: Send>(
        &self,
        work: impl Fn(&'static str) -> anyhow::Result<T> + Sync,
    ) -> anyhow::Result<BTreeMap<&'static str, T>> {
        let work = &work;
        std::thread::scope(|scope| {
            let threads = MACHINES.map(|name| (name, scope.spawn(move || work(name).context(name))));
            let join = |(name, thread): (_, std::thread::ScopedJoinHandle<'_, anyhow::Result<T>>)| {
                Ok((name, thread.join().expect("a machine's thread does not panic")?))
            };
            threads.into_iter().map(join).collect()
        })
    }

    /// Prints what has been reached, and when.
    pub(crate) fn said(&self, what: &str) {
        println!("{:6.1} s  {what}", self.started.elapsed().as_secs_f64());
    }

    fn host(&self, name: &str) -> anyhow::Result<&Host> {
        self.village.network().host(name)
    }
}

/// Makes the directory in which who follows the guide has what the guide speaks of: the packages of `make deb`, and what is
/// made of this repository.
fn share(lab: &Lab) -> anyhow::Result<PathBuf> {
    let packages =
        std::env::var_os("MESH_PACKAGES").context("MESH_PACKAGES is not set: see `make test-guides`")?;
    let binaries =
        std::env::var_os("MESH_BIN_DIR").context("MESH_BIN_DIR is not set: see `make test-guides`")?;
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    let shared = lab.directory().join("shared");
    std::fs::create_dir_all(&shared)?;
    for package in std::fs::read_dir(packages)? {
        let package = package?.path();
        if let Some(name) =
            package.file_name().filter(|_| package.extension().is_some_and(|kind| kind == "deb"))
        {
            std::fs::copy(&package, shared.join(name))?;
        }
    }
    let image = Command::new(deploy.join("docker/build"))
        .arg(shared.join("mesh-agent.tar"))
        .arg("mesh-agent:1")
        .env("MESH_BIN_DIR", binaries)
        .output()?;
    ensure!(image.status.success(), "deploy/docker/build: {}", String::from_utf8_lossy(&image.stderr));
    let copied = Command::new("cp").arg("-r").arg(deploy).arg(&shared).status()?;
    ensure!(copied.success(), "deploy cannot be copied");
    Ok(shared)
}

/// The guide itself.
pub(crate) fn guide() -> anyhow::Result<mesh_lab::guide::Guide> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/k8s/README.md");
    let guide = mesh_lab::guide::Guide::read(&std::fs::read_to_string(path)?)?;
    ensure!(guide.section("kubeadm, on the hosts").is_ok(), "{path} is another guide");
    Ok(guide)
}
