//! How many descriptors this process may have open.

#[cfg(feature = "master")]
use std::fs::File;
#[cfg(feature = "master")]
use std::io;

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
    let open = |_| File::open("/dev/null");
    (0..count)
        .map(open)
        .collect::<io::Result<Vec<File>>>()
        .map(drop)
}
