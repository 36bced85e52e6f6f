//! Removal at the ends that run no destructor: SIGINT, SIGTERM, SIGHUP and process exit.
//!
//! The handler only writes the signal's number to a pipe. A thread reads it, sweeps the runs that are alive and ends
//! the process by the same signal, so that a shell sees the truth. `atexit` covers runs that live in statics.
#![expect(unsafe_code, reason = "signal handlers and atexit have no safe interface")]

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::fd::{IntoRawFd as _, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// How many of a log's last lines are shown when a test panics.
const LOG_TAIL: usize = 15;

static ALIVE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// Installs the handlers, once per process.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok((reader, writer)) = std::io::pipe() else { return };
        PIPE.store(writer.into_raw_fd(), Ordering::Release);
        std::thread::spawn(move || wait(reader));
        let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            // SAFETY: the handler calls nothing but `write`, which is async-signal-safe.
            let _ = unsafe { sigaction(signal, &action) };
        }
        // SAFETY: the function takes and returns nothing and lives as long as the program.
        let _ = unsafe { libc::atexit(at_exit) };
    });
}

/// Notes a run that is to be swept if the process ends.
pub(super) fn register(id: &str) {
    alive().insert(id.to_owned());
}

/// Forgets a run that has been swept.
pub(super) fn unregister(id: &str) {
    alive().remove(id);
}

/// Prints the ends of a run's logs, for a test that failed.
pub(super) fn show_logs(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory.join("logs")) else { return };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("--- {} ---", path.file_name().unwrap_or_default().to_string_lossy());
        for line in &lines[lines.len().saturating_sub(LOG_TAIL)..] {
            eprintln!("{line}");
        }
    }
}

fn alive() -> std::sync::MutexGuard<'static, BTreeSet<String>> {
    ALIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sweep_all() {
    let ids = std::mem::take(&mut *alive());
    for id in ids {
        super::sweep(&id);
    }
    // Nobody will ask for these any more, and not every init collects what it inherits.
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG))
        && status != WaitStatus::StillAlive
    {}
}

fn wait(mut reader: std::io::PipeReader) {
    let mut number = [0];
    if reader.read_exact(&mut number).is_err() {
        return;
    }
    sweep_all();
    let Ok(signal) = Signal::try_from(i32::from(number[0])) else { std::process::exit(1) };
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action replaces the handler; no Rust code runs in it.
    let _ = unsafe { sigaction(signal, &default) };
    let _ = raise(signal);
}

extern "C" fn on_signal(number: libc::c_int) {
    let byte = number.to_le_bytes()[0];
    let pipe: RawFd = PIPE.load(Ordering::Acquire);
    // SAFETY: one byte of a live local is written to a pipe that is never closed.
    let _ = unsafe { libc::write(pipe, (&raw const byte).cast(), 1) };
}

extern "C" fn at_exit() {
    sweep_all();
}
