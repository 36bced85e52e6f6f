//! The loads, and what iperf3 and ping say of them.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, ensure};
use mesh_lab::{Host, topology::Ping};
use serde::{Deserialize, Serialize};

use super::{Metric, Sample};

/// Between echoes: often enough for a median within seconds, and cold wake-ups all the same.
const ECHO_INTERVAL: Duration = Duration::from_millis(50);
/// How long a stream runs before its echoes are sent: slow start is over.
pub(super) const WARM_UP: Duration = Duration::from_millis(500);
/// How much longer than planned a run of iperf3 may take.
const GRACE: Duration = Duration::from_secs(20);
/// Before a second try, when the server is not done with the former test.
const SERVER_REST: Duration = Duration::from_secs(1);

/// What goes through a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// One TCP stream.
    Tcp1,
    /// Four TCP streams.
    Tcp4,
    /// Datagrams of 1200 bytes, as many as the sender can.
    UdpFlood,
    /// Datagrams of 128 bytes, 200 Mbit/s.
    UdpSmall,
    /// Echoes and nothing else.
    PingIdle,
    /// Echoes beside one TCP stream.
    PingLoaded,
}

impl Load {
    /// All of them, in the order in which they are run.
    pub const ALL: [Self; 6] =
        [Self::Tcp1, Self::Tcp4, Self::UdpFlood, Self::UdpSmall, Self::PingIdle, Self::PingLoaded];

    /// Returns its name, also on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp-1",
            Self::Tcp4 => "tcp-4",
            Self::UdpFlood => "udp-1200-flood",
            Self::UdpSmall => "udp-128-200M",
            Self::PingIdle => "ping-idle",
            Self::PingLoaded => "ping-under-tcp",
        }
    }

    /// Runs it once.
    ///
    /// # Errors
    /// When iperf3 or ping fail, or nothing arrives.
    pub fn run(self, from: &Host, to: IpAddr, seconds: u32) -> anyhow::Result<Outcome> {
        let stream = |options: &[&str]| iperf(from, to, seconds, options).map(Outcome::Traffic);
        match self {
            Self::Tcp1 => stream(&[]),
            Self::Tcp4 => stream(&["-P", "4"]),
            Self::UdpFlood => stream(&["-u", "-b", "0", "-l", "1200"]),
            Self::UdpSmall => stream(&["-u", "-b", "200M", "-l", "128"]),
            Self::PingIdle => echoes(from, to, seconds),
            Self::PingLoaded => std::thread::scope(|scope| {
                let stream = scope.spawn(|| iperf(from, to, seconds + 1, &[]));
                std::thread::sleep(WARM_UP);
                let outcome = echoes(from, to, seconds);
                stream.join().map_err(|_| anyhow::anyhow!("the stream's thread panicked"))??;
                outcome
            }),
        }
    }
}

/// What a run gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// What iperf3 said.
    Traffic(Traffic),
    /// The middle round trip, in milliseconds.
    RoundTrip(f64),
}

/// What iperf3 says of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traffic {
    /// Bytes of payload that arrived.
    pub bytes: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Share of datagrams that did not arrive, in percent.
    pub lost_percent: Option<f64>,
    /// Segments that TCP sent again.
    pub retransmits: Option<f64>,
}

impl Outcome {
    /// Returns what arrived, in GB, if bytes were counted.
    #[must_use]
    pub fn gigabytes(&self) -> Option<f64> {
        match self {
            Self::Traffic(traffic) => Some(traffic.bytes / 1e9),
            Self::RoundTrip(_) => None,
        }
    }

    /// Returns it as figures.
    #[must_use]
    pub fn sample(&self) -> Sample {
        match *self {
            Self::RoundTrip(milliseconds) => Sample::from([(Metric::RoundTrip, milliseconds)]),
            Self::Traffic(Traffic { bytes, seconds, lost_percent, retransmits }) => {
                let mut sample = Sample::from([(Metric::Received, bytes * 8.0 / seconds / 1e9)]);
                sample.extend(lost_percent.map(|lost| (Metric::Loss, lost)));
                sample.extend(retransmits.map(|count| (Metric::Retransmits, count)));
                sample
            }
        }
    }
}

fn echoes(from: &Host, to: IpAddr, seconds: u32) -> anyhow::Result<Outcome> {
    let count = seconds * 1000 / u32::try_from(ECHO_INTERVAL.as_millis())?;
    let ping: Ping = from.ping_every(to, count.max(1), ECHO_INTERVAL)?;
    let median = ping.median().context("no echo came back")?;
    Ok(Outcome::RoundTrip(median.as_secs_f64() * 1e3))
}

fn iperf(from: &Host, to: IpAddr, seconds: u32, options: &[&str]) -> anyhow::Result<Traffic> {
    let run = || {
        from.command("iperf3")
            .args(["-c", &to.to_string(), "-t", &seconds.to_string(), "-J"])
            .args(options)
            .timeout(Duration::from_secs(seconds.into()) + GRACE)
            .output()
    };
    let mut finished = run()?;
    if !finished.status.success() {
        std::thread::sleep(SERVER_REST);
        finished = run()?;
    }
    parse(&finished.success()?.stdout)
}

fn parse(json: &str) -> anyhow::Result<Traffic> {
    let Answer { end } = serde_json::from_str(json).context("iperf3's answer")?;
    let received = end.sum_received;
    ensure!(received.bytes > 0.0 && received.seconds > 0.0, "nothing arrived");
    Ok(Traffic {
        bytes: received.bytes,
        seconds: received.seconds,
        lost_percent: received.lost_percent,
        retransmits: end.sum_sent.retransmits,
    })
}

#[derive(Deserialize)]
struct Answer {
    end: End,
}

#[derive(Deserialize)]
struct End {
    sum_sent: Sum,
    sum_received: Sum,
}

#[derive(Deserialize)]
struct Sum {
    seconds: f64,
    bytes: f64,
    #[serde(default)]
    lost_percent: Option<f64>,
    #[serde(default)]
    retransmits: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_counts_what_arrived() {
        let json = r#"{"start":{},"end":{"streams":[],
            "sum_sent":{"seconds":1.0,"bytes":2258370560,"bits_per_second":1.8e10,"retransmits":7,"sender":true},
            "sum_received":{"seconds":2.0,"bytes":2000000000,"bits_per_second":8e9,"sender":true}}}"#;
        let outcome = Outcome::Traffic(parse(json).unwrap());
        assert_eq!(outcome.gigabytes(), Some(2.0));
        assert_eq!(outcome.sample(), Sample::from([(Metric::Received, 8.0), (Metric::Retransmits, 7.0)]));
    }

    #[test]
    fn datagrams_are_counted_where_they_arrive() {
        let json = r#"{"end":{"sum":{"bytes":9e9,"seconds":1.0},
            "sum_sent":{"seconds":1.0,"bytes":250000000,"lost_percent":0},
            "sum_received":{"seconds":1.0,"bytes":125000000,"lost_packets":5,"packets":10,"lost_percent":50}}}"#;
        let sample = Outcome::Traffic(parse(json).unwrap()).sample();
        assert_eq!(sample, Sample::from([(Metric::Received, 1.0), (Metric::Loss, 50.0)]));
    }

    #[test]
    fn silence_is_no_figure() {
        let json = r#"{"end":{"sum_sent":{"seconds":1,"bytes":1},"sum_received":{"seconds":1,"bytes":0}}}"#;
        assert!(parse(json).is_err());
        assert!(parse(r#"{"error":"the server is busy"}"#).is_err());
    }
}
