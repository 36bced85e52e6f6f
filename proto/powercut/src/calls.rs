//! libc's functions that change files, so that the recorder sees and judges each call.
//!
//! They go to the kernel directly: there is no other definition left to call. What is not below a recorded directory
//! passes.

#![expect(unsafe_code, reason = "these functions stand in the place of libc's, with libc's contract")]

use std::{
    ffi::{CStr, OsStr},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use libc::{AT_FDCWD, c_char, c_int, c_long, c_void, mode_t, off_t, size_t, ssize_t};

use crate::recorder::{Act, Inode, Verdict, is_active, with_recorder};

/// Makes sure that this module is linked: a library's definition is only taken when something refers to it.
pub(crate) fn link() {
    let functions: [*const (); 19] = [
        open as *const (),
        open64 as *const (),
        write as *const (),
        pwrite as *const (),
        pwrite64 as *const (),
        ftruncate as *const (),
        ftruncate64 as *const (),
        fsync as *const (),
        fdatasync as *const (),
        rename as *const (),
        link_name as *const (),
        linkat as *const (),
        unlink as *const (),
        unlinkat as *const (),
        rmdir as *const (),
        mkdir as *const (),
        truncate_offset as *const (),
        path_of as *const (),
        inode_of as *const (),
    ];
    std::hint::black_box(functions);
}

/// # Safety
/// As of `open(2)`. The mode is only read where the flags ask for it.
#[unsafe(no_mangle)]
unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the arguments are the caller's, and the contract is the same.
    let kernel = || unsafe { libc::syscall(libc::SYS_openat, AT_FDCWD, path, flags, mode) };
    // SAFETY: a path is a C string.
    let name = unsafe { path_of(AT_FDCWD, path) };
    let writing = flags & libc::O_ACCMODE != libc::O_RDONLY;
    if !writing {
        return narrow(kernel());
    }
    let opened = with_recorder(&name, |recorder| {
        let created = flags & libc::O_CREAT != 0 && !recorder.knows(&name);
        let act = if created { Act::Create } else { Act::Open };
        if let Verdict::Fail(errno) = recorder.judge(act) {
            return fail(errno);
        }
        let fd = kernel();
        if fd >= 0 {
            let inode = inode_of(narrow(fd));
            if created {
                recorder.created(&name, inode, mode);
            } else if flags & libc::O_TRUNC != 0 {
                recorder.resized(inode, 0);
            }
        }
        fd
    });
    narrow(opened.unwrap_or_else(kernel))
}

/// # Safety
/// As of [`open`].
#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the same contract.
    unsafe { open(path, flags | libc::O_LARGEFILE, mode) }
}

/// # Safety
/// As of `write(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, from: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: the same contract, with a part of the buffer.
    let kernel = |len: size_t| unsafe { libc::syscall(libc::SYS_write, fd, from, len) };
    // SAFETY: asks for the position of a descriptor; a wrong one is an error that nobody hears.
    let offset = || unsafe { libc::syscall(libc::SYS_lseek, fd, 0, libc::SEEK_CUR) };
    // SAFETY: `from` has `len` bytes, as the caller promises.
    unsafe { record_write(fd, from, len, offset, kernel) }
}

/// # Safety
/// As of `pwrite(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite(fd: c_int, from: *const c_void, len: size_t, at: off_t) -> ssize_t {
    // SAFETY: the same contract, with a part of the buffer.
    let kernel = |len: size_t| unsafe { libc::syscall(libc::SYS_pwrite64, fd, from, len, at) };
    // SAFETY: `from` has `len` bytes, as the caller promises.
    unsafe { record_write(fd, from, len, || at, kernel) }
}

/// # Safety
/// As of [`pwrite`].
#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(fd: c_int, from: *const c_void, len: size_t, at: off_t) -> ssize_t {
    // SAFETY: the same contract.
    unsafe { pwrite(fd, from, len, at) }
}

/// # Safety
/// As of `ftruncate(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate(fd: c_int, len: off_t) -> c_int {
    truncate_offset(fd, len)
}

/// # Safety
/// As of [`ftruncate`].
#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate64(fd: c_int, len: off_t) -> c_int {
    truncate_offset(fd, len)
}

/// # Safety
/// As of `fsync(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    sync(fd, libc::SYS_fsync)
}

/// # Safety
/// As of `fdatasync(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync(fd, libc::SYS_fdatasync)
}

/// # Safety
/// As of `rename(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the same contract.
    let kernel = || unsafe { libc::syscall(libc::SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0) };
    // SAFETY: paths are C strings.
    let (from, to) = unsafe { (path_of(AT_FDCWD, from), path_of(AT_FDCWD, to)) };
    let renamed = with_recorder(&to, |recorder| {
        recorder.name_step(Act::Name, kernel, |recorder| recorder.renamed(&from, &to))
    });
    narrow(renamed.unwrap_or_else(kernel))
}

/// # Safety
/// As of `link(2)`.
#[unsafe(export_name = "link")]
unsafe extern "C" fn link_name(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the same contract.
    unsafe { linkat(AT_FDCWD, from, AT_FDCWD, to, 0) }
}

