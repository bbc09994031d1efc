//! A master that is killed at any moment, or that has nowhere to write.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{env, thread};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Signal, geteuid};
use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::master::{KEY_ENTRY, Master, Settings, StateFolder, id_of};

// Killed.

/// Masters that are killed side by side: most of the time each waits for a disk or a process.
const MASTERS: usize = 4;

/// Clients of each of them, each with instances of its own.
const CLIENTS: usize = 2;

/// Instances that a client has at most.
const INSTANCES: usize = 2;

/// Kills in all, where variable `NP_TEST_KILLS` says nothing.
const KILLS: usize = 40;

/// Longest time from the first request to the kill (milliseconds).
const KILL_WAIT_MAX: u64 = 150;

/// What a change changes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    alias: String,
    slot: u64,
}

impl Known {
    fn of(instance: &Value) -> Self {
        let url = instance["url"].as_str().unwrap();
        let (_, rest) = url.split_once("slot=").unwrap();
        let slot = rest.split('&').next().unwrap();
        Self {
            alias: instance["alias"].as_str().unwrap().to_owned(),
            slot: slot.parse().unwrap(),
        }
    }

    fn url(&self) -> String {
        format!("client://127.0.0.1:0/127.0.0.1:9?mode=1&slot={}", self.slot)
    }
}

/// What one client knows of its instances. While a request is on its way, an instance may be in
/// the state of before or of after; `None` is that of one that does not exist.
#[derive(Default)]
struct Model {
    instances: BTreeMap<String, Vec<Option<Known>>>,
    /// Those of which creation has not been answered.
    created: Vec<Known>,
    name: String,
    changes_count: u64,
}

impl Model {
    /// A state that no instance has had yet.
    fn next(&mut self) -> Known {
        self.changes_count += 1;
        Known {
            alias: format!("{}-{}", self.name, self.changes_count),
            slot: self.changes_count,
        }
    }

    /// Does one thing; `None` when the master is gone.
    fn advance(&mut self, master: &Master, random: &mut Random) -> Option<()> {
        let next = self.next();
        let chosen = self.instances.keys().next().cloned();
        let Some(id) = chosen.filter(|_| self.instances.len() >= INSTANCES) else {
            return self.create(master, next);
        };
        let id = match random.below(2) {
            0 => id,
            _ => self.instances.keys().next_back().unwrap().clone(),
        };
        let before = self.instances[&id][0].clone().unwrap();
        let path = format!("/instances/{id}");
        let (method, body, after) = match random.below(3) {
            0 => ("DELETE", Value::Null, None),
            1 => {
                let after = Known {
                    slot: next.slot,
                    ..before.clone()
                };
                ("PUT", json!({"url": after.url()}), Some(after))
            }
            _ => {
                let after = Known {
                    alias: next.alias,
                    ..before.clone()
                };
                ("PATCH", json!({"alias": after.alias}), Some(after))
            }
        };
        self.instances
            .insert(id.clone(), vec![Some(before), after.clone()]);
        let (status, answer) = ask(master, method, &path, &body)?;
        assert!(matches!(status, 200 | 204), "{method}: {status} {answer}");
        match after {
            Some(_) => self.instances.insert(id, vec![after]),
            None => self.instances.remove(&id),
        };
        Some(())
    }

    fn create(&mut self, master: &Master, next: Known) -> Option<()> {
        self.created.push(next.clone());
        let body = json!({"url": next.url(), "alias": next.alias});
        let (status, answer) = ask(master, "POST", "/instances", &body)?;
        assert_eq!(status, 201, "{answer}");
        self.created.pop();
        self.instances.insert(id_of(&answer), vec![Some(next)]);
        Some(())
    }

    /// Finds its instances in what the master has now, takes them out, and knows them from then on.
    fn check(&mut self, found: &mut BTreeMap<String, Known>) {
        for (id, possible) in &mut self.instances {
            let now = found.remove(id);
            assert!(
                possible.contains(&now),
                "{id} is {now:?} and not one of {possible:?}"
            );
            *possible = vec![now];
        }
        self.instances.retain(|_, possible| possible[0].is_some());
        for created in self.created.drain(..) {
            let found_ids: Vec<String> = found
                .iter()
                .filter(|(_, known)| **known == created)
                .map(|(id, _)| id.clone())
                .collect();
            assert!(found_ids.len() <= 1, "{created:?} is there twice");
            for id in found_ids {
                self.instances.insert(id.clone(), vec![found.remove(&id)]);
            }
        }
    }
}

