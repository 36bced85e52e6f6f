//! Hosts with a Debian of their own: systemd as process 1, packages, reboots.
//!
//! A [`Machine`] is a container that `systemd-nspawn` boots inside a host's network namespace. All share one installed
//! [`System`], which debootstrap makes once; what a machine writes lies over it, and survives its reboots.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;

mod containers;
mod system;
mod terminal;

pub use system::{CONTAINERS, PLAIN, System};
pub use terminal::Terminal;

use crate::cgroups;
use crate::mesh::wait_until;
use crate::process::{Finished, Process};
use crate::run::Lab;
use crate::topology::Host;

/// What boots it.
const BOOT: &str = include_str!("boot.sh");
/// What there is in `/dev` beside what every container has, with the mode that udev gives it.
const DEVICES: &str = "d /dev/net 0755 - - -\nc /dev/net/tun 0666 - - - 10:200\n";
/// In which a machine boots and shuts down, beside others that do.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the kernel may take to end all processes of a machine that is no more.
const REMOVAL: Duration = Duration::from_secs(5);

/// A Debian that runs on a host.
#[derive(Debug)]
pub struct Machine {
    nspawn: Process,
    init: i32,
    name: String,
    group: String,
}

/// What a machine is made of, and where it keeps what it writes.
#[derive(Debug, Clone)]
pub struct Disk {
    system: PathBuf,
    own: PathBuf,
    shared: PathBuf,
    script: PathBuf,
    name: String,
    group: String,
    options: Vec<OsString>,
}

impl Disk {
    /// An empty disk for the machine of this host, over the [`PLAIN`] system. `shared` is seen inside where it is outside.
    ///
    /// # Errors
    ///
    /// If the system cannot be installed.
    pub fn new(lab: &Lab, host: &str, shared: &Path) -> anyhow::Result<Self> {
        Self::with(lab, host, shared, PLAIN)
    }

    /// As [`Disk::new`], over another system.
    ///
    /// # Errors
    ///
    /// As [`Disk::new`].
    pub fn with(lab: &Lab, host: &str, shared: &Path, system: System) -> anyhow::Result<Self> {
        // Of runs that are dead; this one may have machines already.
        cgroups::sweep("");
        let own = lab.directory().join("machines").join(host);
        std::fs::create_dir_all(&own)?;
        let script = own.join("boot.sh");
        std::fs::write(&script, BOOT)?;
        let disk = Self {
            system: system.installed()?,
            own,
            shared: shared.canonicalize()?,
            script,
            name: format!("{}-{host}", lab.id()),
            group: cgroups::of(lab.id(), &format!("{host}-machine")),
            options: Vec::new(),
        };
        disk.write("/etc/tmpfiles.d/lab.conf", 0o644, DEVICES)?;
        Ok(disk)
    }

    /// Boots it with one more option of `systemd-nspawn`.
    #[must_use]
    pub fn option(mut self, option: impl Into<OsString>) -> Self {
        self.options.push(option.into());
        self
    }

    /// Writes a file onto it, as it will be found inside.
    ///
    /// # Errors
    ///
    /// If the disk is full.
    pub fn write(&self, path: &str, mode: u32, text: &str) -> anyhow::Result<()> {
        let path = self.own.join("upper").join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        Ok(())
    }

