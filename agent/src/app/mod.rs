//! Assembly of `mesh-agent run`: which part gets what, and in which order they start and stop.
