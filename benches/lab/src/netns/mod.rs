//! Named network namespaces.
//!
//! A namespace is a bind mount of a thread's `/proc/thread-self/ns/net` on a file in `/run/netns`, which is what
//! `ip netns add` makes too, so that a person can look inside with `ip -n NAME` and `ip netns exec NAME`.
//! Code enters a namespace on a thread of its own: a socket or TUN device opened there stays in the namespace
//! wherever it is used later.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

mod conntrack;

/// Where namespaces are kept, by the convention of iproute2.
const DIRECTORY: &str = "/run/netns";

/// One named network namespace.
///
/// Dropping it closes the handle only; the namespace is removed with the run it belongs to, or by [`remove`].
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a namespace called `name`, with its loopback interface up.
    ///
    /// # Errors
    ///
    /// If the name is taken or the caller may not make namespaces.
    pub fn create(name: &str) -> anyhow::Result<Self> {
        prepare_directory()?;
        let path = path_of(name);
        File::create_new(&path).with_context(|| format!("namespace {name} cannot be made"))?;
        let made = on_thread(|| -> anyhow::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare of a network namespace")?;
            let source = Path::new("/proc/thread-self/ns/net");
            mount(Some(source), &path, None::<&Path>, MsFlags::MS_BIND, None::<&Path>)
                .context("bind mount of the namespace")
        });
        if let Err(e) = made {
            let _ = std::fs::remove_file(&path);
            return Err(e.context(format!("namespace {name} cannot be made")));
        }
        let netns = Self { name: name.to_owned(), file: File::open(&path)? };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The namespace in which a process is, as of a pod, which has no name here.
    ///
    /// # Errors
    ///
    /// If there is no such process.
    pub fn of_process(pid: i32) -> anyhow::Result<Self> {
        let file = File::open(format!("/proc/{pid}/ns/net")).with_context(|| format!("process {pid}"))?;
        Ok(Self { name: format!("of process {pid}"), file })
    }

    /// The name, as `ip netns list` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a new thread inside the namespace and returns what it returns.
    ///
    /// # Errors
    ///
    /// If the namespace cannot be entered.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> anyhow::Result<R> {
        on_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("namespace {} cannot be entered", self.name))?;
            Ok(work())
        })
    }

    /// Runs `ip -batch` with these lines inside the namespace.
    ///
    /// # Errors
    ///
    /// With what `ip` printed, if any line is refused.
    pub fn ip(&self, batch: &str) -> anyhow::Result<()> {
        self.feed(&["ip", "-batch", "-"], batch)
    }

    /// Loads an nftables script inside the namespace, as one transaction.
    ///
    /// # Errors
    ///
    /// With what `nft` printed, if the script is refused.
    pub fn nft(&self, script: &str) -> anyhow::Result<()> {
        self.feed(&["nft", "-f", "-"], script)
    }

    /// Sets kernel parameters of the namespace, as `("net.ipv4.ip_forward", "1")`.
    ///
    /// # Errors
    ///
    /// If the kernel has no such parameter or refuses the value.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> anyhow::Result<()> {
        self.enter(|| {
            for (key, value) in values {
                let path = Path::new("/proc/sys").join(key.replace('.', "/"));
                std::fs::write(&path, value).with_context(|| format!("sysctl {key}={value}"))?;
            }
            Ok(())
        })?
    }

    /// Forgets all tracked connections of the namespace, as a router does that loses power.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn flush_connections(&self) -> anyhow::Result<()> {
        self.enter(conntrack::flush)?.context("flush of the tracked connections")
    }

    fn feed(&self, argv: &[&str], input: &str) -> anyhow::Result<()> {
        let output =
            self.enter(|| feed(argv, input))?.with_context(|| format!("{} cannot be run", argv[0]))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} in {}: {}\n{input}", argv.join(" "), self.name, said.trim())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The names of all namespaces that begin with `prefix`.
pub fn list(prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    names
}

/// Where the namespace called `name` is mounted.
pub fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Removes a namespace by name; the kernel frees it when its last process and socket are gone.
///
/// # Errors
///
/// If the file cannot be removed.
pub fn remove(name: &str) -> std::io::Result<()> {
    let path = path_of(name);
    // A file without a mount on it is what a run leaves that died between the two steps: it is only unlinked.
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    std::fs::remove_file(&path)
}

/// The processes whose network namespace is the one called `name`, never this process itself.
pub fn processes(name: &str) -> Vec<i32> {
    let Ok(wanted) = std::fs::metadata(path_of(name)) else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let own = std::process::id().cast_signed();
    pids.filter(|pid| {
        *pid != own
            && std::fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|meta| (meta.dev(), meta.ino()) == (wanted.dev(), wanted.ino()))
    })
    .collect()
}

/// Runs `work` on a thread of its own, so that a change of namespace touches nothing else.
fn on_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Makes `/run/netns` a shared mount, so that an unmount reaches the private mount namespaces of running processes.
fn prepare_directory() -> anyhow::Result<()> {
    static ONCE: std::sync::OnceLock<Result<(), String>> = std::sync::OnceLock::new();
    let prepared = ONCE.get_or_init(|| {
        std::fs::create_dir_all(DIRECTORY).map_err(|e| format!("{DIRECTORY} cannot be made: {e}"))?;
        let share = || {
            mount(None::<&str>, DIRECTORY, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>)
        };
        if share().is_ok() {
            return Ok(());
        }
        mount(Some(DIRECTORY), DIRECTORY, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .and_then(|()| share())
            .map_err(|e| format!("{DIRECTORY} cannot be made a shared mount: {e}"))
    });
    prepared.clone().map_err(anyhow::Error::msg)
}

fn feed(argv: &[&str], input: &str) -> std::io::Result<std::process::Output> {
    let mut child = Command::new(argv[0])
        .args(&argv[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    child.wait_with_output()
}
