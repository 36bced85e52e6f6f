//! Random events in a row over the village, with traffic between all pairs; after each all must be well.
//!
//! `make events` runs a thousand. A seed is printed; `MESH_EVENTS_SEED` repeats it, `MESH_EVENTS` sets how many events
//! there are. See [`mesh_lab::events`] for what happens and what is promised.

use mesh_lab::Lab;
use mesh_lab::events::{Course, Run};
use rand_core::RngCore as _;

/// Events unless told otherwise: what `make test` has the time for.
const EVENTS: u64 = 20;
/// Events between two looks at what is used.
const CHECKPOINT: u64 = 25;

#[test]
fn all_is_well_after_every_event() {
    let events = number("MESH_EVENTS").unwrap_or(EVENTS);
    let seed = number("MESH_EVENTS_SEED").unwrap_or_else(|| rand_core::OsRng.next_u64());
    println!("MESH_EVENTS_SEED={seed} MESH_EVENTS={events}");
    let lab = Lab::new("events").unwrap();
    let mut run = Run::start(&lab, seed, Course::Everything).unwrap();
    for event in 1..=events {
        run.step().unwrap_or_else(|error| panic!("event {event} of {events}, seed {seed}: {error:#}"));
        if event.is_multiple_of(CHECKPOINT) {
            run.checkpoint().unwrap_or_else(|error| panic!("after {event} events, seed {seed}: {error:#}"));
        }
    }
    run.finish().unwrap();
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}
