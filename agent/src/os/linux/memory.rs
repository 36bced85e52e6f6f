//! Memory that the system gets back: what is mapped of the program and its libraries, and what the allocator has free.
//!
//! Code that is run once, at the start or when a connection is made, stays mapped, with the 64 KiB around each page of it
//! (`fault_around_bytes`): a fifth of what an agent has resident. Given back it is the page cache's alone, from which the
//! kernel takes first when others need room; what is used again is mapped again by a minor fault, without any reading.
//!
//! What was needed for a burst of packets, or for a large answer, stays with the allocator until it is asked.
#![expect(
    unsafe_code,
    reason = "only C tells where the loader has put the program, and takes back what lies there"
)]

use std::{
    ffi::{CStr, c_int, c_void},
    ptr, slice,
};

/// Gives back what is mapped of the program and its libraries, and what the allocator has free. Breakpoints that a debugger
/// has set are gone, too.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks, and touches only what is free.
    unsafe {
        libc::malloc_trim(0)
    };
    // SAFETY: the callback has the type that is asked for, and makes no use of the pointer that is passed on to it.
    unsafe { libc::dl_iterate_phdr(Some(give_back_object), ptr::null_mut()) };
}

/// Gives back one object. The loader neither loads nor unloads any while this is called.
unsafe extern "C" fn give_back_object(info: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: the loader passes a description that is valid during the call.
    let info = unsafe { &*info };
    if info.dlpi_name.is_null() || info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: it is a string that ends with a zero.
    let name = unsafe { CStr::from_ptr(info.dlpi_name) };
    // The program has no name, a library its path; that of the kernel has no file to come back from.
    if !name.is_empty() && !name.to_bytes().starts_with(b"/") {
        return 0;
    }
    // SAFETY: the loader has so many headers there, as long as the object is loaded.
    let headers = unsafe { slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let constant =
        headers.iter().filter(|part| part.p_type == libc::PT_LOAD && part.p_flags & libc::PF_W == 0);
    for part in constant {
        let number = |value: u64| usize::try_from(value).unwrap_or_default();
        let first = number(info.dlpi_addr).wrapping_add(number(part.p_vaddr));
        // Whole pages of the segment, of which the alignment is a multiple: those at its ends may be another's, too.
        let align = number(part.p_align).max(1);
        let (start, end) = (first.next_multiple_of(align), (first + number(part.p_memsz)) / align * align);
        if start < end {
            // SAFETY: these pages were mapped privately from a file and cannot have been written since, as the segment is
            // not writable: what is read there later comes from the same file, and is the same.
            unsafe {
                libc::madvise(ptr::with_exposed_provenance_mut(start), end - start, libc::MADV_DONTNEED)
            };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    /// A line of the process's status, in KiB.
    fn status(name: &str) -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn the_program_goes_on_with_less_of_it_in_memory() {
        let text = || serde_json::json!({"a": [1, 2.5, "three"]}).to_string();
        let (before, said) = (status("RssFile:"), text());
        give_back();
        let after = status("RssFile:");
        assert!(after < before, "{before} KiB, then {after} KiB");
        assert_eq!(text(), said);
    }

    #[cfg(target_env = "gnu")]
    #[test]
    fn what_a_burst_needed_goes_back() {
        let burst: Vec<Vec<u8>> = (0..512).map(|_| black_box(vec![1; 32 << 10])).collect();
        // Where something lies behind it, the allocator does not give it back by itself.
        let behind = black_box(vec![2_u8; 32 << 10]);
        let most = status("RssAnon:");
        drop(burst);
        give_back();
        let after = status("RssAnon:");
        assert!(after + (8 << 10) < most, "{most} KiB, then {after} KiB");
        drop(behind);
    }
}
