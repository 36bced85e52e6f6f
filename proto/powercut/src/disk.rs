//! A disk behind a cache: what is safe, and what is not yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    cut::{Cut, Survival},
    image::{Found, Image},
    step::{FileId, Step},
};

/// A disk, as it is after some steps.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    files: BTreeMap<FileId, File>,
    /// The names that are safe.
    names: BTreeMap<PathBuf, Entry>,
    /// The names as programs see them.
    live: BTreeMap<PathBuf, Entry>,
    /// What leads from the ones to the others.
    renaming: Vec<Renaming>,
    acknowledged: u64,
    /// The change that was made last, if that was the last step.
    pub(crate) latest: Option<(FileId, usize)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(FileId),
    Directory { mode: u32 },
}

#[derive(Debug, Clone)]
enum Renaming {
    Set { path: PathBuf, entry: Entry },
    Move { from: PathBuf, to: PathBuf, entry: Entry },
    Unset { path: PathBuf, entry: Entry },
}

#[derive(Debug, Clone)]
struct File {
    mode: u32,
    base: Vec<u8>,
    /// On top of that, in order.
    changes: Vec<Change>,
}

#[derive(Debug, Clone)]
struct Change {
    kind: ChangeKind,
    safety: Safety,
}

#[derive(Debug, Clone)]
pub(crate) enum ChangeKind {
    Write { offset: usize, bytes: Arc<[u8]> },
    Resize { len: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Safety {
    Safe,
    /// A sync will make it safe.
    Cached,
    /// A sync has failed: no other one helps.
    Doubtful,
}

impl Disk {
    /// Makes an empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a disk on which these steps were taken.
    #[must_use]
    pub fn after(steps: &[Step]) -> Self {
        let mut disk = Self::default();
        steps.iter().for_each(|step| disk.apply(step));
        disk
    }

    /// Returns the number of the latest change that was acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Takes one step.
    pub fn apply(&mut self, step: &Step) {
        self.latest = None;
        match step {
            Step::Create { path, file, mode } => {
                self.files.insert(*file, File { mode: *mode, base: Vec::new(), changes: Vec::new() });
                self.rename(Renaming::Set { path: path.clone(), entry: Entry::File(*file) });
            }
            Step::Write { file, offset, bytes } => {
                let offset = usize::try_from(*offset).expect("files of tests fit in memory");
                self.change(*file, ChangeKind::Write { offset, bytes: Arc::clone(bytes) });
            }
            Step::Resize { file, len } => {
                let len = usize::try_from(*len).expect("files of tests fit in memory");
                self.change(*file, ChangeKind::Resize { len });
            }
            Step::Sync { file } => {
                if let Some(file) = self.files.get_mut(file) {
                    file.sync();
                }
            }
            Step::SyncFailed { file } => {
                for change in self.files.get_mut(file).into_iter().flat_map(|file| &mut file.changes) {
                    if change.safety == Safety::Cached {
                        change.safety = Safety::Doubtful;
                    }
                }
            }
            Step::SyncDirectory { path } => self.sync_directory(path),
            Step::Rename { from, to } => {
                if let Some(entry) = self.live.get(from).copied() {
                    self.rename(Renaming::Move { from: from.clone(), to: to.clone(), entry });
                }
            }
            Step::Link { from, to } => {
                if let Some(entry) = self.live.get(from).copied() {
                    self.rename(Renaming::Set { path: to.clone(), entry });
                }
            }
            Step::Remove { path } => {
                if let Some(entry) = self.live.get(path).copied() {
                    self.rename(Renaming::Unset { path: path.clone(), entry });
                }
            }
            Step::MakeDirectory { path, mode } => {
                self.rename(Renaming::Set { path: path.clone(), entry: Entry::Directory { mode: *mode } });
            }
            Step::Acknowledged(number) => self.acknowledged = *number,
        }
    }

    /// Returns how many changes of names are not safe.
    pub(crate) fn unsafe_names(&self) -> usize {
        self.renaming.len()
    }

    /// Returns the changes of content that are not safe: of which file, the how manieth, and what.
    pub(crate) fn unsafe_changes(&self) -> Vec<(FileId, usize, &ChangeKind)> {
        let mut named: BTreeSet<FileId> = BTreeSet::new();
        let renamed = self.renaming.iter().map(|renaming| match renaming {
            Renaming::Set { entry, .. } | Renaming::Move { entry, .. } | Renaming::Unset { entry, .. } => {
                entry
            }
        });
        for entry in self.names.values().chain(renamed) {
            match entry {
                Entry::File(file) => drop(named.insert(*file)),
                Entry::Directory { .. } => {}
            }
        }
        let files = self.files.iter().filter(|(id, _)| named.contains(id));
        files
            .flat_map(|(id, file)| {
                let changes = file.changes.iter().enumerate();
                changes
                    .filter(|(_, change)| change.safety != Safety::Safe)
                    .map(|(index, change)| (*id, index, &change.kind))
            })
            .collect()
    }

    /// Returns what programs see, and what the next one finds if this one is killed.
    #[must_use]
    pub fn seen(&self) -> Image {
        self.image(&Cut::of_nothing(self))
    }

    /// Returns what is safe, and nothing else.
    #[must_use]
    pub fn lost(&self) -> Image {
        self.image(&Cut::of_everything(self))
    }

    /// Returns what a cut leaves.
    #[must_use]
    pub fn image(&self, cut: &Cut) -> Image {
        let mut names = self.names.clone();
        for (renaming, kept) in self.renaming.iter().zip(&cut.names) {
            if *kept {
                renaming.apply(&mut names);
            }
        }
        let mut image = Image::default();
        for (path, entry) in names {
            let found = match entry {
                Entry::Directory { mode } => Found::Directory { mode },
                Entry::File(id) => {
                    let file = &self.files[&id];
                    Found::File { mode: file.mode, content: file.content(id, cut) }
                }
            };
            image.insert(path, found);
        }
        image
    }

    fn change(&mut self, id: FileId, kind: ChangeKind) {
        if let Some(file) = self.files.get_mut(&id) {
            self.latest = Some((id, file.changes.len()));
            file.changes.push(Change { kind, safety: Safety::Cached });
        }
    }

    fn rename(&mut self, renaming: Renaming) {
        renaming.apply(&mut self.live);
        self.renaming.push(renaming);
    }

    fn sync_directory(&mut self, directory: &Path) {
        let (settled, open) =
            std::mem::take(&mut self.renaming).into_iter().partition(|renaming| {
                let (Renaming::Set { path, .. }
                | Renaming::Move { to: path, .. }
                | Renaming::Unset { path, .. }) = renaming;
                path.parent() == Some(directory)
            });
        self.renaming = open;
        let settled: Vec<Renaming> = settled;
        for renaming in settled {
            renaming.apply(&mut self.names);
        }
    }
}

impl Renaming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Entry>) {
        match self {
            Self::Set { path, entry } => drop(names.insert(path.clone(), *entry)),
            Self::Unset { path, entry } => {
                if names.get(path) == Some(entry) {
                    names.remove(path);
                }
            }
            Self::Move { from, to, entry } => {
                if names.get(from) == Some(entry) {
                    names.remove(from);
                }
                let below: Vec<PathBuf> =
                    names.keys().filter(|path| path.starts_with(from)).cloned().collect();
                for path in below {
                    if let (Some(entry), Ok(rest)) = (names.remove(&path), path.strip_prefix(from)) {
                        names.insert(to.join(rest), entry);
                    }
                }
                names.insert(to.clone(), *entry);
            }
        }
    }
}

