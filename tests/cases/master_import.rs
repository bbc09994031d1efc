//! A master that comes into the place of one of the 1.x line, whose state it takes over.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::master::{KEY_ENTRY, Master, Settings, StateFolder};

/// The state that a 1.14 master left.
const OLD_STATE: &[u8] = include_bytes!("../vectors/master/nodepass.gob");

/// What that master had said of its instances last.
const OLD_LIST: &str = include_str!("../vectors/master/64-list-newkey.txt");

/// In the order of their start: two that were to run, and one between them that was not.
const FORWARDER: &str = "09d7b977";
const STOPPED: &str = "1e2b9ab8";
const CLIENT: &str = "37413be9";

/// A folder with `state` as a 1.x master would have left it.
fn folder_with(state: &[u8]) -> Arc<StateFolder> {
    let folder = StateFolder::new();
    fs::write(folder.file("nodepass.gob"), state).unwrap();
    Arc::new(folder)
}

fn start_on(folder: &Arc<StateFolder>) -> Master {
    Master::start_on(folder, Settings::default())
}

/// The instances of the 1.14 master, as its API showed them.
fn old_instances() -> Vec<Value> {
    let (start, end) = (OLD_LIST.find("[{"), OLD_LIST.rfind("}]"));
    serde_json::from_str(&OLD_LIST[start.unwrap()..end.unwrap() + 2]).unwrap()
}

/// What of an instance does not change by itself.
fn lasting(instance: &Value) -> Value {
    let names = ["id", "alias", "type", "url", "restart", "meta"];
    names
        .iter()
        .map(|name| (String::from(*name), instance[name].clone()))
        .collect()
}

/// The lines at level error that name `path`.
fn errors_about(master: &Master, path: &Path) -> Vec<String> {
    let path = path.to_str().unwrap();
    let mut lines = master.lines();
    lines.retain(|line| line.contains(" ERROR ") && line.contains(path));
    lines
}

#[test]
fn instances_and_key_of_a_1x_master_are_taken_over() {
    let folder = folder_with(OLD_STATE);
    let master = start_on(&folder);
    let old = old_instances();
    let list = master.list();
    assert_eq!(list.len(), old.len());
    for old in &old {
        let id = &old["id"];
        let new = list.iter().find(|instance| instance["id"] == *id);
        let new = new.unwrap_or_else(|| panic!("{id} is missing"));
        assert_eq!(lasting(new), lasting(old));
    }

    // Clients go on with the key that they have, and know the master by its id.
    let old_key = old.iter().find(|instance| instance["id"] == KEY_ENTRY);
    let old_key = old_key.unwrap();
    assert_eq!(master.key(), old_key["url"]);
    assert_eq!(list[0]["config"], old_key["config"]);
    let (_, info) = master.get("/info");
    assert_eq!(info["mid"], old_key["config"]);
    assert_eq!(info["alias"], old_key["alias"]);
    assert_eq!(master.count("API key made"), 0);

    // The way back to 1.x stays open.
    let kept = fs::read(folder.file("nodepass.gob")).unwrap();
    assert!(kept == OLD_STATE);
}

#[test]
fn instances_that_a_1x_master_ran_run_again_and_the_others_do_not() {
    let master = start_on(&folder_with(OLD_STATE));
    // They may fail, as nothing here is as it was there; but they have been started.
    for id in [FORWARDER, CLIENT] {
        master.wait_for(&format!(" [{id}]"));
    }
    assert_eq!(master.instance(STOPPED)["status"], "stopped");
    assert_eq!(master.count(&format!(" [{STOPPED}]")), 0);
}

#[test]
fn a_1x_state_is_taken_over_once() {
    let folder = folder_with(OLD_STATE);
    let mut master = start_on(&folder);
    master.change(STOPPED, &json!({"alias": "mine"}));
    let answer = master.request("DELETE", &format!("/instances/{CLIENT}"), None);
    assert_eq!(answer.status, 204);
    let key = master.act(KEY_ENTRY, "restart")["url"].clone();
    let before: Vec<Value> = {
        master.use_key(key.as_str().unwrap());
        master.list().iter().map(lasting).collect()
    };

    master.restart();
    let after: Vec<Value> = master.list().iter().map(lasting).collect();
    assert_eq!(before, after);
    assert_eq!(master.key(), key);
    assert!(after.iter().all(|instance| instance["id"] != CLIENT));
    assert_eq!(master.instance(STOPPED)["alias"], "mine");
}

#[test]
fn a_state_of_our_own_goes_before_one_of_1x() {
    let mut master = Master::start();
    let key = master.key().to_owned();
    assert_eq!(master.stop(), 0);
    fs::write(master.folder().file("nodepass.gob"), OLD_STATE).unwrap();
    master.start_again();
    assert_eq!(master.key(), key);
    assert_eq!(master.instances(), Vec::<Value>::new());
}

#[test]
fn a_damaged_1x_state_is_reported_and_kept() {
    let half = &OLD_STATE[..OLD_STATE.len() / 2];
    let mut longer = OLD_STATE.to_vec();
    // The name of a field is longer than it was: what defines its type makes no sense then.
    let name = OLD_STATE.windows(4).position(|name| name == b"\x03URL");
    longer[name.unwrap()] = 4;
    for damaged in [half, b"", b"no gob at all", &longer] {
        let folder = folder_with(damaged);
        let master = start_on(&folder);
        assert_eq!(master.instances(), Vec::<Value>::new());
        assert_eq!(master.count("API key made"), 1);
        let lines = errors_about(&master, &folder.file("nodepass.gob"));
        assert_eq!(lines.len(), 1, "{lines:?}");
        // Where it was, or moved aside.
        let names = folder.names();
        let mut kept = names.iter().filter(|name| name.starts_with("nodepass.gob"));
        let name = kept.next().unwrap();
        assert!(fs::read(folder.file(name)).unwrap() == damaged);
        assert_eq!(kept.next(), None);
    }
}
