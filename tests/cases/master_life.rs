//! How a master lives and ends, whatever its children and its own output do.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::pipe::{fcntl_setpipe_size, pipe};
use rustix::process::Signal;
use serde_json::json;

use crate::support::http::Connection;
use crate::support::master::{Master, Settings, StateFolder, children_of, listening_at};
use crate::support::program::{Program, forward_url};
use crate::support::servers::TcpServer;
use crate::support::visitors::{dial, exchange, try_dial, try_exchange, wait_refused};
use crate::support::{eventually, free_address, free_address_beside};

/// An instance that runs and has nothing to do.
const IDLE: &str = "client://127.0.0.1:0/127.0.0.1:9?mode=1";

#[test]
fn child_that_does_not_end_is_killed_when_the_master_ends() {
    let mut master = Master::start();
    let ids = [master.create_running(IDLE), master.create_running(IDLE)];
    let children = master.children();
    children[0].signal(Signal::STOP);
    let signalled_at = Instant::now();
    assert_eq!(master.stop(), 0);
    assert!(children.iter().all(|child| !child.is_alive()));
    let elapsed = signalled_at.elapsed();
    assert!(
        elapsed >= Duration::from_millis(4500),
        "killed after {elapsed:?}"
    );
    master.start_again();
    for id in &ids {
        master.wait_status(id, "running");
    }
}

#[test]
fn second_signal_ends_master_and_children_at_once() {
    let target = TcpServer::echo();
    let settings = Settings::default().env("NP_SHUTDOWN_TIMEOUT", "30s");
    let mut master = Master::start_with(settings);
    let id = master.create_running(&forward_url(target.address(), ""));
    let address = master.wait_address(&id, "Listening on tcp ", 1);
    let visitor = dial(address);
    exchange(&visitor, b"holds it up");
    let child = master.wait_child();
    child.signal(Signal::STOP);
    let signalled_at = Instant::now();
    master.signal(Signal::TERM);
    master.wait_for("Master stopping");
    master.signal(Signal::TERM);
    master.wait_exit();
    child.wait_gone();
    let elapsed = signalled_at.elapsed();
    assert!(elapsed < Duration::from_secs(4), "took {elapsed:?}");
}

#[test]
fn api_is_closed_before_the_master_waits_for_its_children() {
    let mut master = Master::start();
    master.create_running(IDLE);
    let child = master.wait_child();
    child.signal(Signal::STOP);
    let idle = Connection::dial(master.address()).unwrap();
    master.signal(Signal::TERM);
    wait_refused(master.address());
    assert!(master.is_running());
    child.signal(Signal::CONT);
    assert_eq!(master.wait_exit(), 0);
    drop(idle);
}

#[test]
fn instance_that_is_deleted_stays_deleted_whatever_else_is_asked() {
    const THREADS: usize = 4;
    for _ in 0..5 {
        let target = TcpServer::echo();
        let address = free_address_beside(&[target.address()]);
        let master = Master::start();
        let url = format!("client://{address}/{}?mode=1", target.address());
        let id = master.create_running(&url);
        let path = format!("/instances/{id}");
        thread::scope(|scope| {
            for number in 0..THREADS {
                let (master, path) = (&master, &path);
                scope.spawn(move || {
                    let actions = ["restart", "start", "stop", "restart"];
                    loop {
                        let action = json!({"action": actions[number]});
                        match master.patch(path, &action).0 {
                            200 => {}
                            status => return assert_eq!(status, 404),
                        }
                    }
                });
            }
            // They are under way.
            eventually("another child", || {
                (master.count("Client started") > 1).then_some(())
            });
            assert_eq!(master.delete(&path).0, 204);
            assert!(master.children().is_empty());
        });
        assert!(master.children().is_empty());
        assert!(master.instances().is_empty());
        assert!(try_dial(address).is_err());
    }
}

/// A master at an address that is known without its log, and an instance with traffic.
struct Quiet {
    folder: StateFolder,
    settings: Settings,
    address: SocketAddr,
    entry: SocketAddr,
    target: TcpServer,
}

