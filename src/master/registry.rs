//! Everything the master knows at this moment, and who is told when it changes.
//!
//! One lock over all: whoever subscribes gets each instance as it is at that moment and every
//! event after it, none twice and none lost. Nothing under it waits.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use crossbeam_channel::Receiver;

use super::instance::{Definition, Instance, Live, Record, Status};
use super::subscription::{Happening, Subscriber, Subscription, event_text, subscription};
use crate::runtime::threads::lock;
use crate::wire::checkpoint::Checkpoint;

/// All instances and all subscribers.
#[derive(Debug, Default)]
pub struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The entry of the API key first, then in the order of creation.
    records: Vec<Record>,
    subscribers: Vec<Subscriber>,
    /// No more subscribers.
    is_closed: bool,
}

impl Registry {
    /// Begins with what was kept.
    pub fn new(records: Vec<Record>) -> Self {
        let inner = Inner {
            records,
            ..Inner::default()
        };
        Self {
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Returns every instance.
    pub fn all(&self) -> Vec<Instance> {
        self.lock().records.iter().map(Record::show).collect()
    }

    /// Returns all that is known of every instance.
    pub fn records(&self) -> Vec<Record> {
        self.lock().records.clone()
    }

    /// Returns one instance.
    pub fn find(&self, id: &str) -> Option<Instance> {
        self.lock().record(id).map(|record| record.show())
    }

    /// Returns what is known of one instance for good.
    pub fn definition(&self, id: &str) -> Option<Arc<Definition>> {
        let mut inner = self.lock();
        inner
            .record(id)
            .map(|record| Arc::clone(&record.definition))
    }

    /// Returns the API key, the id of the master and its name.
    pub fn key_entry(&self) -> Arc<Definition> {
        let inner = self.lock();
        let first = inner.records.first();
        first.map_or_else(Arc::default, |record| Arc::clone(&record.definition))
    }

    /// Adds an instance, which does not run, and tells of it.
    pub fn insert(&self, definition: Arc<Definition>) -> Instance {
        let live = Live {
            status: Status::Stopped,
            ..Live::default()
        };
        let record = Record { definition, live };
        let instance = record.show();
        let mut inner = self.lock();
        inner.records.push(record);
        inner.tell(Happening::Create, Some(&instance), "");
        instance
    }

    /// Takes an instance out and tells of it.
    pub fn remove(&self, id: &str) {
        let mut inner = self.lock();
        let place = inner.records.iter().position(|record| record.is(id));
        if let Some(place) = place {
            let record = inner.records.remove(place);
            inner.tell(Happening::Delete, Some(&record.show()), "");
        }
    }

    /// Changes an instance, tells of it if anything has become different, and returns it.
    pub fn change(&self, id: &str, change: impl FnOnce(&mut Record)) -> Option<Instance> {
        let mut inner = self.lock();
        let record = inner.record(id)?;
        let before = record.clone();
        change(record);
        let is_other = record.live != before.live || record.definition != before.definition;
        let instance = record.show();
        if is_other {
            inner.tell(Happening::Update, Some(&instance), "");
        }
        Some(instance)
    }

    /// Sets how an instance fares. It has no figures of the moment then, until the next checkpoint.
    pub fn set_status(&self, id: &str, status: Status) {
        self.change(id, |record| {
            record.live.status = status;
            record.live.checkpoint = Checkpoint {
                mode: record.live.checkpoint.mode,
                ..Checkpoint::default()
            };
        });
    }

    /// Takes a checkpoint; `before` is the last one of the same process.
    pub fn take_checkpoint(&self, id: &str, before: &Checkpoint, now: &Checkpoint) {
        let mut inner = self.lock();
        let Some(record) = inner.record(id) else {
            return;
        };
        record.live.bytes.add_since(before, now);
        record.live.checkpoint = *now;
        record.live.status = Status::Running;
        let instance = record.show();
        inner.tell(Happening::Update, Some(&instance), "");
    }

    /// Tells of a line that an instance has written.
    pub fn tell_line(&self, id: &str, line: &str) {
        let mut inner = self.lock();
        if inner.subscribers.is_empty() {
            return;
        }
        if let Some(instance) = inner.record(id).map(|record| record.show()) {
            inner.tell(Happening::Log, Some(&instance), line);
        }
    }

    /// Returns what a new subscriber gets: what there is, then each event. It ends when he has let
    /// too much wait, or all subscriptions end. `None` when the master is ending. `departure` is
    /// disconnected when he leaves.
    pub fn subscribe(&self, departure: Receiver<Infallible>) -> Option<Subscription> {
        let mut inner = self.lock();
        if inner.is_closed {
            return None;
        }
        let (subscriber, subscription) = subscription(&inner.records, departure);
        // Where nothing happens, nobody else finds out who has left.
        inner.subscribers.retain(Subscriber::is_there);
        inner.subscribers.push(subscriber);
        Some(subscription)
    }

    /// Takes another API key, ends all subscriptions and returns the entry. Those who subscribed
    /// with the old key are not told the new one.
    pub fn change_key(&self, definition: Arc<Definition>) -> Option<Instance> {
        let mut inner = self.lock();
        inner.subscribers.drain(..).for_each(Subscriber::dismiss);
        let record = inner.record(&definition.id)?;
        record.definition = definition;
        Some(record.show())
    }

    /// Tells that the master ends, ends all subscriptions and takes no more.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.tell(Happening::Shutdown, None, "");
        inner.subscribers.clear();
        inner.is_closed = true;
    }
}

impl Record {
    fn is(&self, id: &str) -> bool {
        self.definition.id == id
    }
}

impl Inner {
    fn record(&mut self, id: &str) -> Option<&mut Record> {
        self.records.iter_mut().find(|record| record.is(id))
    }

