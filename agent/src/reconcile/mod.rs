//! Makes the host and the engine look as planned, and keeps them so.