    /// What the machine of this host has for itself, outside of what lies over the system.
    fn directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let directory = self.own.join(name);
        std::fs::create_dir_all(&directory)?;
        Ok(directory)
    }

    /// Boots it on a host, and waits until systemd says that it runs.
    ///
    /// # Errors
    ///
    /// If it does not boot, or units of it have failed.
    pub fn boot(&self, host: &Host) -> anyhow::Result<Machine> {
        // What a machine that was shut down has left there is not this one's.
        cgroups::make_again(&self.group)?;
        let nspawn = host
            .command("bash")
            .arg(&self.script)
            .arg(&self.name)
            .args([&self.system, &self.own, &self.shared])
            .arg(&self.group)
            .args(&self.options)
            .spawn(&format!("{}-machine", host.name()))?;
        let mut init = None;
        wait_until(PATIENCE, "the machine has a process 1", || {
            ensure!(nspawn.is_running(), "nspawn has ended: see {}", nspawn.log().display());
            init = init_of(nspawn.pid());
            Ok(init.is_some())
        })?;
        let init = init.context("a machine without a process 1")?;
        let machine = Machine { nspawn, init, name: self.name.clone(), group: self.group.clone() };
        wait_until(PATIENCE, "systemd runs", || {
            let told = machine.run("systemctl", ["is-system-running"])?;
            if told.stdout.trim() == "degraded" {
                bail!("failed units: {}", machine.run("systemctl", ["--failed", "--no-legend"])?.stdout);
            }
            Ok(told.stdout.trim() == "running")
        })?;
        Ok(machine)
    }
}

impl Machine {
    /// A shell of a user of this machine.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn terminal(&self, user: &str, directory: &Path) -> anyhow::Result<Terminal> {
        let mut command = self.inside("runuser");
        command.args(["--user", user, "--", "env", "--chdir"]).arg(directory);
        command.arg(format!("HOME=/home/{user}")).arg(format!("USER={user}")).arg("bash");
        Terminal::open(command, &format!("{user} on {}", self.name))
    }

    /// Runs a program inside, to its end.
    ///
    /// # Errors
    ///
    /// If it cannot be started; what it returns is told.
    pub fn run(
        &self,
        program: &str,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> anyhow::Result<Finished> {
        let output = self
            .inside(program)
            .args(args)
            .output()
            .with_context(|| format!("{program} in {}", self.name))?;
        Ok(Finished::new(format!("{program} in {}", self.name), &output))
    }

    /// As [`Machine::run`], with a file of the lab's machine as its input.
    ///
    /// # Errors
    ///
    /// As [`Machine::run`], and if the file is not there.
    pub fn feed(
        &self,
        input: &Path,
        program: &str,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> anyhow::Result<Finished> {
        let what = format!("{program} in {}", self.name);
        let input = std::fs::File::open(input).with_context(|| input.display().to_string())?;
        let output = self.inside(program).args(args).stdin(input).output().with_context(|| what.clone())?;
        Ok(Finished::new(what, &output))
    }

    /// The processes of a pod that runs here, by the numbers that they have outside; that of its sandbox is among them.
    pub fn processes_of_pod(&self, uid: &str) -> Vec<i32> {
        cgroups::processes_of_pod(&self.group, uid)
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.init.to_string(),
                "--mount",
                "--pid",
                "--ipc",
                "--uts",
                "--net",
                "--cgroup",
                "--",
            ])
            .arg(program)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs a line of shell inside, which must return 0, and returns what it prints.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub fn shell(&self, line: &str) -> anyhow::Result<String> {
        let finished = self.run("sh", ["-ec", line])?.success().with_context(|| line.to_owned())?;
        Ok(finished.stdout.trim().to_owned())
    }

    /// Shuts it down as an administrator does; its disk is kept.
    ///
    /// # Errors
    ///
    /// If it does not end.
    pub fn shut_down(self) -> anyhow::Result<()> {
        self.nspawn.kill(Signal::SIGTERM)?;
        let ended = self.nspawn.wait_timeout(PATIENCE)?;
        ensure!(ended.is_some(), "{} does not shut down", self.name);
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have been shut down. What cannot be removed now the next run removes.
        let _ = self.nspawn.kill(Signal::SIGKILL);
        let _ = wait_until(REMOVAL, "its control group is gone", || Ok(cgroups::remove_one(&self.group)));
    }
}

/// The container's process 1: what nspawn has started.
fn init_of(nspawn: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    let init = children.split_whitespace().next()?.parse().ok()?;
    // Until it is in namespaces of its own it is a part of nspawn.
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let started = std::fs::read_to_string(format!("/proc/{init}/comm")).ok()?.trim() == "systemd";
    (started && namespace(init)? != namespace(nspawn)?).then_some(init)
}
