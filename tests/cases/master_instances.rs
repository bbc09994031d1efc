//! Instances: what the API says of them, and the children that they are.

use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::certificates::Certificates;
use crate::support::master::{Master, Process, Settings, id_of, is_about};
use crate::support::program::forward_url;
use crate::support::servers::{TcpServer, echo_both};
use crate::support::visitors::{
    dial, exchange, exchange_datagram, read_count, try_dial, try_exchange, udp_visitor,
    wait_refused,
};
use crate::support::{eventually, free_address, free_address_beside};

/// A forwarder at `address`.
fn forwarder(address: SocketAddr, target: SocketAddr) -> String {
    format!("client://{address}/{target}?mode=1")
}

/// Waits until visitors at `address` get their bytes back.
#[track_caller]
fn wait_served(address: SocketAddr) {
    eventually("a visitor that is served", || {
        try_exchange(&try_dial(address).ok()?, b"anyone there").ok()
    });
}

/// The name of the server behind `address`, which says one letter first.
#[track_caller]
fn wait_name(address: SocketAddr, name: &str) {
    eventually(name, || {
        let visitor = try_dial(address).ok()?;
        let mut found = [0];
        std::io::Read::read_exact(&mut &visitor, &mut found).ok()?;
        (found == name.as_bytes()).then_some(())
    });
}

/// The values of an option in a URL, decoded as far as paths need it.
fn option(url: &str, name: &str) -> Vec<String> {
    let (_, options) = url.split_once('?').unwrap();
    options
        .split('&')
        .filter_map(|option| option.split_once('='))
        .filter(|(other, _)| *other == name)
        .map(|(_, value)| value.replace("%2F", "/").replace("%2f", "/"))
        .collect()
}

#[track_caller]
fn text<'a>(instance: &'a Value, name: &str) -> &'a str {
    instance[name].as_str().unwrap()
}

// Running.

#[test]
fn created_instances_make_a_tunnel_that_carries_traffic() {
    let (tcp, _udp) = echo_both();
    let master = Master::start();
    let server = master.create_running("server://k3y@127.0.0.1:0/127.0.0.1:0?mode=1");
    let tunnel = master.wait_address(&server, "Tunnel listening on tcp ", 1);
    let entry = master.wait_address(&server, " Listening on tcp ", 1);
    let datagrams_entry = master.wait_address(&server, " Listening on udp ", 1);
    let url = format!("client://k3y@{tunnel}/{}?mode=2&min=4", tcp.address());
    let client = master.create_running(&url);
    wait_served(entry);
    let before = master.instance(&server)["tcprx"].as_u64().unwrap();
    let visitor = dial(entry);
    exchange(&visitor, &[b'x'; 100_000]);
    let datagrams = udp_visitor(datagrams_entry);
    exchange_datagram(&datagrams, &[b'y'; 1000]);
    for id in [&server, &client] {
        let now = master.wait_instance(id, "figures", |instance| {
            instance["tcps"] == 1
                && instance["udps"] == 1
                && instance["udprx"] == 1000
                && instance["udptx"] == 1000
                && instance["tcprx"].as_u64() >= Some(before + 100_000)
                && instance["tcprx"] == instance["tcptx"]
        });
        assert_eq!(now["status"], "running", "{now}");
    }
    assert_eq!(master.instance(&server)["mode"], 1);
    assert_eq!(master.instance(&client)["mode"], 2);
    assert_eq!(master.children().len(), 2);
    assert_eq!(master.delete(&format!("/instances/{client}")).0, 204);
    assert_eq!(master.children().len(), 1);
}

#[test]
fn url_of_an_instance_is_in_no_argument_and_no_variable() {
    let target = TcpServer::echo();
    let master = Master::start();
    let url = format!(
        "client://sup3rsecret@127.0.0.1:0/{}?mode=1",
        target.address()
    );
    master.create_running(&url);
    let child = master.wait_child();
    let arguments = child.arguments();
    assert_eq!(arguments[1..], ["-"], "{arguments:?}");
    for text in arguments.iter().chain(&child.environment()) {
        assert!(!text.contains("sup3rsecret"), "{text}");
    }
    for line in master.lines() {
        assert!(!line.contains("sup3rsecret"), "{line}");
    }
    assert_eq!(master.errors(), "");
}