impl Quiet {
    fn new() -> Self {
        let (address, target) = (free_address(), TcpServer::echo());
        let settings = Settings {
            place: format!("{address}/api"),
            ..Settings::default()
        };
        Self {
            folder: StateFolder::new(),
            settings: settings.options("log=debug"),
            address,
            entry: free_address_beside(&[target.address()]),
            target,
        }
    }

    /// Asks for something and returns the status of the answer.
    fn ask(&self, method: &str, path: &str, body: Option<&[u8]>) -> u16 {
        let state = self.folder.read();
        let key = state["instances"][0]["url"].as_str().unwrap();
        let fields = [("X-API-Key", key), ("Connection", "close")];
        let mut connection = Connection::dial(self.address).unwrap();
        let path = format!("/api/v1{path}");
        let answer = connection.request(method, &path, &fields, body).unwrap();
        answer.status
    }

    /// Makes it write much, and checks that it does everything all the same.
    #[track_caller]
    fn check(&self, mut program: Program) {
        eventually("the API", || try_dial(self.address).ok());
        let url = format!("client://{}/{}?mode=1", self.entry, self.target.address());
        let body = json!({"url": url}).to_string();
        assert_eq!(self.ask("POST", "/instances", Some(body.as_bytes())), 201);
        eventually("a visitor that is served", || {
            try_exchange(&try_dial(self.entry).ok()?, b"first").ok()
        });
        for _ in 0..500 {
            exchange(&dial(self.entry), b"served");
        }
        for _ in 0..50 {
            assert_eq!(self.ask("GET", "/instances", None), 200);
        }
        assert_eq!(children_of(program.id()).len(), 1);
        program.signal(Signal::TERM);
        assert_eq!(program.wait_exit(), 0);
        wait_refused(self.entry);
    }
}

#[test]
fn output_that_nobody_reads_stops_neither_master_nor_children() {
    let quiet = Quiet::new();
    let (read_end, write_end) = pipe().unwrap();
    // The smallest there is: a few dozen lines fill it.
    fcntl_setpipe_size(&write_end, 4096).unwrap();
    let launch = quiet.settings.launch(quiet.folder.path());
    quiet.check(launch.output_to(write_end).start());
    drop(read_end);
}

#[test]
fn output_whose_reader_has_gone_stops_neither_master_nor_children() {
    let quiet = Quiet::new();
    let (read_end, write_end) = pipe().unwrap();
    drop(read_end);
    let launch = quiet.settings.launch(quiet.folder.path());
    quiet.check(launch.output_to(write_end).start());
}

#[test]
fn master_without_a_log_is_silent_and_serves() {
    let mut quiet = Quiet::new();
    quiet.settings = quiet.settings.options("log=none");
    let program = quiet.settings.launch(quiet.folder.path()).start();
    quiet.check(program);
    // With a log of its own, the instance may speak; here it has the one of the master.
    let mut program = quiet.settings.launch(quiet.folder.path()).start();
    eventually("the API", || try_dial(quiet.address).ok());
    program.signal(Signal::TERM);
    assert_eq!(program.wait_exit(), 0);
    assert_eq!(
        (program.lines(), program.errors()),
        (Vec::new(), String::new())
    );
}

#[test]
fn address_that_is_taken_is_a_clear_error_until_it_is_free() {
    let target = TcpServer::echo();
    let address = target.address();
    let folder = StateFolder::new();
    let settings = Settings {
        place: format!("{address}/api"),
        ..Settings::default()
    };
    let program = settings.launch(folder.path()).start();
    program.wait_complaint(&["ERROR", &address.to_string(), "in use"]);
    drop(target);
    assert_eq!(listening_at(&program), address);
}

/// A folder with an instance that serves, and a master for it whose address is taken.
struct Shut {
    folder: Arc<StateFolder>,
    settings: Settings,
    address: SocketAddr,
    entry: SocketAddr,
    holder: TcpListener,
    _target: TcpServer,
}

