//! What waits for one subscriber of events, bounded by number and by bytes.
//!
//! ```text
//!                         ┌─ what there was when he came ─┐┌──────── events ────────┐
//!  Subscription::next ◀── │ record, record, …             ││ text, text, …          │ ◀── offer
//!                         └───────────────────────────────┘└────────────────────────┘
//! ```
//!
//! The text of an event is shared by all for whom it waits. What waits for a subscriber is an
//! unbroken run of events up to the newest one, or nothing once he has been let go; so all together
//! hold what the slowest of them holds, and `EVENT_QUEUE_SIZE_MAX` bounds one as well as all.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, Select, Sender, TryRecvError, bounded};
use serde::Serialize;

use super::instance::{Instance, Record};
use crate::limits::{EVENT_BATCH_SIZE, EVENT_QUEUE_MAX, EVENT_QUEUE_SIZE_MAX};
use crate::runtime::clock::now_utc;
use crate::runtime::threads::lock;

/// What an event stream begins with: how long a client waits before it comes back.
const STREAM_HEAD: &str = "retry: 3000\n\n";

/// What happened to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Happening {
    /// It was there when the subscriber came.
    Initial,
    /// It is new.
    Create,
    /// Something about it has changed.
    Update,
    /// It is gone.
    Delete,
    /// It has written a line.
    Log,
    /// The master ends.
    Shutdown,
}

/// An event as subscribers get it.
#[derive(Serialize)]
#[allow(missing_docs, reason = "the members are those of the specification")]
struct Event<'a> {
    #[serde(rename = "type")]
    happening: Happening,
    time: &'a str,
    instance: Option<&'a Instance>,
    logs: &'a str,
}

/// Text of an event stream: one whole event.
pub type EventText = Arc<str>;

/// Returns the text of an event that happens now.
pub fn event_text(happening: Happening, instance: Option<&Instance>, line: &str) -> EventText {
    let mut text = String::new();
    let event = Event {
        happening,
        time: &now_utc(),
        instance,
        logs: line,
    };
    push_event(&mut text, &event);
    text.into()
}

/// Appends one event in the form of a stream (HTML Living Standard, "Server-sent events").
fn push_event(text: &mut String, event: &Event<'_>) {
    // Texts and numbers can always be written.
    let json = serde_json::to_string(event).unwrap_or_default();
    text.push_str("event: instance\ndata: ");
    text.push_str(&json);
    text.push_str("\n\n");
}

/// Why nothing more comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The subscription is over, and all of it has been had.
    Over,
    /// More would have waited than may: what waited is lost.
    TooSlow,
    /// The subscriber has left.
    Left,
}

#[derive(Debug)]
struct Waiting {
    came_at: String,
    /// He has got the beginning of the stream.
    has_head: bool,
    /// What there was when he came: their definitions are shared as well.
    initial: VecDeque<Record>,
    events: VecDeque<EventText>,
    /// Bytes in `events`.
    events_size: usize,
    end: Option<End>,
}

impl Waiting {
    fn drop_all(&mut self) {
        self.initial = VecDeque::new();
        self.events = VecDeque::new();
        self.events_size = 0;
    }
}

/// Who gets the events, as those who make them see him. Dropped, the subscription ends; he gets
/// what waits.
#[derive(Debug)]
pub struct Subscriber {
    waiting: Arc<Mutex<Waiting>>,
    /// Rung when something waits, disconnected when nothing more will.
    bell: Sender<()>,
    /// Disconnected when he has left.
    departure: Receiver<Infallible>,
}

/// What he gets.
#[derive(Debug)]
pub struct Subscription {
    waiting: Arc<Mutex<Waiting>>,
    bell: Receiver<()>,
    departure: Receiver<Infallible>,
}

/// Returns both ends of a subscription, which begins with `records`; `departure` is disconnected
/// when the subscriber leaves.
pub fn subscription(
    records: &[Record],
    departure: Receiver<Infallible>,
) -> (Subscriber, Subscription) {
    let waiting = Arc::new(Mutex::new(Waiting {
        came_at: now_utc(),
        has_head: false,
        initial: records.iter().cloned().collect(),
        events: VecDeque::new(),
        events_size: 0,
        end: None,
    }));
    let (sender, receiver) = bounded(1);
    let subscriber = Subscriber {
        waiting: Arc::clone(&waiting),
        bell: sender,
        departure: departure.clone(),
    };
    let subscription = Subscription {
        waiting,
        bell: receiver,
        departure,
    };
    (subscriber, subscription)
}

