//! The control groups of workers, and their removal: the kernel keeps them when the processes are gone.

use std::path::{Path, PathBuf};

use crate::run;

/// Where the machine has its hierarchies: one of them, or one per controller.
const ROOT: &str = "/sys/fs/cgroup";
/// The group of all runs.
const ALL: &str = "mesh-lab";

/// The group of one worker's pods, as kubelet is told.
pub(super) fn of(run: &str, worker: &str) -> String {
    format!("/{ALL}/{run}/{worker}")
}

/// Makes a worker's group in every hierarchy: kubelet wants to find it.
pub(super) fn make(group: &str) -> std::io::Result<()> {
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

/// A process of a pod, by the identifier that the API server gave the pod.
pub(super) fn process_of_pod(group: &str, pod: &str) -> Option<i32> {
    let group = group.trim_start_matches('/');
    hierarchies()
        .iter()
        .find_map(|hierarchy| first_process(&hierarchy.join(group), &format!("pod{pod}"), false))
}

fn first_process(group: &Path, pod: &str, within: bool) -> Option<i32> {
    if within
        && let Ok(pids) = std::fs::read_to_string(group.join("cgroup.procs"))
        && let Some(pid) = pids.lines().find_map(|pid| pid.parse().ok())
    {
        return Some(pid);
    }
    let entries = std::fs::read_dir(group).ok()?.flatten().filter(|entry| entry.path().is_dir());
    entries.into_iter().find_map(|entry| {
        let within = within || entry.file_name().to_string_lossy() == pod;
        first_process(&entry.path(), pod, within)
    })
}

/// Removes the groups of a run, and of all that are dead.
pub(super) fn sweep(own: &str) {
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
