//! Configuration of `mesh-agent` and `meshctl`: flags, environment and file, parsed at the edge into types.
