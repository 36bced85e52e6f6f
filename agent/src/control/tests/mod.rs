//! The control client against coordinators and relays in the test's hands.

mod join;
mod session;
