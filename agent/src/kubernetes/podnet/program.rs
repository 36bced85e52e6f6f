//! Runs other programs: `nft`, the `iptables`, plugins.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt as _,
    process::Command,
    time::{sleep, timeout},
};

/// Where the system's programs are, whatever the service's own path is.
const DIRS: [&str; 6] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
/// Longest text of a failure that is shown.
const MAX_REASON: usize = 300;
/// A program that was written just now may still be open for writing in a child that another thread has forked and that
/// has not become its own program yet; that takes microseconds.
const BUSY_TRIES: usize = 20;
/// See [`BUSY_TRIES`].
const BUSY_WAIT: Duration = Duration::from_millis(10);

/// Returns where the first of these programs is that is installed.
pub(super) fn find(names: &[&str]) -> Option<PathBuf> {
    names.iter().find_map(|name| DIRS.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file()))
}

/// Runs a program with this input and returns what it prints.
///
/// # Errors
/// When it cannot be run, fails, or takes too long: a clause for people.
pub(super) async fn run(mut command: Command, input: &[u8], patience: Duration) -> Result<String, String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = spawn(&mut command).await?;
    let exchange = async {
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read says why.
            let _ = stdin.write_all(input).await;
        }
        child.wait_with_output().await
    };
    let output = timeout(patience, exchange)
        .await
        .map_err(|_| "it takes too long".to_owned())?
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint = if complaint.trim().is_empty() { said.trim() } else { complaint.trim() };
    let reason = match complaint.lines().next() {
        Some(line) => line.to_owned(),
        None => output.status.to_string(),
    };
    Err(reason.chars().take(MAX_REASON).collect())
}

/// Runs a program that may fail, and returns what it says on stderr.
pub(super) async fn run_for_stderr(mut command: Command, patience: Duration) -> Result<String, String> {
    command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = spawn(&mut command).await?;
    let output =
        timeout(patience, child.wait_with_output()).await.map_err(|_| "it takes too long".to_owned())?;
    Ok(String::from_utf8_lossy(&output.map_err(|error| error.to_string())?.stderr).into_owned())
}

async fn spawn(command: &mut Command) -> Result<tokio::process::Child, String> {
    let mut tries = 0;
    loop {
        match command.spawn() {
            Ok(child) => return Ok(child),
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) && tries < BUSY_TRIES => {
                tries += 1;
                sleep(BUSY_WAIT).await;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}