    fn tell(&mut self, happening: Happening, instance: Option<&Instance>, line: &str) {
        if self.subscribers.is_empty() {
            return;
        }
        let text = event_text(happening, instance, line);
        // Whoever does not keep up is let go: he will come back, and gets everything anew.
        self.subscribers
            .retain(|subscriber| subscriber.offer(&text));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crossbeam_channel::bounded;

    use super::super::instance::Kind;
    use super::super::subscription::End;
    use super::*;
    use crate::limits::EVENT_QUEUE_MAX;

    /// What waits for a subscriber.
    fn next(subscription: &Subscription) -> Result<Option<String>, End> {
        subscription.next(Duration::ZERO)
    }

    fn registry() -> Registry {
        let record = |id: &str, kind| Record {
            definition: Arc::new(Definition {
                id: String::from(id),
                kind,
                ..Definition::default()
            }),
            live: Live::default(),
        };
        Registry::new(vec![
            record("********", Kind::KeyEntry),
            record("0000000a", Kind::Client),
        ])
    }

    #[test]
    fn a_subscriber_gets_everything_once() {
        let registry = registry();
        let (_presence, departure) = bounded(0);
        let subscription = registry.subscribe(departure).unwrap();
        let first = next(&subscription).unwrap().unwrap();
        assert!(first.starts_with("retry: 3000\n\nevent: instance\ndata: {\"type\":\"initial\","));
        assert_eq!(first.matches("event: instance\n").count(), 2);
        registry.set_status("0000000a", Status::Running);
        // Nothing becomes different by it.
        registry.set_status("0000000a", Status::Running);
        registry.tell_line("0000000a", "a \"line\"");
        registry.remove("0000000a");
        registry.close();
        let text = next(&subscription).unwrap().unwrap();
        let events: Vec<&str> = text.split_inclusive("\n\n").collect();
        let types = ["update", "log", "delete", "shutdown"];
        assert_eq!(events.len(), types.len());
        for (event, happening) in events.iter().zip(types) {
            let start = format!("event: instance\ndata: {{\"type\":\"{happening}\",");
            assert!(event.starts_with(&start), "{event}");
            assert!(event.ends_with("}\n\n"), "{event}");
        }
        assert!(events[1].contains(r#""logs":"a \"line\"""#));
        assert!(events[3].contains(r#""instance":null"#));
        assert_eq!(next(&subscription), Err(End::Over));
        assert!(registry.subscribe(bounded(0).1).is_none());
    }

    #[test]
    fn a_new_key_is_not_told_to_those_with_the_old_one() {
        let registry = registry();
        let (_presence, departure) = bounded(0);
        let subscription = registry.subscribe(departure).unwrap();
        let mut entry = Definition::clone(&registry.key_entry());
        entry.url = String::from("new");
        assert_eq!(registry.change_key(Arc::new(entry)).unwrap().url, "new");
        assert_eq!(registry.key_entry().url, "new");
        let text = next(&subscription).unwrap().unwrap();
        assert!(!text.contains("event:"), "{text}");
        assert_eq!(next(&subscription), Err(End::Over));
    }

    #[test]
    fn who_does_not_read_is_let_go_and_others_go_on() {
        let registry = registry();
        let (_presence, departure) = bounded(0);
        let silent = registry.subscribe(departure.clone()).unwrap();
        let reader = registry.subscribe(departure).unwrap();
        next(&silent).unwrap();
        let count = EVENT_QUEUE_MAX + 10;
        for _ in 0..count {
            registry.tell_line("0000000a", "x");
            assert!(next(&reader).unwrap().is_some());
        }
        assert_eq!(next(&reader), Ok(None));
        assert_eq!(next(&silent), Err(End::TooSlow));
    }

    #[test]
    fn bytes_outlive_a_process() {
        let registry = registry();
        let now = Checkpoint {
            mode: 1,
            tcp_sent: 5,
            pool_count: 3,
            ..Checkpoint::default()
        };
        for status in [Status::Stopped, Status::Running] {
            registry.take_checkpoint("0000000a", &Checkpoint::default(), &now);
            registry.set_status("0000000a", status);
        }
        let instance = registry.find("0000000a").unwrap();
        assert_eq!((instance.tcptx, instance.pool, instance.mode), (10, 0, 1));
    }

    #[test]
    fn those_who_have_left_are_forgotten_though_nothing_happens() {
        let registry = Registry::new(Vec::new());
        for _ in 0..10 {
            let (presence, departure) = bounded(0);
            registry.subscribe(departure).unwrap();
            drop(presence);
        }
        assert_eq!(registry.lock().subscribers.len(), 1);
    }
}
