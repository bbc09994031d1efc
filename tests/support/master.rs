//! A master with a state folder of its own, and what one does with its API.

use std::io;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::ends::with_env;
use super::http::{Answer, Connection, Field, Item};
use super::program::{Launch, Program};
use super::{DEADLINE, eventually};

/// The instance that stands for the API key.
pub const KEY_ENTRY: &str = "********";

/// Short times, for the master and for its children.
pub const QUICK: &[(&str, &str)] = &[
    ("NP_REPORT_INTERVAL", "300ms"),
    ("NP_SERVICE_COOLDOWN", "200ms"),
    ("NP_SHUTDOWN_TIMEOUT", "1s"),
];

/// A folder for state. Dropping it removes it.
pub struct StateFolder {
    path: PathBuf,
}

impl StateFolder {
    /// Makes an empty one.
    pub fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("nodepass-state-{}-{number}", std::process::id());
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The state file.
    pub fn state(&self) -> PathBuf {
        self.file("nodepass.json")
    }

    /// What the state file says.
    #[track_caller]
    pub fn read(&self) -> Value {
        let bytes = fs::read(self.state()).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// The names in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.path).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for StateFolder {
    fn drop(&mut self) {
        // What cannot be removed is in the folder for passing files anyway.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// How a master is to be started.
#[derive(Clone)]
pub struct Settings {
    /// Address and prefix, as they stand in the URL.
    pub place: String,
    /// Options, as in `log=debug&tls=1`.
    pub options: String,
    /// Variables besides the folder.
    pub env: Vec<(String, String)>,
    /// Run by a shell before the program, such as `ulimit -f 8`.
    pub setup: Option<String>,
    /// Whether the API speaks TLS.
    pub tls: bool,
    /// What stands before `/v1`.
    pub prefix: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            place: String::from("127.0.0.1:0/api"),
            options: String::from("log=info&tls=0"),
            env: owned(QUICK),
            setup: None,
            tls: false,
            prefix: String::from("/api"),
        }
    }
}

impl Settings {
    /// With other options.
    pub fn options(mut self, options: &str) -> Self {
        self.tls = options.contains("tls=1") || options.contains("tls=2");
        options.clone_into(&mut self.options);
        self
    }

    /// With one more variable, or another value of one.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.retain(|(other, _)| other != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a shell that runs `setup` first.
    pub fn setup(mut self, setup: &str) -> Self {
        self.setup = Some(setup.to_owned());
        self
    }

    /// The URL.
    pub fn url(&self) -> String {
        format!("master://{}?{}", self.place, self.options)
    }

    /// Ready to start on `folder`.
    pub fn launch(&self, folder: &Path) -> Launch {
        let url = self.url();
        let launch = match &self.setup {
            None => Launch::new(&[&url]),
            Some(setup) => Launch::through_shell(setup, &[&url]),
        };
        let env: Vec<(&str, &str)> = self
            .env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        with_env(launch, &env).env("NP_STATE_DIR", folder.to_str().unwrap())
    }
}

fn owned(env: &[(&str, &str)]) -> Vec<(String, String)> {
    env.iter()
        .map(|(name, value)| (String::from(*name), String::from(*value)))
        .collect()
}

/// A running master. Dropping it kills it, and so its children.
pub struct Master {
    program: Program,
    settings: Settings,
    folder: Arc<StateFolder>,
    address: SocketAddr,
    key: String,
}

impl Master {
    /// Starts one on an empty folder, with [`QUICK`] times.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(Settings::default())
    }

    /// Starts one on an empty folder.
    #[track_caller]
    pub fn start_with(settings: Settings) -> Self {
        Self::start_on(&Arc::new(StateFolder::new()), settings)
    }

    /// Starts one on a folder that may hold state already.
    #[track_caller]
    pub fn start_on(folder: &Arc<StateFolder>, settings: Settings) -> Self {
        let program = settings.launch(folder.path()).start();
        let address = listening_at(&program);
        let key = folder.read()["instances"][0]["url"].clone();
        Self {
            program,
            settings,
            folder: Arc::clone(folder),
            address,
            key: key.as_str().unwrap().to_owned(),
        }
    }

