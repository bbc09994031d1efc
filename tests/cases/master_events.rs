//! Event streams: complete, in order, at once, and nobody's slowness is another's.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::http::{Connection, Item};
use crate::support::master::{Arrived, Events, KEY_ENTRY, Master, Settings, id_of, is_about};
use crate::support::program::forward_url;
use crate::support::servers::TcpServer;
use crate::support::visitors::{dial, exchange};

/// An instance that runs and has nothing to do.
const IDLE: &str = "client://127.0.0.1:0/127.0.0.1:9?mode=1";

/// Reports that never come, so that nothing but what a test does makes an event.
fn silent() -> Settings {
    Settings::default().env("NP_REPORT_INTERVAL", "1h")
}

fn kind(event: &Value) -> &str {
    event["type"].as_str().unwrap()
}

/// Kind, instance and alias of each event that is no log line and no report.
fn changes(all: &[Value]) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.iter()
        .filter(|event| kind(event) != "log")
        .map(|event| {
            let instance = &event["instance"];
            let alias = text(&instance["alias"]);
            (text(&event["type"]), text(&instance["id"]), alias)
        })
        .collect()
}

#[test]
fn stream_begins_with_all_there_is() {
    let master = Master::start();
    master.change(KEY_ENTRY, &json!({"alias": "the master"}));
    for alias in ["one", "two", "three"] {
        master.create(IDLE, alias);
    }
    let events = master.events();
    assert_eq!(events.head.field("Content-Type"), Some("text/event-stream"));
    assert_eq!(events.head.field("Cache-Control"), Some("no-cache"));
    assert_eq!(events.head.field("Access-Control-Allow-Origin"), Some("*"));
    let first = events.wait("all instances", |all| {
        (all.len() >= 4).then(|| all[..4].to_vec())
    });
    assert_eq!(events.items()[0].item, Item::Retry(3000));
    let list = master.list();
    for (event, instance) in first.iter().zip(&list) {
        assert_eq!(kind(event), "initial");
        assert_eq!(event["logs"], "");
        for name in ["id", "alias", "type", "url", "config", "restart", "meta"] {
            assert_eq!(event["instance"][name], instance[name]);
        }
    }
    assert_eq!(first[0]["instance"]["alias"], "the master");
}

#[test]
fn every_change_is_an_event_in_every_stream_in_the_same_order() {
    const STREAMS: usize = 4;
    let master = Master::start_with(silent());
    let streams: Vec<Events> = (0..STREAMS).map(|_| master.events()).collect();
    let id = id_of(&master.create(IDLE, "first"));
    let is_it = |event: &Value, what: &str| is_about(event, what, &id);
    let first = &streams[0];
    let created = first.wait_kind("create", &id);
    assert_eq!(created["instance"]["status"], "stopped");
    assert_eq!(created["instance"]["alias"], "first");
    first.wait_event("it runs", |event| {
        is_it(event, "update") && event["instance"]["status"] == "running"
    });
    for (change, name, expected) in [
        (json!({"alias": "second"}), "alias", json!("second")),
        (json!({"restart": false}), "restart", json!(false)),
        (
            json!({"meta": {"tags": {"a": "b"}}}),
            "meta",
            json!({"peer": {"sid": "", "type": "", "alias": ""}, "tags": {"a": "b"}}),
        ),
        (json!({"action": "stop"}), "status", json!("stopped")),
    ] {
        let before = first.all().len();
        master.change(&id, &change);
        first.wait(&change.to_string(), |all| {
            let news = all.iter().skip(before);
            news.filter(|event| is_it(event, "update"))
                .any(|event| event["instance"][name] == expected)
                .then_some(())
        });
    }
    let url = "client://127.0.0.1:0/127.0.0.1:7?mode=1";
    assert_eq!(
        master
            .put(&format!("/instances/{id}"), &json!({"url": url}))
            .0,
        200
    );
    first.wait_event("the other URL", |event| {
        let url = event["instance"]["url"].as_str().unwrap_or_default();
        is_it(event, "update") && url.contains("127.0.0.1:7")
    });
    assert_eq!(master.delete(&format!("/instances/{id}")).0, 204);
    let deleted = first.wait_kind("delete", &id);
    assert_eq!(deleted["instance"]["alias"], "second");

    let seen = changes(&first.all());
    for stream in &streams[1..] {
        stream.wait_kind("delete", &id);
        // They may have come before or after the first lines of a child, but never mixed up.
        assert_eq!(changes(&stream.all()), seen);
    }
    let place = |what: &str| {
        seen.iter()
            .position(|(kind, of, _)| kind == what && *of == id)
    };
    assert!(place("create") < place("update") && place("update") < place("delete"));
    let all = first.all();
    let after = all
        .iter()
        .skip_while(|event| !is_it(event, "delete"))
        .skip(1);
    assert!(
        after.clone().all(|event| event["instance"]["id"] != *id),
        "events of one that is gone"
    );
}

