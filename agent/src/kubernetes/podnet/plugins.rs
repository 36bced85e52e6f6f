//! The plugins that the container runtime runs: they are installed where it looks, if they are missing or older.
//!
//! The reference plugins `bridge`, `host-local`, `portmap` and `loopback` may be in use by others, so one that works and
//! is not older stays. `mesh-cni` belongs to this agent and is exactly as it. A plugin is written beside its place
//! and renamed, so that one that runs at that moment is not disturbed and no half of one is ever run.
//!
//! What was installed is noted by digest, so that nothing else is removed at the end.
//!
//! Plugins that do not run (built for another machine, a file system that runs nothing) are not written again and again:
//! what is the same already stays, and it is tried anew at once when a file changes, else less and less often.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant, SystemTime},
};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{Places, conflist, problem::Problem, program};

/// The plugins of the CNI project that a pod network is made of.
const REFERENCE: [&str; 4] = ["bridge", "host-local", "portmap", "loopback"];
/// Our own.
pub(super) const OWN: &str = "mesh-cni";
/// Root's, run by all.
const MODE: u32 = 0o755;
/// Where it is noted what was installed: not a plugin's name.
const NOTES: &str = ".mesh-installed.json";
/// A plugin answers at once; a machine that has just started may be busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// After a failure it is tried again after this long, then twice as long, ...
const RETRY_FIRST: Duration = Duration::from_secs(5);
/// ... up to this: what no file shows (a file system is mounted anew) is noticed so late.
const RETRY_LAST: Duration = Duration::from_secs(60);

/// What a plugin says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct About {
    /// The versions of CNI that it speaks.
    spoken: Vec<String>,
    /// Its own version, if it was built with one.
    version: Option<Vec<u32>>,
}

/// What is done with one plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It stays as it is.
    Keep,
    /// Ours takes its place.
    Install,
    /// There is nothing to do it with.
    Missing,
}

/// The answer to `CNI_COMMAND=VERSION`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionAnswer {
    supported_versions: Vec<String>,
}

/// What was found at the last look.
#[derive(Debug, Default)]
pub(super) struct Plugins {
    whole: Option<Whole>,
    failed: Option<Failed>,
}

/// All plugins, as they were when all was well.
#[derive(Debug)]
struct Whole {
    stamps: Vec<Option<Stamp>>,
    versions: Vec<&'static str>,
}

/// What was wrong, and when it is tried again.
#[derive(Debug)]
struct Failed {
    stamps: Vec<Option<Stamp>>,
    problems: Vec<Problem>,
    wait: Duration,
    until: Instant,
}

/// By this a file is known as the same: its place on the disk, its size and time.
type Stamp = (u64, u64, SystemTime);

impl Plugins {
    /// Has all plugins there, and returns the versions of CNI that they have in common, if nothing is missing. Plugins are
    /// run only if a file has changed since the last time, or something was wrong then.
    pub(super) async fn install(
        &mut self,
        places: &Places,
        now: Instant,
    ) -> (Option<Vec<&'static str>>, Vec<Problem>) {
        let before = stamps(places);
        if let Some(whole) = self.whole.as_ref().filter(|whole| whole.stamps == before) {
            return (Some(whole.versions.clone()), Vec::new());
        }
        let former = self.failed.take_if(|failed| failed.stamps == before);
        if let Some(failed) = former.as_ref().filter(|failed| now < failed.until) {
            let problems = failed.problems.clone();
            self.failed = former;
            return (None, problems);
        }
        let mut problems = Vec::new();
        let mut spoken = Vec::new();
        for name in REFERENCE.into_iter().chain([OWN]) {
            match install_one(name, &places.plugin_sources, &places.cni_bin_dir).await {
                Ok(about) => spoken.push(about.spoken),
                Err(problem) => add(&mut problems, problem),
            }
        }
        self.failed = None;
        if !problems.is_empty() {
            let wait = former.map_or(RETRY_FIRST, |failed| (failed.wait * 2).min(RETRY_LAST));
            let until = now + wait;
            self.failed = Some(Failed { stamps: stamps(places), problems: problems.clone(), wait, until });
            return (None, problems);
        }
        let versions = conflist::common_versions(&spoken);
        self.whole = Some(Whole { stamps: stamps(places), versions: versions.clone() });
        (Some(versions), problems)
    }
}

