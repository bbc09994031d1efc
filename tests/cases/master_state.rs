//! What a master keeps on disk, and what it makes of it when it starts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::each::for_each;
use crate::support::master::{KEY_ENTRY, Master, Settings, StateFolder, id_of, listening_at};
use crate::support::program::{BINARY, Launch, forward_url};
use crate::support::servers::TcpServer;
use crate::support::visitors::{dial, exchange, wait_refused};
use crate::support::{eventually, free_address_beside};

/// An instance that runs and has nothing to do.
const IDLE: &str = "client://127.0.0.1:0/127.0.0.1:9?mode=1";

/// State that is copied all the time.
fn copying() -> Settings {
    Settings::default().env("NP_RELOAD_INTERVAL", "200ms")
}

#[track_caller]
fn text<'a>(instance: &'a Value, name: &str) -> &'a str {
    instance[name].as_str().unwrap()
}

/// What of an instance only a change changes.
fn lasting(instance: &Value) -> Value {
    let names = ["id", "alias", "type", "url", "config", "restart", "meta"];
    names
        .iter()
        .map(|name| (*name, instance[*name].clone()))
        .collect()
}

/// The same of all instances.
fn lasting_of(list: &[Value]) -> Vec<Value> {
    list.iter().map(lasting).collect()
}

/// Waits until the backup says the same as `list`.
#[track_caller]
fn wait_backup(folder: &StateFolder, list: &[Value]) {
    eventually("a backup of now", || {
        let bytes = fs::read(folder.file("nodepass.json.backup")).ok()?;
        let state: Value = serde_json::from_slice(&bytes).ok()?;
        let kept = lasting_of(state["instances"].as_array()?);
        (kept == lasting_of(list)).then_some(())
    });
}

// Files.