#[test]
fn every_report_is_an_event() {
    let target = TcpServer::echo();
    let master = Master::start();
    let events = master.events();
    let id = master.create_running(&forward_url(target.address(), ""));
    let address = master.wait_address(&id, "Listening on tcp ", 1);
    let visitor = dial(address);
    exchange(&visitor, &[b'x'; 5000]);
    events.wait_event("its figures", |event| {
        let now = &event["instance"];
        let is_all = now["tcprx"] == 5000 && now["tcptx"] == 5000 && now["tcps"] == 1;
        is_about(event, "update", &id) && is_all
    });
    // With nothing new in them as well.
    let count = |all: &[Value]| {
        let of_it = all
            .iter()
            .filter(|event| is_about(event, "update", &id) && event["instance"]["tcprx"] == 5000);
        of_it.count()
    };
    events.wait("five reports", |all| (count(all) >= 5).then_some(()));
}

#[test]
fn each_event_leaves_at_once() {
    let master = Master::start_with(silent());
    let events = master.events();
    let is_comment = |arrived: &&Arrived| matches!(arrived.item, Item::Comment(_));
    let count = |items: &[Arrived]| items.iter().filter(is_comment).count();
    for round in 0..5 {
        let before = count(&events.items());
        let alias = format!("round {round}");
        master.change(KEY_ENTRY, &json!({"alias": alias}));
        let id = id_of(&master.create(IDLE, &alias));
        events.wait_kind("create", &id);
        // Nothing that came later has pushed it out.
        assert_eq!(count(&events.items()), before, "after a comment");
        assert_eq!(master.delete(&format!("/instances/{id}")).0, 204);
        events.wait_kind("delete", &id);
        assert_eq!(count(&events.items()), before, "after a comment");
    }
}

#[test]
fn silent_stream_shows_that_it_lives() {
    let master = Master::start_with(silent());
    let opened_at = Instant::now();
    let events = master.events();
    let comment = events.wait_items(Duration::from_secs(60), |items| {
        let is_comment = |arrived: &&Arrived| matches!(arrived.item, Item::Comment(_));
        items.iter().find(is_comment).cloned()
    });
    let comment = comment.expect("no comment within a minute");
    let elapsed = comment.at - opened_at;
    assert!(
        elapsed >= Duration::from_secs(10),
        "already after {elapsed:?}"
    );
    // What comes afterwards is read as before.
    let id = id_of(&master.create(IDLE, ""));
    events.wait_kind("create", &id);
}

#[test]
fn lines_of_a_child_are_events_and_stand_in_the_log() {
    let target = TcpServer::echo();
    let master = Master::start();
    let events = master.events();
    let url = forward_url(target.address(), "log=debug");
    let id = master.create_running(&url);
    let address = master.wait_address(&id, "Listening on tcp ", 1);
    for _ in 0..5 {
        exchange(&dial(address), b"something to tell of");
    }
    master.wait_instance(&id, "its figures", |now| now["tcprx"] == 100);
    master.act(&id, "stop");
    master.wait_status(&id, "stopped");
    events.wait_event("its end", |event| {
        is_about(event, "update", &id) && event["instance"]["status"] == "stopped"
    });
    master.wait_for("Client stopped");
    let mark = format!(" [{id}]");
    let in_log: Vec<String> = master
        .lines()
        .iter()
        .filter_map(|line| line.strip_suffix(&mark).map(str::to_owned))
        .collect();
    let in_events = events.wait("all its lines", |all| {
        let lines: Vec<String> = all
            .iter()
            .filter(|event| is_about(event, "log", &id))
            .map(|event| event["logs"].as_str().unwrap().to_owned())
            .collect();
        (lines.len() >= in_log.len()).then_some(lines)
    });
    assert_eq!(in_events, in_log);
    assert!(in_log.len() > 5, "{in_log:#?}");
    for line in &in_log {
        assert!(!line.contains("CHECK_POINT"), "{line}");
        // As the child wrote it: with its own time and level.
        assert!(
            line.starts_with("20") && line.split_whitespace().count() > 3,
            "{line}"
        );
    }
    assert!(
        in_log
            .iter()
            .any(|line| line.contains("Client started: client://"))
    );
    assert_eq!(master.count("CHECK_POINT"), 0);
}

