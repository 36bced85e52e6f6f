//! A mesh on a network, from the real binaries.
