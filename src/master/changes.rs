//! Changes of what is kept: one thread makes them all, each on disk before anybody hears of it.
//!
//! ```text
//!  API threads ──Order──▶ queue ──▶ draft ──▶ state file ──▶ registry, events ──▶ supervisor, answer
//! ```
//!
//! Orders that wait are carried out together: one write serves them all. If it fails, none of them
//! has happened.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::instance::{Bytes, Definition, Instance, KEY_ENTRY_ID, Kind, Live, Status};
use super::registry::Registry;
use super::store::{Store, hex, new_api_key, to_keep};
use super::supervisor::{Command, Commands};
use crate::config::instance::InstanceUrl;
use crate::limits::{CHANGE_BATCH_MAX, CHANGE_QUEUE_MAX, CHANGE_TIMEOUT, INSTANCES_MAX};
use crate::runtime::random::random_bytes;

/// What is to change.
#[derive(Debug)]
pub enum Change {
    /// A new instance, which is started.
    Create {
        /// What it runs.
        url: InstanceUrl,
        /// Its name.
        alias: String,
    },
    /// Some of what is known of an instance, and what it is to do.
    Edit {
        /// Which one.
        id: String,
        /// The rest of it.
        edit: Edit,
    },
    /// Another URL for an instance, with which it is started.
    Replace {
        /// Which one.
        id: String,
        /// What it runs from now on.
        url: InstanceUrl,
    },
    /// An instance is stopped and forgotten.
    Remove {
        /// Which one.
        id: String,
    },
    /// An instance has ended by itself and is not to be started again.
    Ended {
        /// Which one.
        id: String,
        /// The last order for it that had been carried out then: one that came later decides.
        order: u64,
    },
}

/// Changes of one instance; what is `None` stays.
#[derive(Debug, Default)]
pub struct Edit {
    /// Its name.
    pub alias: Option<String>,
    /// Whether it is started with the master and again when it ends.
    pub restart: Option<bool>,
    /// Service of the other end.
    pub peer_sid: Option<String>,
    /// Kind of the other end.
    pub peer_kind: Option<String>,
    /// Name of the other end.
    pub peer_alias: Option<String>,
    /// All tags.
    pub tags: Option<BTreeMap<String, String>>,
    /// What it is to do.
    pub action: Option<Action>,
}

/// What an instance is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run, if it does not.
    Start,
    /// Stop, if it runs.
    Stop,
    /// Stop, and run again. Of the key entry: a new key.
    Restart,
    /// Count its bytes from zero.
    Reset,
}

/// Why a change has not been made.
#[derive(Debug)]
pub enum ChangeError {
    /// There is no such instance.
    NotFound,
    /// It cannot be done to the entry of the API key.
    KeyEntry,
    /// The entry of the API key knows no such action.
    KeyEntryAction(Action),
    /// The instance has this URL already.
    SameUrl,
    /// There are as many instances as there may be.
    NoRoom,
    /// It could not be written to disk.
    Disk(Arc<io::Error>),
    /// The system gives no random bytes.
    NoRandom(io::Error),
    /// Too many changes wait, or the master is ending.
    Busy,
}

/// The instance as it is now; none when it is gone.
pub type Changed = Option<Instance>;
type Answer = Result<Changed, ChangeError>;

/// What the thread is to do.
enum Order {
    /// Make a change; somebody may wait for the answer.
    Make(Change, Option<Sender<Answer>>),
    /// Write everything and end.
    End,
}

/// The way to have changes made.
#[derive(Clone)]
pub struct Changes {
    orders: Sender<Order>,
    /// No more changes are made, whatever waits.
    is_over: Arc<AtomicBool>,
}

/// The thread's end of it.
pub struct Orders {
    receiver: Receiver<Order>,
    is_over: Arc<AtomicBool>,
}

#[cfg(test)]
impl Orders {
    /// Takes the next change that waits.
    pub fn next(&self) -> Option<Change> {
        match self.receiver.try_recv() {
            Ok(Order::Make(change, _)) => Some(change),
            Ok(Order::End) | Err(_) => None,
        }
    }
}

/// Returns both ends of a queue of changes.
pub fn queue() -> (Changes, Orders) {
    let (sender, receiver) = bounded(CHANGE_QUEUE_MAX);
    let is_over = Arc::new(AtomicBool::new(false));
    let changes = Changes {
        orders: sender,
        is_over: Arc::clone(&is_over),
    };
    (changes, Orders { receiver, is_over })
}

