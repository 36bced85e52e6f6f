//! What the kernel tells of a process.

use std::time::Duration;

use anyhow::Context;

/// Clock ticks per second of `/proc/PID/stat` (USER_HZ, fixed on Linux).
const TICKS_PER_SECOND: f64 = 100.0;

/// Returns a process's resident memory, in MB (10^6 bytes).
///
/// # Errors
/// When there is no such process.
pub fn resident_mb(pid: i32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0 / 1e6)
}

/// Returns the CPU time that a process has used, user and system.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time(pid: i32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command may contain anything, but it ends with the last parenthesis.
    let (_, fields) = stat.rsplit_once(')').context("no command")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    let ticks =
        |index: usize| -> anyhow::Result<f64> { Ok(fields.get(index).context("too short")?.parse()?) };
    Ok(Duration::from_secs_f64((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND))
}
