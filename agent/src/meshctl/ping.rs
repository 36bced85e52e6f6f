//! `meshctl ping`.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::{CommandError, Outcome, cli::PingArgs, print_document, print_text};
use crate::{
    local_api::{ApiError, Client, ClientError, PingReply},
    view::units,
};

/// Time from one ping to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// With `--until-direct` people wait for the path, not for statistics: ask more often.
const INTERVAL_UNTIL_DIRECT: Duration = Duration::from_millis(250);
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize)]
struct Report {
    node: String,
    sent: u32,
    received: u32,
    direct: bool,
    replies: Vec<PingReply>,
}

pub(super) async fn run(client: &Client, args: &PingArgs) -> Result<Outcome, CommandError> {
    let mut report =
        Report { node: args.node.clone(), sent: 0, received: 0, direct: false, replies: Vec::new() };
    let interval = if args.until_direct { INTERVAL_UNTIL_DIRECT } else { INTERVAL };
    let started = Instant::now();
    for sequence in 0..args.count {
        sleep_until(started + interval * sequence).await;
        report.sent += 1;
        match client.ping(&args.node, TIMEOUT).await {
            Ok(reply) => {
                report.received += 1;
                report.direct = reply.endpoint.is_some();
                if !args.json {
                    print_text(&line(&reply))?;
                }
                report.replies.push(reply);
                if args.until_direct && report.direct {
                    break;
                }
            }
            Err(ClientError::Api(ApiError::Timeout { .. })) if !args.json => {
                print_text(&format!("ping {} timed out\n", args.node))?;
            }
            Err(ClientError::Api(ApiError::Timeout { .. })) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let outcome = match (args.until_direct, report.received) {
        (true, _) if !report.direct => Outcome::Failed,
        (false, 0) => Outcome::Failed,
        _ => Outcome::Done,
    };
    if args.json {
        print_document(&report)?;
    } else if outcome == Outcome::Failed {
        eprintln!("{}", if report.received == 0 { "no reply" } else { "direct connection not established" });
    }
    Ok(outcome)
}

fn line(reply: &PingReply) -> String {
    let via = match (&reply.endpoint, &reply.relay) {
        (Some(endpoint), _) => endpoint.to_string(),
        (None, Some(relay)) => format!("relay {relay}"),
        (None, None) => "an unknown path".to_owned(),
    };
    format!("pong from {} ({}) via {via} in {}\n", reply.node, reply.address, units::millis(reply.rtt_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pong_tells_its_path() {
        let reply = PingReply {
            node: "country".into(),
            address: "10.90.0.2".parse().unwrap(),
            endpoint: Some("198.51.100.7:51820".parse().unwrap()),
            relay: None,
            rtt_ms: 18.2,
        };
        assert_eq!(line(&reply), "pong from country (10.90.0.2) via 198.51.100.7:51820 in 18.2ms\n");
        let reply = PingReply { endpoint: None, relay: Some("pi".into()), ..reply };
        assert_eq!(line(&reply), "pong from country (10.90.0.2) via relay pi in 18.2ms\n");
    }
}