#[test]
fn end_of_the_master_is_the_last_event() {
    let mut master = Master::start();
    let id = master.create_running(IDLE);
    let streams: Vec<Events> = (0..20).map(|_| master.events()).collect();
    for stream in &streams {
        stream.wait_kind("initial", &id);
    }
    assert_eq!(master.stop(), 0);
    for stream in &streams {
        assert_eq!(stream.wait_end(), Ok(()));
        let last = stream.all().pop().unwrap();
        assert_eq!(kind(&last), "shutdown");
        assert_eq!(
            (&last["instance"], &last["logs"]),
            (&Value::Null, &json!(""))
        );
    }
}

#[test]
fn new_key_ends_all_streams_and_the_old_key() {
    let mut master = Master::start();
    let id = master.create_running(IDLE);
    let old = master.key().to_owned();
    let streams = [master.events(), master.events()];
    for stream in &streams {
        stream.wait_kind("initial", &id);
    }
    let before = master.list().remove(0);
    let answer = master.act(KEY_ENTRY, "restart");
    let new = answer["url"].as_str().unwrap().to_owned();
    let is_hex = new.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
    assert!(is_hex && new.len() == 32 && new != old, "{new}");
    assert_eq!(answer["config"], before["config"]);
    for stream in &streams {
        let _ = stream.wait_end();
    }
    assert_eq!(master.get("/instances").0, 401);
    assert!(master.try_events().is_err());
    master.use_key(&new);
    assert_eq!(master.list()[0]["url"], *new);
    master.events().wait_kind("initial", &id);
    // The new one holds after a restart, and is kept where the log says; no log shows it.
    assert_eq!(master.count(&new), 0);
    master.restart();
    assert_eq!(master.key(), new);
    assert_eq!(
        master.instance(&id)["status"].as_str().map(str::is_empty),
        Some(false)
    );
    assert_eq!(master.count("API key made"), 0);
}

#[test]
fn streams_that_are_left_cost_nothing() {
    const STREAMS: usize = 30;
    let master = Master::start_with(silent());
    master.create_running(IDLE);
    let (descriptors, threads) = (master.descriptors_count(), master.threads_count());
    let streams: Vec<Events> = (0..STREAMS).map(|_| master.events()).collect();
    for stream in &streams {
        stream.wait_kind("initial", KEY_ENTRY);
    }
    assert!(master.descriptors_count() >= descriptors + STREAMS);
    drop(streams);
    // With something to say, it is noticed before the next sign of life that nobody hears.
    master.change(KEY_ENTRY, &json!({"alias": "anyone there"}));
    eventually("descriptors as before", || {
        (master.descriptors_count() <= descriptors + 2).then_some(())
    });
    // A thread may wait for something else to do.
    eventually("threads as before", || {
        (master.threads_count() <= threads + 2).then_some(())
    });
}

