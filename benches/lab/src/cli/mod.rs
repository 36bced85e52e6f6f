//! The command `mesh-lab`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

mod village;

use crate::matrix::{self, Scope};
use crate::nat::{Nat, NatType};
use crate::run::Lab;
use crate::topology::{Site, Topology};

/// The network lab: namespaces, NATs, links, and the village
#[derive(Debug, Parser)]
#[command(name = "mesh-lab", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures the nine NAT types through their routers and prints what they are
    NatCheck,
    /// Builds the village's network without the mesh and keeps it until a signal comes
    Hold {
        /// A program that is run on every host meanwhile
        #[arg(last = true)]
        program: Vec<String>,
    },
    /// Stands the village up, tells its story, and takes it down; fails if a promise is broken
    Demo {
        /// Where the page with picture and story is written [default: demo/village.html in the target directory]
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
    },
    /// Asks the 81 pairs of NAT types one after the other and prints how long each takes to become direct
    Matrix {
        /// How often every pair is asked
        #[arg(long, default_value_t = 1)]
        runs: u32,
        /// Gives the order of the pairs, and what the lines do
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Only the eight pairs that plain probing does not get through
        #[arg(long)]
        hard: bool,
        /// All 81 with IPv6 behind a stateful filter at every site, over which every pair has to become direct
        #[arg(long, conflicts_with = "hard")]
        ipv6: bool,
        /// Probes per second of the agents [default: theirs]
        #[arg(long)]
        rate: Option<u16>,
        /// Where every single time is written [default: matrix.json in the target directory]
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// The village in the background
    Village {
        /// Where the running village is described [default: in /run/mesh-lab, or in /tmp for other users than root]
        #[arg(long, global = true, value_name = "FILE")]
        state: Option<PathBuf>,
        #[command(subcommand)]
        command: village::Command,
    },
}

impl Arguments {
    /// Does what the arguments say.
    ///
    /// # Errors
    ///
    /// With what a person should know.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::NatCheck => nat_check(),
            Command::Hold { program } => hold(&program),
            Command::Demo { report } => {
                // Before anything is printed: as a plain user, the program starts once more.
                crate::run::rootless::become_root()?;
                crate::demo::run(&report.map_or_else(crate::demo::default_report, Ok)?)
            }
            Command::Matrix { runs, seed, hard, ipv6, rate, json } => {
                crate::run::rootless::become_root()?;
                let scope = match (hard, ipv6) {
                    (true, _) => Scope::Hard,
                    (false, true) => Scope::Ipv6,
                    (false, false) => Scope::All,
                };
                let agent_args =
                    rate.map_or_else(Vec::new, |rate| vec!["--punch-rate".to_owned(), rate.to_string()]);
                let options = matrix::Options { runs, seed, scope, agent_args };
                show_matrix(&options, &json.unwrap_or_else(matrix::default_json))
            }
            Command::Village { state, command } => {
                let state = state.map_or_else(crate::village::state::default_path, Ok)?;
                command.run(&state)
            }
        }
    }
}

fn show_matrix(options: &matrix::Options, json: &Path) -> anyhow::Result<ExitCode> {
    let outcomes = matrix::measure(options, |outcome| {
        let took = outcome.direct_ms.map_or("relay".to_owned(), |ms| format!("{ms:.0} ms"));
        eprintln!("run {} {} to {}: {took}", outcome.run, outcome.from, outcome.to);
    })?;
    print!("{}\n{}", matrix::table(&outcomes), matrix::summary(&outcomes));
    matrix::write_json(&outcomes, json)?;
    println!("every time: {}", json.display());
    let is_right = outcomes.iter().all(matrix::Outcome::is_right);
    Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn nat_check() -> anyhow::Result<ExitCode> {
    let lab = Lab::new("natcheck")?;
    let sites =
        NatType::all().map(|kind| Site::behind(&kind.to_string(), Nat::of(kind)).host(&format!("pc-{kind}")));
    let network = lab.build(sites.fold(Topology::new(), Topology::site))?;
    let observers = network.observers()?;
    println!("{:<10} measured", "wanted");
    let mut right = 0;
    for kind in NatType::all() {
        let host = network.host(&format!("pc-{kind}"))?;
        let measured = observers.measure(host.netns()).with_context(|| format!("behind {kind}"))?;
        println!("{:<10} {measured}", kind.to_string());
        right += usize::from(measured == kind);
    }
    println!("{right} of 9 as wanted");
    Ok(if right == 9 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn hold(program: &[String]) -> anyhow::Result<ExitCode> {
    let lab = Lab::new("hold")?;
    let network = lab.build(crate::village::topology())?;
    let mut processes = Vec::new();
    if let [program, args @ ..] = program {
        for host in network.hosts() {
            let command = host.command(program).args(args);
            processes.push(command.spawn(host.name())?);
        }
    }
    println!("{}", lab.id());
    for host in network.hosts() {
        println!("ip netns exec {} ...   # {}, {}", host.netns().name(), host.site(), host.address());
    }
    loop {
        std::thread::park();
    }
}
