//! Threads with a name, a stack size and an owner.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::limits::{PARKED_THREADS_MAX, THREAD_PARK_TIMEOUT, THREADS_MAX};

/// Starts a thread.
///
/// `name` is at most 15 bytes, which is what Linux keeps; `stack_size` is in bytes.
///
/// Errors: the system has no room for another thread; a retry can help later.
pub fn spawn<F>(name: &str, stack_size: usize, body: F) -> io::Result<JoinHandle<()>>
where
    F: FnOnce() + Send + 'static,
{
    debug_assert!(name.len() <= 15, "Linux cuts thread names at 15 bytes");
    Builder::new()
        .name(name.to_owned())
        .stack_size(stack_size)
        .spawn(body)
}

/// Returns how many session threads this system can carry.
///
/// Each thread of the standard library takes four memory maps, and the process is aborted when
/// the kernel refuses one of them half-way, so the count stays below a quarter of what the
/// kernel allows, with some left for the rest of the program.
pub fn threads_max() -> usize {
    let read = |path| {
        std::fs::read_to_string(path)
            .ok()?
            .trim()
            .parse::<usize>()
            .ok()
    };
    let by_maps = read("/proc/sys/vm/max_map_count").map_or(THREADS_MAX, |maps| maps / 5);
    let by_threads = read("/proc/sys/kernel/threads-max").map_or(THREADS_MAX, |all| all / 2);
    by_maps.min(by_threads).clamp(1, THREADS_MAX)
}

type Task = Box<dyn FnOnce() + Send>;

/// A crew of threads that carry out tasks, each task on a thread of its own.
///
/// A thread that is done waits a while for the next task: waking one costs a fifth of making
/// one. The count is bounded; a task that finds no thread is refused, never queued.
#[derive(Clone)]
pub struct Crew {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    stack_size: usize,
    threads_max: usize,
    roster: Mutex<Roster>,
    thread_ended: Condvar,
}

#[derive(Default)]
struct Roster {
    /// Threads that wait for a task, the one that waits shortest last.
    parked: Vec<Arc<Seat>>,
    threads_count: usize,
    threads_started: u64,
    closed: bool,
}

/// Where one parked thread waits for its next task.
#[derive(Default)]
struct Seat {
    task: Mutex<Option<Task>>,
    task_given: Condvar,
}

/// Why a crew did not take a task.
#[derive(Debug)]
pub enum Refused {
    /// All threads that the crew may have are busy.
    Busy {
        /// How many that is.
        threads_max: usize,
    },
    /// The system gave no thread.
    NoThread(io::Error),
    /// The crew has been closed.
    Closed,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Busy { threads_max } => write!(f, "all {threads_max} threads are busy"),
            Self::NoThread(error) => write!(f, "the system gives no more threads: {error}"),
            Self::Closed => f.write_str("the program is stopping"),
        }
    }
}

impl Crew {
    /// Makes a crew without threads; `name` is at most 9 bytes, to leave room for a number.
    pub fn new(name: &'static str, stack_size: usize, threads_max: usize) -> Self {
        debug_assert!(name.len() <= 9, "Linux cuts thread names at 15 bytes");
        Self {
            shared: Arc::new(Shared {
                name,
                stack_size,
                threads_max,
                roster: Mutex::default(),
                thread_ended: Condvar::new(),
            }),
        }
    }

    /// Carries out `task` on a thread of its own.
    ///
    /// Errors: no thread is to be had; the task has been dropped.
    pub fn run(&self, task: impl FnOnce() + Send + 'static) -> Result<(), Refused> {
        let mut roster = lock(&self.shared.roster);
        if roster.closed {
            return Err(Refused::Closed);
        }
        if let Some(seat) = roster.parked.pop() {
            drop(roster);
            *lock(&seat.task) = Some(Box::new(task));
            seat.task_given.notify_one();
            return Ok(());
        }
        let threads_max = self.shared.threads_max;
        if roster.threads_count >= threads_max {
            return Err(Refused::Busy { threads_max });
        }
        roster.threads_count += 1;
        roster.threads_started += 1;
        // Five digits are enough to tell threads apart.
        let name = format!("{}-{}", self.shared.name, roster.threads_started % 100_000);
        drop(roster);
        let member = Member {
            shared: Arc::clone(&self.shared),
        };
        let body = move || member.work(Box::new(task));
        // The thread is detached: a joinable one would keep its stack until somebody joins it,
        // and `close` waits for all of them by count.
        spawn(&name, self.shared.stack_size, body)
            .map(drop)
            .map_err(Refused::NoThread)
    }

