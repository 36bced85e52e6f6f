//! What a container runtime does with a conflist: ADD in order, each with the result of the one before; DEL in reverse.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

pub(crate) struct Runtime {
    conflist: Value,
    bin: PathBuf,
}

/// A pod's place in the network.
pub(crate) struct Attachment {
    pub(crate) addresses: Vec<String>,
    container: String,
    netns: PathBuf,
    ports: Value,
    result: Value,
}

impl Runtime {
    pub(crate) fn read(conflist: &Path, bin: &Path) -> Self {
        let conflist = serde_json::from_slice(&std::fs::read(conflist).unwrap()).unwrap();
        Self { conflist, bin: bin.to_owned() }
    }

    /// Attaches a pod; `ports` are those of the host and of the pod that they lead to.
    pub(crate) fn add(&self, container: &str, netns: &Path, ports: &[(u16, u16)]) -> Attachment {
        let port =
            |&(host, pod): &(u16, u16)| json!({"hostPort": host, "containerPort": pod, "protocol": "tcp"});
        let mut attachment = Attachment {
            addresses: vec![],
            container: container.to_owned(),
            netns: netns.to_owned(),
            ports: ports.iter().map(port).collect(),
            result: Value::Null,
        };
        for plugin in self.plugins() {
            attachment.result = serde_json::from_str(&self.call("ADD", plugin, &attachment)).unwrap();
        }
        let ips = attachment.result["ips"].as_array().unwrap();
        let addresses = ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap());
        attachment.addresses = addresses.map(str::to_owned).collect();
        self.call("CHECK", self.plugins().last().unwrap(), &attachment);
        attachment
    }

    pub(crate) fn delete(&self, attachment: &Attachment) {
        for plugin in self.plugins().iter().rev() {
            self.call("DEL", plugin, attachment);
        }
    }

    fn plugins(&self) -> &Vec<Value> {
        self.conflist["plugins"].as_array().unwrap()
    }

    fn call(&self, command: &str, plugin: &Value, attachment: &Attachment) -> String {
        let mut input = plugin.clone();
        input["cniVersion"] = self.conflist["cniVersion"].clone();
        input["name"] = self.conflist["name"].clone();
        if !attachment.result.is_null() {
            input["prevResult"] = attachment.result.clone();
        }
        if plugin["capabilities"]["portMappings"] == true {
            input["runtimeConfig"] = json!({"portMappings": attachment.ports});
        }
        let program = self.bin.join(plugin["type"].as_str().unwrap());
        let mut child = Command::new(&program)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &attachment.container)
            .env("CNI_NETNS", &attachment.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.bin)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{command} of {}: {said}", program.display());
        said
    }
}
