//! `mesh-agent`: joins a mesh, and runs this node's part of it.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{CommandFactory, Parser};
use mesh_agent::{
    app,
    config::{AgentCli, AgentCommand, JoinConfig, Problems, RunConfig},
    control::{self, JOIN_PATIENCE, JoinError, JoinRequest},
    logs::RecentLogs,
    nat64::Nat64,
};
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// What is logged when `MESH_LOG` says nothing. The libraries speak of addresses, and of trouble that is counted here.
const DEFAULT_LOG: &str = "info,boringtun=off,quinn_udp=error,netlink_proto=error,rustls=error,\
                           hickory_net=off,hickory_resolver=off,hickory_proto=off";
/// A service manager starts the agent again at once, for the sake of connections; one that has lived no longer than this
/// cannot start at all.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// What such a one waits before it says so.
const PAUSE: Duration = Duration::from_secs(1);
/// What was wrong with the usage.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = AgentCli::parse();
    let log = std::env::var("MESH_LOG").unwrap_or_else(|_| DEFAULT_LOG.to_owned());
    // By targets and levels: filters by spans would bring a library of regular expressions into every agent's memory.
    let filter = match log.parse::<Targets>() {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("error: MESH_LOG: {error}");
            return ExitCode::FAILURE;
        }
    };
    let under_service_manager = std::env::var_os("NOTIFY_SOCKET").is_some();
    let started = Instant::now();
    let logs = RecentLogs::default();
    tracing_subscriber::registry()
        .with(filter)
        .with(fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()))
        .with(fmt::layer().with_writer(logs.clone()).with_ansi(false))
        .init();
    match run(cli.command, logs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if under_service_manager && started.elapsed() < SHORT_LIFE {
                std::thread::sleep(PAUSE);
            }
            if error.is::<Problems>() { ExitCode::from(WRONG_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

fn run(command: AgentCommand, logs: RecentLogs) -> anyhow::Result<()> {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("the system gives no event queue")
    };
    match command {
        AgentCommand::Join(args) => {
            let config = JoinConfig::resolve(&args)?;
            // An administrator joins for a service that is a user of its own.
            mesh_durable::act_as_owner_of(&config.state_dir)
                .with_context(|| format!("cannot write into {}", config.state_dir.display()))?;
            let request = JoinRequest {
                state_dir: config.state_dir,
                coordinators: config.coordinators,
                // A text that is no token is refused as a wrong one is: with the same words.
                token: config.token.map_err(JoinError::from)?,
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
        AgentCommand::Completions { shell } => {
            clap_complete::generate(shell, &mut AgentCli::command(), "mesh-agent", &mut io::stdout());
            Ok(())
        }
    }
}
