//! `mesh-lab village`: the village in the background.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;

use crate::process::HostCommand;
use crate::run::rootless;
use crate::village::control::{self, Request};
use crate::village::state::State;
use crate::village::supervisor;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Brings the village up and leaves it running
    Up,
    /// Removes it
    Down,
    /// Shows what each node says of itself and its peers
    Status,
    /// Runs a program on a node
    Exec {
        /// The node
        node: String,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        program: Vec<String>,
    },
    /// Is the supervisor that `up` starts
    #[command(hide = true)]
    Supervise,
    #[command(flatten)]
    Change(Request),
}

impl Command {
    pub(super) fn run(self, state: &Path) -> anyhow::Result<ExitCode> {
        match self {
            Self::Up => describe(state, &supervisor::up(state)?)?,
            Self::Down => supervisor::down(state)?,
            Self::Supervise => supervisor::supervise(state)?,
            Self::Status => return status(&State::expect(state)?),
            Self::Exec { node, program } => return exec(&State::expect(state)?, &node, &program),
            Self::Change(request) => {
                if let Some(stats) = control::ask(&State::expect(state)?.control, &request)? {
                    println!("{}", serde_json::to_string_pretty(&stats)?);
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Says how to look inside.
fn describe(path: &Path, state: &State) -> io::Result<()> {
    let program = std::env::current_exe()?;
    let default = crate::village::state::default_path().is_ok_and(|default| default == path);
    let option = if default { String::new() } else { format!(" --state {}", path.display()) };
    let lab = format!("{} village{option}", program.display());
    let mut out = io::stdout().lock();
    writeln!(out, "the village is up (run {}, supervisor {})\n", state.run, state.pid)?;
    for node in &state.nodes {
        writeln!(out, "  {:<8} {}", node.name, node.address)?;
    }
    writeln!(out, "\nlook inside:")?;
    for node in &state.nodes {
        let (meshctl, socket) = (state.meshctl.display(), node.socket.display());
        if state.rootless {
            writeln!(out, "  {lab} exec {} -- {meshctl} --socket {socket} status", node.name)?;
        } else {
            writeln!(out, "  {meshctl} --socket {socket} status")?;
        }
    }
    let first = &state.nodes[0];
    writeln!(out, "  {lab} exec {} -- ping {}", state.nodes[state.nodes.len() - 1].name, first.address)?;
    writeln!(out, "change it:")?;
    for example in [
        "cut office",
        "line country --loss 5",
        "roam macbook cafe",
        "egress office no-udp",
        "kill coordinator",
    ] {
        writeln!(out, "  {lab} {example}")?;
    }
    writeln!(out, "remove it:\n  {lab} down")
}

fn status(state: &State) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for node in &state.nodes {
        println!("== {} ({}) ==", node.name, node.address);
        let socket = node.socket.display().to_string();
        let program = [state.meshctl.display().to_string(), "--socket".into(), socket, "status".into()];
        if exec(state, &node.name, &program)? != ExitCode::SUCCESS {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// Runs a program on a node, with the caller's terminal and exit code.
fn exec(state: &State, node: &str, program: &[String]) -> anyhow::Result<ExitCode> {
    let node = state.node(node)?;
    if state.rootless && !rootless::is_second() {
        // The namespaces can be named only from inside the supervisor's own: this program goes there first.
        let error = std::process::Command::new("nsenter")
            .args(["--preserve-credentials", "--user", "--mount", "--target", &state.pid.to_string(), "--"])
            .arg(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env(rootless::MARK, "1")
            .exec();
        return Err(error).context("nsenter (util-linux) cannot be run");
    }
    let (name, args) = program.split_first().context("no program is given")?;
    let command = HostCommand::new(name.as_ref(), node.surroundings.clone(), std::env::temp_dir());
    let status = command.args(args).interactive()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
