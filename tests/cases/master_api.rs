//! The API itself: keys, methods, paths, and what is about the host.

use std::fs;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::free_address;
use crate::support::http::Answer;
use crate::support::master::{KEY_ENTRY, Master, Settings, id_of};
use crate::support::servers::{TcpServer, Unanswering};

/// An instance that runs and has nothing to do.
const IDLE: &str = "client://127.0.0.1:0/127.0.0.1:9?mode=1";

/// Paths and the methods that they know. Those of the instance `********` stand for any one.
const PATHS: &[(&str, &[&str])] = &[
    ("/instances", &["GET", "POST"]),
    ("/instances/********", &["GET", "PATCH", "PUT", "DELETE"]),
    ("/events", &["GET"]),
    ("/info", &["GET", "POST"]),
    ("/tcping", &["GET"]),
    ("/openapi.json", &["GET"]),
    ("/docs", &["GET"]),
];

const METHODS: &[&str] = &["GET", "POST", "PATCH", "PUT", "DELETE"];

/// Paths that ask for no key.
const OPEN: &[&str] = &["/openapi.json", "/docs"];

#[track_caller]
fn check_cors(answer: &Answer) {
    for (name, value) in [
        ("Origin", "*"),
        ("Methods", "GET, PATCH, POST, PUT, DELETE, OPTIONS"),
        (
            "Headers",
            "Content-Type, Authorization, X-API-Key, Cache-Control",
        ),
    ] {
        let name = format!("Access-Control-Allow-{name}");
        assert_eq!(answer.field(&name), Some(value), "{name}");
    }
}

#[track_caller]
fn check_error(answer: &Answer, status: u16, words: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert!(answer.error().contains(words), "{}", answer.text());
    assert_eq!(answer.field("Content-Type"), Some("application/json"));
    check_cors(answer);
}

#[test]
fn nothing_but_the_key_opens_anything() {
    let master = Master::start();
    let key = master.key().to_owned();
    let other = "0123456789abcdef0123456789abcdef";
    let longer = format!("{key}0");
    let bearer = format!("Bearer {key}");
    let upper = key.to_uppercase();
    for (path, methods) in PATHS.iter().filter(|(path, _)| !OPEN.contains(path)) {
        for method in *methods {
            let check = |fields: &[(&str, &str)], words: &str| {
                let body = (*method != "GET").then_some(&b"{}"[..]);
                let answer = master.try_request(method, path, fields, body).unwrap();
                check_error(&answer, 401, words);
            };
            check(&[], "Unauthorized: API key required");
            check(
                &[("Authorization", &bearer)],
                "Unauthorized: API key required",
            );
            for wrong in [other, &key[1..], &key[..31], &longer, &bearer, "*"] {
                check(&[("X-API-Key", wrong)], "Unauthorized: Invalid API key");
            }
            if upper != key {
                check(&[("X-API-Key", &upper)], "Unauthorized: Invalid API key");
            }
            check(&[("X-API-Key", "")], "Unauthorized: ");
        }
    }
    // The name of a field may be spelled in any case.
    for name in ["x-api-key", "X-Api-Key", "X-API-KEY"] {
        let answer = master.try_request("GET", "/instances", &[(name, &key)], None);
        assert_eq!(answer.unwrap().status, 200, "{name}");
    }
    for path in OPEN {
        let answer = master.try_request("GET", path, &[], None).unwrap();
        assert_eq!(answer.status, 200, "{path}");
        check_cors(&answer);
    }
    // What was refused has done nothing.
    assert_eq!(master.key(), master.list()[0]["url"]);
    assert!(master.instances().is_empty());
}

#[test]
fn each_path_knows_its_methods() {
    let master = Master::start();
    let key = [("X-API-Key", master.key())];
    for (path, methods) in PATHS {
        for method in METHODS.iter().filter(|method| !methods.contains(method)) {
            let answer = master.try_request(method, path, &key, Some(b"{}")).unwrap();
            check_error(&answer, 405, "Method not allowed");
        }
        // A preflight knows no key yet.
        let fields = [
            ("Origin", "http://x"),
            ("Access-Control-Request-Method", "PUT"),
        ];
        let answer = master.try_request("OPTIONS", path, &fields, None).unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{path}");
        check_cors(&answer);
    }
    for path in [
        "",
        "/",
        "/nope",
        "/instances/00000000/more",
        "/INSTANCES",
        "/info/",
        "/v1",
    ] {
        let answer = master.try_request("GET", path, &key, None).unwrap();
        check_error(&answer, 404, "Not found");
    }
}

