//! `mesh-cni`, the last plugin of the chain: it ties the container runtime to the agent.
//!
//! It makes nothing itself. At ADD it notes which device of the host leads to the pod, and passes on what the plugins
//! before it have made; at DEL it forgets that. STATUS asks the agent, so that a runtime which speaks CNI 1.1 says that
//! the node is not ready when the agent is dead, or has no mesh. GC frees addresses of pods that the runtime does not
//! know any more.
//!
//! Sources: the CNI specification 1.1.0, sections 2 (execution protocol) and 5 (result types).

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::leases::{Attachment, Leases};
use crate::local_api::{Client, ClientError};

/// The versions that are spoken.
const SPOKEN: [&str; 6] = ["0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The newest of them.
const NEWEST: &str = "1.1.0";
/// Longest configuration that is read.
const MAX_INPUT: u64 = 4 << 20;

/// Why a command was not carried out; each is a code of the specification's section 5.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// The version of the configuration is not spoken.
    #[error("the version {0:?} of CNI is not spoken")]
    Version(String),
    /// The runtime's environment makes no sense.
    #[error("the environment has no sensible {0}")]
    Environment(&'static str),
    /// The configuration cannot be read.
    #[error("the configuration cannot be read: {0}")]
    Decode(String),
    /// The configuration makes no sense.
    #[error("the configuration makes no sense: {0}")]
    Configuration(&'static str),
    /// A file cannot be written or read.
    #[error("the pods' addresses cannot be noted or freed: {0}")]
    Io(#[from] io::Error),
    /// The agent is dead.
    #[error("{0}")]
    Agent(#[from] ClientError),
    /// The agent has no mesh.
    #[error("the mesh is not up yet")]
    NotReady,
    /// The pod's device is gone.
    #[error("the pod's device {0:?} is gone")]
    DeviceGone(String),
}

/// The part of the configuration that is ours.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    socket: PathBuf,
    #[serde(default)]
    data_dir: PathBuf,
    #[serde(default)]
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments", default)]
    valid: Option<Vec<Valid>>,
}

/// A container's interface that the runtime knows.
#[derive(Debug, Deserialize)]
struct Valid {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

/// What goes wrong, as the runtime reads it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorResult<'a> {
    cni_version: &'a str,
    code: u32,
    msg: &'static str,
    details: String,
}

/// The runtime's environment.
pub trait Environment {
    /// Returns a variable.
    fn get(&self, name: &str) -> Option<String>;
}

impl<F: Fn(&str) -> Option<String>> Environment for F {
    fn get(&self, name: &str) -> Option<String> {
        self(name)
    }
}

/// Runs the plugin as the runtime asks for it.
pub async fn run() -> ExitCode {
    let environment = |name: &str| std::env::var(name).ok();
    let Some(command) = environment("CNI_COMMAND") else {
        eprintln!("CNI mesh-cni plugin v{}", env!("CARGO_PKG_VERSION"));
        eprintln!("CNI protocol versions supported: {}", SPOKEN.join(", "));
        return ExitCode::SUCCESS;
    };
    let mut input = Vec::new();
    let read = io::stdin().lock().take(MAX_INPUT).read_to_end(&mut input);
    let (answer, code) = match read {
        Ok(_) => answer(&command, &environment, &input).await,
        Err(error) => (Some(failure(NEWEST, &Refusal::Decode(error.to_string()))), ExitCode::FAILURE),
    };
    let text = answer.map(|answer| answer.to_string()).unwrap_or_default();
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Carries a command out, and returns what is printed.
async fn answer(command: &str, environment: &impl Environment, input: &[u8]) -> (Option<Value>, ExitCode) {
    let configuration: Configuration = match serde_json::from_slice(input) {
        Ok(configuration) => configuration,
        Err(error) => {
            return (Some(failure(NEWEST, &Refusal::Decode(error.to_string()))), ExitCode::FAILURE);
        }
    };
    let version = configuration.cni_version.clone();
    if command == "VERSION" {
        let version = if version.is_empty() { NEWEST } else { &version };
        let answer = serde_json::json!({ "cniVersion": version, "supportedVersions": SPOKEN });
        return (Some(answer), ExitCode::SUCCESS);
    }
    match try_answer(command, environment, configuration).await {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(refusal) => (Some(failure(&version, &refusal)), ExitCode::FAILURE),
    }
}

async fn try_answer(
    command: &str,
    environment: &impl Environment,
    configuration: Configuration,
) -> Result<Option<Value>, Refusal> {
    let Configuration { cni_version, socket, data_dir, prev_result, valid } = configuration;
    if !SPOKEN.contains(&cni_version.as_str()) {
        return Err(Refusal::Version(cni_version));
    }
    if data_dir.as_os_str().is_empty() {
        return Err(Refusal::Configuration("it has no dataDir"));
    }
    let leases = Leases::new(&data_dir);
    match command {
        "ADD" => {
            let holder = holder(environment)?;
            let result = prev_result.ok_or(Refusal::Configuration("mesh-cni must follow another plugin"))?;
            let device = host_device(&result)
                .ok_or(Refusal::Configuration("the plugins before it made no device of the host"))?;
            leases.note(&holder, device)?;
            Ok(Some(result))
        }
        "CHECK" => {
            let device = leases.noted(&holder(environment)?)?;
            if nix::net::if_::if_nametoindex(device.as_str()).is_ok() {
                Ok(None)
            } else {
                Err(Refusal::DeviceGone(device))
            }
        }
        "DEL" => {
            leases.forget(&holder(environment)?)?;
            Ok(None)
        }
        "STATUS" => match Client::new(&socket).status().await?.this.ready {
            true => Ok(None),
            false => Err(Refusal::NotReady),
        },
        "GC" => {
            // Without a list nothing is known of anybody, which is not the same as that there is nobody.
            let valid = valid.ok_or(Refusal::Configuration("there are no cni.dev/valid-attachments"))?;
            let valid: BTreeSet<_> = valid
                .into_iter()
                .map(|valid| Attachment { container: valid.container, interface: valid.ifname })
                .collect();
            leases.keep_only(&valid)?;
            Ok(None)
        }
        _ => Err(Refusal::Environment("CNI_COMMAND")),
    }
}

impl Refusal {
    /// The code and its short text.
    fn code(&self) -> (u32, &'static str) {
        match self {
            Self::Version(_) => (1, "incompatible CNI version"),
            Self::Environment(_) => (4, "invalid environment variables"),
            Self::Io(_) => (5, "I/O failure"),
            Self::Decode(_) => (6, "failed to decode content"),
            Self::Configuration(_) => (7, "invalid network config"),
            Self::Agent(_) | Self::NotReady => (50, "plugin not available"),
            // Codes from 100 on are a plugin's own.
            Self::DeviceGone(_) => (100, "the pod's network is not as it was made"),
        }
    }
}

fn failure(cni_version: &str, refusal: &Refusal) -> Value {
    let (code, msg) = refusal.code();
    let result = ErrorResult { cni_version, code, msg, details: refusal.to_string() };
    serde_json::to_value(result).expect("invariant: strings and a number are JSON")
}

fn holder(environment: &impl Environment) -> Result<Attachment, Refusal> {
    let get = |name: &'static str| {
        environment.get(name).filter(|text| !text.is_empty()).ok_or(Refusal::Environment(name))
    };
    Ok(Attachment { container: get("CNI_CONTAINERID")?, interface: get("CNI_IFNAME")? })
}

/// Finds the device of the host in a result: the plugin bridge lists the bridge, the host's end of the pair, the pod's.
fn host_device(result: &Value) -> Option<&str> {
    let of_host = |interface: &&Value| interface["sandbox"].as_str().unwrap_or_default().is_empty();
    result["interfaces"].as_array()?.iter().rfind(of_host)?["name"].as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "CNI_CONTAINERID" => Some("c0ffee".to_owned()),
            "CNI_IFNAME" => Some("eth0".to_owned()),
            _ => None,
        }
    }

    async fn ask(command: &str, input: Value) -> (Option<Value>, bool) {
        let (answer, code) = answer(command, &environment, input.to_string().as_bytes()).await;
        (answer, code == ExitCode::SUCCESS)
    }

    #[tokio::test]
    async fn a_pod_is_noted_while_it_is_there_and_the_result_passes_through() {
        let root = tempfile::tempdir().unwrap();
        let leases = Leases::new(root.path());
        let holder = Attachment { container: "c0ffee".to_owned(), interface: "eth0".to_owned() };
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "cni-mesh0"}, {"name": "lo"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.244.1.2/24", "interface": 2}],
        });
        let input =
            json!({"cniVersion": "1.0.0", "name": "mesh", "dataDir": root.path(), "prevResult": result});
        assert_eq!(ask("ADD", input.clone()).await, (Some(result), true));
        assert_eq!(leases.noted(&holder).unwrap(), "lo");
        assert_eq!(ask("CHECK", input.clone()).await, (None, true), "there always is a lo");
        leases.note(&holder, "veth-gone").unwrap();
        let (answer, done) = ask("CHECK", input.clone()).await;
        assert_eq!((answer.unwrap()["code"].as_u64(), done), (Some(100), false));
        let alone = json!({"cniVersion": "1.0.0", "name": "mesh", "dataDir": root.path()});
        assert_eq!(ask("DEL", alone.clone()).await, (None, true));
        assert_eq!(ask("DEL", alone.clone()).await, (None, true), "a second time is no error");
        let (answer, done) = ask("ADD", alone).await;
        assert_eq!((answer.unwrap()["code"].as_u64(), done), (Some(7), false));
    }

    #[tokio::test]
    async fn a_dead_agent_is_a_plugin_that_is_not_available() {
        let root = tempfile::tempdir().unwrap();
        let input = json!({
            "cniVersion": "1.1.0", "name": "mesh", "dataDir": root.path(), "socket": root.path().join("none"),
        });
        let (answer, done) = ask("STATUS", input).await;
        let answer = answer.unwrap();
        assert_eq!((answer["code"].as_u64(), done), (Some(50), false));
        assert_eq!(answer["cniVersion"], "1.1.0");
    }

    #[tokio::test]
    async fn what_the_runtime_does_not_know_is_freed_but_only_if_it_says_so() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("mesh");
        std::fs::create_dir_all(&dir).unwrap();
        for (address, container) in [("10.244.1.2", "known"), ("10.244.1.3", "leaked")] {
            std::fs::write(dir.join(address), format!("{container}\r\neth0")).unwrap();
        }
        let mut input = json!({"cniVersion": "1.1.0", "name": "mesh", "dataDir": root.path()});
        assert!(!ask("GC", input.clone()).await.1);
        assert!(dir.join("10.244.1.3").exists());
        input["cni.dev/valid-attachments"] = json!([{"containerID": "known", "ifname": "eth0"}]);
        assert_eq!(ask("GC", input).await, (None, true));
        assert!(dir.join("10.244.1.2").exists() && !dir.join("10.244.1.3").exists());
    }

    #[tokio::test]
    async fn the_version_and_what_makes_no_sense_are_answered() {
        let (answer, done) = ask("VERSION", json!({"cniVersion": "1.0.0"})).await;
        assert!(done && answer.unwrap()["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")));
        let (answer, done) = ask("ADD", json!({"cniVersion": "9.0.0", "dataDir": "/x"})).await;
        assert_eq!((answer.unwrap()["code"].as_u64(), done), (Some(1), false));
        let (answer, _) = ask("DANCE", json!({"cniVersion": "1.0.0", "dataDir": "/x"})).await;
        assert_eq!(answer.unwrap()["code"], 4);
        let (printed, code) = super::answer("ADD", &environment, b"{").await;
        assert_eq!((printed.unwrap()["code"].as_u64(), code), (Some(6), ExitCode::FAILURE));
    }
}
