//! What is being recorded, and what is made to fail.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use libc::{c_int, c_long, mode_t};

use crate::{
    calls,
    step::{FileId, Step},
};

/// Recorders that are at work; each has a directory of its own.
static RECORDERS: Mutex<Vec<Recorder>> = Mutex::new(Vec::new());

/// How many there are: mostly none, and then a call costs no lock.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

/// Writes down what happens below a directory, from [`Self::start`] until it is finished or dropped.
#[derive(Debug)]
pub struct Recording {
    root: PathBuf,
}

/// What a disk does to who writes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing new fits: `ENOSPC` from now on, after half of a write.
    Full,
    /// Nothing can be changed any more: `EROFS` from now on.
    ReadOnly,
    /// Everything fails: `EIO` from now on.
    Broken,
    /// One sync fails: `EIO`, and nothing is said about it ever again.
    Sync,
    /// One write takes only half of what it is given, which is no error.
    Short,
}

/// Which file a descriptor is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Inode {
    pub(crate) device: u64,
    pub(crate) number: u64,
}

/// What is about to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// An existing file is opened to be written.
    Open,
    /// A new name appears, for which the directory needs room.
    Create,
    /// As many bytes are written.
    Write(usize),
    /// A file or a directory is synced.
    Sync,
    /// A name changes or goes, or a file is cut off.
    Name,
}

/// Whether it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Proceed,
    /// Only so many bytes.
    Short(usize),
    /// With this `errno`.
    Fail(c_int),
}

#[derive(Debug)]
pub(crate) struct Recorder {
    root: PathBuf,
    steps: Vec<Step>,
    names: BTreeMap<PathBuf, FileId>,
    inodes: BTreeMap<Inode, FileId>,
    next: u32,
    plan: Option<Plan>,
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    fault: Fault,
    /// Acts that still succeed.
    spared: usize,
    struck: bool,
}

/// How a recorder is found.
pub(crate) trait Place {
    /// Says whether the recorder's directory has it.
    fn is_below(&self, recorder: &Recorder) -> bool;
}

impl Recording {
    /// Starts to record a directory, which is not itself part of the recording: it is there after every cut, and so
    /// is what is in it now.
    ///
    /// # Panics
    /// When the directory cannot be read.
    #[must_use]
    pub fn start(root: &Path) -> Self {
        calls::link();
        let root = root.canonicalize().expect("the directory to record is there");
        let mut recorder = Recorder {
            root: root.clone(),
            steps: Vec::new(),
            names: BTreeMap::new(),
            inodes: BTreeMap::new(),
            next: 0,
            plan: None,
        };
        recorder.take_over(&root).expect("the directory to record can be read");
        RECORDERS.lock().unwrap_or_else(PoisonError::into_inner).push(recorder);
        ACTIVE.fetch_add(1, Ordering::SeqCst);
        Self { root }
    }

    /// Returns the directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Notes that whoever asked for change `number` has been told that it is done.
    pub fn acknowledge(&self, number: u64) {
        self.with(|recorder| recorder.steps.push(Step::Acknowledged(number)));
    }

    /// Makes a step fail: the first that the fault concerns, after as many of them have succeeded.
    pub fn set_fault(&self, fault: Fault, after: usize) {
        self.with(|recorder| recorder.plan = Some(Plan { fault, spared: after, struck: false }));
    }

    /// Makes the disk a good one again, and returns whether anything has failed.
    pub fn clear_fault(&self) -> bool {
        self.with(|recorder| recorder.plan.take().is_some_and(|plan| plan.struck))
    }

    /// Returns what happened since the last time that it was asked for.
    #[must_use]
    pub fn take_steps(&self) -> Vec<Step> {
        self.with(|recorder| std::mem::take(&mut recorder.steps))
    }

