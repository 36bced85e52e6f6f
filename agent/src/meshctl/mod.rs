//! `meshctl`: shows what an agent does, and asks it to ping.
//!
//! Documents and people's text go to stdout, errors to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage.

mod bugreport;
mod cli;
mod ping;
mod status;

use std::process::ExitCode;

use clap::CommandFactory;

pub use cli::{MeshctlCli, MeshctlCommand};

use crate::{
    config,
    local_api::{Client, ClientError},
    view,
};

/// How a command that worked may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// What was asked for was done, or is so.
    Done,
    /// What was asked for is not so.
    Failed,
}

/// Why a command could not be carried out.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// The agent gave no good answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The answer could not be written.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

/// Carries a command out.
pub async fn run(cli: MeshctlCli) -> ExitCode {
    let client = Client::new(&config::socket_or_default(cli.socket));
    let result = match cli.command {
        MeshctlCommand::Status(args) => status::run(&client, &args).await,
        MeshctlCommand::Ping(args) => ping::run(&client, &args).await,
        MeshctlCommand::Netcheck { json } => netcheck(&client, json).await,
        MeshctlCommand::Why { node, json } => why(&client, &node, json).await,
        MeshctlCommand::Bugreport { output } => bugreport::run(&client, output).await,
        MeshctlCommand::Completions { shell } => {
            clap_complete::generate(shell, &mut MeshctlCli::command(), "meshctl", &mut std::io::stdout());
            Ok(Outcome::Done)
        }
    };
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("meshctl: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn netcheck(client: &Client, json: bool) -> Result<Outcome, CommandError> {
    let report = client.netcheck().await?;
    if json {
        print_document(&report)?;
    } else {
        print_text(&view::netcheck(&report))?;
    }
    Ok(Outcome::Done)
}

async fn why(client: &Client, node: &str, json: bool) -> Result<Outcome, CommandError> {
    let why = client.why(node).await?;
    if json {
        print_document(&why)?;
    } else {
        print_text(&view::table::why(&why))?;
    }
    Ok(Outcome::Done)
}

fn print_document(document: &impl serde::Serialize) -> std::io::Result<()> {
    let mut text = serde_json::to_string(document)?;
    text.push('\n');
    print_text(&text)
}

/// Prints; a reader that went away (`| head`) is no error.
fn print_text(text: &str) -> std::io::Result<()> {
    use std::io::{ErrorKind, Write as _};

    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