/// An answer, unless the master is gone before it is whole.
fn ask(master: &Master, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
    let body = (!body.is_null()).then(|| body.to_string());
    let body = body.as_deref().map(str::as_bytes);
    let fields = [("X-API-Key", master.key())];
    let answer = master.try_request(method, path, &fields, body).ok()?;
    Some((answer.status, answer.json()))
}

/// Numbers that nobody expects (xorshift, 64 bits).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }
}

/// Processes that have the path of `folder` in their environment: a master and its children.
fn processes_of(folder: &StateFolder) -> Vec<String> {
    let path = folder.path().to_str().unwrap();
    let wanted = format!("NP_STATE_DIR={path}");
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().into_string().ok());
    numbers
        .filter(|number| {
            // One that has ended has none left.
            let variables = fs::read(format!("/proc/{number}/environ")).unwrap_or_default();
            let mut variables = variables.split(|byte| *byte == 0);
            variables.any(|variable| variable == wanted.as_bytes())
        })
        .collect()
}

#[test]
fn kill_at_any_moment_loses_nothing_that_was_acknowledged() {
    let kills = env::var("NP_TEST_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let left = AtomicUsize::new(kills);
    thread::scope(|scope| {
        for number in 0..MASTERS {
            let left = &left;
            scope.spawn(move || {
                let seed = u64::from(std::process::id()) << 8 | u64::try_from(number).unwrap();
                let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
                let mut life = Life::begin();
                let take_one = |left: usize| left.checked_sub(1);
                while left
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take_one)
                    .is_ok()
                {
                    life.kill_once(&mut random);
                }
            });
        }
    });
}

/// A folder whose masters are killed one after another.
struct Life {
    folder: Arc<StateFolder>,
    settings: Settings,
    models: Vec<Model>,
}

impl Life {
    fn begin() -> Self {
        let models = (0..CLIENTS).map(|number| Model {
            name: format!("client {number}"),
            ..Model::default()
        });
        Self {
            folder: Arc::new(StateFolder::new()),
            settings: Settings::default().env("NP_RELOAD_INTERVAL", "200ms"),
            models: models.collect(),
        }
    }

    /// Starts a master, looks whether all is there, changes this and that, and kills it.
    fn kill_once(&mut self, random: &mut Random) {
        if random.below(5) == 0 {
            self.kill_while_it_starts(random);
        }
        let mut master = Master::start_on(&self.folder, self.settings.clone());
        let mut found: BTreeMap<String, Known> = master
            .instances()
            .iter()
            .map(|instance| (id_of(instance), Known::of(instance)))
            .collect();
        for model in &mut self.models {
            model.check(&mut found);
        }
        assert!(found.is_empty(), "nobody has made {found:?}");
        // Else the look for what is left over would find nothing ever.
        eventually("the master and all that it has started", || {
            let count = self
                .models
                .iter()
                .map(|model| model.instances.len())
                .sum::<usize>();
            (processes_of(&self.folder).len() == 1 + count).then_some(())
        });

        let wait = Duration::from_millis(random.below(KILL_WAIT_MAX));
        thread::scope(|scope| {
            for model in &mut self.models {
                let mut random = Random(random.below(u64::MAX >> 16) | 1);
                let master = &master;
                scope.spawn(move || while model.advance(master, &mut random).is_some() {});
            }
            thread::sleep(wait);
            master.signal(Signal::KILL);
        });
        master.wait_exit();
        self.wait_nobody();
    }

    fn kill_while_it_starts(&self, random: &mut Random) {
        let mut program = self.settings.launch(self.folder.path()).start();
        thread::sleep(Duration::from_millis(random.below(60)));
        program.kill();
        self.wait_nobody();
    }

    #[track_caller]
    fn wait_nobody(&self) {
        let last = Mutex::new(Vec::new());
        eventually("the end of all children", || {
            let left = processes_of(&self.folder);
            let is_empty = left.is_empty();
            *last.lock().unwrap() = left;
            is_empty.then_some(())
        });
    }
}

// No room.

/// A file system of a few pages over a state folder. Dropping it takes it away.
struct Small<'a> {
    path: &'a Path,
}

impl<'a> Small<'a> {
    /// Errors: this machine does not let us, and why.
    fn mount(path: &'a Path) -> Result<Self, String> {
        if !geteuid().is_root() {
            return Err(String::from("only root mounts"));
        }
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=128k", "tmpfs"])
            .arg(path)
            .output()
            .map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(Self { path }),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Fills it to the last byte.
    fn fill(&self) {
        let mut file = File::create(self.path.join("filler")).unwrap();
        let chunk = [b'x'; 512];
        while file.write_all(&chunk).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.path.join("filler")).unwrap();
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path).status();
    }
}

