//! Random events in a row over the village, with traffic between all pairs; after each all must be well.
//!
//! `make events` runs a thousand. A seed is printed; `MESH_EVENTS_SEED` repeats it, `MESH_EVENTS` sets how many events
//! there are. See [`mesh_lab::events`] for what happens and what is promised.

use mesh_lab::Lab;
use mesh_lab::events::{Course, Run};
use mesh_lab::told::{Told, told};

/// Events unless told otherwise: what `make test` has the time for.
const EVENTS: u64 = 20;
/// Events between two looks at what is used.
const CHECKPOINT: u64 = 25;

#[test]
fn all_is_well_after_every_event() {
    let Told { amount, seed } = told("MESH_EVENTS", "MESH_EVENTS_SEED").unwrap();
    let events = amount.unwrap_or(EVENTS);
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
