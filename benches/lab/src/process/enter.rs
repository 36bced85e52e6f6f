//! What happens between fork and exec: entering the host.
#![expect(unsafe_code, reason = "work between fork and exec is unsafe by nature")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// What a process finds around itself on its host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Surroundings {
    /// The file of the network namespace, in `/run/netns`.
    pub netns: PathBuf,
    /// What `gethostname` answers.
    pub hostname: String,
    /// Files that stand in for others: what is seen, and where.
    pub files: Vec<(PathBuf, PathBuf)>,
}

/// Arranges that `command` enters these surroundings before it is executed.
///
/// # Errors
///
/// If the namespace is gone or a path holds a zero byte.
pub(super) fn prepare(
    command: &mut Command,
    surroundings: &Surroundings,
    descriptors: Vec<OwnedFd>,
) -> anyhow::Result<()> {
    let netns = std::fs::File::open(&surroundings.netns)
        .with_context(|| format!("namespace {}", surroundings.netns.display()))?;
    let files = surroundings.files.iter().map(|(source, target)| Ok((c_path(source)?, c_path(target)?)));
    let plan = Plan {
        netns: netns.into(),
        hostname: surroundings.hostname.clone(),
        files: files.collect::<anyhow::Result<_>>()?,
        parent: std::process::id().cast_signed(),
        descriptors,
    };
    // SAFETY: `enter` makes system calls on data prepared here; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(move || enter(&plan)) };
    Ok(())
}

struct Plan {
    netns: OwnedFd,
    hostname: String,
    files: Vec<(CString, CString)>,
    parent: libc::pid_t,
    /// What the process gets as 3, 4 and so on.
    descriptors: Vec<OwnedFd>,
}

/// The first descriptor after standard error.
const FIRST_PASSED: libc::c_int = 3;
/// Above all that are passed.
const ASIDE: libc::c_int = 400;

fn enter(plan: &Plan) -> io::Result<()> {
    let netns: RawFd = plan.netns.as_raw_fd();
    let no_data = std::ptr::null();
    // SAFETY: plain system calls; every pointer is to a C string or buffer that `plan` or the program image keeps.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        // The parent may have died before the line above took effect.
        if libc::getppid() != plan.parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        check(libc::setns(netns, libc::CLONE_NEWNET))?;
        check(libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWUTS))?;
        check(libc::sethostname(plan.hostname.as_ptr().cast(), plan.hostname.len()))?;
        // Unmounts from outside still arrive (a removed namespace must not live on here); mounts do not leak out.
        let slave = libc::MS_REC | libc::MS_SLAVE;
        check(libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), slave, no_data))?;
        // Shows the host's own interfaces. Not every user namespace may do this, and little depends on it.
        let _ = libc::mount(c"sysfs".as_ptr(), c"/sys".as_ptr(), c"sysfs".as_ptr(), 0, no_data);
        for (source, target) in &plan.files {
            bind(source, target)?;
        }
        pass(&plan.descriptors)
    }
}

/// Passes descriptors on, in two steps: one of them may have the number that another one is to get.
fn pass(descriptors: &[OwnedFd]) -> io::Result<()> {
    let numbers = || (0..).zip(descriptors);
    for (number, descriptor) in numbers() {
        // SAFETY: plain system calls with descriptors; the ones at these numbers are not used in this process again.
        unsafe { check(libc::dup3(descriptor.as_raw_fd(), ASIDE + number, libc::O_CLOEXEC))? };
    }
    for (number, _) in numbers() {
        // SAFETY: as above. What std has at such a number tells of a failed exec; its end is taken for a success.
        unsafe { check(libc::dup2(ASIDE + number, FIRST_PASSED + number))? };
    }
    Ok(())
}

fn bind(source: &CStr, target: &CStr) -> io::Result<()> {
    // SAFETY: both are C strings, the rest is not used by a bind mount.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), std::ptr::null(), libc::MS_BIND, std::ptr::null())
    })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn c_path(path: &Path) -> anyhow::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
