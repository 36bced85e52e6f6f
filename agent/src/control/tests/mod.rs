//! The control client against coordinators and relays in the test's hands.

mod dial;
mod join;
mod session;
mod versions;