/// Adds a problem; plugins that do not run for one reason are one.
fn add(problems: &mut Vec<Problem>, problem: Problem) {
    if let Problem::PluginsBroken { dir, names, reason } = &problem {
        for known in problems.iter_mut() {
            if let Problem::PluginsBroken { dir: known_dir, names: known_names, reason: known_reason } = known
                && (&*known_dir, &*known_reason) == (dir, reason)
            {
                known_names.extend(names);
                return;
            }
        }
    }
    problems.push(problem);
}

/// Returns the stamps of everything that is installed, and of what could be.
fn stamps(places: &Places) -> Vec<Option<Stamp>> {
    let stamp = |path: PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.modified().ok()?))
    };
    let dirs = || places.plugin_sources.iter().chain([&places.cni_bin_dir]);
    REFERENCE.into_iter().chain([OWN]).flat_map(|name| dirs().map(move |dir| stamp(dir.join(name)))).collect()
}

/// Removes what was installed and is still as it was; what others may use stays.
pub(super) fn remove(bin_dir: &Path, others_present: bool) -> io::Result<()> {
    for (name, digest) in read_notes(bin_dir) {
        let path = bin_dir.join(&name);
        let ours = digest_of(&path).is_some_and(|present| present == digest);
        if ours && (name == OWN || !others_present) {
            fs::remove_file(path)?;
        }
    }
    mesh_durable::remove(&bin_dir.join(NOTES))
}

/// Writes a file with exactly this mode, whole or not at all.
pub(super) fn place(path: &Path, mode: u32, content: impl Read) -> io::Result<()> {
    let mut draft = std::ffi::OsString::from(".");
    draft.push(path.file_name().ok_or(io::ErrorKind::IsADirectory)?);
    draft.push(".new");
    let draft = path.with_file_name(draft);
    mesh_durable::write_draft(&draft, mode, content)?;
    let placed =
        fs::set_permissions(&draft, fs::Permissions::from_mode(mode)).and_then(|()| fs::rename(&draft, path));
    if placed.is_err() {
        // What is left of a draft is worthless; if it stays, the next one replaces it.
        let _ = fs::remove_file(&draft);
    }
    placed?;
    mesh_durable::sync_directory(mesh_durable::folder_of(path))
}

async fn install_one(name: &'static str, sources: &[PathBuf], bin_dir: &Path) -> Result<About, Problem> {
    let target = bin_dir.join(name);
    let source = sources.iter().map(|dir| dir.join(name)).find(|path| path.is_file() && *path != target);
    let installed = if target.is_file() { about(&target).await.ok() } else { None };
    let step = match (&installed, &source) {
        (_, None) if target.is_file() => Step::Keep,
        (_, None) => Step::Missing,
        // What does not run would not run any better for being written again.
        (None, Some(source)) => install_unless_same(source, &target),
        (Some(_), Some(source)) if name == OWN => install_unless_same(source, &target),
        (Some(installed), Some(source)) => match about(source).await {
            Ok(offered) => plan(installed, &offered),
            Err(_) => Step::Keep,
        },
    };
    match (step, source) {
        (Step::Missing, _) => Err(Problem::PluginMissing { name, dir: bin_dir.to_owned() }),
        (Step::Install, Some(source)) => {
            let refused = |error: io::Error| Problem::PluginNotInstalled {
                path: target.clone(),
                reason: error.to_string(),
            };
            copy(name, source, target.clone()).await.map_err(refused)?;
            let about = about(&target).await.map_err(|reason| broken(name, bin_dir, reason))?;
            tracing::info!(plugin = name, "network plugin installed");
            Ok(about)
        }
        (Step::Keep | Step::Install, _) => match installed {
            Some(installed) => Ok(installed),
            None => about(&target).await.map_err(|reason| broken(name, bin_dir, reason)),
        },
    }
}

/// Decides whether a plugin that works is older than the one that could take its place.
fn plan(installed: &About, offered: &About) -> Step {
    let newest = |about: &About| about.spoken.iter().filter_map(|text| numbers(text)).max();
    let older = match newest(installed).cmp(&newest(offered)) {
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Greater => false,
        // Distributions leave the version out; then there is nothing to go by.
        std::cmp::Ordering::Equal => match (&installed.version, &offered.version) {
            (Some(installed), Some(offered)) => installed < offered,
            (Some(_) | None, None) | (None, Some(_)) => false,
        },
    };
    if older { Step::Install } else { Step::Keep }
}

fn install_unless_same(source: &Path, target: &Path) -> Step {
    let present = digest_of(target);
    if present.is_some() && present == digest_of(source) { Step::Keep } else { Step::Install }
}