#[test]
fn subscriber_that_never_reads_is_let_go_and_the_others_miss_nothing() {
    /// Beyond the queue of the master and all buffers between here and there.
    const LINES: usize = 8000;
    /// So far the one who reads may be behind: well within the queue, on a busy machine as well.
    const BEHIND_MAX: usize = 500;
    let target = TcpServer::echo();
    let master = Master::start_with(silent());
    let id = master.create_running(&forward_url(target.address(), "log=debug"));
    let address = master.wait_address(&id, "Listening on tcp ", 1);
    // Each of its events is some kilobytes.
    let tags: Vec<String> = (0..8)
        .map(|number| format!("{number}{}", "x".repeat(250)))
        .collect();
    let tags: Value = tags.iter().map(|tag| (tag.clone(), json!(tag))).collect();
    master.change(&id, &json!({"meta": {"tags": tags}}));

    let reader = master.events();
    let stuck: Vec<Connection> = (0..2)
        .map(|_| {
            let mut connection = master.dial().unwrap();
            let fields = [("X-API-Key", master.key())];
            connection
                .send("GET", &master.path("/events"), &fields, None)
                .unwrap();
            // From then on it must miss nothing; it reads no further.
            assert_eq!(connection.receive_head().unwrap().status, 200);
            connection
        })
        .collect();
    reader.wait_kind("initial", &id);
    let before = reader.all().len();
    let mark = format!(" [{id}]");
    let written = |master: &Master| master.count(&mark);
    let already = written(&master);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while written(&master) < already + LINES && !reader.is_ended() {
                    let told = before + written(&master) - already;
                    reader.wait("the lines so far", |events| {
                        (events.len() + BEHIND_MAX >= told).then_some(())
                    });
                    for _ in 0..50 {
                        exchange(&dial(address), b"x");
                    }
                }
            });
        }
        // Nobody else is held up meanwhile.
        for _ in 0..20 {
            assert_eq!(master.get("/instances").0, 200);
        }
    });
    assert!(!reader.is_ended(), "the stream of one who reads has ended");
    // The last one is there, and with it all that came before.
    master.change(&id, &json!({"alias": "the last one"}));
    reader.wait_event("the last change", |event| {
        event["instance"]["alias"] == "the last one"
    });
    let all = reader.all();
    let lines: Vec<String> = all
        .iter()
        .skip(before)
        .filter(|event| kind(event) == "log")
        .map(|event| event["logs"].as_str().unwrap().to_owned())
        .collect();
    let log: Vec<String> = master
        .lines()
        .iter()
        .filter_map(|line| line.strip_suffix(&mark).map(str::to_owned))
        .collect();
    // The first ones may have come before the stream was open.
    let is_all = (0..=already).any(|skipped| log[skipped..].starts_with(&lines));
    assert!(
        is_all && lines.len() >= LINES,
        "lines are missing or mixed up"
    );

    for connection in stuck {
        let mut stream = connection.into_events();
        let mut lines = Vec::new();
        // Ends in good order or in the middle of an event, without the last one.
        while let Ok(Some(item)) = stream.next_item() {
            let Item::Event { data, .. } = item else {
                continue;
            };
            let event: Value = serde_json::from_str(&data).unwrap();
            assert_ne!(event["instance"]["alias"], "the last one");
            if kind(&event) == "log" {
                lines.push(event["logs"].as_str().unwrap().to_owned());
            }
        }
        assert!(
            lines.len() < LINES,
            "{} lines have waited for it",
            lines.len()
        );
        let is_begin = (0..=already).any(|skipped| log[skipped..].starts_with(&lines));
        assert!(is_begin, "lines were left out and the stream went on");
    }
}

#[test]
fn large_events_do_not_pile_up_for_one_who_does_not_read() {
    /// Fewer than a queue has room for, and more bytes than the queue and all buffers between here
    /// and there.
    const CHANGES: usize = 500;
    let master = Master::start_with(silent());
    let id = id_of(&master.create(IDLE, ""));
    let tags: Value = (0..110)
        .map(|number| (format!("{number}"), json!("x".repeat(250))))
        .collect();
    let tags = json!({"meta": {"tags": tags}});
    master.change(&id, &tags);
    let mut connection = master.dial().unwrap();
    let fields = [("X-API-Key", master.key())];
    connection
        .send("GET", &master.path("/events"), &fields, None)
        .unwrap();
    // From then on it must miss nothing; it reads no further.
    assert_eq!(connection.receive_head().unwrap().status, 200);
    for number in 0..CHANGES {
        master.change(&id, &json!({"alias": number.to_string()}));
    }
    let mut stream = connection.into_events();
    let mut aliases = Vec::new();
    while let Ok(Some(item)) = stream.next_item() {
        let Item::Event { data, .. } = item else {
            continue;
        };
        let event: Value = serde_json::from_str(&data).unwrap();
        aliases.extend(
            event["instance"]["alias"]
                .as_str()
                .unwrap()
                .parse::<usize>(),
        );
        if aliases.last() == Some(&(CHANGES - 1)) {
            break;
        }
    }
    assert!(
        aliases.len() < CHANGES,
        "all {CHANGES} changes have waited for it"
    );
    assert!(
        aliases.iter().copied().eq(0..aliases.len()),
        "changes were left out and the stream went on: {aliases:?}"
    );
}
