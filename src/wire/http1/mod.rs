//! HTTP/1.0 and 1.1 for a front: requests of strangers are checked and written anew, answers of
//! the server behind are passed on.
//!
//! | module | owns |
//! |---|---|
//! | [`request`] | heads of requests, and what is wrong with them |
//! | [`chunks`] | bodies in chunks |
//! | [`answer`] | heads of answers, and where an answer ends |
//!
//! Source: RFC 9110, RFC 9112.

pub mod answer;
pub mod chunks;
pub mod request;

/// Returns what stands behind the status in the first line of an answer.
pub fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        408 => "Request Timeout",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// Fields that belong to one connection and not to the message, and those that are written anew
/// (RFC 9110 section 7.6.1).
const FIELDS_OF_CONNECTION: [&str; 9] = [
    "Connection",
    "Content-Length",
    "Expect",
    "Keep-Alive",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
];

/// Returns the items of a list, as some fields have one; blanks around them taken off.
fn items(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}
