//! What an open descriptor of Linux's TUN driver is attached to, and which superpackets its interface gives.
#![expect(unsafe_code, reason = "the driver's ioctls have no safe interface")]

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd},
};

/// The interface of a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    /// Whether a virtio header stands before every packet.
    pub(super) has_header: bool,
}

/// Which superpackets an interface gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offloaded {
    Tcp,
    TcpAndUdp,
}

/// Returns what a descriptor is attached to.
///
/// # Errors
/// When it is none of the TUN driver's, or its interface is gone.
pub(super) fn interface_of(descriptor: &impl AsFd) -> io::Result<Interface> {
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes an `ifreq` (`tun_get_iff` in drivers/net/tun.c), which lives until the call returns.
    let answer = unsafe {
        libc::ioctl(descriptor.as_fd().as_raw_fd(), libc::TUNGETIFF as libc::Ioctl, &raw mut request)
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the driver fills in the flags.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
    // SAFETY: `c_char` and `u8` have the same size and no invalid values.
    let name = unsafe { &*(&raw const request.ifr_name).cast::<[u8; libc::IFNAMSIZ]>() };
    let name = CStr::from_bytes_until_nul(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    if flags & libc::IFF_TUN == 0 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let name = name.to_string_lossy().into_owned();
    Ok(Interface { name, has_header: flags & libc::IFF_VNET_HDR != 0 })
}

/// Has the interface give as many kinds of superpackets as the system knows.
///
/// # Errors
/// When it knows none.
pub(super) fn offload(descriptor: &impl AsFd) -> io::Result<Offloaded> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    match set_offload(descriptor, tcp | udp) {
        Ok(()) => Ok(Offloaded::TcpAndUdp),
        // Linux before 6.2.
        Err(_) => set_offload(descriptor, tcp).map(|()| Offloaded::Tcp),
    }
}

fn set_offload(descriptor: &impl AsFd, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its flags by value and touches no memory of this process.
    let answer = unsafe {
        libc::ioctl(
            descriptor.as_fd().as_raw_fd(),
            libc::TUNSETOFFLOAD as libc::Ioctl,
            libc::c_ulong::from(flags),
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