impl Changes {
    /// Makes a change.
    ///
    /// Blocks: until it is on disk, and what it removes has ended.
    /// Errors: it has not been made, whatever the reason; `Busy` leaves it open whether it will be.
    pub fn make(&self, change: Change) -> Answer {
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        let (sender, receiver) = bounded(1);
        let order = Order::Make(change, Some(sender));
        let sent = self.orders.send_deadline(order, deadline);
        sent.map_err(|_| ChangeError::Busy)?;
        receiver
            .recv_deadline(deadline)
            .unwrap_or(Err(ChangeError::Busy))
    }

    /// Has it kept that an instance has ended for good, after `order` and before any later one.
    /// Does not wait.
    pub fn note_end(&self, id: &str, order: u64) {
        // With a full queue the next start of the master tries it once more.
        let change = Change::Ended {
            id: id.to_owned(),
            order,
        };
        let _ = self.orders.try_send(Order::Make(change, None));
    }

    /// Has everything written, and no more changes made. Does not wait.
    pub fn end(&self) {
        // In a full queue there is no room to say it, and nobody who sleeps either.
        if self.orders.try_send(Order::End).is_err() {
            self.is_over.store(true, Ordering::Release);
        }
    }
}

/// What makes the changes.
pub struct Maker {
    /// Where they come from.
    pub orders: Orders,
    /// Where they are kept.
    pub store: Store,
    /// What everybody else sees.
    pub registry: Arc<Registry>,
    /// Who starts and stops what they concern.
    pub commands: Commands,
    /// How often everything is written a second time.
    pub backup_interval: Duration,
    /// The last order that the supervisor has been given for each instance.
    pub given: GivenOrders,
    /// Memory has what could not be written.
    pub is_ahead: bool,
}

/// Numbers of the orders that the supervisor has been given.
#[derive(Debug, Default)]
pub struct GivenOrders {
    count: u64,
    last: HashMap<String, u64>,
}

impl GivenOrders {
    /// Returns the number of the next order, which is for that instance.
    fn next(&mut self, id: &str) -> u64 {
        self.count += 1;
        self.last.insert(id.to_owned(), self.count);
        self.count
    }

    /// Returns the number of the last order for that instance; 0 if it only came back with the
    /// master.
    fn last(&self, id: &str) -> u64 {
        self.last.get(id).copied().unwrap_or_default()
    }
}

impl Maker {
    /// Makes changes until it is told to end; writes everything once more then.
    ///
    /// Blocks: until then.
    pub fn run(&mut self) {
        let mut backup_at = Instant::now() + self.backup_interval;
        let mut is_ending = false;
        while !is_ending {
            let mut batch = Vec::new();
            match self.orders.receiver.recv_deadline(backup_at) {
                Ok(Order::Make(change, answer)) => batch.push((change, answer)),
                Ok(Order::End) => is_ending = true,
                Err(error) => is_ending = !error.is_timeout(),
            }
            while !batch.is_empty() && batch.len() < CHANGE_BATCH_MAX && !is_ending {
                match self.orders.receiver.try_recv() {
                    Ok(Order::Make(change, answer)) => batch.push((change, answer)),
                    Ok(Order::End) => is_ending = true,
                    Err(_) => break,
                }
            }
            if !batch.is_empty() {
                self.carry_out(batch);
            }
            is_ending |= self.orders.is_over.load(Ordering::Acquire);
            if Instant::now() >= backup_at {
                backup_at = Instant::now() + self.backup_interval;
                self.keep_all("the backup", Store::save_backup);
                // Bytes have been counted since the last change.
                self.keep_all("the state", Store::save);
            }
        }
        self.keep_all("the state", Store::save);
    }

    fn keep_all(&self, what: &str, save: fn(&Store, &[Instance]) -> io::Result<()>) {
        let kept = to_keep(&self.registry.records());
        if let Err(error) = save(&self.store, &kept) {
            log::error!("Cannot write {what}: {error}; what was written before stays");
        }
    }

