//! An agent under a service manager: a small one, which does of systemd what a restart under traffic needs.
//!
//! It hears what the agent says on `NOTIFY_SOCKET`, keeps the descriptors that it is given (`FDSTORE`, `FDSTOREREMOVE`,
//! `BARRIER`), and starts the next process with them (`LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`). When the service is
//! stopped it closes them, as systemd does.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::Node;
use crate::process::Process;

/// How long the thread waits for a message before it looks whether it should end.
const NAP: Duration = Duration::from_millis(100);
/// How long the agent may take to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Longest message.
const MESSAGE_LEN: usize = 4096;
/// Becomes the agent; only then the process id is known that the descriptors are for.
const BECOME: &str = r#"export LISTEN_PID=$$; exec "$@""#;

/// How a process of a service ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// As at `systemctl restart`.
    Asked,
    /// By kill -9, as after a crash.
    Killed,
}

/// A node's agent, under a service manager.
#[derive(Debug)]
pub struct Service<'a> {
    node: &'a Node,
    path: PathBuf,
    manager: Arc<Manager>,
    thread: Option<JoinHandle<()>>,
    process: Mutex<Option<Process>>,
}

/// What the thread and the service share.
#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    ending: AtomicBool,
    kept: Mutex<BTreeMap<String, Vec<OwnedFd>>>,
}

impl<'a> Service<'a> {
    /// Makes the service of a node that has joined; its agent must not run otherwise.
    ///
    /// # Errors
    ///
    /// If the manager's socket cannot be made.
    pub fn new(node: &'a Node) -> anyhow::Result<Self> {
        let path = node.directory().join("notify");
        let socket = UnixDatagram::bind(&path).with_context(|| format!("socket {}", path.display()))?;
        socket.set_read_timeout(Some(NAP))?;
        let manager = Arc::new(Manager { socket, ending: AtomicBool::new(false), kept: Mutex::default() });
        let thread = {
            let manager = Arc::clone(&manager);
            std::thread::Builder::new().name("service-manager".into()).spawn(move || manager.run())?
        };
        Ok(Self { node, path, manager, thread: Some(thread), process: Mutex::new(None) })
    }

    /// Starts a process, with what is kept.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(&self) -> anyhow::Result<()> {
        self.start_with(&[])
    }

    /// As [`Service::start`], with further arguments.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start_with(&self, args: &[&str]) -> anyhow::Result<()> {
        let (mut names, mut descriptors) = (Vec::new(), Vec::new());
        // Until this process has closed its duplicates nothing is closed that the agent asks to be.
        let kept = self.manager.kept();
        for (name, kept) in kept.iter() {
            for descriptor in kept {
                names.push(name.clone());
                descriptors.push(descriptor.try_clone()?);
            }
        }
        let mut command = self.node.host().command("sh").args(["-c", BECOME, "sh"]);
        command = command.args(self.node.agent().line()).args(args).env("NOTIFY_SOCKET", &self.path);
        if !names.is_empty() {
            command = command.env("LISTEN_FDS", names.len().to_string());
            command = command.env("LISTEN_FDNAMES", names.join(":")).descriptors(descriptors);
        }
        *self.process() = Some(command.spawn(self.node.agent().name())?);
        drop(kept);
        Ok(())
    }

    /// Ends the process and starts the next one.
    ///
    /// # Errors
    ///
    /// If it does not end as it should, or the next one cannot be started.
    pub fn restart(&self, ending: Ending) -> anyhow::Result<()> {
        self.end(ending)?;
        self.start()
    }

    /// Ends the process; what it gave away is kept.
    ///
    /// # Errors
    ///
    /// If it does not end as it should.
    pub fn end(&self, ending: Ending) -> anyhow::Result<()> {
        let Some(process) = self.process().take() else { return Ok(()) };
        process.kill(match ending {
            Ending::Asked => Signal::SIGTERM,
            Ending::Killed => Signal::SIGKILL,
        })?;
        match (ending, process.wait_timeout(STOP_PATIENCE)?) {
            (Ending::Killed, Some(_)) => Ok(()),
            (Ending::Asked, Some(status)) if status.success() => Ok(()),
            (_, Some(status)) => bail!("the agent of {} ended with {status}", self.node.name()),
            (_, None) => bail!("the agent of {} did not end", self.node.name()),
        }
    }

    /// Stops the service: the process ends, and what is kept is closed.
    ///
    /// # Errors
    ///
    /// If the process does not end as it should.
    pub fn stop(&self) -> anyhow::Result<()> {
        let ended = self.end(Ending::Asked);
        self.manager.kept().clear();
        ended
    }

    /// The names of what is kept.
    #[must_use]
    pub fn kept(&self) -> Vec<String> {
        self.manager.kept().iter().flat_map(|(name, kept)| kept.iter().map(|_| name.clone())).collect()
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        self.manager.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Manager {
    fn run(&self) {
        while !self.ending.load(Ordering::Relaxed) {
            if let Some((text, descriptors)) = self.receive() {
                self.handle(&text, descriptors);
            }
        }
    }

    fn receive(&self) -> Option<(String, Vec<OwnedFd>)> {
        let mut bytes = [0; MESSAGE_LEN];
        let mut space = nix::cmsg_space!([i32; 8]);
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.socket.as_raw_fd(), &mut pieces, Some(&mut space), flags).ok()?;
        let length = message.bytes;
        let numbers: Vec<i32> = message
            .cmsgs()
            .ok()?
            .filter_map(|control| match control {
                ControlMessageOwned::ScmRights(numbers) => Some(numbers),
                _ => None,
            })
            .flatten()
            .collect();
        let descriptors = numbers.into_iter().map(own).collect();
        Some((String::from_utf8_lossy(&bytes[..length]).into_owned(), descriptors))
    }

    /// Descriptors that are not kept are closed at the end of this.
    fn handle(&self, text: &str, descriptors: Vec<OwnedFd>) {
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let name = value("FDNAME").unwrap_or("stored");
        let mut kept = self.kept();
        if value("FDSTORE") == Some("1") {
            kept.entry(name.to_owned()).or_default().extend(descriptors);
        } else if value("FDSTOREREMOVE") == Some("1") {
            kept.remove(name);
        }
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, Vec<OwnedFd>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(unsafe_code, reason = "the message carries numbers")]
fn own(number: i32) -> OwnedFd {
    // SAFETY: the system made this descriptor for this process when the message was received, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(number) }
}
