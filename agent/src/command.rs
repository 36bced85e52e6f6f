//! What the commands of `mesh-agent` do.

use std::{io, path::Path};

use anyhow::Context;
use clap::CommandFactory as _;
use mesh_proto::name::NodeName;

#[cfg(target_os = "linux")]
use crate::kubernetes;
use crate::{
    app,
    config::{AgentCli, AgentCommand, JoinConfig, RunConfig},
    control::{self, JOIN_PATIENCE, JoinError, JoinRequest},
    identity,
    logs::RecentLogs,
    nat64::Nat64,
};

/// Does what `mesh-agent` is told to do.
///
/// # Errors
/// When it cannot be done; [`Problems`](crate::config::Problems) when it cannot be understood.
pub fn execute(command: AgentCommand, logs: RecentLogs) -> anyhow::Result<()> {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("the system gives no event queue")
    };
    match command {
        AgentCommand::Join(args) => {
            // A state directory that is none is reported below, together with all else that is wrong.
            if args.unless_joined
                && let Ok(state_dir) = JoinConfig::resolve_state_dir(&args)
                && let Some(node) = joined_already(&state_dir)?
            {
                println!("joined already as {node}");
                return Ok(());
            }
            let config = JoinConfig::resolve(&args)?;
            act_as_owner_of(&config.state_dir)?;
            let request = JoinRequest {
                state_dir: config.state_dir,
                coordinators: config.coordinators,
                // A text that is no token is refused as a wrong one is: with the same words.
                right: config.right.map_err(JoinError::from)?,
                pin: config.pin,
                name: config.name,
                stream: config.stream,
                nat64: Nat64::new(config.nat64),
                patience: JOIN_PATIENCE,
            };
            let node = runtime()?.block_on(control::join(request))?;
            println!("joined as {}; now run: mesh-agent run", node.name);
            Ok(())
        }
        AgentCommand::Run(args) => {
            let config = RunConfig::resolve(&args)?;
            runtime()?.block_on(app::run(config, logs))
        }
        AgentCommand::RemovePodNetwork(args) => {
            runtime()?.block_on(remove_pod_network(&RunConfig::resolve(&args)?))
        }
        AgentCommand::Completions { shell } => {
            clap_complete::generate(shell, &mut AgentCli::command(), "mesh-agent", &mut io::stdout());
            Ok(())
        }
    }
}

/// Goes on as the user of the service, for whom an administrator joins.
fn act_as_owner_of(state_dir: &Path) -> anyhow::Result<()> {
    mesh_durable::act_as_owner_of(state_dir)
        .with_context(|| format!("cannot write into {}", state_dir.display()))
}

/// Returns which node this host is.
fn joined_already(state_dir: &Path) -> anyhow::Result<Option<NodeName>> {
    act_as_owner_of(state_dir)?;
    Ok(identity::node_name(state_dir)?)
}

#[cfg(target_os = "linux")]
async fn remove_pod_network(config: &RunConfig) -> anyhow::Result<()> {
    let kubernetes =
        config.kubernetes.as_ref().context("this agent is told of no cluster: see --kubernetes")?;
    let problems = kubernetes::remove(kubernetes, &config.interface).await;
    let said: Vec<_> = problems.iter().map(ToString::to_string).collect();
    anyhow::ensure!(said.is_empty(), "{}", said.join("; "));
    Ok(())
}

#[cfg(not(target_os = "linux"))]
async fn remove_pod_network(_: &RunConfig) -> anyhow::Result<()> {
    anyhow::bail!("no pods run here")
}
