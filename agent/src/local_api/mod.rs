//! The local API: HTTP over a unix socket, which `meshctl` speaks to the daemon.