    fn with<T>(&self, ask: impl FnOnce(&mut Recorder) -> T) -> T {
        let mut recorders = RECORDERS.lock().unwrap_or_else(PoisonError::into_inner);
        let recorder = recorders.iter_mut().find(|recorder| recorder.root == self.root);
        ask(recorder.expect("a recorder lives as long as its handle"))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDERS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|recorder| recorder.root != self.root);
        ACTIVE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Says whether anything is recorded.
pub(crate) fn is_active() -> bool {
    ACTIVE.load(Ordering::SeqCst) > 0
}

/// Does something with the recorder of a place, if it has one. Nothing else is recorded meanwhile.
pub(crate) fn with_recorder<T>(place: &impl Place, act: impl FnOnce(&mut Recorder) -> T) -> Option<T> {
    if !is_active() {
        return None;
    }
    let mut recorders = RECORDERS.lock().unwrap_or_else(PoisonError::into_inner);
    recorders.iter_mut().find(|recorder| place.is_below(recorder)).map(act)
}

impl Recorder {
    /// Writes down what is there already, as safe.
    fn take_over(&mut self, directory: &Path) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            let mode = metadata.mode() & 0o7777;
            if metadata.is_dir() {
                self.made_directory(&path, mode);
                self.take_over(&path)?;
            } else {
                let inode = Inode { device: metadata.dev(), number: metadata.ino() };
                self.created(&path, inode, mode);
                self.written(inode, 0, &fs::read(&path)?);
                self.synced(inode, true);
            }
        }
        self.synced_directory(directory);
        Ok(())
    }

    /// Says whether a file of this name is there.
    pub(crate) fn knows(&self, path: &Path) -> bool {
        self.names.contains_key(&self.relative(path))
    }

    /// Decides whether an act succeeds.
    pub(crate) fn judge(&mut self, act: Act) -> Verdict {
        let Some(plan) = &mut self.plan else { return Verdict::Proceed };
        let concerns = match (plan.fault, act) {
            (Fault::Full, Act::Create | Act::Write(_)) => true,
            (Fault::Full, Act::Open | Act::Sync | Act::Name) => false,
            (Fault::ReadOnly, Act::Open | Act::Create | Act::Write(_) | Act::Name) => true,
            (Fault::ReadOnly, Act::Sync) => false,
            (Fault::Broken, _) => true,
            (Fault::Sync, Act::Sync) => true,
            (Fault::Sync, Act::Open | Act::Create | Act::Write(_) | Act::Name) => false,
            (Fault::Short, Act::Write(len)) => len > 1,
            (Fault::Short, Act::Open | Act::Create | Act::Sync | Act::Name) => false,
        };
        if !concerns {
            return Verdict::Proceed;
        }
        if plan.spared > 0 {
            plan.spared -= 1;
            return Verdict::Proceed;
        }
        let first = !std::mem::replace(&mut plan.struck, true);
        match (plan.fault, act) {
            (Fault::Full, Act::Write(len)) if first && len > 1 => Verdict::Short(len / 2),
            (Fault::Full, _) => Verdict::Fail(libc::ENOSPC),
            (Fault::ReadOnly, _) => Verdict::Fail(libc::EROFS),
            (Fault::Broken, _) => Verdict::Fail(libc::EIO),
            (Fault::Sync, _) if first => Verdict::Fail(libc::EIO),
            (Fault::Short, Act::Write(len)) if first => Verdict::Short(len / 2),
            (Fault::Sync | Fault::Short, _) => Verdict::Proceed,
        }
    }

    /// Does what changes names, if it may, and writes it down if it worked.
    pub(crate) fn name_step(
        &mut self,
        act: Act,
        kernel: impl FnOnce() -> c_long,
        done: impl FnOnce(&mut Self),
    ) -> c_long {
        if let Verdict::Fail(errno) = self.judge(act) {
            return calls::fail(errno);
        }
        let result = kernel();
        if result == 0 {
            done(self);
        }
        result
    }

    pub(crate) fn created(&mut self, path: &Path, inode: Inode, mode: mode_t) {
        let file = FileId(self.next);
        self.next += 1;
        let path = self.relative(path);
        self.names.insert(path.clone(), file);
        // The number may have been another file's, which is gone.
        self.inodes.insert(inode, file);
        self.steps.push(Step::Create { path, file, mode });
    }

    pub(crate) fn written(&mut self, inode: Inode, offset: u64, bytes: &[u8]) {
        if let Some(file) = self.inodes.get(&inode) {
            self.steps.push(Step::Write { file: *file, offset, bytes: bytes.into() });
        }
    }

    pub(crate) fn resized(&mut self, inode: Inode, len: u64) {
        if let Some(file) = self.inodes.get(&inode) {
            self.steps.push(Step::Resize { file: *file, len });
        }
    }

    pub(crate) fn synced(&mut self, inode: Inode, well: bool) {
        if let Some(file) = self.inodes.get(&inode) {
            let file = *file;
            self.steps.push(if well { Step::Sync { file } } else { Step::SyncFailed { file } });
        }
    }

    pub(crate) fn synced_directory(&mut self, path: &Path) {
        self.steps.push(Step::SyncDirectory { path: self.relative(path) });
    }

    pub(crate) fn renamed(&mut self, from: &Path, to: &Path) {
        let (from, to) = (self.relative(from), self.relative(to));
        let moved: Vec<_> = self
            .names
            .iter()
            .filter_map(|(path, file)| Some((path.clone(), path.strip_prefix(&from).ok()?.to_owned(), *file)))
            .collect();
        for (path, below, file) in moved {
            self.names.remove(&path);
            let renamed = if below.as_os_str().is_empty() { to.clone() } else { to.join(below) };
            self.names.insert(renamed, file);
        }
        self.steps.push(Step::Rename { from, to });
    }

    pub(crate) fn linked(&mut self, from: &Path, to: &Path) {
        let (from, to) = (self.relative(from), self.relative(to));
        if let Some(file) = self.names.get(&from).copied() {
            self.names.insert(to.clone(), file);
        }
        self.steps.push(Step::Link { from, to });
    }

    pub(crate) fn removed(&mut self, path: &Path) {
        let path = self.relative(path);
        self.names.remove(&path);
        self.steps.push(Step::Remove { path });
    }

    pub(crate) fn made_directory(&mut self, path: &Path, mode: mode_t) {
        self.steps.push(Step::MakeDirectory { path: self.relative(path), mode });
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap_or(path).to_owned()
    }
}

impl Place for PathBuf {
    fn is_below(&self, recorder: &Recorder) -> bool {
        self.starts_with(&recorder.root)
    }
}

impl Place for Inode {
    fn is_below(&self, recorder: &Recorder) -> bool {
        recorder.inodes.contains_key(self)
    }
}
