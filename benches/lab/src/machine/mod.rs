//! Hosts with a Debian of their own: systemd as process 1, packages, reboots.
//!
//! A [`Machine`] is a container that `systemd-nspawn` boots inside a host's network namespace. All share one installed
//! system, which debootstrap makes once; what a machine writes lies over it, and survives its reboots.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;

use crate::mesh::wait_until;
use crate::process::{Finished, Process};
use crate::run::Lab;
use crate::topology::Host;

/// What is installed beside Debian's least: what our packages depend on, and what tests look with.
const INCLUDED: &str = "systemd,systemd-sysv,dbus,iproute2,iputils-ping,nftables,procps";
/// Which Debian.
const RELEASE: &str = "bookworm";
/// What boots it.
const BOOT: &str = include_str!("boot.sh");
/// In which a machine boots and shuts down, beside others that do.
const PATIENCE: Duration = Duration::from_secs(120);

/// A Debian that runs on a host.
#[derive(Debug)]
pub struct Machine {
    nspawn: Process,
    init: i32,
    name: String,
}

/// What a machine is made of, and where it keeps what it writes.
#[derive(Debug, Clone)]
pub struct Disk {
    system: PathBuf,
    own: PathBuf,
    shared: PathBuf,
    script: PathBuf,
    name: String,
}

impl Disk {
    /// An empty disk for the machine of this host, over the installed system. `shared` is seen inside where it is outside.
    ///
    /// # Errors
    ///
    /// If the system cannot be installed.
    pub fn new(lab: &Lab, host: &str, shared: &Path) -> anyhow::Result<Self> {
        let own = lab.directory().join("machines").join(host);
        std::fs::create_dir_all(&own)?;
        let script = own.join("boot.sh");
        std::fs::write(&script, BOOT)?;
        let name = format!("{}-{host}", lab.id());
        Ok(Self { system: installed()?, own, shared: shared.canonicalize()?, script, name })
    }

    /// Boots it on a host, and waits until systemd says that it runs.
    ///
    /// # Errors
    ///
    /// If it does not boot, or units of it have failed.
    pub fn boot(&self, host: &Host) -> anyhow::Result<Machine> {
        let nspawn = host
            .command("bash")
            .arg(&self.script)
            .arg(&self.name)
            .args([&self.system, &self.own, &self.shared])
            .spawn(&format!("{}-machine", host.name()))?;
        let mut init = None;
        wait_until(PATIENCE, "the machine has a process 1", || {
            ensure!(nspawn.is_running(), "nspawn has ended: see {}", nspawn.log().display());
            init = init_of(nspawn.pid());
            Ok(init.is_some())
        })?;
        let init = init.context("a machine without a process 1")?;
        let machine = Machine { nspawn, init, name: self.name.clone() };
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
        let output = Command::new("nsenter")
            .args(["--target", &self.init.to_string(), "--mount", "--pid", "--ipc", "--uts", "--net", "--"])
            .arg(program)
            .args(args)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .with_context(|| format!("{program} in {}", self.name))?;
        Ok(Finished::new(format!("{program} in {}", self.name), &output))
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

/// The container's process 1: what nspawn has started.
fn init_of(nspawn: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    let init = children.split_whitespace().next()?.parse().ok()?;
    // Until it is in namespaces of its own it is a part of nspawn.
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let started = std::fs::read_to_string(format!("/proc/{init}/comm")).ok()?.trim() == "systemd";
    (started && namespace(init)? != namespace(nspawn)?).then_some(init)
}

/// The installed system that all machines share, made if it is not there.
fn installed() -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("mesh-lab");
    let system = cache.join(format!("debian-{RELEASE}-{}", INCLUDED.replace(',', "+")));
    if system.exists() {
        return Ok(system);
    }
    // Others may make it at the same time: it gets its name when it is whole.
    let draft = cache.join(format!("draft-{}", std::process::id()));
    std::fs::create_dir_all(&draft)?;
    let made = Command::new("debootstrap")
        .args(["--variant=minbase", &format!("--include={INCLUDED}"), RELEASE])
        .arg(&draft)
        .output()
        .context("debootstrap")?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stdout).into_owned();
        std::fs::remove_dir_all(&draft)?;
        bail!("debootstrap cannot install {RELEASE}: {said}");
    }
    match std::fs::rename(&draft, &system) {
        Ok(()) => {}
        Err(_) if system.exists() => std::fs::remove_dir_all(&draft)?,
        Err(error) => return Err(error).context("the installed system"),
    }
    Ok(system)
}
