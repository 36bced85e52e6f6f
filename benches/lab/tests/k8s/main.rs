//! A real Kubernetes in the village: its workers stand behind different NATs and know each other by the mesh alone.

mod access;
mod adjacency;
mod churn;
mod leaving;
mod outages;
mod pod_agent;
mod rig;
mod story;