impl Shut {
    fn new() -> Self {
        let target = TcpServer::echo();
        let entry = free_address_beside(&[target.address()]);
        let mut master = Master::start();
        let url = format!("client://{entry}/{}?mode=1", target.address());
        master.create_running(&url);
        assert_eq!(master.stop(), 0);
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        let settings = Settings {
            place: format!("{address}/api"),
            ..Settings::default()
        };
        Self {
            folder: Arc::clone(master.folder()),
            settings,
            address,
            entry,
            holder,
            _target: target,
        }
    }

    fn start(&self) -> Program {
        self.settings.launch(self.folder.path()).start()
    }

    #[track_caller]
    fn wait_served(&self) {
        eventually("a visitor that is served", || {
            try_exchange(&try_dial(self.entry).ok()?, b"through the instance").ok()
        });
    }
}

#[test]
fn instances_come_back_though_the_address_of_the_api_is_taken() {
    let shut = Shut::new();
    let mut program = shut.start();
    shut.wait_served();
    program.wait_complaint(&["ERROR", &shut.address.to_string(), "in use"]);
    assert_eq!(program.count("API listening"), 0);
    drop(shut.holder);
    assert_eq!(listening_at(&program), shut.address);
    // The instance is that of before, and the API has it.
    assert_eq!(program.count("Client started"), 1);
    let state = shut.folder.read();
    let key = state["instances"][0]["url"].as_str().unwrap();
    let fields = [("X-API-Key", key), ("Connection", "close")];
    let mut connection = Connection::dial(shut.address).unwrap();
    let answer = connection.request("GET", "/api/v1/instances", &fields, None);
    assert_eq!(answer.unwrap().json()[1]["status"], "running");
    program.signal(Signal::TERM);
    assert_eq!(program.wait_exit(), 0);
    wait_refused(shut.entry);
}

#[test]
fn master_whose_address_is_taken_ends_in_good_order() {
    let shut = Shut::new();
    let mut program = shut.start();
    shut.wait_served();
    program.wait_complaint(&["ERROR", "in use"]);
    let children = children_of(program.id());
    assert_eq!(children.len(), 1);
    program.signal(Signal::TERM);
    assert_eq!(program.wait_exit(), 0);
    assert!(!children[0].is_alive());
    assert_eq!(program.count("Client stopped"), 1);
    // What it has served is kept.
    let served = shut.folder.read()["instances"][1]["tcprx"].as_u64();
    assert!(served >= Some(20), "{served:?}");
}

#[test]
fn nothing_of_another_master_is_started() {
    let shut = Shut::new();
    // The folder is locked, though the API is not open yet.
    let first = shut.start();
    shut.wait_served();
    let outcome = shut.settings.launch(shut.folder.path()).run();
    assert_eq!(outcome.status, 1);
    assert!(
        !outcome.output.contains("Client started"),
        "{}",
        outcome.output
    );
    drop(first);
    wait_refused(shut.entry);
    // A certificate that cannot be used ends it before anything has begun.
    let settings = shut
        .settings
        .options("log=info&tls=2&crt=/missing&key=/missing");
    let outcome = settings.launch(shut.folder.path()).run();
    assert_eq!(outcome.status, 1);
    assert!(outcome.output.contains("/missing"), "{}", outcome.output);
    assert!(
        !outcome.output.contains("Client started"),
        "{}",
        outcome.output
    );
}

#[test]
fn instance_does_not_take_the_address_of_the_api() {
    let Shut {
        folder,
        entry,
        _target,
        ..
    } = Shut::new();
    let settings = Settings {
        place: format!("{entry}/api"),
        ..Settings::default()
    };
    let master = Master::start_on(&folder, settings);
    assert_eq!(master.address(), entry);
    let id = master.instances()[0]["id"].as_str().unwrap().to_owned();
    master.wait_status(&id, "error");
    assert_eq!(master.count("Master error"), 0);
}