impl Subscriber {
    /// Has an event wait for him; false if he is to be let go, since he has left or does not keep
    /// up. What waited for him is gone then.
    #[must_use]
    pub fn offer(&self, text: &EventText) -> bool {
        let mut waiting = lock(&self.waiting);
        if waiting.end.is_some() {
            return false;
        }
        let size = waiting.events_size + text.len();
        if waiting.events.len() >= EVENT_QUEUE_MAX || size > EVENT_QUEUE_SIZE_MAX {
            waiting.end = Some(End::TooSlow);
            waiting.drop_all();
            return false;
        }
        waiting.events_size = size;
        waiting.events.push_back(Arc::clone(text));
        drop(waiting);
        // Once rung it stays so until he looks.
        let _ = self.bell.try_send(());
        true
    }

    /// Returns whether he has not left.
    pub fn is_there(&self) -> bool {
        self.departure.try_recv() == Err(TryRecvError::Empty)
    }

    /// Ends the subscription without what waits.
    pub fn dismiss(self) {
        lock(&self.waiting).drop_all();
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        lock(&self.waiting).end.get_or_insert(End::Over);
    }
}

impl Subscription {
    /// Returns what leaves next, whole events: at most `EVENT_BATCH_SIZE` and one event beyond it;
    /// `None` if nothing has come up.
    ///
    /// Blocks: until there is something, for `timeout` at most.
    /// Errors: nothing more comes.
    pub fn next(&self, timeout: Duration) -> Result<Option<String>, End> {
        let mut has_waited = false;
        loop {
            let text = self.take()?;
            if !text.is_empty() {
                return Ok(Some(text));
            }
            if has_waited {
                return Ok(None);
            }
            let mut select = Select::new();
            select.recv(&self.bell);
            let departure = select.recv(&self.departure);
            match select.select_timeout(timeout) {
                Err(_) => has_waited = true,
                Ok(ready) if ready.index() == departure => {
                    // Nothing is ever sent there.
                    let _ = ready.recv(&self.departure);
                    return Err(End::Left);
                }
                Ok(ready) => {
                    // Disconnected, it says that there is an end.
                    let _ = ready.recv(&self.bell);
                }
            }
        }
    }

    /// Takes what waits, as much as leaves together.
    ///
    /// Errors: nothing waits, and nothing more comes.
    fn take(&self) -> Result<String, End> {
        let mut text = String::new();
        // All instances would be much to have in memory for each subscriber; and those who make
        // events wait for nobody who writes texts.
        while let Some((record, came_at)) = self.take_initial(&mut text) {
            let event = Event {
                happening: Happening::Initial,
                time: &came_at,
                instance: Some(&record.show()),
                logs: "",
            };
            push_event(&mut text, &event);
            if text.len() >= EVENT_BATCH_SIZE {
                return Ok(text);
            }
        }
        let mut waiting = lock(&self.waiting);
        while let Some(event) = waiting.events.front()
            && (text.is_empty() || text.len() + event.len() <= EVENT_BATCH_SIZE)
        {
            text.push_str(event);
            waiting.events_size -= event.len();
            waiting.events.pop_front();
        }
        match waiting.end {
            Some(end) if text.is_empty() => Err(end),
            _ => Ok(text),
        }
    }

    fn take_initial(&self, text: &mut String) -> Option<(Record, String)> {
        let mut waiting = lock(&self.waiting);
        if !std::mem::replace(&mut waiting.has_head, true) {
            text.push_str(STREAM_HEAD);
        }
        let record = waiting.initial.pop_front()?;
        Some((record, waiting.came_at.clone()))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut waiting = lock(&self.waiting);
        waiting.end.get_or_insert(End::Left);
        waiting.drop_all();
    }
}

#[cfg(test)]
mod tests {
    use super::super::instance::{Definition, Live};
    use super::*;

    /// Both ends of a subscription, and the presence of its client.
    fn subscribed(records: &[Record]) -> (Subscriber, Subscription, Sender<Infallible>) {
        let (presence, departure) = bounded(0);
        let (subscriber, subscription) = subscription(records, departure);
        (subscriber, subscription, presence)
    }

    fn next(subscription: &Subscription) -> Result<Option<String>, End> {
        subscription.next(Duration::ZERO)
    }

    fn text(size: usize) -> EventText {
        "x".repeat(size).into()
    }

    #[test]
    fn so_many_events_may_wait_and_no_more() {
        let (subscriber, subscription, _presence) = subscribed(&[]);
        next(&subscription).unwrap();
        let event = text(1);
        assert!((0..EVENT_QUEUE_MAX).all(|_| subscriber.offer(&event)));
        assert!(!subscriber.offer(&event));
        assert_eq!(Arc::strong_count(&event), 1);
        assert_eq!(next(&subscription), Err(End::TooSlow));
    }

