//! Where the cycles go: samples of both daemons while a load runs, sorted by what was being done.
//!
//! `perf` samples by CPU time. A sample in the kernel is sorted by the system call it was in; one in user space
//! by the function alone, since programs are built without frame pointers. Shares are turned into seconds per GB by
//! the CPU time that the kernel has counted over the same run.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};

use super::{
    Kind, Tunnel,
    counters::Counters,
    load::{Load, WARM_UP},
    stage::Stage,
};

/// Samples per second of CPU time: not a divisor of timers that programs use.
const FREQUENCY: &str = "1999";
/// Kernel addresses begin here.
const KERNEL: u64 = 1 << 63;
/// Width of the column of places.
const PLACES: usize = 46;
const COLUMN: usize = 20;

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Aead,
    Copies,
    User,
    TunRead,
    TunWrite,
    Send,
    Receive,
    Wait,
    Interrupts,
    Kernel,
}

impl Place {
    const ALL: [Self; 10] = [
        Self::Aead,
        Self::Copies,
        Self::User,
        Self::TunRead,
        Self::TunWrite,
        Self::Send,
        Self::Receive,
        Self::Wait,
        Self::Interrupts,
        Self::Kernel,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Aead => "user: AEAD",
            Self::Copies => "user: copies",
            Self::User => "user: all other code",
            Self::TunRead => "kernel: TUN read",
            Self::TunWrite => "kernel: TUN write, with the receiving stack",
            Self::Send => "kernel: UDP send, with the way through veth",
            Self::Receive => "kernel: UDP receive",
            Self::Wait => "kernel: waiting and waking",
            Self::Interrupts => "kernel: interrupts",
            Self::Kernel => "kernel: all other",
        }
    }

    /// Sorts a stack, its innermost frame first.
    fn of(stack: &[Frame<'_>]) -> Self {
        let has = |frames: &[Frame<'_>], names: &[&str]| {
            frames.iter().any(|frame| names.iter().any(|name| frame.symbol.contains(name)))
        };
        let (frames, rules, other) = match stack[0].address {
            0..KERNEL => (&stack[..1], IN_USER_SPACE, Self::User),
            KERNEL.. => (stack, IN_THE_KERNEL, Self::Kernel),
        };
        rules.iter().find(|(_, names)| has(frames, names)).map_or(other, |(place, _)| *place)
    }
}

/// How functions of programs are sorted, the first that fits.
const IN_USER_SPACE: &[(Place, &[&str])] =
    &[(Place::Aead, &["poly1305", "chacha20", "gcm", "ghash"]), (Place::Copies, &["memcpy", "memmove"])];

/// How stacks in the kernel are sorted: the first that fits any frame. An interrupt may come in the middle of anything.
const IN_THE_KERNEL: &[(Place, &[&str])] = &[
    (Place::Interrupts, &["asm_sysvec"]),
    (Place::TunRead, &["tun_chr_read", "tun_do_read"]),
    (Place::TunWrite, &["tun_chr_write"]),
    (Place::Send, &["__sys_send"]),
    (Place::Receive, &["__sys_recv"]),
    (Place::Wait, &["epoll", "futex", "nanosleep", "eventfd", "sched_yield"]),
];

#[derive(Debug, Clone, Copy)]
struct Frame<'a> {
    address: u64,
    symbol: &'a str,
}

/// Samples by process and place.
type Samples = BTreeMap<(i32, Place), u64>;

/// What one tunnel's daemons did under one load: seconds per GB received, by place, at the sender and the receiver.
#[derive(Debug, Clone)]
pub struct Profile {
    load: Load,
    kind: Kind,
    seconds_per_gb: BTreeMap<Place, [f64; 2]>,
}

impl Profile {
    /// Runs a load once more through a tunnel and samples its daemons. `None` for loads that count no bytes.
    ///
    /// # Errors
    /// When perf is not here or may not sample, or the load fails.
    pub fn take(stage: &Stage, tunnel: &Tunnel, load: Load, seconds: u32) -> anyhow::Result<Option<Self>> {
        let file = stage.directory().join("perf.data");
        let pids = tunnel.daemons.map(|pid| pid.to_string()).join(",");
        let before = Counters::read(stage, tunnel)?;
        let (outcome, recorded) = std::thread::scope(|scope| {
            let recorder = scope.spawn(|| {
                std::thread::sleep(WARM_UP);
                record(&file, &pids, Duration::from_secs(seconds.into()).saturating_sub(WARM_UP))
            });
            (load.run(stage.speakers(tunnel)[0], tunnel.target, seconds), recorder.join())
        });
        recorded.map_err(|_| anyhow::anyhow!("the recorder's thread panicked"))??;
        let cpu = Counters::read(stage, tunnel)?.since(&before).cpu.total();
        let Some(gigabytes) = outcome?.gigabytes() else { return Ok(None) };
        let text = perf(&["script", "-F", "pid,ip,sym", "-i"], &file)?;
        let samples = parse(&text)?;
        let total: u64 = samples.values().sum();
        ensure!(total > 0, "perf took no samples");
        let each = cpu / gigabytes / total as f64;
        let mut seconds_per_gb: BTreeMap<Place, [f64; 2]> = BTreeMap::new();
        for ((pid, place), count) in samples {
            let end = usize::from(pid != tunnel.daemons[0]);
            seconds_per_gb.entry(place).or_default()[end] += each * count as f64;
        }
        Ok(Some(Self { load, kind: tunnel.kind, seconds_per_gb }))
    }
}

