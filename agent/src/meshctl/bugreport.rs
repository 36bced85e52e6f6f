//! `meshctl bugreport`: one JSON document with all that the agent knows. The agent has no secret in any answer.

use serde_json::{Value, json};

use super::{CommandError, Outcome, print_document};
use crate::local_api::Client;

pub(super) async fn run(client: &Client) -> Result<Outcome, CommandError> {
    let status = client.status().await;
    let mut why = Vec::new();
    for peer in status.iter().flat_map(|status| &status.peers) {
        why.push(match client.why(&peer.name).await {
            Ok(why) => json!(why),
            Err(error) => json!({ "node": peer.name, "error": error.to_string() }),
        });
    }
    let netcheck = client.netcheck().await;
    let uname = rustix::system::uname();
    print_document(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
        "machine": uname.machine().to_string_lossy(),
        "status": status.map_or_else(|error| json!({ "error": error.to_string() }), |status| json!(status)),
        "netcheck": netcheck.map_or_else(|error| json!({ "error": error.to_string() }), |report| json!(report)),
        "why": Value::Array(why),
    }))?;
    Ok(Outcome::Done)
}
