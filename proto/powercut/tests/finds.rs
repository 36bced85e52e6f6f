//! It finds what it is for: each well-known way to lose a file is noticed, and the right way passes.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File},
    io::Write as _,
    panic::catch_unwind,
    path::Path,
};

use mesh_powercut::{Disk, Explored, Fault, Recording, explore, workspace};

const OLD: &str = "old content";
const LONG: usize = 4096;

/// Replaces an old file by a new one in some way, acknowledges that, and cuts the power everywhere.
fn explore_replacement(replace: fn(&Path)) -> Explored {
    let root = workspace().unwrap();
    let recording = Recording::start(root.path());
    let path = root.path().join("file");
    let mut file = File::create(&path).unwrap();
    file.write_all(OLD.as_bytes()).unwrap();
    file.sync_all().unwrap();
    File::open(root.path()).unwrap().sync_all().unwrap();
    recording.acknowledge(1);
    let start = Disk::after(&recording.take_steps());
    replace(&path);
    recording.acknowledge(2);
    let steps = recording.take_steps();
    drop(recording);
    let recover = |root: &Path| fs::read_to_string(root.join("file"));
    explore(start, &steps, recover, |found, acknowledged| match found {
        Ok(text) if *text == new() => Ok(()),
        Ok(text) if text == OLD && acknowledged < 2 => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

fn new() -> String {
    "new content".repeat(LONG / 11)
}

fn is_noticed(replace: fn(&Path)) -> bool {
    catch_unwind(|| explore_replacement(replace)).is_err()
}

fn write_beside(path: &Path) -> File {
    let mut file = File::create(path.with_extension("new")).unwrap();
    file.write_all(new().as_bytes()).unwrap();
    file
}

fn rename(path: &Path) {
    fs::rename(path.with_extension("new"), path).unwrap();
}

fn sync_folder(path: &Path) {
    File::open(path.parent().unwrap()).unwrap().sync_all().unwrap();
}

#[test]
fn a_file_that_is_written_in_place_is_noticed() {
    assert!(is_noticed(|path| {
        let mut file = File::create(path).unwrap();
        file.write_all(new().as_bytes()).unwrap();
        file.sync_all().unwrap();
    }));
}

#[test]
fn a_rename_before_the_content_is_safe_is_noticed() {
    assert!(is_noticed(|path| {
        let file = write_beside(path);
        rename(path);
        file.sync_all().unwrap();
        sync_folder(path);
    }));
}

#[test]
fn a_rename_that_is_not_safe_is_noticed() {
    assert!(is_noticed(|path| {
        write_beside(path).sync_all().unwrap();
        rename(path);
    }));
}

#[test]
fn a_file_that_is_removed_first_is_noticed() {
    assert!(is_noticed(|path| {
        write_beside(path).sync_all().unwrap();
        fs::remove_file(path).unwrap();
        rename(path);
        sync_folder(path);
    }));
}

#[test]
fn the_right_way_passes() {
    let explored = explore_replacement(|path| {
        write_beside(path).sync_all().unwrap();
        rename(path);
        sync_folder(path);
    });
    // Before and after, torn at each sector, and shuffled.
    assert!(explored.images > 2 * LONG / 512, "{explored:?}");
}

#[test]
fn a_failed_sync_makes_nothing_safe_and_neither_does_the_next() {
    let root = workspace().unwrap();
    let recording = Recording::start(root.path());
    let mut file = File::create(root.path().join("file")).unwrap();
    File::open(root.path()).unwrap().sync_all().unwrap();
    file.write_all(b"first").unwrap();
    recording.set_fault(Fault::Sync, 0);
    file.sync_all().unwrap_err();
    file.write_all(b"second").unwrap();
    file.sync_all().unwrap();
    let left = workspace().unwrap();
    Disk::after(&recording.take_steps()).lost().write_to(left.path()).unwrap();
    assert_eq!(fs::read(left.path().join("file")).unwrap(), b"\0\0\0\0\0second");
}

#[test]
fn faults_are_what_programs_see() {
    for (fault, code) in
        [(Fault::Full, libc::ENOSPC), (Fault::ReadOnly, libc::EROFS), (Fault::Broken, libc::EIO)]
    {
        let root = workspace().unwrap();
        let recording = Recording::start(root.path());
        recording.set_fault(fault, 0);
        let error = File::create(root.path().join("file")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(code));
        assert!(recording.clear_fault());
        File::create(root.path().join("file")).unwrap();
    }
}
