//! From a network map to what this host should look like: pure.