    /// Ends the parked threads, refuses new tasks, and returns whether all threads have ended.
    ///
    /// Blocks: until the last thread has ended or `timeout` is over.
    pub fn close(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut roster = lock(&self.shared.roster);
        roster.closed = true;
        for seat in roster.parked.drain(..) {
            *lock(&seat.task) = Some(Box::new(|| {}));
            seat.task_given.notify_one();
        }
        while roster.threads_count > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.thread_ended.wait_timeout(roster, left);
            roster = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// One thread's membership in the crew; it ends when this is dropped, by a panic as well.
struct Member {
    shared: Arc<Shared>,
}

impl Member {
    fn work(self, first: Task) {
        let mut task = first;
        loop {
            task();
            match self.wait_for_task() {
                Some(next) => task = next,
                None => return,
            }
        }
    }

    /// Returns the next task, or `None` when this thread is not needed any more.
    ///
    /// Blocks: at most `THREAD_PARK_TIMEOUT`.
    fn wait_for_task(&self) -> Option<Task> {
        let seat = Arc::new(Seat::default());
        {
            let mut roster = lock(&self.shared.roster);
            if roster.closed || roster.parked.len() >= PARKED_THREADS_MAX {
                return None;
            }
            roster.parked.push(Arc::clone(&seat));
        }
        let mut timeout = THREAD_PARK_TIMEOUT;
        let mut given = lock(&seat.task);
        loop {
            if let Some(task) = given.take() {
                return Some(task);
            }
            let (next, result) = seat
                .task_given
                .wait_timeout(given, timeout)
                .unwrap_or_else(PoisonError::into_inner);
            given = next;
            if result.timed_out() && given.is_none() {
                drop(given);
                let mut roster = lock(&self.shared.roster);
                let place = roster
                    .parked
                    .iter()
                    .position(|parked| Arc::ptr_eq(parked, &seat));
                if let Some(place) = place {
                    roster.parked.remove(place);
                    return None;
                }
                // Whoever took the seat off the list is about to put a task on it.
                timeout = Duration::from_secs(1);
                drop(roster);
                given = lock(&seat.task);
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        lock(&self.shared.roster).threads_count -= 1;
        self.shared.thread_ended.notify_all();
    }
}

/// Locks a mutex whose data are whole at every step, also after a panic of another holder.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[test]
    fn a_crew_carries_out_tasks_and_reuses_its_threads() {
        let crew = Crew::new("test", 256 * 1024, 1);
        let (sender, receiver) = mpsc::channel();
        for round in 0..100 {
            let deadline = Instant::now() + DEADLINE;
            loop {
                let sender = sender.clone();
                match crew.run(move || sender.send(round).unwrap()) {
                    Ok(()) => break,
                    // The one thread has answered but is not parked yet.
                    Err(Refused::Busy { .. }) => assert!(Instant::now() < deadline),
                    Err(other) => panic!("{other}"),
                }
                std::thread::yield_now();
            }
            assert_eq!(receiver.recv_timeout(DEADLINE), Ok(round));
        }
        assert_eq!(lock(&crew.shared.roster).threads_started, 1);
        assert!(crew.close(DEADLINE));
        assert!(matches!(crew.run(|| {}), Err(Refused::Closed)));
    }

    #[test]
    fn a_full_crew_refuses() {
        let crew = Crew::new("test", 256 * 1024, 2);
        let (sender, receiver) = mpsc::channel::<()>();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..2 {
            let receiver = Arc::clone(&receiver);
            crew.run(move || assert!(lock(&receiver).recv().is_err()))
                .unwrap();
        }
        assert!(matches!(
            crew.run(|| {}),
            Err(Refused::Busy { threads_max: 2 })
        ));
        assert!(!crew.close(Duration::ZERO));
        drop(sender);
        assert!(crew.close(DEADLINE));
    }

    #[test]
    fn a_panic_frees_the_place_of_its_thread() {
        let crew = Crew::new("test", 256 * 1024, 1);
        crew.run(|| std::panic::resume_unwind(Box::new(())))
            .unwrap();
        assert!(crew.close(DEADLINE));
    }
}