    /// Starts again on the same folder; the one before has ended.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(!self.program.is_running());
        *self = Self::start_on(&self.folder, self.settings.clone());
    }

    /// Asks it to end and waits; its exit status.
    #[track_caller]
    pub fn stop(&mut self) -> i32 {
        self.program.signal(Signal::TERM);
        self.program.wait_exit()
    }

    /// Ends it in good order and starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        assert_eq!(self.stop(), 0);
        self.start_again();
    }

    /// Where its API listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Uses this key from now on.
    pub fn use_key(&mut self, key: &str) {
        key.clone_into(&mut self.key);
    }

    /// Its state folder.
    pub fn folder(&self) -> &Arc<StateFolder> {
        &self.folder
    }

    /// The whole path of `path`, such as `/instances`.
    pub fn path(&self, path: &str) -> String {
        format!("{}/v1{path}", self.settings.prefix)
    }

    /// Connects to the API.
    pub fn dial(&self) -> io::Result<Connection> {
        Connection::dial_with(self.address, self.settings.tls)
    }

    /// The answer to a request, or what became of it; `path` such as `/instances`.
    pub fn try_request(
        &self,
        method: &str,
        path: &str,
        fields: &[Field<'_>],
        body: Option<&[u8]>,
    ) -> io::Result<Answer> {
        let fields = [fields, &[("Connection", "close")]].concat();
        let path = self.path(path);
        self.dial()?.request(method, &path, &fields, body)
    }

    /// The answer to a request with the key.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let body = body.map(Value::to_string);
        let body = body.as_deref().map(str::as_bytes);
        self.try_request(method, path, &[("X-API-Key", &self.key)], body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    #[track_caller]
    fn exchange(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let answer = self.request(method, path, body);
        (answer.status, answer.json())
    }

    /// Status and body of the answer to GET.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, Value) {
        self.exchange("GET", path, None)
    }

    /// The same for POST.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.exchange("POST", path, Some(body))
    }

    /// The same for PATCH.
    #[track_caller]
    pub fn patch(&self, path: &str, body: &Value) -> (u16, Value) {
        self.exchange("PATCH", path, Some(body))
    }

    /// The same for PUT.
    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.exchange("PUT", path, Some(body))
    }

    /// The same for DELETE.
    #[track_caller]
    pub fn delete(&self, path: &str) -> (u16, Value) {
        self.exchange("DELETE", path, None)
    }

    /// All instances but the key's entry, in order.
    #[track_caller]
    pub fn instances(&self) -> Vec<Value> {
        let mut all = self.list();
        assert_eq!(all.remove(0)["id"], KEY_ENTRY);
        all
    }

    /// All instances, the key's entry first.
    #[track_caller]
    pub fn list(&self) -> Vec<Value> {
        let (status, list) = self.get("/instances");
        assert_eq!(status, 200, "{list}");
        list.as_array().unwrap().clone()
    }

    /// Creates an instance: what the answer says of it.
    #[track_caller]
    pub fn create(&self, url: &str, alias: &str) -> Value {
        let (status, instance) = self.post("/instances", &json!({"url": url, "alias": alias}));
        assert_eq!(status, 201, "{instance}");
        instance
    }

    /// Creates an instance and waits until it runs, and has said so in the log: its id.
    #[track_caller]
    pub fn create_running(&self, url: &str) -> String {
        let id = id_of(&self.create(url, ""));
        self.wait_status(&id, "running");
        self.wait_line(&id, " started: ", 1);
        id
    }

    /// One instance.
    #[track_caller]
    pub fn instance(&self, id: &str) -> Value {
        let (status, instance) = self.get(&format!("/instances/{id}"));
        assert_eq!(status, 200, "{instance}");
        instance
    }

    /// Changes an instance: what the answer says of it.
    #[track_caller]
    pub fn change(&self, id: &str, change: &Value) -> Value {
        let (status, instance) = self.patch(&format!("/instances/{id}"), change);
        assert_eq!(status, 200, "{instance}");
        instance
    }

    /// Asks for an action on an instance.
    #[track_caller]
    pub fn act(&self, id: &str, action: &str) -> Value {
        self.change(id, &json!({"action": action}))
    }

    /// Waits until an instance satisfies `wanted`.
    #[track_caller]
    pub fn wait_instance(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let last = Mutex::new(Value::Null);
        let report = OnPanic(|| eprintln!("--- last seen: {}", last.lock().unwrap()));
        let found = eventually(what, || {
            let instance = self.instance(id);
            last.lock().unwrap().clone_from(&instance);
            wanted(&instance).then_some(instance)
        });
        drop(report);
        found
    }

    /// Waits until an instance has this status.
    #[track_caller]
    pub fn wait_status(&self, id: &str, status: &str) -> Value {
        let what = format!("status {status} of {id}");
        self.wait_instance(id, &what, |instance| instance["status"] == status)
    }

    /// The `count`-th line with `text` in an instance's log.
    #[track_caller]
    pub fn wait_line(&self, id: &str, text: &str, count: usize) -> String {
        let mark = format!(" [{id}]");
        eventually(text, || {
            let lines = self.program.lines();
            let mut of_it = lines
                .iter()
                .filter(|line| line.contains(text) && line.ends_with(&mark));
            of_it.nth(count - 1).cloned()
        })
    }

    /// The address after `text` in the `count`-th such line of an instance's log.
    #[track_caller]
    pub fn wait_address(&self, id: &str, text: &str, count: usize) -> SocketAddr {
        let line = self.wait_line(id, text, count);
        let (_, address) = line.split_once(text).unwrap();
        let address = address.split_whitespace().next().unwrap();
        let address = address.trim_end_matches([',', ';']);
        address.parse().unwrap()
    }

    /// Opens an event stream.
    #[track_caller]
    pub fn events(&self) -> Events {
        self.try_events().unwrap()
    }

    /// The same, where a refusal is an answer.
    pub fn try_events(&self) -> io::Result<Events> {
        let mut connection = self.dial()?;
        let path = self.path("/events");
        connection.send("GET", &path, &[("X-API-Key", &self.key)], None)?;
        let head = connection.receive_head()?;
        if head.status != 200 {
            return Err(io::Error::other(format!("status {}", head.status)));
        }
        Ok(Events::collect(head, connection))
    }

    /// Its living children.
    pub fn children(&self) -> Vec<Process> {
        children_of(self.program.id())
    }

    /// Its only child, once there is exactly one.
    #[track_caller]
    pub fn wait_child(&self) -> Process {
        eventually("exactly one child", || {
            let mut children = self.children();
            let child = children.pop()?;
            children.is_empty().then_some(child)
        })
    }

    /// Waits until it has so many children.
    #[track_caller]
    pub fn wait_children(&self, count: usize) -> Vec<Process> {
        eventually(&format!("{count} children"), || {
            let children = self.children();
            (children.len() == count).then_some(children)
        })
    }
}

