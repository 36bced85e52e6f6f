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
            Self::Status => return status(state),
            Self::Exec { node, program } => return exec(state, &node, &program),
            Self::Change(request) => {
                if let Some(stats) = control::ask(&State::expect(state)?.control, &request)? {
                    writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&stats)?)?;
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

fn status(path: &Path) -> anyhow::Result<ExitCode> {
    let state = State::expect(path)?;
    enter_rootless(path, &state, &["status"])?;
    let mut code = ExitCode::SUCCESS;
    for node in &state.nodes {
        writeln!(io::stdout(), "== {} ({}) ==", node.name, node.address)?;
        let socket = node.socket.display().to_string();
        let program = [state.meshctl.display().to_string(), "--socket".into(), socket, "status".into()];
        if exec(path, &node.name, &program)? != ExitCode::SUCCESS {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// Runs a program on a node, with the caller's terminal and exit code.
fn exec(path: &Path, node: &str, program: &[String]) -> anyhow::Result<ExitCode> {
    let state = State::expect(path)?;
    let mut again = vec!["exec", node, "--"];
    again.extend(program.iter().map(String::as_str));
    enter_rootless(path, &state, &again)?;
    let (name, args) = program.split_first().context("no program is given")?;
    let surroundings = state.node(node)?.surroundings.clone();
    let command = HostCommand::new(name.as_ref(), surroundings, std::env::temp_dir());
    let status = command.args(args).interactive()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Runs this program once more inside the supervisor's user namespace, if it has one and this is not there yet:
/// only in there can the nodes' namespaces be named.
fn enter_rootless(path: &Path, state: &State, args: &[&str]) -> anyhow::Result<()> {
    if !state.rootless || rootless::is_second() {
        return Ok(());
    }
    let error = std::process::Command::new("nsenter")
        .args(["--preserve-credentials", "--user", "--mount", "--target", &state.pid.to_string(), "--"])
        .arg(std::env::current_exe()?)
        .args(["village", "--state"])
        .arg(path)
        .args(args)
        .env(rootless::MARK, "1")
        .exec();
    Err(error).context("nsenter (util-linux) cannot be run")
}