#[test]
fn url_is_completed_by_the_master_and_config_by_defaults() {
    let files = Certificates::for_names(&[String::from("localhost")]);
    let (chain, key) = (files.chain(), files.key());
    let (chain, key) = (chain.to_str().unwrap(), key.to_str().unwrap());
    let options = format!("log=debug&tls=2&crt={chain}&key={key}");
    let master = Master::start_with(Settings::default().options(&options));

    let server = master.create("server://127.0.0.1:0/127.0.0.1:0?mode=1", "");
    for url in [text(&server, "url"), text(&server, "config")] {
        assert_eq!(option(url, "log"), ["debug"], "{url}");
        assert_eq!(option(url, "tls"), ["2"], "{url}");
        assert_eq!(option(url, "crt"), [chain], "{url}");
        assert_eq!(option(url, "key"), [key], "{url}");
        assert_eq!(option(url, "mode"), ["1"], "{url}");
    }
    // What the URL says counts.
    let server = master.create(
        "server://127.0.0.1:0/127.0.0.1:0?mode=1&tls=1&log=error",
        "",
    );
    for url in [text(&server, "url"), text(&server, "config")] {
        assert_eq!(option(url, "log"), ["error"], "{url}");
        assert_eq!(option(url, "tls"), ["1"], "{url}");
    }
    let client = master.create(
        "client://127.0.0.1:0/127.0.0.1:9?mode=1&read=90s&dns=300s",
        "",
    );
    assert_eq!(option(text(&client, "url"), "log"), ["debug"]);
    for url in [text(&client, "url"), text(&client, "config")] {
        for name in ["tls", "crt", "key"] {
            assert!(option(url, name).is_empty(), "{url}");
        }
    }
    let config = text(&client, "config");
    assert_eq!(option(config, "read"), ["1m30s"], "{config}");
    assert_eq!(option(config, "dns"), ["5m0s"], "{config}");
    for (name, value) in [
        ("rate", "0"),
        ("slot", "65536"),
        ("lbs", "0"),
        ("auth", "0"),
    ] {
        assert_eq!(option(config, name), [value], "{config}");
    }
    for instance in master.instances() {
        master.wait_status(&id_of(&instance), "running");
    }
}

#[test]
fn start_stop_and_restart_do_what_they_say() {
    let target = TcpServer::echo();
    let address = free_address_beside(&[target.address()]);
    let master = Master::start();
    let id = master.create_running(&forwarder(address, target.address()));
    wait_served(address);
    let first = master.wait_child();

    // A second start changes nothing.
    master.act(&id, "start");
    master.act(&id, "stop");
    master.wait_status(&id, "stopped");
    first.wait_gone();
    assert!(master.children().is_empty());
    wait_refused(address);
    // Neither does a second stop.
    master.act(&id, "stop");
    master.act(&id, "start");
    master.wait_status(&id, "running");
    wait_served(address);
    let second = master.wait_child();
    assert_ne!(first, second);

    master.act(&id, "restart");
    second.wait_gone();
    wait_served(address);
    let third = master.wait_child();
    assert_ne!(second, third);

    master.act(&id, "stop");
    master.wait_status(&id, "stopped");
    master.act(&id, "restart");
    master.wait_status(&id, "running");
    wait_served(address);
    master.wait_child();
}

#[test]
fn child_that_does_not_end_is_killed() {
    let target = TcpServer::echo();
    let master = Master::start();
    let id = master.create_running(&forward_url(target.address(), ""));
    let child = master.wait_child();
    // It cannot even hear that it should end.
    child.signal(Signal::STOP);
    let asked_at = Instant::now();
    master.act(&id, "stop");
    child.wait_gone();
    let elapsed = asked_at.elapsed();
    assert!(
        elapsed >= Duration::from_millis(4500),
        "killed after {elapsed:?}"
    );
    master.wait_status(&id, "stopped");
    assert!(master.children().is_empty());
}