    #[test]
    fn so_many_bytes_may_wait_and_no_more() {
        let (subscriber, subscription, _presence) = subscribed(&[]);
        let event = text(EVENT_QUEUE_SIZE_MAX / 8);
        assert!((0..8).all(|_| subscriber.offer(&event)));
        // What has left makes room.
        assert!(next(&subscription).unwrap().is_some());
        assert!(next(&subscription).unwrap().is_some());
        assert!(subscriber.offer(&event) && !subscriber.offer(&event));
        assert_eq!(Arc::strong_count(&event), 1);
        assert_eq!(next(&subscription), Err(End::TooSlow));
    }

    #[test]
    fn all_together_hold_what_the_slowest_holds() {
        const READERS: usize = 16;
        let mut present: Vec<_> = (0..READERS).map(|_| subscribed(&[])).collect();
        // Those that have been let go are read no further: what they hold would be seen.
        let mut let_go = Vec::new();
        let mut events: Vec<std::sync::Weak<str>> = Vec::new();
        for number in 0..1000 {
            let event = text(EVENT_QUEUE_SIZE_MAX / 64);
            events.push(Arc::downgrade(&event));
            let (stay, go): (Vec<_>, Vec<_>) = present
                .into_iter()
                .partition(|(subscriber, _, _)| subscriber.offer(&event));
            drop(event);
            present = stay;
            let_go.extend(go.into_iter().map(|(_, subscription, _)| subscription));
            for (place, (_, subscription, _)) in present.iter().enumerate() {
                // Each at a pace of its own.
                if number % (place + 1) == 0 {
                    let _ = next(subscription);
                }
            }
            let held: usize = events
                .iter()
                .filter_map(std::sync::Weak::upgrade)
                .map(|event| event.len())
                .sum();
            assert!(held <= EVENT_QUEUE_SIZE_MAX, "{held} bytes");
            if present.len() < READERS {
                present.push(subscribed(&[]));
            }
        }
        assert!(let_go.len() > 10);
    }

    #[test]
    fn the_end_comes_after_what_waits() {
        let (subscriber, subscription, _presence) = subscribed(&[]);
        assert_eq!(next(&subscription), Ok(Some(String::from(STREAM_HEAD))));
        assert_eq!(next(&subscription), Ok(None));
        assert!(subscriber.offer(&"one\n\n".into()) && subscriber.offer(&"two\n\n".into()));
        drop(subscriber);
        assert_eq!(
            next(&subscription),
            Ok(Some(String::from("one\n\ntwo\n\n")))
        );
        assert_eq!(next(&subscription), Err(End::Over));
    }

    #[test]
    fn whoever_is_dismissed_gets_nothing_that_waits() {
        let (subscriber, subscription, _presence) = subscribed(&[]);
        next(&subscription).unwrap();
        assert!(subscriber.offer(&"one\n\n".into()));
        subscriber.dismiss();
        assert_eq!(next(&subscription), Err(End::Over));
    }

    #[test]
    fn for_one_who_has_left_nothing_waits() {
        let (subscriber, subscription, presence) = subscribed(&[]);
        next(&subscription).unwrap();
        assert!(subscriber.is_there());
        drop(presence);
        assert!(!subscriber.is_there());
        assert_eq!(next(&subscription), Err(End::Left));
        drop(subscription);
        let event = text(1);
        assert!(!subscriber.offer(&event));
        assert_eq!(Arc::strong_count(&event), 1);
    }

    #[test]
    fn instances_and_events_leave_whole_and_not_all_at_once() {
        let record = Record {
            definition: Arc::new(Definition {
                alias: "é".repeat(EVENT_BATCH_SIZE / 10),
                ..Definition::default()
            }),
            live: Live::default(),
        };
        let (subscriber, subscription, _presence) = subscribed(&vec![record.clone(); 20]);
        let large: EventText = format!("{}\n\n", "x".repeat(EVENT_BATCH_SIZE)).into();
        let small: EventText = "small\n\n".into();
        for event in [&small, &large, &small, &small] {
            assert!(subscriber.offer(event));
        }
        let mut count = 0;
        while count < 20 {
            let text = next(&subscription).unwrap().unwrap();
            assert!(text.len() <= 2 * EVENT_BATCH_SIZE);
            assert!(text.ends_with("\n\n"));
            count += text.matches(r#""type":"initial""#).count();
            if count == 20 {
                assert!(text.ends_with("small\n\n") || !text.contains("small"));
            }
        }
        assert_eq!(Arc::strong_count(&record.definition), 1);
        let rest = std::iter::from_fn(|| next(&subscription).unwrap());
        let rest: Vec<usize> = rest.map(|text| text.len()).collect();
        assert!(rest.ends_with(&[large.len(), 2 * small.len()]), "{rest:?}");
    }
}
