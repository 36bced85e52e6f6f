//! State directories that cannot be read, written, trusted or understood.
//!
//! Every length of every file is stepped through in the unit tests of the code that reads it; here a number of
//! them goes through the programs, which must end without having changed a byte.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use mesh_lab::{Finished, HostCommand, Node, mesh::wait_until};
use mesh_proto::status::ConnectionState;
use nix::sys::signal::Signal;

use crate::rig::{self, JoinLine, PATIENCE, Run, assert_fails, scripted, without_capabilities};

/// What lets root read and write whatever the mode says.
const OVERRIDES: [&str; 2] = ["dac_override", "dac_read_search"];
/// The keys, without which there is no node, and no previous generation.
const KEYS: [&str; 2] = ["node.key", "wireguard.key"];
/// Lengths that go through the programs: one in so many.
const STEP: usize = 23;
/// Runs the command on a file system of `$PAGES` pages, lists what it left, and once more with room enough.
const ON_A_FULL_DISK: &str = r#"
    mkdir -p "$DISK" && mount -t tmpfs -o mode=0700,size=$((PAGES * 4096)) none "$DISK" || exit 99
    "$@"; echo "first $?"; ls -A "$DISK/state" 2>/dev/null
    mount -o remount,size=1m "$DISK" && "$@"; echo "second $?"
"#;
/// Runs the command on a file system on which a copy of the state fills all room.
const ON_A_DISK_FULL_OF_STATE: &str = r#"
    mkdir -p "$DISK" && mount -t tmpfs -o mode=0700,size=1m none "$DISK" || exit 99
    cp -a "$STATE" "$DISK/state"; head -c 2m /dev/zero > "$DISK/filler" 2>/dev/null
    exec "$@"
"#;

/// Runs the command on an empty file system of `$PAGES` pages.
const FRESH_DISK: &str = r#"
    mkdir -p "$DISK" && mount -t tmpfs -o mode=0700,size=$((PAGES * 4096)) none "$DISK" || exit 99
    exec "$@"
"#;

/// The names and bytes of all files of a directory.
fn content(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// Some of the lengths to which a file can be cut: the ends, and every [`STEP`]th.
fn cuts(len: usize) -> impl Iterator<Item = usize> {
    (0..len).filter(move |cut| *cut < 2 || cut % STEP == 0 || cut + 2 >= len)
}

fn run(node: &Node) -> Finished {
    Run::of(node).after(node.agent_command()).output().unwrap()
}

fn is_connected(node: &Node) -> anyhow::Result<bool> {
    Ok(node.status()?.this.coordinator.state == ConnectionState::Connected)
}

#[test]
fn a_state_directory_that_cannot_be_used_is_named() {
    let (_lab, mesh) = rig::mesh(&["a"]);
    let a = mesh.node("a").unwrap();
    let (host, agent, path) = (a.host(), &mesh.binaries().agent, a.state_dir());
    let line = JoinLine::parse(&mesh.token(&[]).unwrap());
    let fails = |words: &[&str]| {
        let command = || without_capabilities(host, &OVERRIDES, agent);
        for command in [line.after(command(), &path), Run::of(a).after(command())] {
            let finished = command.output().unwrap();
            assert_fails(&finished, 1, &[&path.display().to_string()]);
            assert_fails(&finished, 1, words);
        }
    };
    let set_mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    fs::create_dir(&path).unwrap();
    set_mode(0o000);
    fails(&["cannot read the state directory", "Permission denied"]);
    set_mode(0o500);
    fails(&["cannot write to the state directory", "Permission denied"]);
    set_mode(0o777);
    fails(&["has mode 0777", "chmod 700"]);
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "").unwrap();
    fails(&["not a directory"]);
    fs::remove_file(&path).unwrap();
    symlink("elsewhere", &path).unwrap();
    fails(&["a symbolic link"]);
    fs::remove_file(&path).unwrap();
    assert_fails(&run(a), 1, &["this node has not joined a mesh", "mesh-agent join"]);
    assert!(!path.exists());
    line.command(a, &path).output().unwrap().success().unwrap();
}

#[test]
fn a_join_on_a_full_disk_leaves_nothing_or_what_the_next_one_needs() {
    let (_lab, mesh) = rig::mesh(&["a"]);
    let a = mesh.node("a").unwrap();
    // One page holds one key, two hold both but not what the coordinator answered.
    for (pages, file, left) in [("1", "node.key", ""), ("2", "membership.json", "node.key\nwireguard.key\n")]
    {
        let disk = a.directory().join(format!("disk-{pages}"));
        let line = JoinLine::parse(&mesh.token(&[]).unwrap());
        let command = scripted(a.host(), ON_A_FULL_DISK, &mesh.binaries().agent);
        let command = line.after(command.env("DISK", &disk).env("PAGES", pages), &disk.join("state"));
        let finished = command.args(["--name", &format!("a{pages}")]).output().unwrap().success().unwrap();
        let path = disk.join("state").join(file).display().to_string();
        let (errors, said) = (&finished.stderr, &finished.stdout);
        assert!(errors.contains(&format!("{path}: cannot write: No space left on device")), "{errors}");
        assert!(said.starts_with(&format!("first 1\n{left}")), "{said}");
        assert!(said.contains(&format!("joined as a{pages}")) && said.ends_with("second 0\n"), "{said}");
    }
    let listed = mesh.administer(["node", "list", "--json"]).unwrap().success().unwrap().stdout;
    let nodes: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(nodes.as_array().unwrap().len(), 2, "{listed}");
}