impl File {
    fn sync(&mut self) {
        for change in &mut self.changes {
            if change.safety == Safety::Cached {
                change.safety = Safety::Safe;
            }
        }
        let safe = self.changes.iter().take_while(|change| change.safety == Safety::Safe).count();
        for change in self.changes.drain(..safe) {
            change.kind.apply(&Survival::Whole, &mut self.base);
        }
    }

    fn content(&self, id: FileId, cut: &Cut) -> Vec<u8> {
        let mut content = self.base.clone();
        for (index, change) in self.changes.iter().enumerate() {
            let survival = match change.safety {
                Safety::Safe => &Survival::Whole,
                Safety::Cached | Safety::Doubtful => cut.survival(id, index),
            };
            change.kind.apply(survival, &mut content);
        }
        content
    }
}

impl ChangeKind {
    /// Returns how many sectors a write touches; a sector of the disk is written whole or not.
    pub(crate) fn sectors(&self) -> usize {
        match self {
            Self::Write { offset, bytes } => (offset + bytes.len()).div_ceil(SECTOR) - offset / SECTOR,
            Self::Resize { .. } => 1,
        }
    }

    fn apply(&self, survival: &Survival, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => match survival {
                Survival::Lost => {}
                Survival::Whole => write(content, *offset, bytes),
                Survival::Size => content.resize(content.len().max(offset + bytes.len()), 0),
                Survival::Sectors(kept) => {
                    let first = offset / SECTOR;
                    for (number, _) in kept.iter().enumerate().filter(|(_, kept)| **kept) {
                        let from = ((first + number) * SECTOR).max(*offset);
                        let to = ((first + number + 1) * SECTOR).min(offset + bytes.len());
                        write(content, from, &bytes[from - offset..to - offset]);
                    }
                }
            },
            Self::Resize { len } => match survival {
                Survival::Lost => {}
                Survival::Whole | Survival::Size | Survival::Sectors(_) => content.resize(*len, 0),
            },
        }
    }
}

/// What a disk writes as a whole at least.
const SECTOR: usize = 512;

fn write(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if content.len() < offset + bytes.len() {
        content.resize(offset + bytes.len(), 0);
    }
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}
