//! The Helm chart makes the objects that the overlays of `deploy/k8s` make; see `make test-chart`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// Where helm and kubectl are; `make test-chart` sets it.
const VARIABLE: &str = "MESH_KUBERNETES_DIR";
/// What the chart is rendered for: it asks for the version.
const VERSION: &str = "1.34.3";
/// The overlays, and the modes of the chart.
const OVERLAYS: [&str; 3] = ["host-agent", "pod-agent", "service-account"];

#[test]
fn the_chart_makes_what_the_overlays_make() {
    for overlay in OVERLAYS {
        let chart = chart(&[&format!("mode={overlay}")]).unwrap();
        let kustomized = kustomize(&deploy().join("k8s/overlays").join(overlay)).unwrap();
        assert!(kustomized.len() > 5, "{kustomized:?}");
        let missing: Vec<_> = kustomized.difference(&chart).collect();
        let surplus: Vec<_> = chart.difference(&kustomized).collect();
        assert!(missing.is_empty() && surplus.is_empty(), "{overlay}: {missing:#?} or rather {surplus:#?}");
    }
}

#[test]
fn values_name_the_image_the_api_server_and_what_is_joined() {
    let agent =
        ["mode=pod-agent", "image.name=r.example/mesh-agent", "image.tag=1", "image.pullPolicy=Never"];
    let settings = ["settings.KUBERNETES_SERVICE_HOST=pi.example", "settings.KUBERNETES_SERVICE_PORT=6443"];
    let join = ["join.coordinator=pi.example", "join.caCertHash=sha256:00", "join.token=0.0"];
    let objects = chart(&[&agent[..], &settings, &join].concat()).unwrap();
    let has = |words: &[&str]| objects.iter().any(|object| words.iter().all(|word| object.contains(word)));
    assert!(has(&["kind: DaemonSet", "image: r.example/mesh-agent:1", "imagePullPolicy: Never"]));
    assert!(has(&["kind: ConfigMap", "name: mesh-agent", "KUBERNETES_SERVICE_PORT: \"6443\""]));
    assert!(has(&["kind: ConfigMap", "name: mesh-join", "MESH_COORDINATOR: pi.example"]));
    assert!(has(&["kind: Secret", "name: mesh-join", "MESH_TOKEN: \"0.0\"", "MESH_CA_CERT_HASH: sha256:00"]));

    let vouched = chart(&[&["mode=service-account"][..], &join].concat()).unwrap();
    assert!(!vouched.iter().any(|object| object.contains("kind: Secret")), "no token is needed");
    let wrong = chart(&["mode=both"]).unwrap_err().to_string();
    assert!(wrong.contains("mode is one of host-agent, pod-agent, service-account"), "{wrong}");
}

/// The objects of the chart, in the form that kustomize gives them.
fn chart(values: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let chart = deploy().join("helm/mesh-agent");
    let mut args: Vec<&OsStr> = ["template", "mesh-agent"].map(OsStr::new).into();
    args.push(chart.as_os_str());
    args.extend(["--namespace", "mesh-system", "--kube-version", VERSION].map(OsStr::new));
    for value in values {
        // Ports and tokens are texts.
        args.extend(["--set-string", value].map(OsStr::new));
    }
    let directory = tempfile::tempdir()?;
    std::fs::write(directory.path().join("all.yaml"), run("helm", &args)?)?;
    std::fs::write(directory.path().join("kustomization.yaml"), "resources: [all.yaml]\n")?;
    kustomize(directory.path())
}

fn kustomize(directory: &Path) -> anyhow::Result<BTreeSet<String>> {
    let objects = run("kubectl", &["kustomize".as_ref(), directory.as_os_str()])?;
    Ok(objects.split("\n---\n").map(|object| object.trim().to_owned()).collect())
}

fn run(program: &str, args: &[&OsStr]) -> anyhow::Result<String> {
    let directory = std::env::var_os(VARIABLE).context("make test-chart sets where helm is")?;
    let program = PathBuf::from(directory).join(program);
    let output = Command::new(&program).args(args).output().with_context(|| program.display().to_string())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}
