//! The driver: owns one engine, and moves bytes and time between it and the sockets.
