//! The API over TLS.

use std::fs;
use std::process::Command;

use nodepass::wire::fingerprint::Fingerprint;
use serde_json::Value;

use crate::support::certificates::Certificates;
use crate::support::eventually;
use crate::support::http::{Connection, raw};
use crate::support::master::{KEY_ENTRY, Master, Settings, StateFolder, id_of};

/// An instance that runs and has nothing to do.
const IDLE: &str = "client://127.0.0.1:0/127.0.0.1:9?mode=1";

/// What the master shows to whoever comes now.
#[track_caller]
fn shown(master: &Master) -> Fingerprint {
    master.dial().unwrap().stream().fingerprint().unwrap()
}

fn files_options(files: &Certificates) -> String {
    let (chain, key) = (files.chain(), files.key());
    format!(
        "log=info&tls=2&crt={}&key={}",
        chain.display(),
        key.display()
    )
}

/// What curl says of the list of instances.
fn curl(master: &Master, arguments: &[&str]) -> Result<Value, String> {
    let url = format!(
        "https://localhost:{}{}",
        master.address().port(),
        master.path("/instances")
    );
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--resolve"])
        .arg(format!("localhost:{}:127.0.0.1", master.address().port()))
        .args(["-H", &format!("X-API-Key: {}", master.key()), &url])
        .args(arguments)
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn certificate_of_its_own_making_serves_the_whole_api() {
    let master = Master::start_with(Settings::default().options("log=info&tls=1"));
    let line = master.wait_for("API listening on tcp ");
    assert!(line.contains("https://"), "{line}");
    let events = master.events();
    events.wait_kind("initial", KEY_ENTRY);
    let id = id_of(&master.create(IDLE, "over TLS"));
    assert_eq!(
        events.wait_kind("create", &id)["instance"]["alias"],
        "over TLS"
    );
    master.wait_status(&id, "running");
    // Many requests on one connection.
    let mut connection = master.dial().unwrap();
    for _ in 0..20 {
        let fields = [("X-API-Key", master.key())];
        let path = master.path(&format!("/instances/{id}"));
        let answer = connection.request("GET", &path, &fields, None).unwrap();
        assert_eq!(id_of(&answer.json()), id);
    }
    assert_eq!(curl(&master, &["-k"]).unwrap()[1]["id"], *id);
    let refused = curl(&master, &[]).unwrap_err();
    assert!(refused.contains("certificate"), "{refused}");
    let (status, info) = master.get("/info");
    assert_eq!((status, &info["tls"]), (200, &Value::from("1")));
    // One that speaks no TLS gets no answer, and nobody is held up by it.
    let answer = raw(
        master.address(),
        b"GET /api/v1/instances HTTP/1.1\r\nHost: x\r\n\r\n",
    );
    assert!(!answer.starts_with(b"HTTP/1.1 2"), "{answer:?}");
    assert_eq!(master.get("/info").0, 200);
}

#[test]
fn certificate_from_files_is_served_with_its_chain() {
    let files = Certificates::for_names(&[String::from("localhost")]);
    let master = Master::start_with(Settings::default().options(&files_options(&files)));
    let roots = files.roots();
    let list = curl(&master, &["--cacert", roots.to_str().unwrap()]).unwrap();
    assert_eq!(list[0]["id"], KEY_ENTRY);
    let (_, info) = master.get("/info");
    assert_eq!(info["tls"], "2");
    assert_eq!(info["crt"], files.chain().to_str().unwrap());
    assert_eq!(info["key"], files.key().to_str().unwrap());
}

#[test]
fn changed_certificate_is_shown_and_a_broken_one_is_not() {
    let names = [String::from("localhost")];
    let files = Certificates::for_names(&names);
    let settings = Settings::default()
        .options(&files_options(&files))
        .env("NP_RELOAD_INTERVAL", "200ms");
    let master = Master::start_with(settings);
    let first = shown(&master);
    let events = master.events();
    events.wait_kind("initial", KEY_ENTRY);

    let next = Certificates::for_names(&names);
    fs::copy(next.key(), files.key()).unwrap();
    fs::copy(next.chain(), files.chain()).unwrap();
    let second = eventually("the new certificate", || {
        let now = shown(&master);
        (now != first).then_some(now)
    });
    fs::write(files.chain(), "-----BEGIN CERTIFICATE-----\nbroken\n").unwrap();
    master.wait_complaint(&["ERROR", files.chain().to_str().unwrap()]);
    assert_eq!(shown(&master), second);
    // Whoever was there all the while has noticed nothing.
    let id = id_of(&master.create(IDLE, ""));
    events.wait_kind("create", &id);
}

#[test]
fn files_that_are_no_good_are_an_error_at_start() {
    let folder = StateFolder::new();
    let files = Certificates::for_names(&[String::from("localhost")]);
    let options = files_options(&files);
    fs::remove_file(files.key()).unwrap();
    let outcome = Settings::default()
        .options(&options)
        .launch(folder.path())
        .run();
    assert!(matches!(outcome.status, 1 | 2), "{outcome:?}");
    let said = outcome.output + &outcome.errors;
    assert!(said.contains(files.key().to_str().unwrap()), "{said}");
    let outcome = Settings::default()
        .options("tls=2")
        .launch(folder.path())
        .run();
    assert_eq!(outcome.status, 2, "{outcome:?}");
    assert!(outcome.errors.contains("crt"), "{outcome:?}");
}

#[test]
fn connections_that_break_off_in_the_handshake_hold_up_nobody() {
    let master = Master::start_with(Settings::default().options("log=info&tls=1"));
    let silent: Vec<Connection> = (0..20)
        .map(|_| Connection::dial(master.address()).unwrap())
        .collect();
    for begin in [
        &b"\x16\x03\x01"[..],
        b"\x16\x03\x01\xff\xff",
        b"\0\0\0\0",
        &[0xff; 4096],
    ] {
        let mut connection = Connection::dial(master.address()).unwrap();
        connection.send_raw(begin).unwrap();
        drop(connection);
        assert_eq!(master.get("/info").0, 200);
    }
    drop(silent);
    assert_eq!(master.get("/instances").0, 200);
}
