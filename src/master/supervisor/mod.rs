//! Instances as processes: starts them, reads what they write, stops them, starts them again.
//!
//! One thread does it all, so that two orders for one instance are never carried out at once. It
//! lives as long as any instance: the system kills an instance when the thread that started it
//! ends.
//!
//! ```text
//!           Start                       Stop, Restart, Remove
//!  Idle ──────────────▶ Up ────────────────────────────────────▶ Ending ──▶ Idle, or Up again
//!   ▲                   │ ends by itself                            after SIGTERM, then SIGKILL
//!   └── Stop ── Paused ◀┘
//!                 └──────▶ Up, when the pause is over
//! ```

pub mod output;
mod process;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::event::{PollFd, PollFlags};

use self::output::Line;
use self::process::{End, Outlook, Process};
use super::changes::{ChangeError, Changed, Changes};
use super::instance::{Definition, Status};
use super::registry::Registry;
use crate::limits::{
    INSTANCE_REAP_INTERVAL, INSTANCE_START_PAUSE, INSTANCE_STOP_TIMEOUT, Limits,
    SILENT_INTERVALS_MAX,
};
use crate::runtime::cooldown::Cooldown;
use crate::runtime::event::{Bell, Event, RaisedAtEnd, timespec};
use crate::runtime::log::ForeignLines;
use crate::runtime::threads::spawn;
use crate::wire::checkpoint::Checkpoint;

/// Who waits for the end of an instance.
pub type EndWaiter = Option<Sender<Result<Changed, ChangeError>>>;

/// What is to be done with a process. Each `order` has a higher number than those before it.
#[allow(missing_docs, reason = "the members are the same everywhere")]
pub enum Command {
    /// Start the instance, if it does not run.
    Start { id: String, order: u64 },
    /// Stop the instance.
    Stop { id: String, order: u64 },
    /// Stop the instance, and start it with what is known of it then.
    Restart { id: String, order: u64 },
    /// Stop the instance for good.
    Remove {
        /// Which one.
        id: String,
        /// Told when it has ended.
        ended: EndWaiter,
    },
    /// Stop all of them and end.
    End,
}

/// The way to the supervisor. What comes there is as bounded as the changes that it comes from.
#[derive(Clone)]
pub struct Commands {
    sender: Sender<Command>,
    bell: Arc<Bell>,
}

impl Commands {
    /// Hands over a command. Does not wait.
    pub fn send(&self, command: Command) {
        // It is gone only when the program is about to end.
        let _ = self.sender.send(command);
        self.bell.ring();
    }
}

/// The supervisor's end of the way.
pub struct Mailbox {
    receiver: Receiver<Command>,
    bell: Arc<Bell>,
}

#[cfg(test)]
impl Mailbox {
    /// Takes what the supervisor would be told next.
    pub fn next(&self) -> Option<Command> {
        self.receiver.try_recv().ok()
    }
}

/// Returns both ends of the way to a supervisor.
///
/// Errors: no descriptor left.
pub fn mailbox() -> io::Result<(Commands, Mailbox)> {
    let (sender, receiver) = unbounded();
    let bell = Arc::new(Bell::new()?);
    let commands = Commands {
        sender,
        bell: Arc::clone(&bell),
    };
    Ok((commands, Mailbox { receiver, bell }))
}

/// The thread that owns all processes.
pub struct Supervisor {
    mailbox: Mailbox,
    registry: Arc<Registry>,
    changes: Changes,
    lines: ForeignLines,
    limits: Limits,
    units: HashMap<String, Unit>,
    /// Those that come back with the master, and when the next one does.
    returning: VecDeque<String>,
    next_return_at: Instant,
    is_ending: bool,
}

/// The number of what nobody has ordered.
const NO_ORDER: u64 = 0;

/// One instance.
struct Unit {
    state: State,
    cooldown: Cooldown,
    /// The last order that has been carried out.
    order: u64,
}

enum State {
    Idle,
    /// It runs.
    Up(Process),
    /// It has been told to end.
    Ending {
        process: Process,
        kill_at: Instant,
        then: Then,
    },
    /// It has ended by itself and is started again at this time.
    Paused(Instant),
}

/// What follows the end of a process.
enum Then {
    Nothing,
    Start,
    Forget(EndWaiter),
}