impl Deref for Master {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for Master {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}

/// Runs when a test fails while it is there.
struct OnPanic<F: Fn()>(F);

impl<F: Fn()> Drop for OnPanic<F> {
    fn drop(&mut self) {
        if thread::panicking() {
            (self.0)();
        }
    }
}

/// Where the API of a program listens.
#[track_caller]
pub fn listening_at(program: &Program) -> SocketAddr {
    let line = program.wait_for("API listening on tcp ");
    let (_, text) = line.split_once("API listening on tcp ").unwrap();
    let (address, _) = text.split_once(": http").unwrap();
    address.parse().unwrap()
}

/// The id of an instance.
#[track_caller]
pub fn id_of(instance: &Value) -> String {
    let id = instance["id"].as_str();
    id.unwrap_or_else(|| panic!("no id in {instance}"))
        .to_owned()
}

/// A process, by its number and the time of its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    id: i32,
    started: u64,
}

impl Process {
    /// Whether it still runs. One that has ended and was not asked for its status does not.
    pub fn is_alive(&self) -> bool {
        look_at(self.id).is_some_and(|(process, _)| process == *self)
    }

    /// Its arguments, the name of the program first.
    pub fn arguments(&self) -> Vec<String> {
        let line = fs::read(format!("/proc/{}/cmdline", self.id)).unwrap();
        let arguments = line.split(|byte| *byte == 0);
        arguments
            .filter(|argument| !argument.is_empty())
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect()
    }

    /// Its environment, `NAME=value` each.
    pub fn environment(&self) -> Vec<String> {
        let text = fs::read(format!("/proc/{}/environ", self.id)).unwrap();
        let variables = text.split(|byte| *byte == 0);
        variables
            .map(|variable| String::from_utf8_lossy(variable).into_owned())
            .collect()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        assert!(self.is_alive());
        kill_process(Pid::from_raw(self.id).unwrap(), signal).unwrap();
    }

    /// Waits until it no longer runs.
    #[track_caller]
    pub fn wait_gone(&self) {
        eventually("the end of a child", || (!self.is_alive()).then_some(()));
    }
}

/// The living children of a process.
pub fn children_of(parent: u32) -> Vec<Process> {
    let parent = i32::try_from(parent).unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter_map(look_at)
        .filter(|(_, of)| *of == parent)
        .map(|(process, _)| process)
        .collect()
}

/// A process that has not ended, and its parent.
fn look_at(id: i32) -> Option<(Process, i32)> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    if matches!(fields[0], "Z" | "X") {
        return None;
    }
    let started = fields[19].parse().unwrap();
    Some((Process { id, started }, fields[1].parse().unwrap()))
}

/// One item of an event stream and when it came.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// The item.
    pub item: Item,
    /// The data of an event, null for other items.
    pub data: Value,
    /// When it was there.
    pub at: Instant,
}

impl Arrived {
    /// Notes an item that has just come.
    fn now(item: Item) -> Result<Self, String> {
        let data = match &item {
            Item::Event { name, data } if name == "instance" => {
                serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))?
            }
            Item::Event { name, .. } => return Err(format!("event named {name}")),
            Item::Retry(_) | Item::Comment(_) => Value::Null,
        };
        let at = Instant::now();
        Ok(Self { item, data, at })
    }
}

