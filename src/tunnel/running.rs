//! A running instance: its threads, and the way to its end.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use super::instance::Instance;
use super::report::{self, Gauge};
use super::slots::Kind;
use crate::limits::{DRAIN_TICK, STOP_AGAIN_TIMEOUT, STOP_TIMEOUT};
use crate::runtime::event::Event;
use crate::runtime::shutdown::Signals;
use crate::runtime::threads::{lock, spawn};

/// What a thread is there for, as far as a stop has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// It has visitors of its own and ends when they have left.
    Visitors,
    /// It serves the others until they have ended.
    Service,
}

/// The threads of an instance, to which more can be added while it runs.
#[derive(Clone)]
pub struct Threads {
    shared: Arc<Shared>,
}

/// What the threads of an instance and their owner share.
struct Shared {
    instance: Arc<Instance>,
    /// Raised by a thread that ends before its time.
    failed: Event,
    has_panicked: AtomicBool,
    /// In the order of their start.
    list: Mutex<List>,
}

type List = Vec<(Duty, JoinHandle<()>)>;

impl Threads {
    /// Begins without any.
    ///
    /// Errors: no descriptors left.
    pub fn new(instance: Arc<Instance>) -> io::Result<Self> {
        let shared = Shared {
            instance,
            failed: Event::new()?,
            has_panicked: AtomicBool::default(),
            list: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Starts a thread; if it ends before the instance drains, the instance has failed.
    ///
    /// Errors: the system has no room for another thread.
    pub fn spawn(
        &self,
        duty: Duty,
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let alarm = Alarm(Arc::clone(&self.shared));
        let stack_size = self.shared.instance.limits.stack_size;
        let thread = spawn(name, stack_size, move || {
            let _alarm = alarm;
            body();
        })?;
        lock(&self.shared.list).push((duty, thread));
        Ok(())
    }

    /// Returns whether the visitors of all threads have left, as far as that can be told.
    fn have_no_visitors(&self) -> bool {
        let list = lock(&self.shared.list);
        let mut of_visitors = list.iter().filter(|(duty, _)| *duty == Duty::Visitors);
        of_visitors.all(|(_, thread)| thread.is_finished())
    }

    /// Waits for all threads, which have been told to end, the latest first.
    fn join(&self) {
        loop {
            let Some((_, thread)) = lock(&self.shared.list).pop() else {
                return;
            };
            if thread.join().is_err() {
                log::error!("A thread ended by a panic: please report what it said");
            }
        }
    }
}

/// A running instance; one that is dropped without [`Running::stop`] is stopped at once.
pub struct Running {
    threads: Threads,
    gauge: Gauge,
    farewell: Option<Box<dyn FnOnce() + Send>>,
}

impl Running {
    /// Takes over the threads of an instance that is being started.
    pub fn begin(threads: Threads, gauge: Gauge) -> Self {
        Self {
            threads,
            gauge,
            farewell: None,
        }
    }

    /// What the threads share.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.threads.shared.instance
    }

    /// Starts the reporter and returns the instance as complete.
    ///
    /// `farewell` is called when all visitors have left, to tell the peer.
    ///
    /// Errors: the system has no room for another thread.
    pub fn complete(mut self, farewell: Option<Box<dyn FnOnce() + Send>>) -> io::Result<Self> {
        self.farewell = farewell;
        let (instance, gauge) = (Arc::clone(self.instance()), self.gauge.clone());
        self.threads.spawn(Duty::Service, "report", move || {
            report::run(&instance, &gauge);
        })?;
        Ok(self)
    }

    /// Returns the event that a thread of the instance raises if it ends before it should.
    pub fn failed(&self) -> &Event {
        &self.threads.shared.failed
    }

    /// Returns whether a thread ended by a panic.
    pub fn has_panicked(&self) -> bool {
        self.threads.shared.has_panicked.load(Ordering::Relaxed)
    }

    /// Stops: no new visitors at once, then the end of those that are in.
    ///
    /// Blocks: until all have left, at most for the shutdown timeout, less after another signal;
    /// then until the threads have ended, at most for `STOP_TIMEOUT`.
    pub fn stop(mut self, signals: &Signals) {
        let instance = Arc::clone(self.instance());
        instance.shutdown.drain.raise();
        let deadline = Instant::now() + instance.limits.shutdown_timeout;
        let mut was_told_again = false;
        while !self.is_empty() && Instant::now() < deadline && !was_told_again {
            let tick = Instant::now() + DRAIN_TICK;
            was_told_again = signals.wait(Some(tick.min(deadline)), None);
        }
        let open_count = instance.slots.count(Kind::Tcp);
        if open_count > 0 {
            log::warn!("Stopping with {open_count} connections still open: they are cut");
        }
        if let Some(farewell) = self.farewell.take() {
            farewell();
        }
        instance.shutdown.stop.raise();
        instance.resolver.close();
        let patience = if was_told_again {
            STOP_AGAIN_TIMEOUT
        } else {
            STOP_TIMEOUT
        };
        let mut deadline = Instant::now() + patience;
        while !instance.crew.close(DRAIN_TICK) {
            if signals.wait(Some(Instant::now()), None) {
                deadline = deadline.min(Instant::now() + STOP_AGAIN_TIMEOUT);
            }
            if Instant::now() >= deadline {
                log::warn!("Some connections did not end in time");
                break;
            }
        }
        self.threads.join();
        instance.notes.flush();
        report::write_last(&instance, &self.gauge);
    }

    /// Returns whether all visitors have left, those of UDP as far as that can be told.
    fn is_empty(&self) -> bool {
        self.instance().slots.count(Kind::Tcp) == 0 && self.threads.have_no_visitors()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.instance().shutdown.drain.raise();
        self.instance().shutdown.stop.raise();
        self.threads.join();
    }
}

/// Tells when a thread ends before its time, mostly by a panic: the instance starts again then.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        let shared = &self.0;
        if !shared.instance.shutdown.drain.is_raised() {
            let has_panicked = std::thread::panicking();
            shared
                .has_panicked
                .fetch_or(has_panicked, Ordering::Relaxed);
            shared.failed.raise();
        }
    }
}