impl Supervisor {
    /// Starts the thread; instances that are to run come back one after another.
    ///
    /// `ended` is raised when all instances have ended after [`Command::End`].
    ///
    /// Errors: the system gives no thread.
    pub fn start(
        mailbox: Mailbox,
        registry: Arc<Registry>,
        changes: Changes,
        lines: ForeignLines,
        limits: Limits,
        ended: Arc<Event>,
    ) -> io::Result<JoinHandle<()>> {
        let stack_size = limits.stack_size;
        let returning = registry
            .records()
            .into_iter()
            .map(|record| record.definition)
            .filter(|definition| !definition.is_key_entry() && definition.is_wanted)
            .map(|definition| definition.id.clone())
            .collect();
        let supervisor = Self {
            mailbox,
            registry,
            changes,
            lines,
            limits,
            units: HashMap::new(),
            returning,
            next_return_at: Instant::now(),
            is_ending: false,
        };
        spawn("supervisor", stack_size, move || {
            let _on_end = RaisedAtEnd(ended);
            supervisor.run();
        })
    }

    fn run(mut self) {
        while !(self.is_ending && self.units.is_empty()) {
            let written = self.sleep();
            self.mailbox.bell.silence();
            while let Ok(command) = self.mailbox.receiver.try_recv() {
                self.obey(command);
            }
            let now = Instant::now();
            for id in written {
                self.read(&id, now);
            }
            let ids: Vec<String> = self.units.keys().cloned().collect();
            for id in ids {
                self.tend(&id, now);
            }
            self.bring_back(now);
            // Before the next sleep: at the end, only the last one of them could end it.
            self.units
                .retain(|_, unit| !matches!(unit.state, State::Idle));
        }
    }

