//! `mesh-agent`: joins a mesh, and runs this node's part of it.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use mesh_agent::{
    command,
    config::{AgentCli, Problems},
    logs::RecentLogs,
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
    match command::execute(cli.command, logs) {
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