    fn carry_out(&mut self, orders: Vec<(Change, Option<Sender<Answer>>)>) {
        let records = self.registry.records();
        let bytes = records.iter().map(|record| record.live.bytes).collect();
        let mut draft = Draft {
            definitions: records
                .into_iter()
                .map(|record| record.definition)
                .collect(),
            bytes,
            given: &self.given,
            ordered: HashSet::new(),
            is_changed: self.is_ahead,
        };
        let ends: Vec<(String, u64)> = orders
            .iter()
            .filter_map(|(change, _)| match change {
                Change::Ended { id, order } => Some((id.clone(), *order)),
                _ => None,
            })
            .collect();
        let drafted: Vec<_> = orders
            .into_iter()
            .map(|(change, answer)| (draft.apply(change), answer))
            .collect();
        let written = if draft.is_changed {
            self.store.save(&draft.to_keep()).map_err(Arc::new)
        } else {
            Ok(())
        };
        if written.is_ok() {
            self.is_ahead = false;
        }
        if let Err(error) = &written {
            // An instance has ended whether or not that can be kept: the next write has it.
            for (id, order) in ends {
                if order == self.given.last(&id) {
                    self.registry.change(&id, |record| {
                        Arc::make_mut(&mut record.definition).is_wanted = false;
                    });
                    self.is_ahead = true;
                }
            }
            log::error!(
                "Cannot write the state in {}: {error}; the change is not made",
                self.store.folder().display()
            );
        }
        for (effect, answer) in drafted {
            let result = match (effect, &written) {
                (Err(error), _) => Err(error),
                (Ok(_), Err(error)) => Err(ChangeError::Disk(Arc::clone(error))),
                (Ok(Effect::Gone(id)), Ok(())) => {
                    self.registry.remove(&id);
                    self.given.last.remove(&id);
                    // The supervisor answers once the process has ended.
                    self.commands.send(Command::Remove { id, ended: answer });
                    continue;
                }
                (Ok(effect), Ok(())) => Ok(self.publish(effect)),
            };
            if let Some(answer) = answer {
                // Whoever has given up waiting is not told.
                let _ = answer.try_send(result);
            }
        }
    }

    /// Makes a change that is on disk known to all, and has its action carried out.
    fn publish(&mut self, effect: Effect) -> Changed {
        match effect {
            Effect::Gone(_) => None,
            Effect::New(definition) => {
                let id = definition.id.clone();
                let instance = self.registry.insert(definition);
                let order = self.given.next(&id);
                self.commands.send(Command::Start { id, order });
                Some(instance)
            }
            Effect::Replaced(definition) => {
                let id = definition.id.clone();
                let instance = self.registry.change(&id, |record| {
                    record.definition = definition;
                    // This URL does not run yet.
                    record.live = Live {
                        status: Status::Stopped,
                        bytes: record.live.bytes,
                        ..Live::default()
                    };
                });
                let order = self.given.next(&id);
                self.commands.send(Command::Restart { id, order });
                instance
            }
            Effect::Edited(definition, Some(Action::Restart)) if definition.is_key_entry() => {
                log::info!("There is a new API key; the old one is of no use any more");
                let instance = self.registry.change_key(definition);
                // Not even when the backup has to be used.
                self.keep_all("the backup", Store::save_backup);
                instance
            }
            Effect::Edited(definition, action) => {
                let id = definition.id.clone();
                let instance = self.registry.change(&id, |record| {
                    record.definition = definition;
                    if action == Some(Action::Reset) {
                        record.live.bytes = Bytes::default();
                    }
                });
                let mut order = || self.given.next(&id);
                let command = match action {
                    Some(Action::Start) => Command::Start { order: order(), id },
                    Some(Action::Stop) => Command::Stop { order: order(), id },
                    Some(Action::Restart) => Command::Restart { order: order(), id },
                    Some(Action::Reset) | None => return instance,
                };
                self.commands.send(command);
                instance
            }
        }
    }
}

/// What a change comes to, once it is on disk.
enum Effect {
    New(Arc<Definition>),
    Edited(Arc<Definition>, Option<Action>),
    Replaced(Arc<Definition>),
    Gone(String),
}

/// What is to be on disk.
struct Draft<'a> {
    definitions: Vec<Arc<Definition>>,
    bytes: Vec<Bytes>,
    given: &'a GivenOrders,
    /// Instances for which this draft has an order that the supervisor will be given.
    ordered: HashSet<String>,
    /// It is not what is on disk.
    is_changed: bool,
}