/// An event stream that is read all the time. Dropping it ends it.
pub struct Events {
    /// The head of the answer.
    pub head: Answer,
    seen: Arc<Seen>,
    socket: std::net::TcpStream,
}

#[derive(Default)]
struct Seen {
    state: Mutex<SeenState>,
    changed: Condvar,
}

#[derive(Default)]
struct SeenState {
    items: Vec<Arrived>,
    /// The data of those that are events.
    events: Vec<Value>,
    /// How the stream has ended.
    end: Option<Result<(), String>>,
}

impl Seen {
    fn note(&self, arrived: Arrived) {
        let mut state = self.state.lock().unwrap();
        if !arrived.data.is_null() {
            state.events.push(arrived.data.clone());
        }
        state.items.push(arrived);
    }

    /// Waits until `find` finds something; `None` at the end of `limit` or of the stream.
    fn wait<T>(&self, limit: Duration, mut find: impl FnMut(&SeenState) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(found) = find(&state) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.end.is_some() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl Events {
    fn collect(head: Answer, connection: Connection) -> Self {
        // A stream may be silent for as long as it likes.
        connection.set_patience(None);
        let socket = connection.stream().socket().try_clone().unwrap();
        let seen = Arc::new(Seen::default());
        // Ends with the connection, which dropping us ends: nobody has to join it.
        thread::spawn({
            let seen = Arc::clone(&seen);
            move || {
                let mut reader = connection.into_events();
                let end = loop {
                    match reader.next_item().map(|item| item.map(Arrived::now)) {
                        Ok(Some(Ok(arrived))) => seen.note(arrived),
                        Ok(Some(Err(problem))) => break Err(problem),
                        Ok(None) => break Ok(()),
                        Err(error) => break Err(error.to_string()),
                    }
                    seen.changed.notify_all();
                };
                seen.state.lock().unwrap().end = Some(end);
                seen.changed.notify_all();
            }
        });
        Self { head, seen, socket }
    }

    /// All items so far.
    pub fn items(&self) -> Vec<Arrived> {
        self.seen.state.lock().unwrap().items.clone()
    }

    /// The data of all events so far.
    pub fn all(&self) -> Vec<Value> {
        self.seen.state.lock().unwrap().events.clone()
    }

    /// Waits until `find` finds something among all data so far.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, find: impl Fn(&[Value]) -> Option<T>) -> T {
        match self.seen.wait(DEADLINE, |state| find(&state.events)) {
            Some(found) => found,
            None => self.fail(what),
        }
    }

    /// Waits for the first event that satisfies `wanted`.
    #[track_caller]
    pub fn wait_event(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut looked_at = 0;
        let found = self.seen.wait(DEADLINE, |state| {
            let news = &state.events[looked_at..];
            looked_at = state.events.len();
            news.iter().find(|event| wanted(event)).cloned()
        });
        match found {
            Some(found) => found,
            None => self.fail(what),
        }
    }

    /// Waits for the first event of `kind` about the instance `id`.
    #[track_caller]
    pub fn wait_kind(&self, kind: &str, id: &str) -> Value {
        self.wait_event(&format!("{kind} of {id}"), |event| {
            is_about(event, kind, id)
        })
    }

    /// Waits until `find` finds something among all items so far, for no longer than `limit`.
    pub fn wait_items<T>(
        &self,
        limit: Duration,
        find: impl Fn(&[Arrived]) -> Option<T>,
    ) -> Option<T> {
        self.seen.wait(limit, |state| find(&state.items))
    }

    /// Waits for the end of the stream: an error where it was not in good order.
    #[track_caller]
    pub fn wait_end(&self) -> Result<(), String> {
        eventually("the end of an event stream", || {
            self.seen.state.lock().unwrap().end.clone()
        })
    }

    /// Whether it has ended.
    pub fn is_ended(&self) -> bool {
        self.seen.state.lock().unwrap().end.is_some()
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        const SHOWN_MAX: usize = 30;
        // The lock is not held: whoever reads has to go on.
        let (items, end) = {
            let state = self.seen.state.lock().unwrap();
            let skipped = state.items.len().saturating_sub(SHOWN_MAX);
            (state.items[skipped..].to_vec(), state.end.clone())
        };
        for arrived in items {
            eprintln!("{:.400}", format!("{:?}", arrived.item));
        }
        panic!("not in the events: {what}; end {end:?}");
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // One that has ended already is as good.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

/// Whether an event is of `kind` and about the instance `id`.
pub fn is_about(event: &Value, kind: &str, id: &str) -> bool {
    event["type"] == kind && event["instance"]["id"] == id
}