#[test]
fn other_url_takes_the_place_of_the_one_before() {
    let (one, two) = (TcpServer::banner("1"), TcpServer::banner("2"));
    let targets = [one.address(), two.address()];
    let (first, second) = (free_address_beside(&targets), free_address_beside(&targets));
    let master = Master::start();
    let id = master.create_running(&forwarder(first, one.address()));
    let path = format!("/instances/{id}");
    wait_name(first, "1");
    let child = master.wait_child();

    let same = json!({"url": forwarder(first, one.address())});
    assert_eq!(master.put(&path, &same).0, 409);
    let spelled = json!({"url": text(&master.instance(&id), "url")});
    assert_eq!(master.put(&path, &spelled).0, 409);
    for (body, words) in [
        (json!({}), "Invalid request body"),
        (json!({"url": ""}), "Invalid request body"),
        (
            json!({"url": "master://127.0.0.1:0/api"}),
            "Invalid URL scheme",
        ),
        (
            json!({"url": format!("{}&rate=much", forwarder(first, one.address()))}),
            "rate",
        ),
    ] {
        let (status, answer) = master.put(&path, &body);
        assert_eq!(status, 400, "{body}: {answer}");
        assert!(text(&answer, "error").contains(words), "{body}: {answer}");
    }
    assert!(child.is_alive(), "what was refused has changed something");

    let (status, answer) = master.put(&path, &json!({"url": forwarder(second, two.address())}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["id"], *id);
    assert!(
        text(&answer, "url").contains(&second.to_string()),
        "{answer}"
    );
    assert!(
        text(&answer, "config").contains(&second.to_string()),
        "{answer}"
    );
    wait_name(second, "2");
    wait_refused(first);
    child.wait_gone();
    master.wait_status(&id, "running");
    // From one kind to another.
    let server = json!({"url": "server://127.0.0.1:0/127.0.0.1:0?mode=1"});
    let (status, answer) = master.put(&path, &server);
    assert_eq!((status, text(&answer, "type")), (200, "server"), "{answer}");
    master.wait_instance(&id, "a running server", |now| {
        now["status"] == "running" && now["type"] == "server"
    });
    master.wait_child();
}

#[test]
fn deleted_instance_has_ended_when_the_answer_is_there() {
    let target = TcpServer::echo();
    let address = free_address_beside(&[target.address()]);
    let master = Master::start();
    let id = master.create_running(&forwarder(address, target.address()));
    wait_served(address);
    let visitor = dial(address);
    exchange(&visitor, b"holds it up");
    let child = master.wait_child();
    let (status, answer) = master.delete(&format!("/instances/{id}"));
    assert_eq!((status, &answer), (204, &Value::Null));
    assert!(!child.is_alive());
    assert!(try_dial(address).is_err());
    for path in [
        format!("/instances/{id}"),
        String::from("/instances/00000000"),
    ] {
        assert_eq!(master.get(&path).0, 404);
        assert_eq!(master.delete(&path).0, 404);
        assert_eq!(master.patch(&path, &json!({})).0, 404);
        assert_eq!(
            master
                .put(&path, &json!({"url": forwarder(address, address)}))
                .0,
            404
        );
    }
    assert!(master.instances().is_empty());
    // Its port is free for the next one.
    let next = master.create_running(&forwarder(address, target.address()));
    assert_ne!(next, id);
    wait_served(address);
}

#[test]
fn deleted_instance_that_does_not_end_is_killed() {
    let target = TcpServer::echo();
    let master = Master::start();
    let id = master.create_running(&forward_url(target.address(), ""));
    let child = master.wait_child();
    child.signal(Signal::STOP);
    assert_eq!(master.delete(&format!("/instances/{id}")).0, 204);
    assert!(!child.is_alive());
    assert!(master.children().is_empty());
}

// Failing.

/// Waits for a child other than `before`.
#[track_caller]
fn wait_next(master: &Master, before: Process) -> Process {
    eventually("another child", || {
        let mut children = master.children();
        children.retain(|child| *child != before);
        children.pop()
    })
}

#[test]
fn killed_child_comes_back() {
    let target = TcpServer::echo();
    let address = free_address_beside(&[target.address()]);
    let master = Master::start();
    let id = master.create_running(&forwarder(address, target.address()));
    wait_served(address);
    for _ in 0..2 {
        let child = master.wait_child();
        child.signal(Signal::KILL);
        wait_next(&master, child);
        wait_served(address);
        master.wait_status(&id, "running");
    }
}

#[test]
fn children_that_keep_dying_come_back_less_and_less_often() {
    const COOLDOWN: Duration = Duration::from_millis(500);
    let target = TcpServer::echo();
    // No checkpoint ever says that one of them does well.
    let settings = Settings::default()
        .env("NP_SERVICE_COOLDOWN", "500ms")
        .env("NP_REPORT_INTERVAL", "1h");
    let master = Master::start_with(settings);
    master.create(&forward_url(target.address(), ""), "");
    let mut child = master.wait_child();
    for factor in [1, 2, 4] {
        let killed_at = Instant::now();
        child.signal(Signal::KILL);
        child = wait_next(&master, child);
        let elapsed = killed_at.elapsed();
        // The jitter may take a quarter away.
        let least = COOLDOWN * factor * 7 / 10;
        assert!(elapsed >= least, "back after {elapsed:?} and not {least:?}");
    }
}

#[test]
fn killed_child_without_restart_stays_away() {
    let target = TcpServer::echo();
    let master = Master::start();
    let id = master.create_running(&forward_url(target.address(), ""));
    let child = master.wait_child();
    assert_eq!(
        master.change(&id, &json!({"restart": false}))["restart"],
        false
    );
    child.signal(Signal::KILL);
    let instance = master.wait_status(&id, "error");
    assert_eq!(instance["restart"], false);
    // Meanwhile another one comes back three times.
    master.create_running(&forward_url(target.address(), ""));
    for _ in 0..3 {
        let other = master.wait_child();
        other.signal(Signal::KILL);
        wait_next(&master, other);
    }
    assert_eq!(master.instance(&id)["status"], "error");
    master.act(&id, "start");
    master.wait_status(&id, "running");
    master.wait_children(2);
}

#[test]
fn stopped_child_does_not_come_back() {
    let target = TcpServer::echo();
    let master = Master::start();
    let stopped = master.create_running(&forward_url(target.address(), ""));
    master.act(&stopped, "stop");
    master.wait_status(&stopped, "stopped");
    let other = master.create_running(&forward_url(target.address(), ""));
    for _ in 0..3 {
        let child = master.wait_child();
        child.signal(Signal::KILL);
        wait_next(&master, child);
    }
    assert_eq!(master.instance(&stopped)["status"], "stopped");
    // Stopped while it waits to come back: it stays away as well.
    master.wait_child().signal(Signal::KILL);
    master.act(&other, "stop");
    master.wait_status(&other, "stopped");
    assert!(master.children().is_empty());
}

#[test]
fn taken_port_is_an_error_until_it_is_free() {
    let target = TcpServer::echo();
    let address = free_address_beside(&[target.address()]);
    let holder = TcpListener::bind(address).unwrap();
    let master = Master::start();
    let id = id_of(&master.create(&forwarder(address, target.address()), ""));
    master.wait_status(&id, "error");
    drop(holder);
    master.wait_status(&id, "running");
    wait_served(address);
}

#[test]
fn client_without_its_server_stays_an_error_until_it_is_there() {
    let tunnel = free_address();
    let master = Master::start();
    let events = master.events();
    let client = id_of(&master.create(&format!("client://k3y@{tunnel}/127.0.0.1:9?mode=2"), ""));
    // It does not look well between two attempts to reach its server.
    events.wait("three attempts that fail", |all| {
        let is_failure = |event: &&Value| {
            let line = event["logs"].as_str().unwrap_or_default();
            is_about(event, "log", &client) && line.contains("Client error: ")
        };
        (all.iter().filter(is_failure).count() >= 3).then_some(())
    });
    let statuses: Vec<Value> = events
        .all()
        .iter()
        .filter(|event| is_about(event, "update", &client))
        .map(|event| event["instance"]["status"].clone())
        .collect();
    let is_error = |status: &&Value| **status == "error";
    let healthy = statuses.iter().skip_while(|status| !is_error(status));
    assert!(healthy.clone().count() > 0, "{statuses:?}");
    assert!(
        healthy.clone().all(|status| status == "error"),
        "{statuses:?}"
    );
    assert_eq!(master.instance(&client)["status"], "error");
    let server = format!("server://k3y@{tunnel}/127.0.0.1:0?mode=1");
    master.create_running(&server);
    master.wait_instance(&client, "the client with its server", |now| {
        now["status"] == "running" && now["mode"] == 2
    });
}

#[test]
fn silent_child_is_an_error_until_it_speaks() {
    let target = TcpServer::echo();
    let master = Master::start();
    let id = master.create_running(&forward_url(target.address(), ""));
    let child = master.wait_child();
    child.signal(Signal::STOP);
    master.wait_status(&id, "error");
    child.signal(Signal::CONT);
    master.wait_status(&id, "running");
    assert!(child.is_alive());
}

#[test]
fn target_that_is_gone_is_no_error_of_the_instance() {
    let gone = free_address();
    let address = free_address_beside(&[gone]);
    let master = Master::start();
    let id = master.create_running(&forwarder(address, gone));
    // The visitor is let in, and its connection ends when nobody answers behind.
    let visitor = eventually("a listener", || try_dial(address).ok());
    let _ = std::io::Read::read(&mut &visitor, &mut [0]);
    let later = master.wait_instance(&id, "another report", |now| now["tcps"] == 0);
    assert_eq!(later["status"], "running");
}

// Figures.

#[test]
fn counts_go_on_over_restarts_until_they_are_reset() {
    let (tcp, _udp) = echo_both();
    let address = free_address_beside(&[tcp.address()]);
    let mut master = Master::start();
    let id = master.create_running(&forwarder(address, tcp.address()));
    let mut expected = 0;
    // What tells whether it serves counts as well.
    let mut send = |master: &Master, size: u64| {
        let bytes = vec![b'x'; usize::try_from(size).unwrap()];
        let visitor = eventually("a listener", || try_dial(address).ok());
        exchange(&visitor, &bytes);
        exchange_datagram(&udp_visitor(address), &bytes);
        expected += size;
        let wanted = expected;
        let names = ["tcprx", "tcptx", "udprx", "udptx"];
        master.wait_instance(&id, &format!("counts of {wanted}"), |now| {
            names.iter().all(|name| now[*name] == wanted)
        });
        wanted
    };
    send(&master, 1000);
    let before = master.wait_child();
    master.act(&id, "restart");
    wait_next(&master, before);
    send(&master, 500);
    let before = master.wait_child();
    before.signal(Signal::KILL);
    wait_next(&master, before);
    send(&master, 250);
    master.act(&id, "stop");
    let stopped = master.wait_status(&id, "stopped");
    assert_eq!(stopped["tcprx"], 1750, "{stopped}");
    master.act(&id, "start");
    send(&master, 125);
    master.restart();
    let instance = master.instance(&id);
    assert_eq!(instance["tcprx"], 1875, "{instance}");
    let total = send(&master, 25);
    assert_eq!(total, 1900);

    let names = ["tcprx", "tcptx", "udprx", "udptx"];
    let answer = master.act(&id, "reset");
    assert_eq!(answer["status"], "running", "{answer}");
    master.wait_instance(&id, "counts of nothing", |now| {
        names.iter().all(|name| now[*name] == 0)
    });
    exchange(&dial(address), &[b'x'; 70]);
    exchange_datagram(&udp_visitor(address), &[b'x'; 70]);
    master.wait_instance(&id, "counts from nothing", |now| {
        names.iter().all(|name| now[*name] == 70)
    });
    master.restart();
    exchange(
        &eventually("a listener", || try_dial(address).ok()),
        &[b'x'; 7],
    );
    master.wait_instance(&id, "counts that go on", |now| {
        now["tcprx"] == 77 && now["udprx"] == 70
    });
}

#[test]
fn bytes_between_the_last_report_and_the_end_are_counted() {
    let target = TcpServer::echo();
    let address = free_address_beside(&[target.address()]);
    let settings = Settings::default().env("NP_REPORT_INTERVAL", "1h");
    let master = Master::start_with(settings);
    let id = id_of(&master.create(&forwarder(address, target.address()), ""));
    let visitor = eventually("a listener", || try_dial(address).ok());
    exchange(&visitor, &[b'x'; 1234]);
    drop(visitor);
    master.act(&id, "stop");
    master.wait_instance(&id, "the end with its count", |now| {
        now["status"] == "stopped" && now["tcprx"] == 1234 && now["tcptx"] == 1234
    });
}

#[test]
fn instance_without_a_log_runs_and_has_figures() {
    let target = TcpServer::echo();
    let address = free_address_beside(&[target.address()]);
    let master = Master::start();
    let events = master.events();
    let url = format!("{}&log=none", forwarder(address, target.address()));
    let instance = master.create(&url, "");
    let id = id_of(&instance);
    assert_eq!(option(text(&instance, "url"), "log"), ["none"]);
    master.wait_instance(&id, "running with a mode", |now| {
        now["status"] == "running" && now["mode"] == 1
    });
    let visitor = dial(address);
    exchange(&visitor, &[b'x'; 4321]);
    master.wait_instance(&id, "its figures", |now| {
        now["tcprx"] == 4321 && now["tcps"] == 1
    });
    drop(visitor);
    master.wait_instance(&id, "its figures", |now| now["tcps"] == 0);
    let logged = |event: &&Value| event["type"] == "log";
    let all = events.all();
    assert!(all.iter().find(logged).is_none(), "{all:#?}");
    let mark = format!("[{id}]");
    assert_eq!(master.count(&mark), 0);
}

// Rules.

#[test]
fn alias_has_256_characters_at_most() {
    let master = Master::start();
    // Each of these characters is three bytes.
    let longest = "語".repeat(256);
    let too_long = "a".repeat(257);
    let url = "client://127.0.0.1:0/127.0.0.1:9?mode=1";
    let instance = master.create(url, &longest);
    assert_eq!(instance["alias"], *longest);
    let (status, answer) = master.post("/instances", &json!({"url": url, "alias": too_long}));
    assert_eq!(status, 400, "{answer}");
    let text = "Instance alias exceeds maximum length 256";
    assert!(
        answer["error"].as_str().unwrap().starts_with(text),
        "{answer}"
    );
    assert_eq!(master.instances().len(), 1);

    let id = id_of(&instance);
    let path = format!("/instances/{id}");
    let (status, answer) = master.patch(&path, &json!({"alias": too_long, "restart": false}));
    assert_eq!(status, 400, "{answer}");
    assert!(
        answer["error"].as_str().unwrap().starts_with(text),
        "{answer}"
    );
    // Nothing of a change that was refused is there.
    let now = master.instance(&id);
    assert_eq!(
        (&now["alias"], &now["restart"]),
        (&json!(longest), &json!(true))
    );
    assert_eq!(
        master.change(&id, &json!({"alias": "short"}))["alias"],
        "short"
    );
    assert_eq!(master.instance(&id)["alias"], "short");
}

#[test]
fn alias_of_the_master_is_the_one_of_the_key_entry() {
    let master = Master::start();
    let (status, info) = master.post("/info", &json!({"alias": "the \"first\" – Ⅰ"}));
    assert_eq!((status, text(&info, "alias")), (200, "the \"first\" – Ⅰ"));
    assert_eq!(text(&master.list()[0], "alias"), "the \"first\" – Ⅰ");
    let long = "x".repeat(257);
    assert_eq!(master.post("/info", &json!({"alias": long})).0, 400);
    let answer = master.change("********", &json!({"alias": "second"}));
    assert_eq!(text(&answer, "alias"), "second");
    let (status, info) = master.get("/info");
    assert_eq!((status, text(&info, "alias")), (200, "second"));
    assert_eq!(text(&info, "mid"), text(&master.list()[0], "config"));
}

#[test]
fn meta_is_changed_as_it_should_be() {
    let master = Master::start();
    let instance = master.create("client://127.0.0.1:0/127.0.0.1:9?mode=1", "");
    let id = id_of(&instance);
    let empty = json!({"peer": {"sid": "", "type": "", "alias": ""}, "tags": {}});
    assert_eq!(instance["meta"], empty);
    let peer = json!({"sid": "S1", "type": "1", "alias": "far"});
    for (change, expected) in [
        (
            json!({"peer": peer, "tags": {"k": "v", "k2": ""}}),
            json!({"peer": peer, "tags": {"k": "v", "k2": ""}}),
        ),
        // Either alone leaves the other one as it is.
        (
            json!({"tags": {"only": "1"}}),
            json!({"peer": peer, "tags": {"only": "1"}}),
        ),
        (
            json!({"peer": {"sid": "S2", "type": "2", "alias": "near"}}),
            json!({"peer": {"sid": "S2", "type": "2", "alias": "near"}, "tags": {"only": "1"}}),
        ),
        // Nothing changes nothing.
        (
            json!({"peer": {}}),
            json!({"peer": {"sid": "S2", "type": "2", "alias": "near"}, "tags": {"only": "1"}}),
        ),
        (
            json!({}),
            json!({"peer": {"sid": "S2", "type": "2", "alias": "near"}, "tags": {"only": "1"}}),
        ),
        (
            json!({"peer": null, "tags": null}),
            json!({"peer": {"sid": "S2", "type": "2", "alias": "near"}, "tags": {"only": "1"}}),
        ),
        // One member alone, and one that is taken away.
        (
            json!({"peer": {"sid": null, "alias": "new"}}),
            json!({"peer": {"sid": "", "type": "2", "alias": "new"}, "tags": {"only": "1"}}),
        ),
        (
            json!({"peer": {"type": null, "alias": null}, "tags": {}}),
            empty.clone(),
        ),
    ] {
        let answer = master.change(&id, &json!({"meta": change}));
        assert_eq!(answer["meta"], expected, "{change}");
        assert_eq!(master.instance(&id)["meta"], expected, "{change}");
    }
    let (longest, too_long) = ("語".repeat(256), "x".repeat(257));
    for member in ["sid", "type", "alias"] {
        let change = |value: &str| json!({"meta": {"peer": {member: value}}});
        let path = format!("/instances/{id}");
        assert_eq!(master.patch(&path, &change(&longest)).0, 200, "{member}");
        let (status, answer) = master.patch(&path, &change(&too_long));
        assert_eq!(status, 400, "{member}: {answer}");
    }
    let path = format!("/instances/{id}");
    let before = master.instance(&id);
    for (tags, expected) in [
        (json!({longest.clone(): longest}), 200),
        (json!({too_long.clone(): "v"}), 400),
        (json!({"k": too_long}), 400),
        (json!({"k": 1}), 400),
        (json!(["k"]), 400),
    ] {
        let (status, answer) = master.patch(&path, &json!({"meta": {"tags": tags}}));
        assert_eq!(status, expected, "{answer}");
    }
    assert_eq!(master.instance(&id)["meta"]["peer"], before["meta"]["peer"]);
    assert_eq!(
        master.instance(&id)["meta"]["tags"],
        json!({longest.clone(): longest})
    );
}

#[test]
fn bodies_that_are_wrong_change_nothing() {
    let master = Master::start();
    let id = id_of(&master.create("client://127.0.0.1:0/127.0.0.1:9?mode=1", "as it was"));
    let path = format!("/instances/{id}");
    let fields = [("X-API-Key", master.key())];
    for (method, path, body) in [
        ("PATCH", &path[..], r#"{"meta":{"tags":{"k":"1","k":"2"}}}"#),
        ("PATCH", &path, r#"{"alias":"new","restart":"yes"}"#),
        ("PATCH", &path, r#"{"alias":5}"#),
        ("PATCH", &path, r#"{"alias":"new","action":"explode"}"#),
        ("PATCH", &path, r#"{"alias":"new","action":7}"#),
        ("PATCH", &path, r#"{"alias":"new"} and more"#),
        ("PATCH", &path, r#"{"alias":"new""#),
        ("PATCH", &path, r#"["alias"]"#),
        ("PATCH", &path, ""),
        ("PATCH", &path, "null"),
        ("PATCH", &path, r#"{"alias":"\ud800"}"#),
        ("PATCH", &path, &"[".repeat(50_000)),
        ("PATCH", &path, &"{\"meta\":".repeat(5_000)),
        ("PUT", &path, r#"{"url":7}"#),
        ("PUT", &path, "{"),
        ("PUT", &path, ""),
        (
            "POST",
            "/instances",
            r#"{"url":["client://127.0.0.1:0/127.0.0.1:9?mode=1"]}"#,
        ),
        (
            "POST",
            "/instances",
            r#""client://127.0.0.1:0/127.0.0.1:9?mode=1""#,
        ),
        ("POST", "/instances", ""),
        ("POST", "/info", r#"{"alias":7}"#),
        ("POST", "/info", ""),
    ] {
        let answer = master
            .try_request(method, path, &fields, Some(body.as_bytes()))
            .unwrap();
        assert_eq!(
            answer.status,
            400,
            "{method} {path} {body}: {}",
            answer.text()
        );
        assert!(!answer.error().is_empty());
    }
    // Bytes that are no text.
    let answer = master
        .try_request("PATCH", &path, &fields, Some(b"{\"alias\":\"\xff\"}"))
        .unwrap();
    assert_eq!(answer.status, 400);
    let now = master.instance(&id);
    assert_eq!(now["alias"], "as it was");
    assert_eq!(now["meta"]["tags"], json!({}));
    assert_eq!(master.list().len(), 2);
    assert_eq!(master.list()[0]["alias"], "");
}

#[test]
fn members_that_nobody_knows_are_passed_over() {
    let master = Master::start();
    let url = "client://127.0.0.1:0/127.0.0.1:9?mode=1";
    let body = json!({"url": url, "alias": "first", "colour": "red", "nested": {"a": [1]}});
    let (status, instance) = master.post("/instances", &body);
    assert_eq!(status, 201, "{instance}");
    let id = id_of(&instance);
    let change = json!({"alias": "second", "colour": "red", "meta": {"tags": {"a": "b"}, "x": 1}});
    let instance = master.change(&id, &change);
    assert_eq!(instance["alias"], "second");
    assert_eq!(instance["meta"]["tags"], json!({"a": "b"}));
    let (status, info) = master.post("/info", &json!({"alias": "third", "colour": 7}));
    assert_eq!((status, text(&info, "alias")), (200, "third"));
}

#[test]
fn refusal_of_a_url_names_what_is_wrong() {
    let master = Master::start();
    for (url, word) in [
        ("server://127.0.0.1:0/127.0.0.1:0?tls=7", "tls"),
        ("server://127.0.0.1:0/127.0.0.1:0?tls=2", "crt"),
        ("server://127.0.0.1:0/127.0.0.1:0?type=9", "type"),
        ("server://127.0.0.1:0/127.0.0.1:0?max=0", "max"),
        ("client://127.0.0.1:0/127.0.0.1:9?min=0", "min"),
        ("client://127.0.0.1:0/127.0.0.1:9?mode=3", "mode"),
        ("client://127.0.0.1:0/127.0.0.1:9?rate=-1", "rate"),
        ("client://127.0.0.1:0/127.0.0.1:9?slot=many", "slot"),
        ("client://127.0.0.1:0/127.0.0.1:9?read=5", "read"),
        ("client://127.0.0.1:0/127.0.0.1:9?lbs=4", "lbs"),
        ("client://127.0.0.1:0/127.0.0.1:9?log=loud", "log"),
        ("client://127.0.0.1:0/127.0.0.1:9?proxy=3", "proxy"),
        ("client://127.0.0.1:0/127.0.0.1:9?block=9", "block"),
        ("client://127.0.0.1:0/127.0.0.1:9?dial=nowhere", "dial"),
        ("client://127.0.0.1:0/127.0.0.1:9?notcp=1&noudp=1", "noudp"),
        ("client://127.0.0.1:0", "target"),
        ("client://127.0.0.1:99999/127.0.0.1:9", "99999"),
        ("master://127.0.0.1:0/api", "Invalid URL scheme"),
        ("", "Invalid request body"),
    ] {
        let (status, answer) = master.post("/instances", &json!({"url": url}));
        assert_eq!(status, 400, "{url}: {answer}");
        let error = text(&answer, "error");
        assert!(error.contains(word), "{url}: {error}");
    }
    assert!(master.instances().is_empty());
    assert!(master.children().is_empty());
}

#[test]
fn refusal_of_a_url_does_not_repeat_its_key() {
    let master = Master::start();
    let url = "client://sup3rsecret@127.0.0.1:0/127.0.0.1:9?mode=3";
    let (status, answer) = master.post("/instances", &json!({"url": url}));
    assert_eq!(status, 400);
    assert!(!text(&answer, "error").contains("sup3rsecret"), "{answer}");
    for line in master.lines() {
        assert!(!line.contains("sup3rsecret"), "{line}");
    }
}

#[test]
fn ids_are_hexadecimal_and_instances_in_the_order_of_their_creation() {
    const COUNT: usize = 12;
    let mut master = Master::start();
    let ids: Vec<String> = (0..COUNT)
        .map(|number| {
            let url = "client://127.0.0.1:0/127.0.0.1:9?mode=1";
            id_of(&master.create(url, &format!("number {number}")))
        })
        .collect();
    for id in &ids {
        let is_hex = id.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
        assert!(id.len() == 8 && is_hex, "{id}");
    }
    let listed = |master: &Master| master.instances().iter().map(id_of).collect::<Vec<_>>();
    assert_eq!(listed(&master), ids);
    master.change(&ids[3], &json!({"alias": "another"}));
    assert_eq!(listed(&master), ids);
    master.restart();
    assert_eq!(listed(&master), ids);
}

// Many at once.

#[test]
fn actions_at_once_leave_one_child_and_no_doubt() {
    const THREADS: usize = 6;
    const EACH: usize = 10;
    let (one, two) = (TcpServer::banner("1"), TcpServer::banner("2"));
    let address = free_address_beside(&[one.address(), two.address()]);
    let master = Master::start();
    let urls = [one.address(), two.address()].map(|target| forwarder(address, target));
    let id = master.create_running(&urls[0]);
    let path = format!("/instances/{id}");
    thread::scope(|scope| {
        for thread_index in 0..THREADS {
            let (master, path, urls) = (&master, &path, &urls);
            scope.spawn(move || {
                for round in 0..EACH {
                    let answer = match (thread_index + round) % 6 {
                        0 => master.put(path, &json!({"url": urls[round % 2]})),
                        1 => master.patch(path, &json!({"action": "stop"})),
                        2 => master.patch(path, &json!({"action": "start"})),
                        3 => master.patch(path, &json!({"action": "reset"})),
                        _ => master.patch(path, &json!({"action": "restart"})),
                    };
                    assert!(matches!(answer.0, 200 | 409), "{answer:?}");
                    assert!(master.children().len() <= 1, "two children of one instance");
                }
            });
        }
    });
    master.act(&id, "restart");
    master.put(&path, &json!({"url": urls[1]}));
    wait_name(address, "2");
    master.wait_instance(&id, "a running child", |now| now["status"] == "running");
    let child = master.wait_child();
    let visitor = dial(address);
    assert_eq!(read_count(&visitor, 1), b"2");
    drop(visitor);
    master.act(&id, "stop");
    master.wait_status(&id, "stopped");
    child.wait_gone();
    assert!(master.children().is_empty());
}

#[test]
fn changes_at_once_are_all_kept() {
    const THREADS: usize = 6;
    const EACH: usize = 8;
    let mut master = Master::start();
    let url = "client://127.0.0.1:0/127.0.0.1:9?mode=1";
    let kept: Vec<(String, String)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread_index| {
                let master = &master;
                scope.spawn(move || {
                    let mut kept = Vec::new();
                    for round in 0..EACH {
                        let alias = format!("{thread_index}/{round}");
                        let id = id_of(&master.create(url, ""));
                        if round % 2 == 0 {
                            assert_eq!(master.delete(&format!("/instances/{id}")).0, 204);
                        } else {
                            master.change(&id, &json!({"alias": alias}));
                            kept.push((id, alias));
                        }
                    }
                    kept
                })
            })
            .collect();
        let joined = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        joined.collect()
    });
    let check = |master: &Master| {
        let found = master.instances();
        assert_eq!(found.len(), kept.len());
        for (id, alias) in &kept {
            assert_eq!(text(&master.instance(id), "alias"), alias);
        }
    };
    check(&master);
    master.wait_children(kept.len());
    master.restart();
    check(&master);
    master.wait_children(kept.len());
}
