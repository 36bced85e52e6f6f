//! `meshctl bugreport`: one archive with all that helps, and without a secret.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_lab::mesh::wait_until;
use mesh_lab::{Lab, MeshOptions, Village, village};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
/// A third of a secret gives it away; less than this many bytes may be chance.
const REVEALING: usize = 12;
const PROXY_PASSWORD: &str = "correct-horse-battery";
/// Where in a PKCS#8 file of an Ed25519 key (RFC 8410) the secret is; the public key may follow.
const ED25519_SECRET: std::ops::Range<usize> = 16..48;

#[test]
fn an_archive_has_all_that_helps_and_no_secret() {
    let lab = Lab::new("report").unwrap();
    let mut options =
        MeshOptions::new(village::COORDINATOR_HOST, village::COORDINATOR_NAME, &["pi", "office", "country"]);
    let proxy = format!("http://someone:{PROXY_PASSWORD}@127.0.0.1:9");
    options.agent_args_of.insert("office".to_owned(), vec!["--proxy".to_owned(), proxy]);
    let village = Village::prepare_with(&lab, options).unwrap();
    village.start_coordinator().unwrap();
    let line = village.token(&["--uses", "3"]).unwrap();
    for node in village.nodes() {
        node.join(&line).unwrap();
        node.start().unwrap();
    }
    village.wait_ready(PATIENCE).unwrap();
    village.ping("office", "country").unwrap();
    let office = village.node("office").unwrap();
    wait_until(PATIENCE, "a path is chosen", || {
        let why: Value = serde_json::from_str(&office.meshctl(["why", "--json", "country"])?.stdout)?;
        Ok(why["decisions"].as_array().is_some_and(|decisions| !decisions.is_empty()))
    })
    .unwrap();

    // With its own log at its most talkative.
    office.agent().stop().unwrap();
    let state_dir = office.state_dir();
    let mut traced = office.agent_command().env("MESH_LOG", "info,mesh_agent=trace,mesh_engine=trace");
    traced = traced.args(["run", "--interface", "mesh0", "--proxy"]);
    traced = traced.arg(format!("http://someone:{PROXY_PASSWORD}@127.0.0.1:9"));
    traced = traced.arg("--state-dir").arg(&state_dir).arg("--socket").arg(office.socket());
    let traced = traced.spawn("traced").unwrap();
    wait_until(PATIENCE, "it is ready", || Ok(office.is_ready())).unwrap();
    village.ping("office", "country").unwrap();

    let archive = lab.directory().join("report.tar.gz");
    let report = office.meshctl_command().arg("bugreport").arg("--output").arg(&archive).timeout(PATIENCE);
    let finished = report.output().unwrap().success().unwrap();
    assert_eq!(finished.stdout.trim_end(), archive.display().to_string());
    let again = office.meshctl_command().arg("bugreport").arg("--output").arg(&archive).output().unwrap();
    assert_eq!(again.code(), 1, "an archive is not overwritten");

    let files = unpack(&archive, &lab.directory().join("unpacked")).unwrap();
    for name in [
        "README.txt",
        "status.json",
        "netcheck.json",
        "agent.json",
        "config.txt",
        "logs.txt",
        "why/country.json",
        "host/routes-ipv4.txt",
        "host/links.txt",
        "host/process-status.txt",
    ] {
        assert!(files.get(name).is_some_and(|content| !content.is_empty()), "{name}: {:?}", files.keys());
    }
    let json = |name: &str| -> Value { serde_json::from_slice(&files[name]).unwrap() };
    assert_eq!(json("status.json")["self"]["name"], "office");
    assert_eq!(json("agent.json")["map"]["this"]["name"], "office");
    let country = json("why/country.json");
    assert!(
        country["decisions"]
            .as_array()
            .is_some_and(|all| all.last().is_some_and(|last| last["lasted_s"].is_null()))
    );
    assert!(String::from_utf8_lossy(&files["logs.txt"]).contains("agent runs"));
    assert!(String::from_utf8_lossy(&files["host/routes-ipv4.txt"]).contains("mesh0"));

    let secrets = secrets(&state_dir, &line).unwrap();
    for (name, content) in &files {
        for (what, secret) in &secrets {
            assert!(!reveals(content, secret), "{name} reveals {what}");
        }
    }
    drop(traced);
}