/// # Safety
/// As of `linkat(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn linkat(
    from_dir: c_int,
    from: *const c_char,
    to_dir: c_int,
    to: *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: the same contract.
    let kernel = || unsafe { libc::syscall(libc::SYS_linkat, from_dir, from, to_dir, to, flags) };
    // SAFETY: paths are C strings.
    let (from, to) = unsafe { (path_of(from_dir, from), path_of(to_dir, to)) };
    let linked = with_recorder(&to, |recorder| {
        recorder.name_step(Act::Create, kernel, |recorder| recorder.linked(&from, &to))
    });
    narrow(linked.unwrap_or_else(kernel))
}

/// # Safety
/// As of `unlink(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the same contract.
    unsafe { unlinkat(AT_FDCWD, path, 0) }
}

/// # Safety
/// As of `unlinkat(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the same contract.
    let kernel = || unsafe { libc::syscall(libc::SYS_unlinkat, dir, path, flags) };
    // SAFETY: a path is a C string.
    let name = unsafe { path_of(dir, path) };
    let removed = with_recorder(&name, |recorder| {
        recorder.name_step(Act::Name, kernel, |recorder| recorder.removed(&name))
    });
    narrow(removed.unwrap_or_else(kernel))
}

/// # Safety
/// As of `rmdir(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn rmdir(path: *const c_char) -> c_int {
    // SAFETY: the same contract.
    unsafe { unlinkat(AT_FDCWD, path, libc::AT_REMOVEDIR) }
}

/// # Safety
/// As of `mkdir(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the same contract.
    let kernel = || unsafe { libc::syscall(libc::SYS_mkdirat, AT_FDCWD, path, mode) };
    // SAFETY: a path is a C string.
    let name = unsafe { path_of(AT_FDCWD, path) };
    let made = with_recorder(&name, |recorder| {
        recorder.name_step(Act::Create, kernel, |recorder| recorder.made_directory(&name, mode))
    });
    narrow(made.unwrap_or_else(kernel))
}

/// # Safety
/// `from` has `len` bytes.
unsafe fn record_write(
    fd: c_int,
    from: *const c_void,
    len: size_t,
    offset: impl FnOnce() -> c_long,
    kernel: impl Fn(size_t) -> c_long,
) -> ssize_t {
    if !is_active() {
        return kernel(len) as ssize_t;
    }
    let written = with_recorder(&inode_of(fd), |recorder| {
        let len = match recorder.judge(Act::Write(len)) {
            Verdict::Proceed => len,
            Verdict::Short(short) => short,
            Verdict::Fail(errno) => return fail(errno),
        };
        let offset = offset();
        let written = kernel(len);
        if let Ok(count) = usize::try_from(written) {
            // SAFETY: no more was written than there is.
            let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), count) };
            recorder.written(inode_of(fd), offset.unsigned_abs(), bytes);
        }
        written
    });
    written.unwrap_or_else(|| kernel(len)) as ssize_t
}

fn truncate_offset(fd: c_int, len: off_t) -> c_int {
    // SAFETY: no memory is involved.
    let kernel = || unsafe { libc::syscall(libc::SYS_ftruncate, fd, len) };
    let inode = inode_of(fd);
    let done = with_recorder(&inode, |recorder| {
        recorder.name_step(Act::Name, kernel, |recorder| recorder.resized(inode, len.unsigned_abs()))
    });
    narrow(done.unwrap_or_else(kernel))
}

fn sync(fd: c_int, call: c_long) -> c_int {
    // SAFETY: no memory is involved.
    let kernel = || unsafe { libc::syscall(call, fd) };
    if !is_active() {
        return narrow(kernel());
    }
    let inode = inode_of(fd);
    let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
    let file = with_recorder(&inode, |recorder| match recorder.judge(Act::Sync) {
        Verdict::Fail(errno) => {
            recorder.synced(inode, false);
            fail(errno)
        }
        // The kernel is not asked: the directory is thrown away, and the disk that counts is simulated.
        Verdict::Proceed | Verdict::Short(_) => {
            recorder.synced(inode, true);
            0
        }
    });
    let synced = file.or_else(|| {
        with_recorder(&path, |recorder| match recorder.judge(Act::Sync) {
            Verdict::Fail(errno) => fail(errno),
            Verdict::Proceed | Verdict::Short(_) => {
                recorder.synced_directory(&path);
                0
            }
        })
    });
    narrow(synced.unwrap_or_else(kernel))
}

/// Returns a path; one that is relative to an open directory is put together.
///
/// # Safety
/// `path` is a C string.
unsafe fn path_of(dir: c_int, path: *const c_char) -> PathBuf {
    // SAFETY: as the caller promises.
    let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    if dir == AT_FDCWD || path.is_absolute() {
        return path.to_owned();
    }
    std::fs::read_link(format!("/proc/self/fd/{dir}")).unwrap_or_default().join(path)
}

fn inode_of(fd: c_int) -> Inode {
    // SAFETY: all zeros is a valid `stat`.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is writable; a descriptor that is none leaves it as it is.
    unsafe { libc::fstat(fd, &raw mut stat) };
    Inode { device: stat.st_dev, number: stat.st_ino }
}

pub(crate) fn fail(errno: c_int) -> c_long {
    // SAFETY: the location is this thread's.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// Descriptors and error codes fit.
fn narrow(result: c_long) -> c_int {
    c_int::try_from(result).unwrap_or(-1)
}
