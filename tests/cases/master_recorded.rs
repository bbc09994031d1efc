//! The recorded requests of `tests/vectors/master`, and what ours answers to each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs;

use serde_json::{Map, Value};

use crate::support::http::{Answer, Connection};
use crate::support::master::{Events, KEY_ENTRY, Master, Settings, id_of};
use crate::support::own_loopback;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/master");

/// Where the recorded instances listen and dial, up to the last digits of the port; here an
/// address and ports of the test's own stand in its place.
const RECORDED_HOST: &str = "127.0.0.1:190";

/// The address of the recorded master.
const RECORDED_MASTER: &str = "127.0.0.1:10110";

/// What ours answers otherwise.
enum Other {
    /// An error with this status and a text that has these words.
    Error(u16, &'static str),
    /// One of these in the place of `status` of the instance with the recorded id.
    Status(&'static str, &'static [&'static str]),
    /// Any number in the place of a figure of the instance with the recorded id.
    Figure(&'static str, &'static str),
    /// Status 200 and no body.
    NoBody,
    /// The instance with the recorded id is not there.
    Missing(&'static str),
}

/// Where the answer to a request, by the number of its recording, differs, and why it may.
const DIFFERENCES: &[(u32, Other, &str)] = &[
    (
        11,
        Other::Error(404, "Not found"),
        "errors are JSON everywhere",
    ),
    (
        12,
        Other::Error(404, "Not found"),
        "errors are JSON everywhere",
    ),
    (
        62,
        Other::Error(404, "Not found"),
        "errors are JSON everywhere",
    ),
    (
        32,
        Other::Error(400, "Invalid request body"),
        "bad JSON is 400 for PATCH as well",
    ),
    (
        36,
        Other::Status(CLIENT, SETTLING),
        "a child that was stopped has not failed",
    ),
    (
        37,
        Other::Status(CLIENT, SETTLING),
        "a child that was stopped has not failed",
    ),
    (
        38,
        Other::Status(CLIENT, SETTLING),
        "a child that starts has not failed",
    ),
    (
        39,
        Other::Status(CLIENT, SETTLING),
        "a child that starts has not failed",
    ),
    (
        40,
        Other::Status(CLIENT, SETTLING),
        "a child that starts has not failed",
    ),
    (
        41,
        Other::Figure(CLIENT, "mode"),
        "a URL that has never run has no mode yet",
    ),
    (
        57,
        Other::Status(SERVER, RUNNING),
        "a server whose client leaves has not failed",
    ),
    (
        59,
        Other::Status(SERVER, RUNNING),
        "a server whose client leaves has not failed",
    ),
    (
        60,
        Other::Status(SERVER, RUNNING),
        "a server whose client leaves has not failed",
    ),
    (
        64,
        Other::Status(SERVER, RUNNING),
        "a server whose client leaves has not failed",
    ),
    (
        58,
        Other::Error(400, "target"),
        "a URL without a target is refused at once",
    ),
    (59, Other::Missing("6e2f58e2"), "as 58 was refused"),
    (60, Other::Missing("6e2f58e2"), "as 58 was refused"),
    (64, Other::Missing("6e2f58e2"), "as 58 was refused"),
    (61, Other::NoBody, "HEAD is as GET without a body"),
];

/// Recorded ids.
const SERVER: &str = "1e2b9ab8";
const CLIENT: &str = "d25aea94";
const SINGLE: &str = "09d7b977";
const FAILING: &str = "37413be9";

const SETTLING: &[&str] = &["stopped", "running"];
const RUNNING: &[&str] = &["running"];

/// The first request that the recorded stream has seen.
const STREAM_OPENED_BEFORE: u32 = 13;

/// Members of an instance that depend on the moment: there, and integers.
const FIGURES: &[&str] = &["ping", "pool"];

/// Members of the figures of the host: there, and integers.
const HOST_FIGURES: &[&str] = &[
    "cpu",
    "diskr",
    "diskw",
    "mem_total",
    "mem_used",
    "netrx",
    "nettx",
    "swap_total",
    "swap_used",
    "sysup",
    "uptime",
];

/// Options that 1.14 did not have.
const NEW_OPTIONS: &[&str] = &["auth", "lbs"];

/// One recorded request and the answer that came.
struct Recording {
    number: u32,
    method: String,
    path: String,
    body: Option<String>,
    has_key: bool,
    fields: BTreeMap<String, String>,
    answer: Recorded,
}

/// A recorded answer.
struct Recorded {
    version: String,
    status: u16,
    fields: BTreeMap<String, String>,
    body: String,
}

impl Recorded {
    fn read(name: &str) -> Self {
        let text = fs::read_to_string(format!("{FOLDER}/{name}")).unwrap();
        let text = text.replace("\r\n", "\n");
        let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
        let mut lines = head.lines();
        let (version, status) = lines.next().unwrap().split_once(' ').unwrap();
        let fields: BTreeMap<String, String> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut body = body.trim_start().to_owned();
        if fields.contains_key("Transfer-Encoding") && !name.starts_with("events") {
            // All of these are one chunk.
            let (_, rest) = body.split_once('\n').unwrap();
            body = rest.trim_end().trim_end_matches('0').trim_end().to_owned();
        }
        Self {
            version: version.to_owned(),
            status: status[..3].parse().unwrap(),
            fields,
            body,
        }
    }

    /// The data of its events; one that was cut off is left out.
    fn events(&self) -> Vec<Value> {
        let data = self
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "));
        data.filter_map(|data| serde_json::from_str(data).ok())
            .collect()
    }
}

/// Reads the index, and all answers that it names.
fn recordings() -> Vec<Recording> {
    let index = fs::read_to_string(format!("{FOLDER}/00-index.txt")).unwrap();
    index.lines().map(read_recording).collect()
}

/// Reads a line such as `04-x.txt⇥GET /x⇥body='…'⇥auth=False hdr={'a': 'b'}⇥-> …`.
fn read_recording(line: &str) -> Recording {
    let parts: Vec<&str> = line.split('\t').collect();
    let (method, path) = parts[1].split_once(' ').unwrap();
    let body = parts[2].strip_prefix("body=").unwrap();
    let body = body
        .strip_prefix('\'')
        .and_then(|body| body.strip_suffix('\''));
    let (key, fields) = parts[3].split_once(" hdr=").unwrap();
    let fields = match fields {
        "None" => BTreeMap::new(),
        fields => serde_json::from_str(&fields.replace('\'', "\"")).unwrap(),
    };
    Recording {
        number: parts[0][..2].parse().unwrap(),
        method: method.to_owned(),
        path: path.to_owned(),
        body: body.map(str::to_owned),
        has_key: key == "auth=True",
        fields,
        answer: Recorded::read(parts[0]),
    }
}

/// Holds ours against the recordings, one after another.
struct Comparison {
    master: Master,
    host: String,
    /// Recorded texts that are others here: ids, keys.
    ours: BTreeMap<String, String>,
    /// All that differs and may not.
    problems: Vec<String>,
}

impl Comparison {
    /// A recorded text with what stands for it here.
    fn translate(&self, text: &str) -> String {
        let text = text.replace(RECORDED_HOST, &self.host);
        let text = text.replace(RECORDED_MASTER, &self.master.address().to_string());
        self.ours
            .iter()
            .fold(text, |text, (theirs, ours)| text.replace(theirs, ours))
    }

    fn our_id(&self, recorded: &str) -> &str {
        &self.ours[recorded]
    }

    /// Sends a recorded request.
    fn ask(&self, recording: &Recording) -> Answer {
        let body = recording.body.as_ref().map(|body| self.translate(body));
        let path = self.translate(&recording.path);
        let mut fields: Vec<(&str, String)> = recording
            .fields
            .iter()
            .map(|(name, value)| (name.as_str(), self.translate(value)))
            .collect();
        if recording.has_key {
            fields.push(("X-API-Key", self.master.key().to_owned()));
        }
        let mut connection = Connection::dial(self.master.address()).unwrap();
        if recording.answer.version == "HTTP/1.0" {
            let fields: String = fields
                .iter()
                .map(|(name, value)| format!("{name}: {value}\r\n"))
                .collect();
            let head = format!("{} {path} HTTP/1.0\r\n{fields}\r\n", recording.method);
            connection.send_raw(head.as_bytes()).unwrap();
        } else {
            fields.push(("Connection", String::from("close")));
            let fields: Vec<(&str, &str)> = fields
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            let body = body.as_deref().map(str::as_bytes);
            connection
                .send(&recording.method, &path, &fields, body)
                .unwrap();
        }
        let answer = connection
            .receive(&recording.method)
            .unwrap_or_else(|error| panic!("{}: {error}", recording.number));
        assert_eq!(connection.read_until_end(), b"", "{}", recording.number);
        answer
    }

    fn problem(&mut self, number: u32, what: &str, theirs: &dyn Display, ours: &dyn Display) {
        self.problems.push(format!(
            "{number}: {what}\n  recorded {theirs}\n  ours     {ours}"
        ));
    }

    fn compare(&mut self, recording: &Recording) {
        let number = recording.number;
        let answer = self.ask(recording);
        let of_this = || DIFFERENCES.iter().filter(move |(of, _, _)| *of == number);
        self.compare_fields(number, &recording.answer, &answer);
        for (_, other, _) in of_this() {
            match other {
                Other::Error(status, words) => {
                    let matches = answer.status == *status && answer.error().contains(words);
                    if !matches {
                        let ours = format!("{} {}", answer.status, answer.text());
                        self.problem(number, "error", &format!("{status} {words}"), &ours);
                    }
                    return;
                }
                Other::NoBody => {
                    if answer.status != 200 {
                        self.problem(number, "status", &200, &answer.status);
                    }
                    return;
                }
                Other::Status(..) | Other::Figure(..) | Other::Missing(_) => {}
            }
        }
        if answer.status != recording.answer.status {
            let theirs = format!("{} {}", recording.answer.status, recording.answer.body);
            let ours = format!("{} {}", answer.status, answer.text());
            return self.problem(number, "status", &theirs, &ours);
        }
        if recording.answer.body.is_empty() {
            if !answer.body.is_empty() {
                self.problem(number, "body", &"", &answer.text());
            }
            return;
        }
        let theirs = serde_json::from_str(&recording.answer.body).unwrap();
        self.compare_bodies(number, theirs, answer.json());
    }

    /// Compares what clients look at in a head.
    fn compare_fields(&mut self, number: u32, recorded: &Recorded, answer: &Answer) {
        let is_error = |other: &Other| matches!(other, Other::Error(..));
        let is_other = DIFFERENCES
            .iter()
            .any(|(of, other, _)| *of == number && is_error(other));
        let wanted = |name: &&String| {
            name.starts_with("Access-Control-")
                || (!is_other && matches!(name.as_str(), "Content-Type" | "Cache-Control"))
        };
        for name in recorded.fields.keys().filter(wanted) {
            let ours = answer.field(name).unwrap_or("nothing").to_owned();
            if ours != recorded.fields[name] {
                self.problem(number, name, &recorded.fields[name], &ours);
            }
        }
        for name in ["Origin", "Methods", "Headers"] {
            let name = format!("Access-Control-Allow-{name}");
            if answer.field(&name).is_none() {
                self.problem(number, &name, &"something", &"nothing");
            }
        }
        if is_other && answer.field("Content-Type") != Some("application/json") {
            let ours = format!("{:?}", answer.field("Content-Type"));
            self.problem(number, "Content-Type", &"application/json", &ours);
        }
    }

    fn compare_bodies(&mut self, number: u32, theirs: Value, ours: Value) {
        match (theirs, ours) {
            (Value::Array(theirs), Value::Array(ours)) => {
                self.compare_lists(number, &theirs, &ours)
            }
            (Value::Object(theirs), Value::Object(ours)) if theirs.contains_key("id") => {
                self.compare_instances(number, &theirs, &ours);
            }
            (Value::Object(theirs), Value::Object(ours)) => {
                self.compare_rest(number, &theirs, &ours)
            }
            (theirs, ours) => self.problem(number, "kind of body", &theirs, &ours),
        }
    }

    /// Compares by ids: the order in 1.14 is that of a hash table.
    fn compare_lists(&mut self, number: u32, theirs: &[Value], ours: &[Value]) {
        let mut left: BTreeMap<String, &Value> = ours
            .iter()
            .map(|instance| (id_of(instance), instance))
            .collect();
        let count = left.len();
        if count != ours.len() {
            self.problem(number, "ids", &"each once", &Value::from(ours.to_vec()));
        }
        for instance in theirs {
            let recorded = id_of(instance);
            let is_missing = DIFFERENCES.iter().any(|(of, other, _)| {
                *of == number && matches!(other, Other::Missing(id) if *id == recorded)
            });
            if is_missing {
                continue;
            }
            let id = match recorded.as_str() {
                KEY_ENTRY => KEY_ENTRY,
                recorded => self.our_id(recorded),
            };
            match left.remove(id) {
                Some(found) => self.compare_instances(
                    number,
                    instance.as_object().unwrap(),
                    found.as_object().unwrap(),
                ),
                None => self.problem(number, "instance", &instance, &"nothing"),
            }
        }
        for instance in left.into_values() {
            self.problem(number, "instance", &"nothing", &instance);
        }
        if ours[0]["id"] != KEY_ENTRY {
            self.problem(number, "first", &KEY_ENTRY, &ours[0]);
        }
    }

    fn compare_instances(
        &mut self,
        number: u32,
        theirs: &Map<String, Value>,
        ours: &Map<String, Value>,
    ) {
        let recorded_id = theirs["id"].as_str().unwrap();
        let is_key = recorded_id == KEY_ENTRY;
        self.learn(theirs, ours);
        self.compare_names(number, theirs, ours);
        for (name, value) in theirs {
            let Some(own) = ours.get(name) else {
                continue;
            };
            let is_equal = match name.as_str() {
                _ if is_figure(number, recorded_id, name) => own.is_u64(),
                "status" => self.is_status(number, recorded_id, value, own),
                "config" if !is_key => {
                    let theirs = self.translate(value.as_str().unwrap());
                    is_config(&theirs, own.as_str().unwrap_or_default())
                }
                _ => is_same(value, own, &|text| self.translate(text)),
            };
            if !is_equal {
                self.problem(number, &format!("{name} of {recorded_id}"), &value, &own);
            }
        }
    }

    fn is_status(&self, number: u32, recorded_id: &str, theirs: &Value, ours: &Value) -> bool {
        let others = DIFFERENCES.iter().find_map(|(of, other, _)| match other {
            Other::Status(id, others) if *of == number && *id == recorded_id => Some(*others),
            _ => None,
        });
        match others {
            Some(others) => ours.as_str().is_some_and(|ours| others.contains(&ours)),
            None => theirs == ours,
        }
    }

    /// Notes what stands for a recorded id, key or master id, where it is seen for the first time.
    fn learn(&mut self, theirs: &Map<String, Value>, ours: &Map<String, Value>) {
        let is_key = theirs["id"] == KEY_ENTRY;
        let names = match is_key {
            true => &["url", "config"][..],
            false => &["id"],
        };
        for name in names {
            let theirs = theirs[*name].as_str().unwrap().to_owned();
            let ours = ours[*name].as_str().unwrap().to_owned();
            let is_hex = ours.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
            assert!(is_hex && ours.len() == theirs.len(), "{name}: {ours:?}");
            if self.ours.contains_key(&theirs) {
                continue;
            }
            let is_new = self.ours.values().all(|known| *known != ours);
            assert!(is_new, "{name} {ours:?} stands for two");
            if *name == "url" {
                self.master.use_key(&ours);
            }
            self.ours.insert(theirs, ours);
        }
    }

    /// Compares errors and the other small answers.
    fn compare_rest(
        &mut self,
        number: u32,
        theirs: &Map<String, Value>,
        ours: &Map<String, Value>,
    ) {
        self.compare_names(number, theirs, ours);
        for (name, value) in theirs {
            let Some(own) = ours.get(name) else {
                continue;
            };
            let text = own.as_str().unwrap_or_default();
            let is_equal = match name.as_str() {
                _ if HOST_FIGURES.contains(&name.as_str()) => own.is_i64(),
                "latency" => own.is_u64(),
                // 1.14 left it empty; the specification has it here.
                "mid" => self.ours.values().any(|known| known == text) && text.len() == 16,
                "ver" => text == format!("v{}", env!("CARGO_PKG_VERSION")),
                // Details may follow.
                "error" if value.is_string() && !theirs.contains_key("target") => {
                    let theirs = value.as_str().unwrap();
                    text == theirs || text.starts_with(&format!("{theirs}: "))
                }
                _ => is_same(value, own, &|text| self.translate(text)),
            };
            if !is_equal {
                self.problem(number, name, &value, &own);
            }
        }
    }

    fn compare_names(
        &mut self,
        number: u32,
        theirs: &Map<String, Value>,
        ours: &Map<String, Value>,
    ) {
        let names = |of: &Map<String, Value>| of.keys().cloned().collect::<BTreeSet<String>>();
        let (theirs, ours) = (names(theirs), names(ours));
        if theirs != ours {
            self.problem(
                number,
                "members",
                &format!("{theirs:?}"),
                &format!("{ours:?}"),
            );
        }
    }

    /// The recorder let time pass here, and something had happened meanwhile.
    fn wait_before(&self, number: u32) {
        let wait = |recorded: &str, status: &str, mode: u64| {
            let what = format!("{recorded} {status} with mode {mode}");
            self.master
                .wait_instance(self.our_id(recorded), &what, |instance| {
                    instance["status"] == status && instance["mode"] == mode
                });
        };
        match number {
            20 => {
                wait(SERVER, "running", 1);
                wait(CLIENT, "running", 2);
                wait(SINGLE, "running", 1);
            }
            57 => {
                wait(SERVER, "running", 1);
                self.master.wait_status(self.our_id(FAILING), "error");
            }
            _ => {}
        }
    }

    #[track_caller]
    fn finish(&self) {
        let count = self.problems.len();
        assert!(
            count == 0,
            "{count} differences:\n{}",
            self.problems.join("\n")
        );
    }
}

/// Whether a member is a number that may be another one here.
fn is_figure(number: u32, recorded_id: &str, name: &str) -> bool {
    let is_other =
        |other: &Other| matches!(other, Other::Figure(id, of) if *id == recorded_id && *of == name);
    let mut others = DIFFERENCES.iter();
    FIGURES.contains(&name) || others.any(|(of, other, _)| *of == number && is_other(other))
}

/// Whether two values are the same where texts are translated.
fn is_same(theirs: &Value, ours: &Value, translate: &impl Fn(&str) -> String) -> bool {
    match (theirs, ours) {
        (Value::String(theirs), Value::String(ours)) => translate(theirs) == *ours,
        (Value::Object(theirs), Value::Object(ours)) => {
            let is_there = |(name, value): (&String, &Value)| {
                ours.get(name)
                    .is_some_and(|own| is_same(value, own, translate))
            };
            theirs.len() == ours.len() && theirs.iter().all(is_there)
        }
        _ => theirs == ours,
    }
}

/// Whether a whole URL has all that the recorded one has, more only where 1.14 knew less, and
/// its options sorted by name.
fn is_config(theirs: &str, ours: &str) -> bool {
    let split = |url: &str| -> (String, Vec<(String, String)>) {
        let (start, options) = url.split_once('?').unwrap_or((url, ""));
        let options = options.split('&').map(|option| {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            (name.to_owned(), value.to_owned())
        });
        (start.to_owned(), options.collect())
    };
    let ((their_start, their_options), (our_start, mut our_options)) = (split(theirs), split(ours));
    let is_sorted = our_options.is_sorted();
    our_options.retain(|(name, _)| !NEW_OPTIONS.contains(&name.as_str()));
    their_start == our_start && is_sorted && their_options == our_options
}

#[test]
fn every_recorded_request_is_answered_as_recorded() {
    let mut comparison = Comparison {
        // Long enough for a busy machine not to take silence for a failure.
        master: Master::start_with(Settings::default().env("NP_REPORT_INTERVAL", "2s")),
        // Below what the system gives to anybody, and seldom that of another run at the same time.
        host: format!("{}:{}", own_loopback(), 150 + std::process::id() % 150),
        ours: BTreeMap::new(),
        problems: Vec::new(),
    };
    let (before, after): (Vec<_>, Vec<_>) = recordings()
        .into_iter()
        .partition(|recording| recording.number < STREAM_OPENED_BEFORE);
    for recording in before {
        comparison.compare(&recording);
    }
    let events = comparison.master.events();
    for recording in after {
        comparison.wait_before(recording.number);
        comparison.compare(&recording);
    }
    // The stream of before the new key has ended with the old one.
    let _ = events.wait_end();
    compare_first_stream(&mut comparison, &events);
    compare_last_stream(&mut comparison);
    comparison.finish();
}

/// Compares the stream that was there all the time.
fn compare_first_stream(comparison: &mut Comparison, events: &Events) {
    let recorded = Recorded::read("events-sse-raw.txt");
    comparison.compare_fields(0, &recorded, &events.head);
    let (theirs, ours) = (recorded.events(), events.all());
    compare_shapes(comparison, &theirs, &ours);
    check_first(comparison, events, &theirs[0]);
    for recorded_id in [SERVER, CLIENT, SINGLE] {
        let kinds = |all: &[Value], id: &str| -> Vec<String> {
            let of_it = all.iter().filter(|event| event["instance"]["id"] == id);
            let mut kinds: Vec<String> = of_it
                .map(|event| event["type"].as_str().unwrap().to_owned())
                .collect();
            // How often its state changes before the first line is a matter of time.
            kinds.dedup();
            kinds.truncate(3);
            kinds
        };
        let id = comparison.our_id(recorded_id).to_owned();
        let (theirs, ours) = (kinds(&theirs, recorded_id), kinds(&ours, &id));
        if theirs != ours {
            comparison.problem(
                0,
                "order of events",
                &format!("{theirs:?}"),
                &format!("{ours:?}"),
            );
        }
    }
    for recorded_event in theirs.iter().filter(|event| event["type"] == "create") {
        let theirs = recorded_event["instance"].as_object().unwrap();
        let id = comparison.our_id(theirs["id"].as_str().unwrap()).to_owned();
        let created = events.wait_kind("create", &id);
        comparison.compare_instances(0, theirs, created["instance"].as_object().unwrap());
    }
}

/// Compares the stream that saw the end of the master.
fn compare_last_stream(comparison: &mut Comparison) {
    let recorded = Recorded::read("events-shutdown-raw.txt");
    let events = comparison.master.events();
    comparison.compare_fields(1, &recorded, &events.head);
    let theirs = recorded.events();
    // All that was recorded but the instance that ours has refused, and the shutdown.
    let count = theirs.len() - 2;
    events.wait("all instances", |all| (all.len() >= count).then_some(()));
    assert_eq!(comparison.master.stop(), 0);
    assert_eq!(events.wait_end(), Ok(()));
    let ours = events.all();
    compare_shapes(comparison, &theirs, &ours);
    let first: BTreeSet<String> = ours[..count]
        .iter()
        .filter(|event| event["type"] == "initial")
        .map(|event| id_of(&event["instance"]))
        .collect();
    assert_eq!(first.len(), count, "{first:?}");
    let (theirs, ours) = (theirs.last().unwrap(), ours.last().unwrap());
    for name in ["type", "instance", "logs"] {
        if theirs[name] != ours[name] {
            comparison.problem(1, &format!("{name} of the last event"), &theirs, &ours);
        }
    }
}

/// Compares what a stream begins with.
fn check_first(comparison: &mut Comparison, events: &Events, theirs: &Value) {
    use crate::support::http::Item;
    let items = events.items();
    if items[0].item != Item::Retry(3000) {
        comparison.problem(0, "begin", &"retry: 3000", &format!("{:?}", items[0]));
    }
    let ours = items[1].data.clone();
    if ours["type"] != "initial" {
        comparison.problem(0, "first event", &theirs, &ours);
    }
    let theirs = theirs["instance"].as_object().unwrap();
    comparison.compare_instances(0, theirs, ours["instance"].as_object().unwrap());
}

/// Checks that events of each kind have the members that the recorded ones have.
fn compare_shapes(comparison: &mut Comparison, theirs: &[Value], ours: &[Value]) {
    for event in ours {
        let kind = event["type"].clone();
        // Kinds that were cut off in the recording look like the first event.
        let like = theirs.iter().find(|other| other["type"] == kind);
        let like = like.unwrap_or(&theirs[0]);
        comparison.compare_names(0, like.as_object().unwrap(), event.as_object().unwrap());
        if let (Some(like), Some(own)) =
            (like["instance"].as_object(), event["instance"].as_object())
        {
            comparison.compare_names(0, like, own);
        }
        let time = event["time"].as_str().unwrap_or_default();
        if !is_time(time) {
            comparison.problem(0, "time", &theirs[0]["time"], &time);
        }
        let has_text = event["logs"].as_str().is_some_and(|text| !text.is_empty());
        if has_text != (kind == "log") {
            comparison.problem(0, "logs", &"text where the type is log", &event);
        }
    }
}

/// Whether it is a time as in `2026-11-20T09:28:54.697950388Z`.
fn is_time(text: &str) -> bool {
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    shape == "0000-00-00T00:00:00.000000000Z"
}