/// An instance that runs and has nothing to do.
const IDLE: &str = "client://127.0.0.1:0/127.0.0.1:9?mode=1";

/// Asks for every kind of change; each has to fail with one of `statuses` and leave no trace.
#[track_caller]
fn check_refused(master: &Master, id: &str, statuses: &[u16]) {
    let state = master.folder().read();
    let child = master.wait_child();
    let list = || -> Vec<Value> {
        let names = ["id", "alias", "url", "restart", "meta", "config"];
        let of_each = |instance: &Value| names.map(|name| instance[name].clone()).to_vec();
        master.list().iter().map(of_each).map(Value::from).collect()
    };
    let before = list();
    let events = master.events();
    events.wait_kind("initial", id);
    let path = format!("/instances/{id}");
    let other = "client://127.0.0.1:0/127.0.0.1:7?mode=1";
    let big = "x".repeat(250);
    let long_name = ["x".repeat(60), "y".repeat(60), "z".repeat(60)].join(".");
    for (method, path, body) in [
        ("POST", "/instances", json!({"url": IDLE, "alias": big})),
        ("PATCH", &path, json!({"alias": big})),
        (
            "PATCH",
            &path,
            json!({"restart": false, "meta": {"tags": {"a": big}}}),
        ),
        ("PATCH", &path, json!({"meta": {"peer": {"sid": big}}})),
        (
            "PUT",
            &path,
            json!({"url": format!("{other}&sni={long_name}")}),
        ),
        ("PATCH", "/instances/********", json!({"alias": big})),
        ("POST", "/info", json!({"alias": big})),
    ] {
        let answer = master.request(method, path, Some(&body));
        let said = answer.text();
        assert!(
            statuses.contains(&answer.status),
            "{method} {path}: {} {said}",
            answer.status
        );
        assert!(answer.error().len() > 10, "{method} {path}: {said}");
        assert_eq!(list(), before, "{method} {path}");
    }
    assert_eq!(master.folder().read(), state);
    assert_eq!(
        master.wait_child(),
        child,
        "a child of something that was refused"
    );
    let created = events.all().into_iter().find(|event| {
        let was_there = before.iter().any(|of| of[0] == event["instance"]["id"]);
        event["type"] == "create" || !was_there
    });
    assert_eq!(created, None);
    master.wait_complaint(&["ERROR", master.folder().path().to_str().unwrap()]);
}

/// Checks that everything can be changed, and is there after the next start.
#[track_caller]
fn check_works(master: &mut Master, id: &str, alias: &str) {
    master.change(id, &json!({"alias": alias}));
    let next = master.create_running(IDLE);
    assert_eq!(master.delete(&format!("/instances/{next}")).0, 204);
    master.kill();
    master.start_again();
    assert_eq!(master.instance(id)["alias"], alias);
    assert_eq!(master.instances().len(), 1);
    master.wait_status(id, "running");
}

#[test]
fn full_disk_refuses_changes_and_loses_nothing() {
    let folder = Arc::new(StateFolder::new());
    let small = match Small::mount(folder.path()) {
        Ok(small) => small,
        Err(reason) => return eprintln!("left out: {reason}"),
    };
    let mut master = Master::start_on(&folder, Settings::default());
    let id = master.create_running(IDLE);
    master.change(&id, &json!({"alias": "before"}));
    small.fill();
    check_refused(&master, &id, &[507]);
    // What makes the state smaller needs room as well.
    let (status, answer) = master.delete(&format!("/instances/{id}"));
    assert_eq!(status, 507, "{answer}");
    assert_eq!(master.instance(&id)["status"], "running");
    let key = master.key().to_owned();
    let (status, answer) = master.patch(
        &format!("/instances/{KEY_ENTRY}"),
        &json!({"action": "restart"}),
    );
    assert_eq!(status, 507, "{answer}");
    assert_eq!(master.list()[0]["url"], *key);
    small.free();
    check_works(&mut master, &id, "after");
}