    /// Sleeps until there is something to do; returns the instances that have written something.
    fn sleep(&self) -> Vec<String> {
        let now = Instant::now();
        let mut set = vec![PollFd::new(&*self.mailbox.bell, PollFlags::IN)];
        let mut ids = Vec::new();
        let mut wake_at: Option<Instant> = None;
        let mut wake_by = |at: Instant| wake_at = Some(wake_at.map_or(at, |first| first.min(at)));
        if !self.returning.is_empty() {
            wake_by(self.next_return_at);
        }
        for (id, unit) in &self.units {
            let process = match &unit.state {
                State::Idle => continue,
                State::Paused(at) => {
                    wake_by(*at);
                    continue;
                }
                State::Up(process) => {
                    if let Some(at) = process.silent_at {
                        wake_by(at);
                    }
                    process
                }
                State::Ending {
                    process, kill_at, ..
                } => {
                    wake_by(*kill_at);
                    process
                }
            };
            match process.output() {
                Some(output) => {
                    set.push(PollFd::from_borrowed_fd(output, PollFlags::IN));
                    ids.push(id);
                }
                None => wake_by(now + INSTANCE_REAP_INTERVAL),
            }
        }
        let timeout = wake_at.map(|at| timespec(at.saturating_duration_since(now)));
        // An interrupted poll is a short sleep.
        let _ = rustix::event::poll(&mut set, timeout.as_ref());
        let outputs = ids.into_iter().zip(&set[1..]);
        outputs
            .filter(|(_, output)| !output.revents().is_empty())
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start { id, order } => self.turn(&id, order, Then::Start, false),
            Command::Restart { id, order } => self.turn(&id, order, Then::Start, true),
            Command::Stop { id, order } => self.turn(&id, order, Then::Nothing, true),
            Command::Remove { id, ended } => self.turn(&id, NO_ORDER, Then::Forget(ended), true),
            Command::End => {
                self.is_ending = true;
                self.returning.clear();
                let ids: Vec<String> = self.units.keys().cloned().collect();
                for id in ids {
                    let is_forgotten = matches!(
                        self.units.get(&id).map(|unit| &unit.state),
                        Some(State::Ending {
                            then: Then::Forget(_),
                            ..
                        })
                    );
                    if !is_forgotten {
                        self.turn(&id, NO_ORDER, Then::Forget(None), true);
                    }
                }
            }
        }
    }

    /// Brings an instance to what is asked for; the one that runs ends before if `ends` says so. One
    /// that has exited does not run, whether or not that has been noticed.
    fn turn(&mut self, id: &str, order: u64, then: Then, ends: bool) {
        let end_within = stop_timeout(&self.limits, &then);
        self.returning.retain(|returning| returning != id);
        let first_pause = self.limits.service_cooldown;
        let unit = self.units.entry(id.to_owned()).or_insert_with(|| Unit {
            state: State::Idle,
            cooldown: Cooldown::new(first_pause),
            order,
        });
        unit.order = unit.order.max(order);
        // Whoever gives an order expects it to be tried at once.
        unit.cooldown.reset();
        match std::mem::replace(&mut unit.state, State::Idle) {
            State::Up(process) if !ends && !process.has_exited() => {
                unit.state = State::Up(process);
            }
            State::Up(mut process) => {
                process.ask_to_end();
                unit.state = State::Ending {
                    process,
                    kill_at: Instant::now() + end_within,
                    then,
                };
            }
            // What was to follow is replaced by what is asked for now.
            State::Ending {
                process, kill_at, ..
            } => {
                unit.state = State::Ending {
                    process,
                    kill_at: kill_at.min(Instant::now() + end_within),
                    then,
                };
            }
            State::Idle | State::Paused(_) => self.follow(id, then),
        }
    }

    /// Does what follows when an instance has no process (any more).
    fn follow(&mut self, id: &str, then: Then) {
        match then {
            Then::Start if !self.is_ending => self.launch(id),
            Then::Start | Then::Nothing => self.registry.set_status(id, Status::Stopped),
            Then::Forget(waiter) => {
                self.units.remove(id);
                // When the master ends, it stays known.
                self.registry.set_status(id, Status::Stopped);
                if let Some(waiter) = waiter {
                    // Whoever has given up waiting is not told.
                    let _ = waiter.try_send(Ok(None));
                }
            }
        }
    }

    /// Starts an instance after a pause, unless that is not wanted any more.
    fn launch_again(&mut self, id: &str) {
        match self.registry.definition(id) {
            Some(definition) if !definition.restart => self.note_end(id),
            _ => self.launch(id),
        }
    }

    /// Starts the process of an instance.
    fn launch(&mut self, id: &str) {
        let Some(definition) = self.registry.definition(id) else {
            // It was removed while it was waiting for its turn.
            self.units.remove(id);
            return;
        };
        let silence = self.limits.report_interval * SILENT_INTERVALS_MAX;
        let started = Process::start(&definition.url, &self.limits, silence);
        let Some(unit) = self.units.get_mut(id) else {
            return;
        };
        match started {
            Ok(process) => {
                unit.state = State::Up(process);
                self.registry.set_status(id, Status::Running);
            }
            Err(error) => {
                log::error!("Instance {id} cannot be started: {error}");
                self.pause(id, &definition);
            }
        }
    }

    /// Has an instance started again after a pause, if that is wanted.
    fn pause(&mut self, id: &str, definition: &Definition) {
        self.registry.set_status(id, Status::Error);
        let Some(unit) = self.units.get_mut(id) else {
            return;
        };
        if !definition.restart {
            unit.state = State::Idle;
            self.note_end(id);
            return;
        }
        let pause = unit.cooldown.next_pause();
        log::info!(
            "Instance {id} is started again in {:.1} s",
            pause.as_secs_f64()
        );
        unit.state = State::Paused(Instant::now() + pause);
    }

    /// Looks at one instance: whether it has ended, what is over or due.
    fn tend(&mut self, id: &str, now: Instant) {
        let Some(unit) = self.units.get_mut(id) else {
            return;
        };
        match &mut unit.state {
            State::Idle => {}
            State::Paused(at) if now >= *at => {
                unit.state = State::Idle;
                self.launch_again(id);
            }
            State::Paused(_) => {}
            State::Up(process) => {
                if let Some(end) = process.ended() {
                    unit.state = State::Idle;
                    self.has_ended(id, end);
                } else if process.silent_at.is_some_and(|at| now >= at) {
                    process.silent_at = None;
                    log::warn!("Instance {id} has written no checkpoint for a while");
                    self.registry.set_status(id, Status::Error);
                }
            }
            State::Ending {
                process, kill_at, ..
            } => {
                if process.ended().is_none() {
                    if now >= *kill_at {
                        log::warn!("Instance {id} does not end: it is killed");
                        process.kill();
                        *kill_at = now + INSTANCE_STOP_TIMEOUT;
                    }
                    return;
                }
                if let State::Ending { then, .. } = std::mem::replace(&mut unit.state, State::Idle)
                {
                    self.follow(id, then);
                }
            }
        }
    }

    /// An instance has ended though nobody told it to.
    fn has_ended(&mut self, id: &str, end: End) {
        let Some(definition) = self.registry.definition(id) else {
            return;
        };
        log::error!("Instance {id} has ended by itself: {end}");
        if !definition.restart && end.is_success() {
            self.registry.set_status(id, Status::Stopped);
            self.note_end(id);
            return;
        }
        self.pause(id, &definition);
    }

    /// Has it kept that an instance does not run any more.
    fn note_end(&self, id: &str) {
        let order = self.units.get(id).map_or(NO_ORDER, |unit| unit.order);
        self.changes.note_end(id, order);
    }

    /// Takes what an instance has written.
    fn read(&mut self, id: &str, now: Instant) {
        let Some(unit) = self.units.get_mut(id) else {
            return;
        };
        let (State::Up(process) | State::Ending { process, .. }) = &mut unit.state else {
            return;
        };
        let silence = self.limits.report_interval * SILENT_INTERVALS_MAX;
        let is_up = process.outlook == Outlook::Stays;
        for line in process.read() {
            match output::meaning(&line) {
                Line::Checkpoint(checkpoint) => {
                    let before: Checkpoint = std::mem::replace(&mut process.last, checkpoint);
                    self.registry.take_checkpoint(id, &before, &checkpoint);
                    process.silent_at = Some(now + silence);
                    unit.cooldown.reset();
                    continue;
                }
                Line::Failure if is_up => self.registry.set_status(id, Status::Error),
                Line::Failure | Line::Other => {}
            }
            if !process.is_kept_quiet {
                self.lines.write(&format!("{line} [{id}]"));
                self.registry.tell_line(id, &line);
            }
        }
    }

    /// Starts the next of those that come back with the master.
    fn bring_back(&mut self, now: Instant) {
        if now < self.next_return_at {
            return;
        }
        if let Some(id) = self.returning.pop_front() {
            self.next_return_at = now + INSTANCE_START_PAUSE;
            self.turn(&id, NO_ORDER, Then::Start, false);
        }
    }
}

