//! Sockets and TUN devices: bytes in and out, batch by batch, and nothing else.