#[test]
fn folder_that_is_gone_refuses_changes_until_it_is_back() {
    let mut master = Master::start();
    let id = master.create_running(IDLE);
    let folder = Arc::clone(master.folder());
    let elsewhere = folder.path().with_extension("elsewhere");
    fs::rename(folder.path(), &elsewhere).unwrap();
    for (method, path, body) in [
        ("POST", "/instances", json!({"url": IDLE})),
        (
            "PATCH",
            &format!("/instances/{id}")[..],
            json!({"alias": "lost"}),
        ),
        ("POST", "/info", json!({"alias": "lost"})),
    ] {
        let answer = master.request(method, path, Some(&body));
        assert_eq!(answer.status, 500, "{method} {path}: {}", answer.text());
        assert!(!answer.error().is_empty());
    }
    assert_eq!(master.instance(&id)["alias"], "");
    assert_eq!(master.list().len(), 2);
    master.wait_child();
    fs::rename(&elsewhere, folder.path()).unwrap();
    check_works(&mut master, &id, "after");
}

#[test]
fn full_disk_at_start_is_an_error_and_leaves_the_state_alone() {
    let folder = Arc::new(StateFolder::new());
    let small = match Small::mount(folder.path()) {
        Ok(small) => small,
        Err(reason) => return eprintln!("left out: {reason}"),
    };
    // No state yet: a key that cannot be kept must not be used.
    small.fill();
    let outcome = Settings::default().launch(folder.path()).run();
    assert_eq!(outcome.status, 1, "{outcome:?}");
    let said = outcome.output + &outcome.errors;
    assert!(said.contains(folder.path().to_str().unwrap()), "{said}");
    assert!(!said.contains("API listening"), "{said}");
    small.free();
    let mut master = Master::start_on(&folder, Settings::default());
    let id = master.create_running(IDLE);
    master.kill();
    let state = folder.read();
    small.fill();
    // With a state, it may start or refuse to; what is there stays there.
    let mut program = Settings::default().launch(folder.path()).start();
    thread::sleep(Duration::from_millis(300));
    program.kill();
    assert_eq!(folder.read()["instances"][0], state["instances"][0]);
    small.free();
    master.start_again();
    master.wait_status(&id, "running");
}

#[test]
fn state_file_that_may_grow_no_further_keeps_what_it_has() {
    // Blocks of 512 bytes; the signal that would end the program is one it never hears.
    let settings = Settings::default().setup("trap '' XFSZ; ulimit -f 16");
    let mut master = Master::start_with(settings);
    let id = master.create_running(IDLE);
    let big = |number: u32| json!({"meta": {"tags": {number.to_string(): "x".repeat(250)}}});
    let mut created = Vec::new();
    let (status, answer) = loop {
        let (status, answer) = master.post(
            "/instances",
            &json!({"url": IDLE, "alias": "y".repeat(250)}),
        );
        if status != 201 {
            break (status, answer);
        }
        created.push(id_of(&answer));
        assert!(created.len() < 64, "there is room without end");
    };
    assert!(matches!(status, 500 | 507), "{status} {answer}");
    assert_eq!(master.instances().len(), 1 + created.len());
    let before = master.instance(&id);
    let many: Vec<u32> = (0..40).collect();
    let tags: Value = many
        .iter()
        .map(|number| (number.to_string(), json!("x".repeat(250))))
        .collect();
    let (status, answer) = master.patch(
        &format!("/instances/{id}"),
        &json!({"meta": {"tags": tags}}),
    );
    assert!(matches!(status, 500 | 507), "{status} {answer}");
    assert_eq!(master.instance(&id)["meta"], before["meta"]);
    // What makes it smaller makes room.
    for id in &created {
        assert_eq!(master.delete(&format!("/instances/{id}")).0, 204);
    }
    assert_eq!(
        master.change(&id, &big(1))["meta"]["tags"]["1"],
        "x".repeat(250)
    );
    check_works(&mut master, &id, "after");
}

#[test]
fn second_signal_ends_a_master_whose_disk_hangs() {
    let mut master = Master::start();
    master.create_running(IDLE);
    let child = master.wait_child();
    // Whoever opens it to write waits until somebody reads.
    let hanging = master.folder().file("nodepass.json.new");
    mknodat(CWD, &hanging, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    master.signal(Signal::TERM);
    child.wait_gone();
    // All instances have ended: what is left is the state.
    eventually("the end of the supervisor", || {
        let threads = fs::read_dir(format!("/proc/{}/task", master.id())).unwrap();
        let mut names = threads
            .flatten()
            .map(|thread| fs::read_to_string(thread.path().join("comm")).unwrap_or_default());
        (!names.any(|name| name.trim() == "supervisor")).then_some(())
    });
    assert!(master.is_running(), "it does not wait for the disk");
    master.signal(Signal::TERM);
    assert_eq!(master.wait_exit(), 0);
}
