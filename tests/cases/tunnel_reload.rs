//! Certificate files that change while the server runs.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;

use nodepass::wire::fingerprint::Fingerprint;

use crate::support::certificates::Certificates;
use crate::support::each::for_each;
use crate::support::ends::{End, KEY, QUICK};
use crate::support::eventually;
#[cfg(feature = "quic")]
use crate::support::peer::quic::Link;
use crate::support::peer::{PlayedClient, Stream, key};
use crate::support::tunnel::{QUIC, TCP, transports};
use crate::support::visitors::{dial, read_count};

/// What the server shows to whoever comes now, by way of pool type `transport`.
#[track_caller]
fn shown(tunnel: SocketAddr, transport: u8) -> Fingerprint {
    #[cfg(feature = "quic")]
    if transport == QUIC {
        return Link::dial(tunnel).unwrap().fingerprint.unwrap();
    }
    assert_eq!(transport, TCP);
    let stream = Stream::dial(tunnel, true).unwrap();
    stream.fingerprint().unwrap()
}

#[track_caller]
fn check_visitor(server: &End, client: &mut PlayedClient) {
    client.try_fill().unwrap();
    let visitor = dial(server.tcp_address());
    let (_, mut stream) = client.next_visitor();
    stream.write_all(b"served").unwrap();
    stream.flush().unwrap();
    assert_eq!(read_count(&visitor, 6), b"served");
}

/// Puts the files of `new` in the place of those of `old`.
fn replace(old: &Certificates, new: &Certificates) {
    // The key first: a look in between finds two files that do not belong together.
    fs::copy(new.key(), old.key()).unwrap();
    fs::copy(new.chain(), old.chain()).unwrap();
}

#[test]
fn changed_certificate_is_shown_to_new_sessions_and_a_broken_one_is_not() {
    let mut all = transports();
    all.retain(|transport| [TCP, QUIC].contains(transport));
    for_each(&all, |transport| check_change(*transport));
}

fn check_change(transport: u8) {
    let names = [String::from("localhost")];
    let files = Certificates::for_names(&names);
    let (chain, secret) = (files.chain(), files.key());
    let options = format!(
        "mode=1&tls=2&type={transport}&crt={}&key={}",
        chain.display(),
        secret.display()
    );
    let quick = [QUICK, &[("NP_RELOAD_INTERVAL", "200ms")]].concat();
    let server = End::server("127.0.0.1:0", "127.0.0.1:0", &options, &quick);
    let tunnel = server.tunnel_address();
    let first = shown(tunnel, transport);
    let mut early = PlayedClient::join(tunnel, &key(KEY));
    assert_eq!(early.seen, Some(first));
    server.wait_up(1);

    replace(&files, &Certificates::for_names(&names));
    let second = eventually("the new certificate", || {
        let now = shown(tunnel, transport);
        (now != first).then_some(now)
    });
    let mut late = PlayedClient::join(tunnel, &key(KEY));
    assert_eq!(late.seen, Some(second));
    server.wait_up(2);

    fs::write(&chain, "-----BEGIN CERTIFICATE-----\nbroken\n").unwrap();
    server.wait_complaint(&["ERROR", &chain.display().to_string(), "stays in use"]);
    assert_eq!(shown(tunnel, transport), second);
    fs::remove_file(&secret).unwrap();
    server.wait_complaint(&["ERROR", &secret.display().to_string(), "stays in use"]);
    assert_eq!(shown(tunnel, transport), second);

    replace(&files, &Certificates::for_names(&names));
    eventually("the third certificate", || {
        (shown(tunnel, transport) != second).then_some(())
    });
    // Whoever was there all the while has noticed nothing.
    check_visitor(&server, &mut early);
    check_visitor(&server, &mut late);
    assert_eq!(server.ended_count(), 0);
}
