//! A Node as kubelet makes it, and as large.

use serde_json::{Value, json};

/// So many images a Node lists at most (`--node-status-max-images`).
const IMAGES: usize = 50;

/// Returns the Node of this name, whose pods have this range.
pub(super) fn new(name: &str, pods: &str) -> Value {
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({"type": kind, "status": status, "reason": reason,
            "message": format!("kubelet has {reason}"),
            "lastHeartbeatTime": "2026-01-02T03:04:05Z", "lastTransitionTime": "2026-01-02T03:04:05Z"})
    };
    let image = |number: usize| {
        let repository = format!("registry.example/a-project-of-some-length/component-{number}");
        json!({"names": [format!("{repository}@sha256:{:064x}", number), format!("{repository}:v1.{number}.0")],
            "sizeBytes": 10_000_000 + number})
    };
    let labels = json!({"beta.kubernetes.io/arch": "arm64", "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": "arm64", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"});
    // Who has set which field.
    let fields = json!({"f:metadata": {"f:annotations": {".": {}, "f:volumes.kubernetes.io/controller-managed-attach-detach": {}},
        "f:labels": {".": {}, "f:beta.kubernetes.io/arch": {}, "f:beta.kubernetes.io/os": {}, "f:kubernetes.io/arch": {}}},
        "f:spec": {"f:podCIDR": {}, "f:podCIDRs": {".": {}, "v:\"10.244.1.0/24\"": {}}},
        "f:status": {"f:allocatable": {"f:memory": {}}, "f:capacity": {"f:memory": {}}, "f:images": {},
            "f:conditions": {"k:{\"type\":\"DiskPressure\"}": {"f:lastHeartbeatTime": {}},
                "k:{\"type\":\"MemoryPressure\"}": {"f:lastHeartbeatTime": {}}, "k:{\"type\":\"Ready\"}": {"f:message": {}}}}});
    let manager = |name: &str| {
        json!({"manager": name, "operation": "Update", "apiVersion": "v1", "time": "2026-01-02T03:04:05Z",
            "fieldsType": "FieldsV1", "fieldsV1": fields})
    };
    json!({
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": name, "uid": "5a7c0f0e-8d8c-4c5e-9d0b-3a3b3c3d3e3f", "resourceVersion": "1000",
            "creationTimestamp": "2026-01-02T03:04:05Z", "labels": labels,
            "annotations": {"node.alpha.kubernetes.io/ttl": "0", "volumes.kubernetes.io/controller-managed-attach-detach": "true"},
            "managedFields": [manager("kubelet"), manager("kube-controller-manager"), manager("kubelet")],
        },
        "spec": {"podCIDR": pods, "podCIDRs": [pods]},
        "status": {
            "capacity": {"cpu": "4", "ephemeral-storage": "121488332Ki", "memory": "8130832Ki", "pods": "110"},
            "allocatable": {"cpu": "4", "ephemeral-storage": "111963646618", "memory": "8028432Ki", "pods": "110"},
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID"),
                condition("Ready", "True", "KubeletReady"),
            ],
            "addresses": [{"type": "InternalIP", "address": "10.90.0.1"}, {"type": "Hostname", "address": name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {"machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "6.12",
                "osImage": "Debian GNU/Linux 13 (trixie)", "containerRuntimeVersion": "containerd://2.1.4",
                "kubeletVersion": "v1.34.3", "operatingSystem": "linux", "architecture": "arm64"},
            "images": (0..IMAGES).map(image).collect::<Vec<_>>(),
        },
    })
}

/// Sets a condition, as a strategic merge does: those of other types stay.
pub(super) fn set_condition(node: &mut Value, condition: &Value) {
    if let Some(conditions) = node["status"]["conditions"].as_array_mut() {
        conditions.retain(|present| present["type"] != condition["type"]);
        conditions.push(condition.clone());
    }
}

/// Says that kubelet is there, for this many times now.
pub(super) fn beat(node: &mut Value, count: u64) {
    for condition in node["status"]["conditions"].as_array_mut().into_iter().flatten() {
        if condition["type"] != "NetworkUnavailable" {
            let (minute, second) = (count / 60 % 60, count % 60);
            condition["lastHeartbeatTime"] = json!(format!("2026-01-02T04:{minute:02}:{second:02}Z"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_takes_the_place_of_the_one_of_its_type() {
        let mut node = new("a", "10.244.1.0/24");
        let condition = |status: &str| json!({"type": "NetworkUnavailable", "status": status});
        set_condition(&mut node, &condition("True"));
        set_condition(&mut node, &condition("False"));
        let conditions = node["status"]["conditions"].as_array().unwrap();
        assert_eq!((conditions.len(), &conditions[4]["status"]), (5, &json!("False")));
    }

    #[test]
    fn it_is_as_large_as_one_that_has_run_pods() {
        assert!((12 << 10..64 << 10).contains(&new("a", "10.244.1.0/24").to_string().len()));
    }
}