/// How long a process has to end before it is killed: at a stop at least what it gives its
/// visitors, as one who is removed is wanted by nobody any more.
fn stop_timeout(limits: &Limits, then: &Then) -> Duration {
    let grace = INSTANCE_STOP_TIMEOUT.saturating_sub(Duration::from_secs(5));
    match then {
        Then::Forget(Some(_)) => INSTANCE_STOP_TIMEOUT,
        Then::Nothing | Then::Start | Then::Forget(None) => {
            INSTANCE_STOP_TIMEOUT.max(limits.shutdown_timeout + grace)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::changes::{Change, Orders, queue};
    use super::super::instance::{Kind, Live, Record};
    use super::*;

    const ID: &str = "0000000a";

    /// A supervisor that is driven by hand, with one instance that is not started again. Its
    /// process is this program, which has no test of the name that it is given, and ends.
    fn supervisor() -> (Supervisor, Orders) {
        let definition = Definition {
            id: String::from(ID),
            kind: Kind::Client,
            is_wanted: true,
            ..Definition::default()
        };
        let record = Record {
            definition: Arc::new(definition),
            live: Live::default(),
        };
        let (changes, orders) = queue();
        let supervisor = Supervisor {
            mailbox: mailbox().unwrap().1,
            registry: Arc::new(Registry::new(vec![record])),
            changes,
            lines: ForeignLines::lost(),
            limits: Limits::default(),
            units: HashMap::new(),
            returning: VecDeque::new(),
            next_return_at: Instant::now(),
            is_ending: false,
        };
        (supervisor, orders)
    }

    fn start(order: u64) -> Command {
        Command::Start {
            id: String::from(ID),
            order,
        }
    }

    impl Supervisor {
        fn state(&self) -> &State {
            &self.units[ID].state
        }

        fn process_id(&self) -> u32 {
            match self.state() {
                State::Up(process) => process.id(),
                _ => panic!("it does not run"),
            }
        }

        /// Waits until the process has exited, and looks at nothing else.
        fn wait_exit(&self) {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !matches!(self.state(), State::Up(process) if process.has_exited()) {
                assert!(Instant::now() < deadline, "it does not end");
                std::thread::sleep(Duration::from_millis(5));
            }
        }

        /// Looks at what there is, as `run` does, until it is as wanted.
        fn tend_until(&mut self, is_wanted: impl Fn(&Self) -> bool) {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !is_wanted(self) {
                assert!(Instant::now() < deadline, "nothing happens");
                for id in self.sleep() {
                    self.read(&id, Instant::now());
                }
                self.tend(ID, Instant::now());
            }
        }
    }

    #[test]
    fn an_end_is_told_of_with_the_last_order_before_it() {
        let (mut supervisor, orders) = supervisor();
        for order in [7, 9] {
            supervisor.obey(start(order));
            supervisor.wait_exit();
            supervisor.tend_until(|supervisor| matches!(supervisor.state(), State::Idle));
            let change = orders.next();
            assert!(
                matches!(&change, Some(Change::Ended { id, order: told }) if id == ID && *told == order),
                "{change:?}"
            );
            assert_eq!(
                supervisor.registry.find(ID).unwrap().status,
                Status::Stopped
            );
        }
    }

    #[test]
    fn a_start_after_an_end_that_nobody_has_noticed_is_a_start() {
        let (mut supervisor, orders) = supervisor();
        supervisor.obey(start(1));
        let first = supervisor.process_id();
        supervisor.wait_exit();
        supervisor.obey(start(2));
        supervisor.tend_until(|supervisor| matches!(supervisor.state(), State::Up(_)));
        assert_ne!(supervisor.process_id(), first);
        assert!(orders.next().is_none());
        assert_eq!(
            supervisor.registry.find(ID).unwrap().status,
            Status::Running
        );
        supervisor.wait_exit();
        supervisor.tend_until(|supervisor| matches!(supervisor.state(), State::Idle));
        assert!(matches!(
            orders.next(),
            Some(Change::Ended { order: 2, .. })
        ));
    }
}