#[test]
fn head_is_as_get_without_a_body() {
    let master = Master::start();
    let id = id_of(&master.create(IDLE, ""));
    master.act(&id, "stop");
    master.wait_status(&id, "stopped");
    let instance = format!("/instances/{id}");
    let key = [("X-API-Key", master.key())];
    let paths = [
        "/instances",
        &instance,
        "/tcping",
        "/openapi.json",
        "/docs",
        "/nope",
    ];
    for path in paths {
        let get = master.try_request("GET", path, &key, None).unwrap();
        let head = master.try_request("HEAD", path, &key, None).unwrap();
        assert_eq!(head.status, get.status, "{path}");
        for name in [
            "Content-Type",
            "Content-Length",
            "Access-Control-Allow-Origin",
        ] {
            assert_eq!(head.field(name), get.field(name), "{name} of {path}");
        }
    }
    // One that would not end.
    let mut connection = master.dial().unwrap();
    let fields = [key[0], ("Connection", "close")];
    let path = master.path("/events");
    let head = connection.request("HEAD", &path, &fields, None).unwrap();
    assert_eq!(head.status, 200);
    assert_eq!(head.field("Content-Type"), Some("text/event-stream"));
    assert_eq!(connection.read_until_end(), b"");
    // No more opened by it than by GET.
    let answer = master.try_request("HEAD", "/instances", &[], None).unwrap();
    assert_eq!(answer.status, 401);
}

#[test]
fn prefix_is_the_one_of_the_url() {
    for (place, prefix) in [
        ("127.0.0.1:0", "/api"),
        ("127.0.0.1:0/", "/api"),
        ("127.0.0.1:0/api", "/api"),
        ("127.0.0.1:0/one/two", "/one/two"),
        ("127.0.0.1:0/one/", "/one"),
    ] {
        let settings = Settings {
            place: place.to_owned(),
            prefix: prefix.to_owned(),
            ..Settings::default()
        };
        let master = Master::start_with(settings);
        let line = master.wait_for("API listening on tcp ");
        assert!(line.contains(&format!("{prefix}/v1")), "{place}: {line}");
        assert_eq!(master.get("/info").0, 200, "{place}");
        let id = id_of(&master.create(IDLE, ""));
        master.wait_status(&id, "running");
        let other = match prefix {
            "/api" => "/one/v1/info",
            _ => "/api/v1/info",
        };
        let fields = [("X-API-Key", master.key()), ("Connection", "close")];
        let mut connection = master.dial().unwrap();
        let answer = connection.request("GET", other, &fields, None).unwrap();
        assert_eq!(answer.status, 404, "{place}");
    }
}

#[test]
fn info_tells_of_master_and_host() {
    let master = Master::start_with(Settings::default().options("log=debug&tls=0"));
    let (status, info) = master.get("/info");
    assert_eq!(status, 200);
    let names = [
        "alias",
        "arch",
        "cpu",
        "crt",
        "diskr",
        "diskw",
        "key",
        "log",
        "mem_total",
        "mem_used",
        "mid",
        "name",
        "netrx",
        "nettx",
        "os",
        "swap_total",
        "swap_used",
        "sysup",
        "tls",
        "uptime",
        "ver",
    ];
    let mut found: Vec<&String> = info.as_object().unwrap().keys().collect();
    found.sort();
    assert_eq!(found, names);
    assert_eq!(info["log"], "debug");
    assert_eq!(
        (&info["tls"], &info["crt"], &info["key"]),
        (&json!("0"), &json!(""), &json!(""))
    );
    assert_eq!(info["mid"], master.list()[0]["config"]);
    assert_eq!(info["os"], "linux");
    let version: Vec<u32> = info["ver"]
        .as_str()
        .unwrap()
        .trim_start_matches('v')
        .split('.')
        .map(|part| part.parse().unwrap())
        .collect();
    assert!(version.as_slice() >= &[1, 10, 0][..], "{version:?}");
    let number = |name: &str| {
        info[name]
            .as_i64()
            .unwrap_or_else(|| panic!("{name}: {info}"))
    };
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("MemTotal:"))
        .unwrap();
    let total: i64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(number("mem_total"), total * 1024);
    assert!(
        (1..=number("mem_total")).contains(&number("mem_used")),
        "{info}"
    );
    assert!((-1..=100).contains(&number("cpu")), "{info}");
    assert!(number("swap_used") <= number("swap_total"), "{info}");
    let text = fs::read_to_string("/proc/uptime").unwrap();
    let now: f64 = text.split(' ').next().unwrap().parse().unwrap();
    let up = u32::try_from(number("sysup")).unwrap();
    assert!(
        f64::from(up) <= now && f64::from(up) > now - 120.0,
        "{up} and {now}"
    );
    assert!((0..120).contains(&number("uptime")), "{info}");
    for name in ["netrx", "nettx", "diskr", "diskw"] {
        assert!(number(name) >= 0, "{name}: {info}");
    }
}

