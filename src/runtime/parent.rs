//! The bond between an instance and its master: who loses its master ends.

use std::io;

use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

/// Environment variable by which a master tells an instance its process id.
pub const MASTER_VARIABLE: &str = "NP_MASTER_PID";

/// Returns the process id of this process, as [`end_with_parent`] takes it.
pub fn own_id() -> String {
    getpid().to_string()
}

/// Has the system kill this process when its parent, which says that it is process `id`, ends in
/// whatever way.
///
/// Errors: the parent has ended already, or the system refuses.
pub fn end_with_parent(id: &str) -> io::Result<()> {
    // A stop could be slow, or hang, and the next master needs the ports.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before that.
    if getppid().map(|parent: Pid| parent.to_string()).as_deref() != Some(id) {
        return Err(io::Error::other(format!(
            "{MASTER_VARIABLE} names process {id}, which is not the parent of this one"
        )));
    }
    Ok(())
}
