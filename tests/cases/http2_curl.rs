//! curl, by its library nghttp2, at a server with pool type HTTP/2: no client of ours, but one
//! that keeps to the protocol.

use std::net::SocketAddr;
use std::process::{Command, Output};

use crate::support::ends::Reverse;
use crate::support::servers::TcpServer;
use crate::support::visitors::{dial, exchange};

/// Of curl, when its own limit has passed.
const TIMED_OUT: i32 = 28;

/// What curl says at the end: the version of HTTP and the status.
const REPORT: &str = "%{stderr}%{http_version} %{http_code}";

fn curl(server: SocketAddr, path: &str, arguments: &[&str]) -> Output {
    let output = Command::new("curl")
        .args(["--silent", "--insecure", "--max-time", "15"])
        .args(["--noproxy", "*", "--write-out", REPORT])
        .args(arguments)
        .arg(format!("https://{server}{path}"))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .output();
    output.expect("curl is missing: run `make test`, which brings it")
}

/// Whatever curl is told, it is told soon, it is no success, and a visitor does not notice.
#[track_caller]
fn check(arguments: &[(&str, &[&str])]) -> Vec<String> {
    let target = TcpServer::echo();
    let both = Reverse::start(target.address(), "type=3&tls=1", "min=4");
    let visitor = dial(both.entry);
    exchange(&visitor, b"before");
    let mut reports = Vec::new();
    for (path, arguments) in arguments {
        let output = curl(both.tunnel, path, arguments);
        let report = String::from_utf8_lossy(&output.stderr).into_owned();
        let what = format!("{arguments:?} {path}: {report}, {}", output.status);
        assert_ne!(output.status.code(), Some(TIMED_OUT), "{what}");
        assert!(!report.ends_with(" 200"), "{what}");
        exchange(&visitor, b"undisturbed");
        exchange(&dial(both.entry), b"served all the same");
        reports.push(report);
    }
    assert_eq!(both.client.ended_count(), 0);
    reports
}

#[test]
fn curl_is_answered_or_refused_without_harm() {
    let reports = check(&[
        ("/", &["--http2"]),
        ("/stream", &["--http2"]),
        ("/stream", &["--http2", "--data-binary", "\u{1}"]),
        ("/stream", &["--http2", "--data-binary", "no ticket"]),
        ("/other", &["--http2", "--request", "PUT", "--data", "x"]),
        (
            "/stream",
            &["--http2", "--header", "nodepass-ticket: 00", "--data", "x"],
        ),
        ("/", &["--http2-prior-knowledge"]),
        ("/", &["--http2", "--head"]),
    ]);
    // It does get as far as that.
    let spoke = reports
        .iter()
        .filter(|report| report.starts_with("2 "))
        .count();
    assert!(spoke > 0, "HTTP/2 was never spoken: {reports:?}");
}

#[test]
fn curl_without_http2_is_answered_as_a_handshake() {
    let reports = check(&[
        ("/", &["--http1.1"]),
        ("/other", &["--http1.1"]),
        ("/", &["--http1.1", "--data", "x"]),
        ("/", &["--no-alpn"]),
    ]);
    // RFC 9110 and section 3 of the wire protocol: no token, no such path, no such method.
    assert_eq!(reports[..3], ["1.1 401", "1.1 404", "1.1 405"]);
    assert_eq!(reports[3], "1.1 401");
}
