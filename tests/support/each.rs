//! One check for every row of a table.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Cases at once. Most of the time a case waits.
const WORKERS: usize = 4;

/// Runs `check` for each of `cases`, all of them even where some fail; then panics with the names
/// of those that did.
#[track_caller]
pub fn for_each<C: Display + Sync>(cases: &[C], check: impl Fn(&C) + Sync) {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..WORKERS.min(cases.len()) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    // Whatever the check has broken, the next case does not use it.
                    if catch_unwind(AssertUnwindSafe(|| check(case))).is_err() {
                        eprintln!("=== failed, with the log above: {case}");
                        failed.lock().unwrap().push(case.to_string());
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{} of {} cases failed:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
}
