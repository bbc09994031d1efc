//! The URL as a line of standard input, where no other user can see it.

use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use super::event::timespec;
use crate::limits::{STDIN_TIMEOUT, URL_SIZE_MAX};

/// Reads the first line of standard input.
///
/// Blocks: until the line is complete or standard input ends, at most `STDIN_TIMEOUT`.
/// Errors: no line in time, one that is too long or not text; the message says which.
pub fn read_url() -> Result<String, String> {
    let deadline = Instant::now() + STDIN_TIMEOUT;
    let mut line = Vec::new();
    let mut buffer = [0; 1024];
    let end = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let seconds = STDIN_TIMEOUT.as_secs();
            return Err(format!("no URL came on standard input within {seconds} s"));
        }
        let stdin = rustix::stdio::stdin();
        let mut set = [PollFd::from_borrowed_fd(stdin, PollFlags::IN)];
        match rustix::event::poll(&mut set, Some(&timespec(left))) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            _ => {}
        }
        let size = rustix::io::read(stdin, &mut buffer)
            .map_err(|error| format!("cannot read the URL from standard input: {error}"))?;
        line.extend_from_slice(&buffer[..size]);
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            break end;
        }
        if size == 0 {
            break line.len();
        }
        if line.len() > URL_SIZE_MAX {
            return Err(format!(
                "the URL on standard input is longer than {URL_SIZE_MAX} bytes"
            ));
        }
    };
    line.truncate(end);
    let text = String::from_utf8(line)
        .map_err(|_| String::from("the URL on standard input is not UTF-8 text"))?;
    match text.trim() {
        "" => Err(String::from("standard input has no URL on its first line")),
        url => Ok(url.to_owned()),
    }
}