/// What `/tcping` says of a target.
#[track_caller]
fn ping(master: &Master, target: &str) -> Value {
    let (status, answer) = master.get(&format!("/tcping?target={target}"));
    assert_eq!(
        (status, &answer["target"]),
        (200, &json!(target)),
        "{answer}"
    );
    assert!(answer["latency"].is_u64(), "{answer}");
    assert_eq!(
        answer["connected"] == true,
        answer["error"].is_null(),
        "{answer}"
    );
    answer
}

#[test]
fn tcping_tells_who_answers() {
    let target = TcpServer::echo();
    let master = Master::start();
    let address = target.address();
    assert_eq!(ping(&master, &address.to_string())["connected"], true);
    let by_name = format!("localhost:{}", address.port());
    assert_eq!(ping(&master, &by_name)["connected"], true);
    if let Ok(listener) = TcpListener::bind("[::1]:0") {
        // Brackets as they are.
        let target = listener.local_addr().unwrap().to_string();
        assert_eq!(ping(&master, &target)["connected"], true);
    }
    let refused = ping(&master, &free_address().to_string());
    assert!(
        refused["error"]
            .as_str()
            .unwrap()
            .contains("connection refused"),
        "{refused}"
    );
    for target in [
        "nonsense",
        "127.0.0.1:",
        "127.0.0.1:99999",
        "127.0.0.1:http:1",
        ":1:",
    ] {
        assert_eq!(ping(&master, target)["connected"], false);
    }
    for path in [
        "/tcping",
        "/tcping?",
        "/tcping?target=",
        "/tcping?other=127.0.0.1:1",
    ] {
        let (status, answer) = master.get(path);
        assert_eq!(status, 400, "{answer}");
        assert!(
            answer["error"]
                .as_str()
                .unwrap()
                .starts_with("Target address required")
        );
    }
    // Encoded as well.
    let encoded = address.to_string().replace(':', "%3A");
    let (_, answer) = master.get(&format!("/tcping?target={encoded}"));
    assert_eq!(answer["connected"], true, "{answer}");
}

#[test]
fn tcping_gives_up_and_holds_up_nobody() {
    const ASKED: usize = 14;
    const AT_ONCE: usize = 10;
    let silent = Unanswering::start();
    let master = Master::start();
    let target = silent.address().to_string();
    let answers: Vec<(Value, Duration)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..ASKED)
            .map(|_| {
                scope.spawn(|| {
                    let asked_at = Instant::now();
                    (ping(&master, &target), asked_at.elapsed())
                })
            })
            .collect();
        // Everything else is answered meanwhile.
        for _ in 0..20 {
            assert_eq!(master.get("/instances").0, 200);
        }
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(
        answers
            .iter()
            .all(|(answer, _)| answer["connected"] == false)
    );
    let is_refused = |answer: &Value| answer["error"].as_str().unwrap().contains("too many");
    let refused = answers
        .iter()
        .filter(|(answer, _)| is_refused(answer))
        .count();
    assert_eq!(refused, ASKED - AT_ONCE, "{answers:#?}");
    for (answer, elapsed) in &answers {
        let least = match is_refused(answer) {
            true => Duration::from_millis(900),
            false => Duration::from_millis(4500),
        };
        assert!(*elapsed >= least, "{answer} after {elapsed:?}");
    }
    // All places are free again.
    let other = TcpServer::echo();
    assert_eq!(
        ping(&master, &other.address().to_string())["connected"],
        true
    );
}

#[test]
fn there_are_only_so_many_instances() {
    const COUNT_MAX: usize = 1024;
    let mut master = Master::start();
    let id = id_of(&master.create(IDLE, ""));
    master.change(&id, &json!({"restart": false}));
    master.act(&id, "stop");
    master.wait_status(&id, "stopped");
    assert_eq!(master.stop(), 0);
    // As many as there may be, without starting them all.
    let mut state = master.folder().read();
    let instances = state["instances"].as_array_mut().unwrap();
    let one = instances[1].clone();
    for number in 1..COUNT_MAX {
        let mut copy = one.clone();
        copy["id"] = json!(format!("{number:08x}"));
        instances.push(copy);
    }
    fs::write(master.folder().state(), state.to_string()).unwrap();
    master.start_again();
    assert_eq!(master.instances().len(), COUNT_MAX);
    let (status, answer) = master.post("/instances", &json!({"url": IDLE}));
    assert_eq!(status, 503, "{answer}");
    assert!(
        answer["error"].as_str().unwrap().contains("instances"),
        "{answer}"
    );
    assert!(master.children().is_empty());
    assert_eq!(master.delete(&format!("/instances/{id}")).0, 204);
    let id = id_of(&master.create(IDLE, "the last one"));
    master.wait_status(&id, "running");
    assert_eq!(master.post("/instances", &json!({"url": IDLE})).0, 503);
    // A stream begins with all of them.
    let events = master.events();
    events.wait_kind("initial", &id);
    assert_eq!(events.all()[0]["instance"]["id"], KEY_ENTRY);
}
