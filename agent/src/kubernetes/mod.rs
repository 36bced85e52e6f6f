//! Being the pod network of a Kubernetes node.

#[cfg(target_os = "linux")]
pub mod podnet;