impl Draft<'_> {
    fn to_keep(&self) -> Vec<Instance> {
        self.definitions
            .iter()
            .zip(&self.bytes)
            .map(|(definition, bytes)| Instance::to_keep(definition, *bytes))
            .collect()
    }

    fn apply(&mut self, change: Change) -> Result<Effect, ChangeError> {
        match change {
            Change::Create { url, alias } => self.create(url, alias),
            Change::Edit { id, edit } => self.edit(&id, edit),
            Change::Replace { id, url } => self.replace(&id, url),
            Change::Remove { id } => self.remove(&id),
            Change::Ended { id, order } => {
                let place = self.find(&id)?;
                let mut definition = Definition::clone(&self.definitions[place]);
                // It had ended before what has been asked for since: the process of that counts.
                if order == self.given.last(&id) && !self.ordered.contains(&id) {
                    definition.is_wanted = false;
                }
                Ok(Effect::Edited(self.put(place, definition), None))
            }
        }
    }

    fn create(&mut self, url: InstanceUrl, alias: String) -> Result<Effect, ChangeError> {
        if self.definitions.len() > INSTANCES_MAX {
            return Err(ChangeError::NoRoom);
        }
        let id = loop {
            let id = random_bytes::<4>().map_err(ChangeError::NoRandom)?;
            let id = hex(&id);
            if self.find(&id).is_err() {
                break id;
            }
        };
        let definition = Arc::new(Definition {
            id,
            alias,
            kind: Kind::from(url.core),
            url: url.url,
            config: url.config,
            restart: true,
            is_wanted: true,
            ..Definition::default()
        });
        self.ordered.insert(definition.id.clone());
        self.definitions.push(Arc::clone(&definition));
        self.bytes.push(Bytes::default());
        self.is_changed = true;
        Ok(Effect::New(definition))
    }

    fn edit(&mut self, id: &str, edit: Edit) -> Result<Effect, ChangeError> {
        let place = self.find(id)?;
        let mut definition = Definition::clone(&self.definitions[place]);
        let set = |text: &mut String, new: Option<String>| {
            if let Some(new) = new {
                *text = new;
            }
        };
        set(&mut definition.alias, edit.alias);
        set(&mut definition.meta.peer.sid, edit.peer_sid);
        set(&mut definition.meta.peer.kind, edit.peer_kind);
        set(&mut definition.meta.peer.alias, edit.peer_alias);
        definition.restart = edit.restart.unwrap_or(definition.restart);
        definition.meta.tags = edit.tags.unwrap_or(definition.meta.tags);
        match edit.action {
            Some(Action::Restart) if definition.is_key_entry() => {
                definition.url = new_api_key().map_err(ChangeError::NoRandom)?;
            }
            Some(action) if definition.is_key_entry() => {
                return Err(ChangeError::KeyEntryAction(action));
            }
            Some(Action::Start | Action::Restart) => definition.is_wanted = true,
            Some(Action::Stop) => definition.is_wanted = false,
            Some(Action::Reset) => {
                self.is_changed |= self.bytes[place] != Bytes::default();
                self.bytes[place] = Bytes::default();
            }
            None => {}
        }
        if matches!(
            edit.action,
            Some(Action::Start | Action::Stop | Action::Restart)
        ) {
            self.ordered.insert(id.to_owned());
        }
        Ok(Effect::Edited(self.put(place, definition), edit.action))
    }

    fn replace(&mut self, id: &str, url: InstanceUrl) -> Result<Effect, ChangeError> {
        let place = self.find_runnable(id)?;
        let mut definition = Definition::clone(&self.definitions[place]);
        if definition.url == url.url {
            return Err(ChangeError::SameUrl);
        }
        definition.kind = Kind::from(url.core);
        definition.url = url.url;
        definition.config = url.config;
        definition.is_wanted = true;
        self.ordered.insert(id.to_owned());
        Ok(Effect::Replaced(self.put(place, definition)))
    }

    fn remove(&mut self, id: &str) -> Result<Effect, ChangeError> {
        let place = self.find_runnable(id)?;
        self.definitions.remove(place);
        self.bytes.remove(place);
        self.is_changed = true;
        Ok(Effect::Gone(id.to_owned()))
    }

    fn put(&mut self, place: usize, definition: Definition) -> Arc<Definition> {
        let definition = Arc::new(definition);
        self.is_changed |= definition != self.definitions[place];
        self.definitions[place] = Arc::clone(&definition);
        definition
    }

    fn find(&self, id: &str) -> Result<usize, ChangeError> {
        let mut definitions = self.definitions.iter();
        definitions
            .position(|definition| definition.id == id)
            .ok_or(ChangeError::NotFound)
    }

    fn find_runnable(&self, id: &str) -> Result<usize, ChangeError> {
        match id {
            KEY_ENTRY_ID => Err(ChangeError::KeyEntry),
            id => self.find(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::supervisor::{Mailbox, mailbox};
    use super::*;

    /// A maker that is driven by hand, on a folder that is removed with it.
    struct Bench {
        maker: Maker,
        changes: Changes,
        mailbox: Mailbox,
        folder: PathBuf,
    }

    impl Bench {
        fn new(prepare: impl FnOnce(&mut Store)) -> Self {
            let random = u64::from_ne_bytes(random_bytes().unwrap());
            let folder = std::env::temp_dir().join(format!("changes-{random:016x}"));
            let (mut store, records) = Store::open(Some(&folder)).unwrap();
            prepare(&mut store);
            let (changes, orders) = queue();
            let (commands, mailbox) = mailbox().unwrap();
            let maker = Maker {
                orders,
                store,
                registry: Arc::new(Registry::new(records)),
                commands,
                backup_interval: Duration::from_secs(3600),
                given: GivenOrders::default(),
                is_ahead: false,
            };
            Self {
                maker,
                changes,
                mailbox,
                folder,
            }
        }

        /// Makes changes by one write, and returns the answers.
        fn make(&mut self, changes: Vec<Change>) -> Vec<Answer> {
            let (orders, answers): (Vec<_>, Vec<_>) = changes
                .into_iter()
                .map(|change| {
                    let (sender, receiver) = bounded(1);
                    ((change, Some(sender)), receiver)
                })
                .unzip();
            self.maker.carry_out(orders);
            let answer = |receiver: Receiver<Answer>| receiver.try_recv().unwrap();
            answers.into_iter().map(answer).collect()
        }

        /// Makes an instance and returns its id.
        fn create(&mut self) -> String {
            let url = InstanceUrl {
                core: crate::config::Core::Client,
                url: String::from("client://:1/:2"),
                config: String::from("client://:1/:2"),
            };
            let alias = String::from("made");
            let answer = self.make(vec![Change::Create { url, alias }]).remove(0);
            answer.unwrap().unwrap().id
        }

        /// The number of the last order that the supervisor is given.
        fn last_order(&self) -> u64 {
            let commands = std::iter::from_fn(|| self.mailbox.next());
            let orders = commands.map(|command| match command {
                Command::Start { order, .. }
                | Command::Stop { order, .. }
                | Command::Restart { order, .. } => order,
                Command::Remove { .. } | Command::End => panic!("it is no order"),
            });
            orders.last().unwrap()
        }

        fn is_wanted(&self, id: &str) -> bool {
            self.maker.registry.definition(id).unwrap().is_wanted
        }

        /// What the next master would find.
        fn on_disk(&self) -> serde_json::Value {
            let text = std::fs::read(self.folder.join("nodepass.json")).unwrap();
            serde_json::from_slice(&text).unwrap()
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }

    #[test]
    fn a_change_that_a_power_cut_might_undo_is_made() {
        let mut bench = Bench::new(Store::break_sync);
        let id = bench.create();
        // Answer, memory and disk agree, and it is started.
        assert_eq!(bench.maker.registry.find(&id).unwrap().alias, "made");
        assert_eq!(bench.on_disk()["instances"][1]["id"], *id);
        assert!(matches!(
            bench.mailbox.next(),
            Some(Command::Start { id: started, .. }) if started == id
        ));
        let edit = Edit {
            action: Some(Action::Restart),
            ..Edit::default()
        };
        let id = String::from(KEY_ENTRY_ID);
        let answer = bench.make(vec![Change::Edit { id, edit }]).remove(0);
        // Whoever asked for it is the only one to be told the new key.
        let key = answer.unwrap().unwrap().url;
        assert_eq!(bench.maker.registry.key_entry().url, key);
        assert_eq!(bench.on_disk()["instances"][0]["url"], *key);
    }

    fn act(id: &str, action: Action) -> Change {
        let edit = Edit {
            action: Some(action),
            ..Edit::default()
        };
        let id = id.to_owned();
        Change::Edit { id, edit }
    }

    fn ended(id: &str, order: u64) -> Change {
        let id = id.to_owned();
        Change::Ended { id, order }
    }

    #[test]
    fn an_end_before_the_last_order_changes_nothing() {
        let mut bench = Bench::new(|_| {});
        let id = bench.create();
        let first = bench.last_order();
        // The process has ended, but before that is known, somebody asks for a start.
        for action in [Action::Start, Action::Restart] {
            bench.make(vec![act(&id, action)]);
            bench.make(vec![ended(&id, first)]);
            assert!(bench.is_wanted(&id), "{action:?}");
            assert_eq!(bench.on_disk()["instances"][1]["status"], "running");
        }
        // The supervisor has had that order, and it has ended again: now as one that stays away.
        let last = bench.last_order();
        bench.make(vec![ended(&id, last)]);
        assert!(!bench.is_wanted(&id));
        assert_eq!(bench.on_disk()["instances"][1]["status"], "stopped");
        // The same when one write serves both, whatever their order.
        for changes in [
            vec![act(&id, Action::Start), ended(&id, last)],
            vec![ended(&id, last + 1), act(&id, Action::Start)],
        ] {
            bench.make(changes);
            assert!(bench.is_wanted(&id));
        }
    }

    #[test]
    fn an_order_that_cannot_be_kept_does_not_count() {
        let mut bench = Bench::new(|_| {});
        let id = bench.create();
        let last = bench.last_order();
        let hindrance = bench.folder.join("nodepass.json.new");
        std::fs::create_dir(&hindrance).unwrap();
        let edit = Edit {
            alias: Some(String::from("other")),
            action: Some(Action::Start),
            ..Edit::default()
        };
        let change = Change::Edit {
            id: id.clone(),
            edit,
        };
        bench.make(vec![change]).remove(0).unwrap_err();
        assert!(bench.mailbox.next().is_none());
        std::fs::remove_dir(&hindrance).unwrap();
        bench.make(vec![ended(&id, last)]);
        assert!(!bench.is_wanted(&id));
    }

    #[test]
    fn an_end_that_cannot_be_written_is_kept_with_the_next_change() {
        let mut bench = Bench::new(|_| {});
        let id = bench.create();
        let last = bench.last_order();
        let hindrance = bench.folder.join("nodepass.json.new");
        std::fs::create_dir(&hindrance).unwrap();
        let edit = Edit {
            alias: Some(String::from("other")),
            ..Edit::default()
        };
        let change = Change::Edit {
            id: id.clone(),
            edit,
        };
        bench.make(vec![change, ended(&id, last)]);
        assert!(!bench.is_wanted(&id));
        // Nothing else of what failed with it has come about.
        assert_eq!(bench.maker.registry.find(&id).unwrap().alias, "made");
        std::fs::remove_dir(&hindrance).unwrap();
        // Whatever it is, even one that changes nothing more.
        bench.make(vec![act(&id, Action::Stop)]);
        assert_eq!(bench.on_disk()["instances"][1]["status"], "stopped");
    }

    #[test]
    fn a_full_queue_keeps_nobody_from_ending() {
        let mut bench = Bench::new(|_| {});
        for _ in 0..CHANGE_QUEUE_MAX {
            bench.changes.note_end("", 0);
        }
        assert!(bench.changes.orders.is_full());
        bench.changes.end();
        bench.maker.run();
    }

    #[test]
    fn a_change_that_cannot_be_written_is_not_made() {
        let mut bench = Bench::new(|_| {});
        let id = bench.create();
        let before = bench.on_disk();
        // In the way of the new file.
        let hindrance = bench.folder.join("nodepass.json.new");
        std::fs::create_dir(&hindrance).unwrap();
        let answer = bench
            .make(vec![Change::Remove { id: id.clone() }])
            .remove(0);
        assert!(matches!(answer, Err(ChangeError::Disk(_))), "{answer:?}");
        assert!(bench.maker.registry.find(&id).is_some());
        assert_eq!(bench.on_disk(), before);
    }
}