/// Writes profiles as one table; a cell has the sender's and the receiver's seconds per GB.
#[must_use]
pub fn table(profiles: &[Profile]) -> String {
    let mut out = format!("{:<PLACES$}", "CPU s/GB: sender + receiver");
    for Profile { load, kind, .. } in profiles {
        let _ = write!(out, "{:>COLUMN$}", format!("{} {}", kind.name(), load.name()));
    }
    out.push('\n');
    for place in Place::ALL {
        let _ = write!(out, "{:<PLACES$}", place.name());
        for profile in profiles {
            let [sender, receiver] = profile.seconds_per_gb.get(&place).copied().unwrap_or_default();
            let _ = write!(out, "{:>COLUMN$}", format!("{sender:.3} + {receiver:.3}"));
        }
        out.push('\n');
    }
    out
}

fn record(file: &Path, pids: &str, duration: Duration) -> anyhow::Result<()> {
    let seconds = duration.as_secs_f64().to_string();
    let mut options = vec!["record", "-q", "-e", "cpu-clock", "-F", FREQUENCY, "-g", "-p", pids];
    let sleep = ["--", "sleep", &seconds];
    let file = file.to_string_lossy();
    options.extend(["-o", &file]);
    run(Command::new("perf").args(options).args(sleep)).map(drop)
}

fn perf(options: &[&str], file: &Path) -> anyhow::Result<String> {
    run(Command::new("perf").args(options).arg(file))
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().context("perf is not here (Debian: linux-perf)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "perf failed: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads what `perf script` prints: a line with the process, then a line for each frame, then an empty one.
fn parse(script: &str) -> anyhow::Result<Samples> {
    let mut samples = Samples::new();
    for sample in script.split("\n\n").filter(|sample| !sample.trim().is_empty()) {
        let mut lines = sample.trim_start_matches('\n').lines();
        let pid = lines.next().context("an empty sample")?;
        let pid = pid.trim().parse().with_context(|| format!("no process: {pid}"))?;
        let stack: Vec<_> = lines.filter_map(frame).collect();
        if !stack.is_empty() {
            *samples.entry((pid, Place::of(&stack))).or_default() += 1;
        }
    }
    Ok(samples)
}

fn frame(line: &str) -> Option<Frame<'_>> {
    let (address, symbol) = line.trim().split_once(' ')?;
    Some(Frame { address: u64::from_str_radix(address, 16).ok()?, symbol })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "\
16180 
\t          b55acb ring_core_0_17_14__chacha20_poly1305_open_avx2
\t c635af804b07374 [unknown]

16182 
\tffffffff81b6c5e0 _copy_from_iter
\tffffffff82046f42 udp_sendmsg
\tffffffff81e31e7b __sys_sendmsg
\t          10ac4d __libc_sendmsg

16182 
\tffffffff8141f6d6 __mod_timer
\tffffffff821f46d5 sysvec_apic_timer_interrupt
\tffffffff81000b86 asm_sysvec_apic_timer_interrupt
\tffffffff82046f42 udp_sendmsg
\tffffffff81e31e7b __sys_sendmsg

16182 
\t          10ac4d mesh_engine::router::Router::lookup
";

    #[test]
    fn samples_are_sorted_by_what_was_being_done() {
        let samples = parse(SCRIPT).unwrap();
        let expected = [
            ((16180, Place::Aead), 1),
            ((16182, Place::User), 1),
            ((16182, Place::Send), 1),
            ((16182, Place::Interrupts), 1),
        ];
        assert_eq!(samples, Samples::from(expected));
    }

    #[test]
    fn a_table_has_both_ends() {
        let seconds_per_gb = BTreeMap::from([(Place::Aead, [0.5, 0.25])]);
        let table = table(&[Profile { load: Load::Tcp1, kind: Kind::Mesh, seconds_per_gb }]);
        assert!(table.contains("mesh tcp-1") && table.contains("0.500 + 0.250"), "{table}");
    }
}
