//! The commands of `mesh-coordinator`.
//!
//! Documents and people's text go to stdout, logs and errors to stderr. Exit codes: 0 done, 1 failed, 2 wrong
//! usage.

use std::{
    fs,
    io::{self, ErrorKind, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::CommandFactory;
use mesh_proto::route::RouteState;
use time::OffsetDateTime;
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;
use zeroize::Zeroizing;

use crate::{
    admin::{Client, RouteRequest, RouteWord, TokenRequest},
    backup::{self, Backup},
    config::{self, Problems},
    serve, standalone,
};

mod args;
mod table;

pub use self::args::{Cli, Command, NodeCommand, RouteArgs, RouteCommand, TokenCommand};

/// What was wrong with the usage.
const WRONG_USAGE: u8 = 2;

/// Filters the log, in the syntax of `RUST_LOG`.
const LOG_VARIABLE: &str = "MESH_LOG";

/// Carries out a command.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-coordinator: {error:#}");
            if error.is::<Problems>() { ExitCode::from(WRONG_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let state_dir = cli.state_dir.as_deref();
    match cli.command {
        Command::Serve(args) => {
            let options = config::resolve_serve(&args, state_dir)?;
            start_log()?;
            Runtime::new()?.block_on(serve::run(options))
        }
        Command::Relay(args) => {
            let options = config::resolve_relay(&args, state_dir)?;
            start_log()?;
            Runtime::new()?.block_on(standalone::run(options))
        }
        Command::Token { command } => administer(token(client(state_dir)?, command)),
        Command::Node { command } => administer(node(client(state_dir)?, command)),
        Command::Route { command } => administer(route(client(state_dir)?, command)),
        Command::Backup { file } => administer(back_up(client(state_dir)?, file)),
        Command::Restore { file } => restore(&config::resolve_state_dir(state_dir)?, &file),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mesh-coordinator", &mut script);
            print(&script)
        }
    }
}

async fn token(client: Client, command: TokenCommand) -> anyhow::Result<()> {
    let TokenCommand::Create { ttl, uses, tags } = command;
    let reply = client.create_token(&TokenRequest { ttl_s: ttl.as_secs(), uses, tags }).await?;
    print(format!("{}\n", reply.join).as_bytes())
}

async fn node(client: Client, command: NodeCommand) -> anyhow::Result<()> {
    match command {
        NodeCommand::List { json: true } => print(&json(&client.nodes().await?)?),
        NodeCommand::List { json: false } => print(table::nodes(&client.nodes().await?).as_bytes()),
        NodeCommand::Remove { name, json: as_json } => {
            client.remove_node(&name).await?;
            if as_json { print(&json(&serde_json::json!({ "removed": name }))?) } else { Ok(()) }
        }
        NodeCommand::Rename { name, to, json: as_json } => {
            client.rename_node(&name, to.clone()).await?;
            if as_json { print(&json(&serde_json::json!({ "renamed": name, "to": to }))?) } else { Ok(()) }
        }
    }
}

async fn route(client: Client, command: RouteCommand) -> anyhow::Result<()> {
    let (route, word) = match command {
        RouteCommand::List { json: true } => return print(&json(&client.routes().await?)?),
        RouteCommand::List { json: false } => {
            return print(table::routes(&client.routes().await?).as_bytes());
        }
        RouteCommand::Approve { route } => (route, RouteWord::Approve),
        RouteCommand::Revoke { route } => (route, RouteWord::Revoke),
    };
    let RouteArgs { node, prefix, json: as_json } = route;
    let entry = client.judge_route(&node, RouteRequest { prefix, word }).await?;
    if as_json {
        print(&json(&entry)?)?;
    }
    // That the node does not offer it yet is no failure, but that it cannot have it is.
    let reason = entry.reason.unwrap_or_default();
    let is_in_vain = word == RouteWord::Approve && entry.state == RouteState::Refused;
    anyhow::ensure!(!is_in_vain, "{} stays refused for {node}: {reason}", entry.prefix);
    Ok(())
}

async fn back_up(client: Client, file: PathBuf) -> anyhow::Result<()> {
    let text = client.backup().await?;
    // What cannot be restored is not worth keeping in place of what can.
    Backup::decode(&text).context("the coordinator gave no good backup")?;
    backup::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))
}

fn restore(state_dir: &Path, file: &Path) -> anyhow::Result<()> {
    let text =
        fs::read(file).map(Zeroizing::new).with_context(|| format!("cannot read {}", file.display()))?;
    let backup = Backup::decode(&text).with_context(|| format!("cannot restore {}", file.display()))?;
    // An administrator restores for a service that is a user of its own.
    mesh_durable::act_as_owner_of(state_dir)
        .with_context(|| format!("cannot write into {}", state_dir.display()))?;
    let restored = backup::restore(state_dir, backup, OffsetDateTime::now_utc())?;
    if let Some(kept) = restored.kept {
        eprintln!("mesh-coordinator: the state that was there is in {}", kept.display());
    }
    Ok(())
}

fn client(state_dir: Option<&str>) -> Result<Client, Problems> {
    Ok(Client::new(&config::resolve_state_dir(state_dir)?))
}

/// Runs a command that asks the running coordinator.
fn administer(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

fn start_log() -> anyhow::Result<()> {
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(text) => EnvFilter::try_new(text).with_context(|| format!("{LOG_VARIABLE} is no log filter"))?,
        Err(_) => EnvFilter::new("info"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(())
}

fn json(document: &impl serde::Serialize) -> anyhow::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(document)?;
    text.push(b'\n');
    Ok(text)
}

/// Prints; a reader that went away (`| head`) is no error.
fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to stdout"),
    }
}
