//! What the kernel tells of a process.

use std::{
    ops::{Add, Sub},
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use anyhow::Context;

/// Clock ticks per second of `/proc/PID/stat` (USER_HZ, fixed on Linux).
const TICKS_PER_SECOND: f64 = 100.0;
/// How often resident memory is looked at while something runs.
const WATCH: Duration = Duration::from_millis(100);

/// CPU time, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CpuTime {
    /// Spent in user space.
    pub user: f64,
    /// Spent in the kernel.
    pub system: f64,
}

impl CpuTime {
    /// Returns both together, in seconds.
    #[must_use]
    pub fn total(self) -> f64 {
        self.user + self.system
    }
}

impl Add for CpuTime {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { user: self.user + other.user, system: self.system + other.system }
    }
}

impl Sub for CpuTime {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { user: self.user - other.user, system: self.system - other.system }
    }
}

/// Returns a process's resident memory, in MB (10^6 bytes).
///
/// # Errors
/// When there is no such process.
pub fn resident_mb(pid: i32) -> anyhow::Result<f64> {
    parse_size(&std::fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS:")
}

/// Returns the most that a process ever had resident, in MB (10^6 bytes).
///
/// # Errors
/// When there is no such process.
pub fn peak_mb(pid: i32) -> anyhow::Result<f64> {
    parse_size(&std::fs::read_to_string(format!("/proc/{pid}/status"))?, "VmHWM:")
}

/// Does some work and returns the most that any of these processes had resident meanwhile, too, in MB.
pub fn watch_resident<T>(pids: &[i32], work: impl FnOnce() -> T) -> (T, f64) {
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let watcher = scope.spawn(move || {
            let mut most = 0.0_f64;
            loop {
                let sizes = pids.iter().filter_map(|pid| resident_mb(*pid).ok());
                most = sizes.fold(most, f64::max);
                if is_done.recv_timeout(WATCH) != Err(RecvTimeoutError::Timeout) {
                    return most;
                }
            }
        });
        let result = work();
        drop(done);
        (result, watcher.join().unwrap_or_default())
    })
}

/// Returns the CPU time that a process has used.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time(pid: i32) -> anyhow::Result<CpuTime> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?)
}

fn parse_size(status: &str, name: &str) -> anyhow::Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let line = line.with_context(|| format!("no {name}"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0 / 1e6)
}

fn parse_stat(stat: &str) -> anyhow::Result<CpuTime> {
    // The command may contain anything, but it ends with the last parenthesis.
    let (_, fields) = stat.rsplit_once(')').context("no command")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    let seconds = |index: usize| -> anyhow::Result<f64> {
        let ticks: f64 = fields.get(index).context("too short")?.parse()?;
        Ok(ticks / TICKS_PER_SECOND)
    };
    Ok(CpuTime { user: seconds(11)?, system: seconds(12)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_may_look_like_fields() {
        let stat = "7 (a) R 1 (b)) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 5 6 7";
        let cpu = parse_stat(stat).unwrap();
        assert_eq!((cpu.user, cpu.system, cpu.total()), (2.5, 0.5, 3.0));
        assert!(parse_stat("7 (a) S 1").is_err());
    }

    #[test]
    fn the_largest_is_watched_while_the_work_is_done() {
        let own = i32::try_from(std::process::id()).unwrap();
        let (answer, most) = watch_resident(&[own], || 42);
        assert_eq!(answer, 42);
        assert!(most > 0.0);
    }

    #[test]
    fn resident_memory_is_in_megabytes() {
        assert_eq!(parse_size("Name:\tx\nVmRSS:\t    1000 kB\nVmData:\t 5 kB\n", "VmRSS:").unwrap(), 1.024);
        assert!(parse_size("Name:\tzombie\n", "VmRSS:").is_err());
    }
}