#[test]
fn a_dead_agent_is_reported_too() {
    let lab = Lab::new("silent").unwrap();
    let village = Village::prepare(&lab).unwrap();
    let archive = lab.directory().join("report.tar.gz");
    let node = village.node("country").unwrap();
    let report = node.meshctl_command().arg("bugreport").arg("--output").arg(&archive).output().unwrap();
    assert_eq!(report.code(), 0, "{report:?}");
    assert!(report.stderr.contains("status.json: no agent answers"), "{}", report.stderr);
    let files = unpack(&archive, &lab.directory().join("unpacked")).unwrap();
    let readme = String::from_utf8_lossy(&files["README.txt"]).into_owned();
    assert!(readme.contains("Not in it:\n- status.json: no agent answers"), "{readme}");
    assert!(files.contains_key("host/addresses.txt"), "{:?}", files.keys());
}

/// The files of an archive, by their names in its only folder.
fn unpack(archive: &Path, into: &Path) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    fs::create_dir(into)?;
    let done = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(into).status()?;
    ensure!(done.success(), "tar says {done}");
    let root = into.join("report");
    let mut files = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.strip_prefix(&root)?.display().to_string(), fs::read(&path)?);
            }
        }
    }
    Ok(files)
}

/// What nobody may see, in every form in which it could be written.
fn secrets(state_dir: &Path, join_line: &str) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut words = join_line.split_whitespace().skip_while(|word| *word != "--token");
    let (_, token) = words.nth(1).and_then(|token| token.split_once('.')).context("no token in the line")?;
    let mut secrets = vec![
        ("the token".to_owned(), token.as_bytes().to_vec()),
        ("the proxy's password".to_owned(), PROXY_PASSWORD.as_bytes().to_vec()),
    ];
    for name in ["node.key", "wireguard.key"] {
        let file = fs::read_to_string(state_dir.join(name))?;
        let (_, body) = file.split_once('\n').context("a sealed file has a header")?;
        let body: Value = serde_json::from_str(body)?;
        let mut key = STANDARD.decode(body["key"].as_str().context("a key file has a key")?)?;
        if name == "node.key" {
            key = key[ED25519_SECRET].to_vec();
        }
        // The same bytes may stand at three places of a longer text.
        for shift in 0..3 {
            let encoded = STANDARD.encode(&key[shift..]);
            secrets.push((format!("{name} in base64"), encoded.trim_end_matches('=').into()));
        }
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        secrets.push((format!("{name} in hex"), hex.into_bytes()));
        let list = format!("{key:?}");
        secrets.push((format!("{name} as numbers"), list.trim_matches(['[', ']']).into()));
        secrets.push((format!("{name} as it is"), key));
    }
    Ok(secrets)
}

/// Whether any part of a secret that gives it away stands in a text, in either case of letters.
fn reveals(content: &[u8], secret: &[u8]) -> bool {
    let (content, secret) = (content.to_ascii_lowercase(), secret.to_ascii_lowercase());
    let len = (secret.len() / 3).max(REVEALING);
    let parts: BTreeSet<_> = secret.windows(len).collect();
    content.windows(len).any(|part| parts.contains(part))
}

#[test]
fn a_revealed_secret_would_be_found() {
    assert!(reveals(b"key: CORRECT-HORSE-battery!", PROXY_PASSWORD.as_bytes()));
    assert!(reveals(b"...orrect-horse-b...", PROXY_PASSWORD.as_bytes()), "a part of it");
    assert!(!reveals(b"correct horse battery", PROXY_PASSWORD.as_bytes()));
}
