//! The network map that this node has: version check and disk cache.