fn broken(name: &'static str, dir: &Path, reason: String) -> Problem {
    Problem::PluginsBroken { dir: dir.to_owned(), names: vec![name], reason }
}

/// Asks a plugin what it is.
async fn about(path: &Path) -> Result<About, String> {
    let mut ask = tokio::process::Command::new(path);
    ask.env("CNI_COMMAND", "VERSION");
    let answer = program::run(ask, br#"{"cniVersion":"1.0.0"}"#, PATIENCE).await?;
    let answer: VersionAnswer = serde_json::from_str(&answer).map_err(|error| error.to_string())?;
    // Without a command it prints a text for people, of which the version is a word: a try, no more.
    let mut ask = tokio::process::Command::new(path);
    ask.env_remove("CNI_COMMAND").stdin(Stdio::null());
    let text = program::run_for_stderr(ask, PATIENCE).await.unwrap_or_default();
    Ok(About { spoken: answer.supported_versions, version: version_in(&text) })
}

/// Finds the version in `CNI bridge plugin v1.5.1`.
fn version_in(text: &str) -> Option<Vec<u32>> {
    let first = text.lines().next()?;
    first.split_whitespace().find_map(|word| numbers(word.strip_prefix('v')?))
}

/// Reads `1.5.1`; what follows a dash or a plus is left out.
fn numbers(version: &str) -> Option<Vec<u32>> {
    let plain = version.split(['-', '+']).next()?;
    plain.split('.').map(|part| part.parse().ok()).collect()
}

async fn copy(name: &'static str, source: PathBuf, target: PathBuf) -> io::Result<()> {
    let copied = tokio::task::spawn_blocking(move || {
        let dir = mesh_durable::folder_of(&target);
        conflist::make_dir(dir)?;
        let mut content = Digesting { file: File::open(source)?, digest: Sha256::new() };
        place(&target, MODE, &mut content)?;
        let mut notes = read_notes(dir);
        notes.insert(name.to_owned(), hex::encode(content.digest.finalize()));
        let notes = serde_json::to_vec(&notes).map_err(io::Error::other)?;
        place(&dir.join(NOTES), 0o644, notes.as_slice())
    });
    copied.await.map_err(io::Error::other)?
}

fn read_notes(bin_dir: &Path) -> BTreeMap<String, String> {
    let text = fs::read(bin_dir.join(NOTES)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn digest_of(path: &Path) -> Option<String> {
    let mut digest = Sha256::new();
    io::copy(&mut File::open(path).ok()?, &mut digest).ok()?;
    Some(hex::encode(digest.finalize()))
}

/// Digests a file while it is read: a plugin has megabytes, and an agent that once had them in memory keeps the room.
struct Digesting {
    file: File,
    digest: Sha256,
}

impl Read for Digesting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read(buffer)?;
        self.digest.update(&buffer[..len]);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about_of(spoken: &[&str], version: Option<&str>) -> About {
        About {
            spoken: spoken.iter().map(|text| (*text).to_owned()).collect(),
            version: version.and_then(numbers),
        }
    }

    #[test]
    fn only_an_older_one_is_replaced() {
        let old = ["0.4.0", "1.0.0"].as_slice();
        let new = ["0.4.0", "1.0.0", "1.1.0"].as_slice();
        let table = [
            ((old, None), (new, None), Step::Install),
            ((new, None), (old, None), Step::Keep),
            ((old, None), (old, None), Step::Keep),
            ((old, None), (old, Some("1.4.0")), Step::Keep),
            ((new, Some("1.9.0")), (new, Some("1.10.0")), Step::Install),
            ((new, Some("1.10.0")), (new, Some("1.9.0")), Step::Keep),
            ((new, Some("1.9.0")), (new, Some("1.9.0")), Step::Keep),
        ];
        for (installed, offered, step) in table {
            let planned = plan(&about_of(installed.0, installed.1), &about_of(offered.0, offered.1));
            assert_eq!(planned, step, "{installed:?} {offered:?}");
        }
    }

    #[test]
    fn the_version_is_found_where_there_is_one() {
        let text = "CNI bridge plugin v1.5.1\nCNI protocol versions supported: 0.1.0\n";
        assert_eq!(version_in(text), Some(vec![1, 5, 1]));
        assert_eq!(version_in("CNI bridge plugin version unknown\n"), None);
        assert_eq!(numbers("1.6.0-rc1"), Some(vec![1, 6, 0]));
    }

    /// A plugin as a script, which answers as `version` of its project would.
    fn write_plugin(dir: &Path, name: &str, version: &str) {
        let answer = r#"{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}"#;
        let script = format!(
            "#!/bin/sh\nif [ \"$CNI_COMMAND\" = VERSION ]; then echo '{answer}'; else echo 'CNI {name} plugin v{version}' >&2; fi\n"
        );
        place(&dir.join(name), MODE, script.as_bytes()).unwrap();
    }

    #[tokio::test]
    async fn what_is_missing_or_older_is_installed_and_nothing_else_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let (source, bin) = (root.path().join("source"), root.path().join("opt/cni/bin"));
        for dir in [&source, &bin] {
            conflist::make_dir(dir).unwrap();
        }
        let places =
            Places { cni_bin_dir: bin.clone(), plugin_sources: vec![source.clone()], ..Places::default() };
        let (mut plugins, now) = (Plugins::default(), Instant::now());
        let (whole, problems) = plugins.install(&places, now).await;
        assert_eq!((whole, problems.len()), (None, 5), "{problems:?}");
        for name in REFERENCE.into_iter().chain([OWN]) {
            write_plugin(&source, name, "1.5.0");
        }
        write_plugin(&bin, "portmap", "1.9.0");
        write_plugin(&bin, "bridge", "1.4.9");
        fs::write(bin.join("loopback"), "cut off").unwrap();
        assert_eq!(plugins.install(&places, now).await, (Some(vec!["1.0.0", "0.4.0"]), vec![]));
        let text = |name: &str| fs::read_to_string(bin.join(name)).unwrap();
        assert!(text("portmap").contains("v1.9.0") && text("bridge").contains("v1.5.0"));
        assert!(text("loopback").contains("v1.5.0"));
        assert_eq!(fs::metadata(bin.join("host-local")).unwrap().permissions().mode() & 0o7777, MODE);
        write_plugin(&source, OWN, "1.4.0");
        assert_eq!(plugins.install(&places, now).await.1, vec![]);
        assert!(text(OWN).contains("v1.4.0"), "our own follows the agent, back as well");
        remove(&bin, false).unwrap();
        let left: Vec<_> = fs::read_dir(&bin).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["portmap"]);
    }

    #[tokio::test]
    async fn plugins_that_do_not_run_are_written_once_and_said_in_one_sentence() {
        let root = tempfile::tempdir().unwrap();
        let (source, bin) = (root.path().join("source"), root.path().join("bin"));
        for dir in [&source, &bin] {
            conflist::make_dir(dir).unwrap();
        }
        let places =
            Places { cni_bin_dir: bin.clone(), plugin_sources: vec![source.clone()], ..Places::default() };
        for name in REFERENCE.into_iter().chain([OWN]) {
            place(&source.join(name), MODE, b"\x7fELF of another machine".as_slice()).unwrap();
        }
        let (mut plugins, start) = (Plugins::default(), Instant::now());
        let problems = plugins.install(&places, start).await.1;
        let sentence = problems[0].to_string();
        assert_eq!(problems.len(), 1, "{problems:?}");
        let named =
            format!("bridge, host-local, portmap, loopback, mesh-cni in {} do not run: ", bin.display());
        assert!(sentence.contains(&named), "{sentence}");
        // An hour of looks: the same is said, nothing is written again, and few looks try.
        let written = stamps(&places);
        let mut tries = 0;
        for second in (0..3600).step_by(5) {
            let now = start + Duration::from_secs(second);
            tries += usize::from(plugins.failed.as_ref().is_none_or(|failed| now >= failed.until));
            assert_eq!(plugins.install(&places, now).await, (None, problems.clone()));
        }
        assert_eq!(stamps(&places), written);
        assert!((55..=65).contains(&tries), "{tries}");
        // Others are tried at once.
        for name in REFERENCE.into_iter().chain([OWN]) {
            write_plugin(&source, name, "1.5.0");
        }
        assert_eq!(plugins.install(&places, start).await.1, []);
    }

    #[tokio::test]
    async fn a_plugin_that_runs_stays_whatever_is_offered() {
        let root = tempfile::tempdir().unwrap();
        let (source, bin) = (root.path().join("source"), root.path().join("bin"));
        for dir in [&source, &bin] {
            conflist::make_dir(dir).unwrap();
        }
        write_plugin(&bin, "bridge", "1.4.0");
        place(&source.join("bridge"), MODE, b"\x7fELF of another machine".as_slice()).unwrap();
        let kept = install_one("bridge", &[source], &bin).await.unwrap();
        assert_eq!(kept.version, Some(vec![1, 4, 0]));
    }
}
