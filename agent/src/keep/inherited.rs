//! What the process before this one has left with the service manager.
#![expect(unsafe_code, reason = "descriptors come as numbers in the environment")]

use std::{
    collections::BTreeMap,
    os::fd::{FromRawFd, OwnedFd},
};

/// Descriptors that were passed on, by name. What is not taken is closed when this is dropped.
#[derive(Debug, Default)]
pub struct Inherited(BTreeMap<String, Vec<OwnedFd>>);

impl Inherited {
    /// Takes what was passed to this process.
    ///
    /// To be called once, at the start: the numbers are this process's own afterwards, and mean something else once they
    /// were closed.
    #[must_use]
    pub fn take_from_env() -> Self {
        let passed = match sd_notify::listen_fds_with_names() {
            Ok(passed) => passed,
            Err(error) => {
                tracing::warn!(%error, "what the service manager has kept cannot be read");
                return Self::default();
            }
        };
        let mut inherited = Self::default();
        for (number, name) in passed {
            // SAFETY: the manager opened these numbers for this very process (LISTEN_PID), and nobody else in it has
            // been told of them.
            inherited.add(name, unsafe { OwnedFd::from_raw_fd(number) });
        }
        inherited
    }

    /// Adds one.
    pub(crate) fn add(&mut self, name: String, descriptor: OwnedFd) {
        self.0.entry(name).or_default().push(descriptor);
    }

    /// Takes the descriptor of this name; none if there are several, of which nobody knows which is the right one.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let mut found = self.0.remove(name)?;
        let only = found.pop();
        if found.is_empty() { only } else { None }
    }

    /// Returns the names of what was not taken.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn what_is_there_twice_is_nobodys() {
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let mut inherited = Inherited::default();
        inherited.add("mesh-udp4-0".to_owned(), null());
        inherited.add("mesh-tun-0".to_owned(), null());
        inherited.add("mesh-tun-0".to_owned(), null());
        assert!(inherited.take("mesh-tun-0").is_none());
        assert!(inherited.take("mesh-tun-1").is_none());
        assert_eq!(inherited.names().collect::<Vec<_>>(), ["mesh-udp4-0"]);
        assert!(inherited.take("mesh-udp4-0").is_some());
        assert!(inherited.is_empty());
    }
}