#[test]
fn an_agent_runs_on_a_full_disk_and_says_so() {
    let (_lab, mesh) = rig::mesh(&["a"]);
    let a = mesh.node("a").unwrap();
    a.join(&mesh.token(&[]).unwrap()).unwrap();
    let disk = a.directory().join("disk");
    let command = scripted(a.host(), ON_A_DISK_FULL_OF_STATE, &mesh.binaries().agent);
    let command = command.env("DISK", &disk).env("STATE", a.state_dir());
    let full = Run { state_dir: disk.join("state"), ..Run::of(a) };
    let process = full.after(command).spawn("a-full").unwrap();
    wait_until(PATIENCE, "it is ready", || Ok(a.is_ready())).unwrap();
    wait_until(PATIENCE, "it says what it cannot write", || {
        let log = fs::read_to_string(process.log())?;
        Ok(log.contains("map.json: cannot write: No space left on device"))
    })
    .unwrap();
    process.kill(Signal::SIGTERM).unwrap();
    assert!(process.wait_timeout(PATIENCE).unwrap().unwrap().success());
}

#[test]
fn keys_that_others_can_read_are_not_used() {
    let (_lab, mesh) = rig::mesh(&["a"]);
    let a = mesh.node("a").unwrap();
    a.join(&mesh.token(&[]).unwrap()).unwrap();
    let line = JoinLine::parse(&mesh.token(&[]).unwrap());
    for name in KEYS {
        let path = a.state_dir().join(name);
        for mode in [0o644, 0o640, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let advice =
                format!("{}: has mode {mode:04o}, which lets others in: run `chmod 600", path.display());
            assert_fails(&run(a), 1, &[&advice]);
            assert_fails(&line.command(a, &a.state_dir()).output().unwrap(), 1, &[&advice]);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    a.start().unwrap();
    mesh.wait_ready(PATIENCE).unwrap();
}

#[test]
fn a_damaged_identity_is_never_replaced() {
    let (_lab, mesh) = rig::mesh(&["a"]);
    let a = mesh.node("a").unwrap();
    a.join(&mesh.token(&[]).unwrap()).unwrap();
    let directory = a.state_dir();
    let line = JoinLine::parse(&mesh.token(&[]).unwrap());
    let fails = |words: &[&str]| {
        let before = content(&directory);
        assert_fails(&run(a), 1, words);
        assert_fails(&line.command(a, &directory).output().unwrap(), 1, words);
        assert_eq!(content(&directory), before, "nothing is repaired in silence");
    };
    for name in KEYS.into_iter().chain(["membership.json"]) {
        let path = directory.join(name);
        let said = path.display().to_string();
        let whole = fs::read(&path).unwrap();
        for cut in cuts(whole.len()) {
            fs::write(&path, &whole[..cut]).unwrap();
            fails(&[&format!("{said}: is damaged")]);
        }
        if KEYS.contains(&name) {
            fs::remove_file(&path).unwrap();
            fails(&[&format!("{said}: is missing"), "put it back"]);
            fs::write(&path, b"").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        fs::write(&path, &whole).unwrap();
    }
    let listed = mesh.administer(["node", "list", "--json"]).unwrap().success().unwrap().stdout;
    let nodes: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(nodes.as_array().unwrap().len(), 1, "{listed}");
    a.start().unwrap();
    mesh.wait_ready(PATIENCE).unwrap();
}

#[test]
fn the_generation_before_is_used_where_there_is_one() {
    let (_lab, mesh) = rig::mesh(&["a", "b", "c"]);
    let a = mesh.node("a").unwrap();
    let line = mesh.token(&[]).unwrap();
    a.join(&line).unwrap();
    a.join(&line).unwrap();
    a.start().unwrap();
    let knows = |peer: &str| Ok::<_, anyhow::Error>(a.status()?.peers.iter().any(|known| known.name == peer));
    mesh.join("b").unwrap();
    let map = a.state_dir().join("map.json");
    let written = |peer: &str| Ok(fs::read_to_string(&map)?.contains(&format!("\"name\":\"{peer}\"")));
    wait_until(PATIENCE, "b is on a's disk", || written("b")).unwrap();
    mesh.join("c").unwrap();
    wait_until(PATIENCE, "c is on a's disk", || written("c")).unwrap();
    let before = a.status().unwrap().this;
    a.agent().stop().unwrap();
    mesh.coordinator().stop().unwrap();

    let halve = |path: &Path| {
        let whole = fs::read(path).unwrap();
        fs::write(path, &whole[..whole.len() / 2]).unwrap();
    };
    let says = |path: &Path, words: &str| {
        let path = path.display().to_string();
        let log = a.agent().log()?;
        Ok(log.lines().any(|line| line.contains("WARN") && line.contains(&path) && line.contains(words)))
    };
    let membership = a.state_dir().join("membership.json");
    halve(&membership);
    halve(&map);
    a.start().unwrap();
    wait_until(PATIENCE, "a comes back from the older map", || knows("b")).unwrap();
    assert!(!knows("c").unwrap(), "the newest map was damaged");
    for path in [&membership, &map] {
        wait_until(PATIENCE, "it says so", || says(path, "the generation before is used")).unwrap();
    }
    let after = a.status().unwrap().this;
    assert_eq!((after.node_key, after.public_key), (before.node_key, before.public_key));
    a.agent().stop().unwrap();

    halve(&map.with_extension("json.previous"));
    a.start().unwrap();
    wait_until(PATIENCE, "it says that there is no map", || says(&map, "the cache is not used")).unwrap();
    mesh.start_coordinator().unwrap();
    wait_until(PATIENCE, "the coordinator brings the map", || Ok(knows("b")? && knows("c")?)).unwrap();
}

#[test]
fn a_coordinator_never_starts_as_another_one() {
    let (_lab, mesh) = rig::mesh(&["a"]);
    mesh.join("a").unwrap();
    mesh.wait_ready(PATIENCE).unwrap();
    mesh.coordinator().stop().unwrap();
    let directory = mesh.coordinator_dir();
    let host = mesh.coordinator().host().unwrap();
    let serve = |command: HostCommand, words: &[&str]| {
        let command = command.arg("serve").arg("--state-dir").arg(directory).timeout(PATIENCE);
        assert_fails(&command.output().unwrap(), 1, words);
    };
    let log = directory.join("coordinator.db-wal");
    for name in ["coordinator.key", "coordinator.db"] {
        let path = directory.join(name);
        let said = path.display().to_string();
        let whole = fs::read(&path).unwrap();
        let refuses = |cut: usize| {
            fs::write(&path, &whole[..cut]).unwrap();
            serve(mesh.coordinator_command().unwrap(), &[&said, "backup"]);
            assert_eq!(fs::read(&path).unwrap(), &whole[..cut], "it is left as it was");
        };
        [0, 1, 16].into_iter().for_each(refuses);
        // The database's log, if there is one, may hold what is missing further behind.
        let aside = fs::rename(&log, directory.with_extension("log"));
        [whole.len() / 3, whole.len() / 2, whole.len() - 1].into_iter().for_each(refuses);
        if aside.is_ok() {
            fs::rename(directory.with_extension("log"), &log).unwrap();
        }
        fs::write(&path, &whole).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        serve(mesh.coordinator_command().unwrap(), &[&format!("{said}: has mode 0644")]);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o000)).unwrap();
    let powerless = without_capabilities(host, &OVERRIDES, &mesh.binaries().coordinator);
    serve(powerless, &[&directory.display().to_string(), "Permission denied"]);
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).unwrap();
    mesh.start_coordinator().unwrap();
    let a = mesh.node("a").unwrap();
    wait_until(PATIENCE * 3, "the agent knows its coordinator again", || is_connected(a)).unwrap();
}

#[test]
fn a_coordinator_on_a_full_disk_refuses_changes_and_goes_on() {
    let (lab, mesh) = rig::mesh(&[]);
    mesh.coordinator().stop().unwrap();
    let disk = lab.directory().join("disk");
    let state_dir = disk.join("state");
    let host = mesh.coordinator().host().unwrap();
    let start = |script: &str, pages: &str| {
        let command = scripted(host, script, &mesh.binaries().coordinator);
        command.env("DISK", &disk).env("PAGES", pages).args(["serve", "--state-dir"]).arg(&state_dir)
    };
    let finished = start(FRESH_DISK, "2").timeout(PATIENCE).output().unwrap();
    assert_fails(&finished, 1, &[&state_dir.join("coordinator.db").display().to_string(), "space"]);

    let serving = start(FRESH_DISK, "256").spawn("coordinator-full").unwrap();
    // The file system is seen by the coordinator alone.
    let inside = |path: &Path| {
        Path::new(&format!("/proc/{}/root", serving.pid())).join(path.strip_prefix("/").unwrap())
    };
    let administer = |args: &[&str]| {
        let command = mesh.coordinator_command().unwrap();
        command.args(args).arg("--state-dir").arg(inside(&state_dir)).output().unwrap()
    };
    let is_up = || Ok(administer(&["node", "list"]).status.success());
    wait_until(PATIENCE, "it answers", is_up).unwrap();
    let filler = inside(&disk.join("filler"));
    fs::write(&filler, vec![0; 2 << 20]).unwrap_err();
    // What the log has room for still goes in.
    let refused = (0..100).map(|_| administer(&["token", "create"])).find(|finished| finished.code() != 0);
    assert_fails(&refused.unwrap(), 1, &["coordinator.db", "space"]);
    assert!(is_up().unwrap());
    fs::remove_file(&filler).unwrap();
    administer(&["token", "create"]).success().unwrap();
    serving.kill(Signal::SIGTERM).unwrap();
    assert!(serving.wait_timeout(PATIENCE).unwrap().unwrap().success());
}
