//! How many descriptors this process may have open.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as the system allows, and returns it.
pub fn raise_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // Where it is refused, the present limit stays.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        );
    }
    let granted = getrlimit(Resource::Nofile).current;
    granted.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

/// Makes sure that `count` descriptors are free at this moment.
///
/// Errors: they are not; a retry can help.
#[cfg(feature = "master")]
pub fn check_spare(count: usize) -> io::Result<()> {
    let held: io::Result<Vec<OwnedFd>> = (0..count).map(|_| take_one()).collect();
    held.map(drop)
}

/// Takes a descriptor that is good for nothing but to be given back. No file has to be there for it.
///
/// Errors: none is free.
pub fn take_one() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC)?)
}