#[test]
fn files_are_for_nobody_else() {
    let master = Master::start_with(copying().setup("umask 0"));
    master.create(IDLE, "");
    wait_backup(master.folder(), &master.list());
    for name in master.folder().names() {
        let mode = fs::metadata(master.folder().file(&name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o600, "{name}");
    }
    let names = master.folder().names();
    for name in ["nodepass.json", "nodepass.json.backup", "nodepass.lock"] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
}

#[test]
fn every_change_is_on_disk_when_it_is_answered() {
    let master = Master::start();
    let check = |what: &str| {
        let state = master.folder().read();
        assert_eq!(state["version"], 1);
        let kept = lasting_of(state["instances"].as_array().unwrap());
        assert_eq!(kept, lasting_of(&master.list()), "{what}");
        assert_eq!(kept[0]["id"], KEY_ENTRY);
        kept
    };
    let kept = check("start");
    assert_eq!(kept[0]["url"], master.key());
    let first = id_of(&master.create(IDLE, "first"));
    assert_eq!(check("create")[1]["alias"], "first");
    master.change(&first, &json!({"alias": "renamed"}));
    assert_eq!(check("alias")[1]["alias"], "renamed");
    master.change(&first, &json!({"restart": false}));
    assert_eq!(check("restart")[1]["restart"], false);
    let meta = json!({"peer": {"sid": "s", "type": "1", "alias": "语"}, "tags": {"k\"": "v\n"}});
    master.change(&first, &json!({"meta": meta}));
    assert_eq!(check("meta")[1]["meta"], meta);
    let url = "client://127.0.0.1:0/127.0.0.1:7?mode=1";
    assert_eq!(
        master
            .put(&format!("/instances/{first}"), &json!({"url": url}))
            .0,
        200
    );
    assert!(text(&check("url")[1], "url").contains("127.0.0.1:7"));
    let second = id_of(&master.create(IDLE, "second"));
    assert_eq!(master.delete(&format!("/instances/{first}")).0, 204);
    let kept = check("delete");
    assert_eq!((kept.len(), &kept[1]["id"]), (2, &json!(second)));
    master.change(KEY_ENTRY, &json!({"alias": "the master"}));
    assert_eq!(check("alias of the master")[0]["alias"], "the master");
    // Nothing else is left in the folder.
    let mut names = master.folder().names();
    names.retain(|name| name != "nodepass.json.backup");
    assert_eq!(names, ["nodepass.json", "nodepass.lock"]);
}

#[test]
fn backup_follows_the_state() {
    let master = Master::start_with(copying());
    wait_backup(master.folder(), &master.list());
    let id = id_of(&master.create(IDLE, "first"));
    wait_backup(master.folder(), &master.list());
    master.change(&id, &json!({"alias": "second"}));
    wait_backup(master.folder(), &master.list());
    assert_eq!(master.delete(&format!("/instances/{id}")).0, 204);
    wait_backup(master.folder(), &master.list());
}

#[test]
fn second_master_on_the_same_state_is_refused() {
    let master = Master::start();
    let id = master.create_running(IDLE);
    let before = fs::read(master.folder().state()).unwrap();
    let outcome = Settings::default().launch(master.folder().path()).run();
    assert_eq!(outcome.status, 1);
    let said = outcome.output + &outcome.errors;
    let folder = master.folder().path().to_str().unwrap();
    assert!(said.contains(folder) && said.contains("ERROR"), "{said}");
    assert!(!said.contains("API listening"), "{said}");
    assert_eq!(fs::read(master.folder().state()).unwrap(), before);
    assert_eq!(master.instance(&id)["status"], "running");
}

#[test]
fn key_is_made_once_and_told_once() {
    let mut master = Master::start();
    let key = master.key().to_owned();
    let is_hex = key.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
    assert!(is_hex && key.len() == 32, "{key}");
    let line = master.wait_for("API key made: ");
    assert!(line.contains("INFO") && line.contains(&key), "{line}");
    assert!(
        line.contains(master.folder().state().to_str().unwrap()),
        "{line}"
    );
    let id = text(&master.list()[0], "config").to_owned();
    assert!(id.len() == 16, "{id}");
    master.restart();
    assert_eq!(master.key(), key);
    assert_eq!(text(&master.list()[0], "config"), id);
    assert_eq!(master.count(&key), 0);
    // Every master makes its own.
    assert_ne!(Master::start().key(), key);
}

// Damage.

/// Names of files that were moved aside.
fn set_aside(folder: &StateFolder) -> Vec<String> {
    let mut names = folder.names();
    names.retain(|name| name.contains(".damaged-"));
    names
}

/// Whether some file that was moved aside holds these bytes.
fn is_kept(folder: &StateFolder, bytes: &[u8]) -> bool {
    set_aside(folder)
        .iter()
        .any(|name| fs::read(folder.file(name)).unwrap() == bytes)
}

#[test]
fn damaged_state_is_set_aside_and_the_backup_used() {
    let half = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    let damages = [
        "",
        "not json\n",
        "[]\n",
        "{\"version\":1,\"instances\":[]}",
        "{\"version\":1,\"instances\":[\"\0\"]}",
        "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    ];
    for_each(&damages, |damage| check_damage(damage));
    // Cut off in the middle.
    let mut master = Master::start_with(copying());
    master.create_running(IDLE);
    let list = master.list();
    wait_backup(master.folder(), &list);
    master.kill();
    let whole = fs::read(master.folder().state()).unwrap();
    fs::write(master.folder().state(), half(&whole)).unwrap();
    master.start_again();
    assert_eq!(lasting_of(&master.list()), lasting_of(&list));
    assert!(is_kept(master.folder(), &half(&whole)));
}

fn check_damage(damage: &str) {
    let mut master = Master::start_with(copying());
    let id = master.create_running(IDLE);
    master.change(&id, &json!({"alias": "kept"}));
    let list = master.list();
    wait_backup(master.folder(), &list);
    master.kill();
    fs::write(master.folder().state(), damage).unwrap();

    master.start_again();
    assert_eq!(lasting_of(&master.list()), lasting_of(&list));
    assert!(is_kept(master.folder(), damage.as_bytes()));
    let path = master.folder().state();
    master.wait_complaint(&["ERROR", path.to_str().unwrap(), ".damaged-"]);
    master.wait_complaint(&["ERROR", "backup"]);
    master.wait_status(&id, "running");
    // It goes on from there.
    master.change(&id, &json!({"alias": "changed"}));
    assert_eq!(master.folder().read()["instances"][1]["alias"], "changed");
    let aside = set_aside(master.folder());
    master.restart();
    assert_eq!(text(&master.instance(&id), "alias"), "changed");
    assert_eq!(set_aside(master.folder()), aside);
}

#[test]
fn state_and_backup_damaged_are_both_kept_and_a_new_state_made() {
    let mut master = Master::start_with(copying());
    let id = master.create_running(IDLE);
    let key = master.key().to_owned();
    wait_backup(master.folder(), &master.list());
    master.kill();
    fs::write(master.folder().state(), "the state").unwrap();
    fs::write(master.folder().file("nodepass.json.backup"), "the backup").unwrap();
    master.start_again();
    assert!(master.instances().is_empty());
    assert_ne!(master.key(), key);
    let next = master.create_running(IDLE);
    assert_ne!(next, id);
    // Until a new backup is there.
    wait_backup(master.folder(), &master.list());
    for bytes in ["the state", "the backup"] {
        assert!(
            is_kept(master.folder(), bytes.as_bytes()),
            "{bytes} is lost"
        );
    }
}

#[test]
fn damage_in_one_second_replaces_nothing_that_was_set_aside() {
    const TIMES: usize = 4;
    let mut master = Master::start_with(copying());
    for number in 0..TIMES {
        wait_backup(master.folder(), &master.list());
        master.kill();
        fs::write(master.folder().state(), format!("damage {number}")).unwrap();
        master.start_again();
    }
    for number in 0..TIMES {
        let bytes = format!("damage {number}");
        assert!(
            is_kept(master.folder(), bytes.as_bytes()),
            "{bytes} is lost"
        );
    }
}

#[test]
fn what_an_unfinished_write_has_left_is_no_hindrance() {
    let mut master = Master::start();
    let id = master.create_running(IDLE);
    let before = master.folder().names();
    master.kill();
    for name in ["nodepass.json.tmp", "nodepass.json.new", "nodepass.json~"] {
        fs::write(master.folder().file(name), "{\"version\":1,").unwrap();
    }
    master.start_again();
    master.wait_status(&id, "running");
    master.change(&id, &json!({"alias": "changed"}));
    master.restart();
    assert_eq!(text(&master.instance(&id), "alias"), "changed");
    assert!(
        before
            .iter()
            .all(|name| master.folder().names().contains(name))
    );
}

// Coming back.

#[test]
fn those_come_back_that_ran_or_have_restart() {
    for_each(&["end", "kill"], |way| {
        let target = TcpServer::echo();
        let address = free_address_beside(&[target.address()]);
        let mut master = Master::start();
        let url = format!("client://{address}/{}?mode=1", target.address());
        let running = master.create_running(&url);
        let running_only = master.create_running(IDLE);
        let stopped = master.create_running(IDLE);
        let stopped_restart = master.create_running(IDLE);
        for id in [&running_only, &stopped] {
            master.change(id, &json!({"restart": false}));
        }
        for id in [&stopped, &stopped_restart] {
            master.act(id, "stop");
            master.wait_status(id, "stopped");
        }
        let list = master.list();
        let children = master.children();
        assert_eq!(children.len(), 2);
        if *way == "end" {
            assert_eq!(master.stop(), 0);
            // They have ended before it has.
            assert!(children.iter().all(|child| !child.is_alive()));
        } else {
            master.kill();
            for child in &children {
                child.wait_gone();
            }
        }
        wait_refused(address);

        master.start_again();
        assert_eq!(lasting_of(&master.list()), lasting_of(&list));
        for id in [&running, &running_only, &stopped_restart] {
            master.wait_status(id, "running");
        }
        assert_eq!(master.instance(&stopped)["status"], "stopped");
        assert_eq!(master.children().len(), 3);
        exchange(&dial(address), b"served again");
    });
}

#[test]
fn interrupt_ends_master_and_children_as_termination_does() {
    let target = TcpServer::echo();
    let mut master = Master::start();
    for _ in 0..5 {
        master.create_running(&forward_url(target.address(), ""));
    }
    let children = master.children();
    assert_eq!(children.len(), 5);
    master.signal(Signal::INT);
    assert_eq!(master.wait_exit(), 0);
    assert!(children.iter().all(|child| !child.is_alive()));
    assert_eq!(master.count("Master stopping"), 1);
    assert_eq!(master.count("Master stopped"), 1);
}

#[test]
fn master_that_is_killed_leaves_no_child() {
    let target = TcpServer::echo();
    let mut master = Master::start();
    for _ in 0..5 {
        master.create_running(&forward_url(target.address(), ""));
    }
    let children = master.children();
    assert_eq!(children.len(), 5);
    // One that cannot hear it either.
    children[0].signal(Signal::STOP);
    master.kill();
    for child in &children {
        child.wait_gone();
    }
}

// Folders.

#[test]
fn folder_that_cannot_be_used_is_a_clear_error() {
    let folder = StateFolder::new();
    let file = folder.file("a-file");
    fs::write(&file, "").unwrap();
    // Where not even root may write.
    for place in [
        file.as_path(),
        Path::new("/proc"),
        Path::new("/dev/null/state"),
    ] {
        let outcome = Settings::default().launch(place).run();
        assert_eq!(outcome.status, 1, "{}", place.display());
        let said = outcome.output + &outcome.errors;
        assert!(said.contains(place.to_str().unwrap()), "{said}");
        assert!(
            !said.contains("API listening") && !said.contains("panicked"),
            "{said}"
        );
    }
}

/// A copy of the program in a folder of its own. Dropping it removes the folder.
struct Installed {
    folder: PathBuf,
}

impl Installed {
    fn new(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(folder.join("gob")).unwrap();
        let program = folder.join("nodepass");
        let _ = fs::remove_file(&program);
        // The same file under another name, where both are on one file system.
        fs::hard_link(BINARY, &program)
            .or_else(|_| fs::copy(BINARY, &program).map(|_| ()))
            .unwrap();
        Self { folder }
    }

    /// Starts it without a word about where state is; where it says that its key is kept.
    #[track_caller]
    fn start(&self, expected: &Path, key: Option<&str>) {
        let url = "master://127.0.0.1:0/api?log=info";
        let program = Launch::copy(&self.folder.join("nodepass"), &[url]).start();
        let _ = listening_at(&program);
        let state = fs::read(expected).unwrap();
        let state: Value = serde_json::from_slice(&state).unwrap();
        match key {
            Some(key) => assert_eq!(text(&state["instances"][0], "url"), key),
            None => {
                let line = program.wait_for("API key made: ");
                assert!(line.contains(expected.to_str().unwrap()), "{line}");
            }
        }
    }
}

impl Installed {
    /// Removes a state and its backup.
    fn forget(&self, state: &Path) {
        assert!(state.starts_with(&self.folder));
        fs::remove_file(state).unwrap();
        // Written when the program likes to.
        let _ = fs::remove_file(state.with_extension("json.backup"));
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        // What cannot be removed is in a folder for passing files anyway.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn state_is_where_the_rules_say() {
    let installed = Installed::new("rules");
    let here = installed.folder.join("nodepass.json");
    let in_gob = installed.folder.join("gob/nodepass.json");
    // A state of some other master.
    let mut master = Master::start();
    let key = master.key().to_owned();
    master.stop();
    let state = master.folder().state();

    let system = Path::new("/var/lib/nodepass");
    if !system.exists() {
        installed.start(&here, None);
        installed.forget(&here);
    }
    fs::copy(&state, &in_gob).unwrap();
    installed.start(&in_gob, Some(&key));
    assert!(!here.exists());
    installed.forget(&in_gob);
    fs::copy(&state, &here).unwrap();
    installed.start(&here, Some(&key));
    assert!(!in_gob.exists());
}

// From 1.x.

#[test]
fn state_of_a_recorded_master_is_taken_over_and_kept() {
    const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/master");
    let answer = fs::read_to_string(format!("{RECORDED}/64-list-newkey.txt")).unwrap();
    let begin = answer.find('[').unwrap();
    let end = answer.rfind(']').unwrap();
    let recorded: Vec<Value> = serde_json::from_str(&answer[begin..=end]).unwrap();
    let original = fs::read(format!("{RECORDED}/nodepass.gob")).unwrap();

    let folder = Arc::new(StateFolder::new());
    fs::write(folder.file("nodepass.gob"), &original).unwrap();
    let mut master = Master::start_on(&folder, Settings::default());
    for _ in 0..2 {
        let list = master.list();
        for theirs in &recorded {
            // That one has no target, which ours does not accept.
            if theirs["id"] == "6e2f58e2" {
                continue;
            }
            let ours = list.iter().find(|ours| ours["id"] == theirs["id"]);
            let ours = ours.unwrap_or_else(|| panic!("{theirs} is missing in {list:#?}"));
            for name in ["alias", "type", "url", "restart", "meta", "tcprx", "udptx"] {
                assert_eq!(ours[name], theirs[name], "{name} of {}", theirs["id"]);
            }
        }
        assert_eq!(list[0]["config"], "2ae8f0e11dc09208");
        assert_eq!(fs::read(folder.file("nodepass.gob")).unwrap(), original);
        // What happens afterwards is in the state file, which counts from now on.
        master.change(KEY_ENTRY, &json!({"alias": "my master"}));
        master.restart();
    }
    master.change(KEY_ENTRY, &json!({"alias": "another name"}));
    master.restart();
    assert_eq!(master.list()[0]["alias"], "another name");
}
