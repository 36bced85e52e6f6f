//! `mesh-lab demo`: the village tells its story.
//!
//! Each chapter does something with real binaries, says what it sees, and makes promises: what a person who reads the
//! README may rely on. A broken promise does not stop the story, an error does; either makes the demo fail. At the end
//! everything is removed, and it is checked that nothing is left. What happened is written into a page with a picture.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

mod arrivals;
mod ending;
mod outages;
mod pairs;
mod stage;
mod transport;

use crate::report::Report;
use crate::run::Lab;
use crate::traffic::Echo;
use crate::village::{COORDINATOR_HOST, Village};
use stage::{Look, Stage};

/// How often every pair sends a request while the story goes on.
const ECHO_INTERVAL: Duration = Duration::from_millis(200);

/// Where the page is written unless told otherwise: in `demo` of the target directory that holds this program.
///
/// # Errors
///
/// If this program's own path is unknown.
pub fn default_report() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(2).context("this program stands in no target directory")?;
    Ok(target.join("demo").join("village.html"))
}

/// Tells the story, and writes the page.
///
/// # Errors
///
/// If the page cannot be written. What goes wrong in the village is told, and is in the exit code.
pub fn run(page: &Path) -> anyhow::Result<ExitCode> {
    let look = match io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        true => Look::Colours,
        false => Look::Plain,
    };
    let mut stage = Stage::new(look);
    let directory = page.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)
        .with_context(|| format!("directory of the report {}", directory.display()))?;
    let lab = Lab::new("demo")?;
    let id = lab.id().to_owned();
    let mut report = None;
    if let Err(error) = perform(&mut stage, lab.clone(), &mut report) {
        stage.break_promise(&format!("the story stops: {error:#}"));
    }
    if stage.is_broken() {
        let logs = directory.join("logs");
        keep_logs(&lab, &logs)?;
        stage.say(&format!("what the daemons logged is in {}", logs.display()));
    }
    drop(lab);
    stage.chapter("Nothing is left behind");
    ending::check_removed(&mut stage, &id);
    if let Some(mut report) = report {
        report.story = stage.take_story();
        report.write(page)?;
        stage.say(&format!("picture and story: {}", page.display()));
    }
    Ok(stage.finish())
}

/// The chapters, in order. The report is made while everything stands.
fn perform(stage: &mut Stage, lab: Lab, report: &mut Option<Report>) -> anyhow::Result<()> {
    stage.chapter("A village is built: sites, routers with NATs, access lines with delay");
    let village = Village::prepare(&lab)?;
    drop(lab);
    arrivals::show_network(stage, &village)?;
    let before = village.before()?;

    stage.chapter("The coordinator starts, and six nodes join");
    arrivals::join_all(stage, &village)?;

    stage.chapter("Everyone reaches everyone by mesh address");
    let echo = Echo::all(&village, ECHO_INTERVAL)?;
    pairs::meet(stage, &village, &echo)?;
    let found = report.insert(Report::of(&village, "The village", COORDINATOR_HOST));
    pairs::show_table(stage, &village, found)?;
    pairs::show_status(stage, &village)?;

    stage.chapter("Neighbours use their LAN, and the office gets through its symmetric NAT");
    transport::show_neighbours(stage, &village)?;
    transport::show_punched(stage, &village)?;

    stage.chapter("A file goes from the macbook to the countryside");
    transport::send_file(stage, &village)?;

    stage.chapter("Things are killed");
    outages::kill_coordinator(stage, &village, &echo)?;
    outages::kill_agent(stage, &village, &echo)?;
    outages::bring_coordinator_back(stage, &village, &echo)?;

    stage.chapter("Everyone goes home");
    drop(echo);
    ending::stop(stage, &village, &before)
}

/// Copies the logs of a run that went wrong to where they outlive it.
fn keep_logs(lab: &Lab, to: &Path) -> anyhow::Result<()> {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to)?;
    let Ok(entries) = std::fs::read_dir(lab.directory().join("logs")) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name())).context("copy of a log")?;
    }
    Ok(())
}
