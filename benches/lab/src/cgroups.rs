//! The control groups of workers and machines, and their removal: the kernel keeps them when the processes are gone.

use std::path::{Path, PathBuf};

use crate::run;

/// Where the machine has its hierarchies: one of them, or one per controller.
const ROOT: &str = "/sys/fs/cgroup";
/// The group of all runs.
const ALL: &str = "mesh-lab";

/// The group of one worker's pods, as kubelet is told.
pub(crate) fn of(run: &str, worker: &str) -> String {
    format!("/{ALL}/{run}/{worker}")
}

/// Makes a worker's group in every hierarchy: kubelet wants to find it.
pub(crate) fn make(group: &str) -> std::io::Result<()> {
    for hierarchy in hierarchies() {
        let path = hierarchy.join(group.trim_start_matches('/'));
        std::fs::create_dir_all(&path)?;
        // Without processors and memory of its own nothing enters a cpuset.
        if hierarchy.ends_with("cpuset") {
            inherit(&hierarchy, group)?;
        }
    }
    Ok(())
}

/// The processes of a pod, by the identifier that the API server gave the pod; none if it has no group.
pub(crate) fn processes_of_pod(group: &str, pod: &str) -> Vec<i32> {
    let group = group.trim_start_matches('/');
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        processes(&hierarchy.join(group), &format!("pod{pod}"), Place::Above, &mut found);
        if !found.is_empty() {
            break;
        }
    }
    found
}

/// Where a group is, as seen from a pod's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Above,
    Within,
}

fn processes(group: &Path, pod: &str, place: Place, found: &mut Vec<i32>) {
    if place == Place::Within
        && let Ok(pids) = std::fs::read_to_string(group.join("cgroup.procs"))
    {
        found.extend(pids.lines().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    let Ok(entries) = std::fs::read_dir(group) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        let is_pod = entry.file_name().to_string_lossy() == pod;
        processes(&entry.path(), pod, if is_pod { Place::Within } else { place }, found);
    }
}

/// Removes a worker's groups and makes its own anew: one that nothing is in is waited for by kubelet's statistics, three
/// seconds for each container that was there before.
pub(crate) fn make_again(group: &str) -> std::io::Result<()> {
    for hierarchy in hierarchies() {
        remove(&hierarchy.join(group.trim_start_matches('/')));
    }
    make(group)
}

/// Removes a group in every hierarchy, and says whether it is gone from all of them.
pub(crate) fn remove_one(group: &str) -> bool {
    let paths: Vec<PathBuf> =
        hierarchies().iter().map(|hierarchy| hierarchy.join(group.trim_start_matches('/'))).collect();
    paths.iter().for_each(|path| remove(path));
    !paths.iter().any(|path| path.exists())
}

/// Removes the groups of a run, and of all that are dead.
pub(crate) fn sweep(own: &str) {
    for hierarchy in hierarchies() {
        let Ok(runs) = std::fs::read_dir(hierarchy.join(ALL)) else { continue };
        for entry in runs.flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() && (id == own || !run::directory_of(&id).exists()) {
                remove(&entry.path());
            }
        }
        // If it was the last one.
        let _ = std::fs::remove_dir(hierarchy.join(ALL));
    }
}

fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
    let is_hierarchy = |path: &PathBuf| path.join("cgroup.procs").exists() && !path.is_symlink();
    entries.flatten().map(|entry| entry.path()).filter(is_hierarchy).collect()
}

fn inherit(hierarchy: &Path, group: &str) -> std::io::Result<()> {
    let mut path = hierarchy.to_owned();
    for part in group.split('/').filter(|part| !part.is_empty()) {
        let parent = path.clone();
        path.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            std::fs::write(path.join(file), std::fs::read(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// Removes a group with all below; only directories can be removed, and only if no process is in them.
fn remove(group: &Path) {
    let Ok(entries) = std::fs::read_dir(group) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove(&entry.path());
    }
    let _ = std::fs::remove_dir(group);
}
