//! The log: lines on standard output, written whole, by a thread of its own.
//!
//! Whoever logs puts the finished line into a bounded queue and goes on. Standard output may be
//! a pipe that nobody empties: then lines are lost and counted, and traffic does not stop.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use env_logger::{Builder, Target, WriteStyle};
use log::{Level, LevelFilter};
use tz::{DateTime, TimeZone};

use super::threads::{lock, spawn};
use crate::limits::{
    LOG_FLUSH_TIMEOUT, LOG_LINE_SIZE_MAX, LOG_QUEUE_MAX, LOG_REPEAT_INTERVAL, LOG_REPEAT_MAX,
};

/// Marks a record as level `event`, which the `log` crate does not have.
const EVENT_TARGET: &str = "event";

/// Which lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// Levels up to error.
    pub level: LevelFilter,
    /// Level event, which is above error.
    pub events: bool,
}

/// The running log. Dropping it does not stop it; [`Log::finish`] writes out what is queued.
#[derive(Debug)]
pub struct Log {
    sender: Sender<Entry>,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// Everything before this has been written; answered by dropping the sender.
    Flush(#[allow(dead_code, reason = "held only to be dropped")] Sender<()>),
}

impl Log {
    /// Starts the log of the process; once.
    ///
    /// Errors: no thread is to be had, or a log has been started before.
    pub fn start(threshold: Threshold, stack_size: usize) -> io::Result<Self> {
        let (sender, receiver) = bounded(LOG_QUEUE_MAX);
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let zone = local_zone();
        let queue = Queue {
            sender: sender.clone(),
            lost_count: 0,
        };
        Builder::new()
            .filter_level(threshold.level)
            // What it does in between is nothing to an operator.
            .filter_module("tiny_http", threshold.level.min(LevelFilter::Info))
            .filter_module(
                EVENT_TARGET,
                if threshold.events {
                    LevelFilter::Error
                } else {
                    LevelFilter::Off
                },
            )
            .target(Target::Pipe(Box::new(queue)))
            .write_style(WriteStyle::Never)
            .format(move |line, record| {
                let mark = if record.target() == EVENT_TARGET {
                    Mark::EVENT
                } else {
                    Mark::of(record.level())
                };
                write_line(line, zone.as_ref(), mark, colour, record.args())
            })
            .try_init()
            .map_err(io::Error::other)?;
        // Detached: it may hang in a write for as long as nobody reads standard output.
        spawn("log", stack_size, move || write_lines(&receiver))?;
        Ok(Self { sender })
    }

    /// Returns a way to write lines that others have made.
    #[cfg(feature = "master")]
    pub fn foreign_lines(&self) -> ForeignLines {
        ForeignLines {
            queue: Queue {
                sender: self.sender.clone(),
                lost_count: 0,
            },
        }
    }

    /// Waits until all lines logged so far have been written.
    ///
    /// Blocks: at most `LOG_FLUSH_TIMEOUT`, twice.
    pub fn finish(&self) {
        let (done, wait) = bounded::<()>(0);
        if self
            .sender
            .send_timeout(Entry::Flush(done), LOG_FLUSH_TIMEOUT)
            .is_ok()
        {
            // The answer is that the other end has been dropped.
            let _ = wait.recv_timeout(LOG_FLUSH_TIMEOUT);
        }
    }
}

/// Writes lines that others have made, as they are; whoever has it bounds them.
#[cfg(feature = "master")]
pub struct ForeignLines {
    queue: Queue,
}

#[cfg(all(test, feature = "master"))]
impl ForeignLines {
    /// Lines that nobody gets.
    pub fn lost() -> Self {
        Self {
            queue: Queue {
                sender: bounded(0).0,
                lost_count: 0,
            },
        }
    }
}

#[cfg(feature = "master")]
impl ForeignLines {
    /// Writes one line; it has no end of line in it.
    pub fn write(&mut self, line: &str) {
        // A full queue loses lines and counts them.
        let _ = self.queue.write(format!("{line}\n").as_bytes());
    }
}

/// Logs a line at level event.
pub fn event(text: fmt::Arguments<'_>) {
    log::log!(target: EVENT_TARGET, Level::Error, "{text}");
}

/// A failure that may come back many times a second: the first few are logged one by one, the
/// rest of the interval is counted.
#[derive(Debug)]
pub struct Repeated {
    level: Level,
    what: &'static str,
    state: Mutex<RepeatedState>,
}

#[derive(Debug, Default)]
struct RepeatedState {
    interval_began_at: Option<Instant>,
    logged_count: u32,
    hidden_count: u64,
}

impl Repeated {
    /// Makes one that logs at `level`; `what` names many of its kind.
    pub const fn new(level: Level, what: &'static str) -> Self {
        let state = RepeatedState {
            interval_began_at: None,
            logged_count: 0,
            hidden_count: 0,
        };
        Self {
            level,
            what,
            state: Mutex::new(state),
        }
    }

    /// Logs the text, or counts it if `LOG_REPEAT_MAX` of its kind were logged in this interval.
    pub fn log(&self, text: fmt::Arguments<'_>) {
        if self.admit(Instant::now()) {
            log::log!(self.level, "{text}");
        }
    }

    /// Logs how many have been hidden, once their interval is over.
    pub fn flush(&self) {
        let hidden_count = self.take_hidden(Instant::now());
        if hidden_count > 0 {
            log::log!(self.level, "{hidden_count} more {}", self.what);
        }
    }

    /// Returns whether one that happens now has a line of its own.
    fn admit(&self, now: Instant) -> bool {
        let mut state = lock(&self.state);
        if state.is_over(now) {
            state.interval_began_at = Some(now);
            state.logged_count = 0;
        }
        let is_admitted = state.logged_count < LOG_REPEAT_MAX;
        if is_admitted {
            state.logged_count += 1;
        } else {
            state.hidden_count += 1;
        }
        is_admitted
    }

    fn take_hidden(&self, now: Instant) -> u64 {
        let mut state = lock(&self.state);
        if !state.is_over(now) {
            return 0;
        }
        std::mem::take(&mut state.hidden_count)
    }
}

impl RepeatedState {
    fn is_over(&self, now: Instant) -> bool {
        self.interval_began_at
            .is_none_or(|began_at| now.duration_since(began_at) >= LOG_REPEAT_INTERVAL)
    }
}

/// How a level looks.
#[derive(Clone, Copy)]
struct Mark {
    name: &'static str,
    colour: &'static str,
}

impl Mark {
    const EVENT: Self = Self {
        name: "EVENT",
        colour: "\x1b[36m",
    };

    fn of(level: Level) -> Self {
        match level {
            Level::Error => Self {
                name: "ERROR",
                colour: "\x1b[31m",
            },
            Level::Warn => Self {
                name: "WARN",
                colour: "\x1b[33m",
            },
            Level::Info => Self {
                name: "INFO",
                colour: "\x1b[32m",
            },
            Level::Debug | Level::Trace => Self {
                name: "DEBUG",
                colour: "\x1b[34m",
            },
        }
    }
}

/// Writes one line: local time, level, text, newline.
///
/// Control characters in the text are escaped, so that one event is one line whatever a peer
/// put into it; what is beyond `LOG_LINE_SIZE_MAX` is cut.
fn write_line(
    line: &mut dyn Write,
    zone: Option<&TimeZone>,
    mark: Mark,
    colour: bool,
    arguments: &fmt::Arguments<'_>,
) -> io::Result<()> {
    let mut text = LineText(String::new());
    // The only error is the refusal of text beyond the limit.
    let _ = text.write_fmt(*arguments);
    let (start, end) = if colour {
        (mark.colour, "\x1b[0m")
    } else {
        ("", "")
    };
    writeln!(
        line,
        "{}  {start}{}{end}  {}",
        local_time(zone),
        mark.name,
        text.0
    )
}

/// Text of a line, bounded and without control characters.
struct LineText(String);

impl fmt::Write for LineText {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        for character in part.chars() {
            if self.0.len() >= LOG_LINE_SIZE_MAX {
                self.0.push('…');
                return Err(fmt::Error);
            }
            if character.is_control() {
                self.0.extend(character.escape_default());
            } else {
                self.0.push(character);
            }
        }
        Ok(())
    }
}

/// Returns the present time as `2026-11-20 09:28:54.697`, local, or UTC without a zone.
fn local_time(zone: Option<&TimeZone>) -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let utc = TimeZone::utc();
    let zone = zone.unwrap_or(&utc).as_ref();
    match DateTime::from_timespec(seconds, since.subsec_nanos(), zone) {
        Ok(time) => format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:03}",
            time.year(),
            time.month(),
            time.month_day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.nanoseconds() / 1_000_000
        ),
        // A zone whose rules end before today.
        Err(_) => format!("{seconds}.{:03}", since.subsec_millis()),
    }
}

/// Returns the zone of this system: `TZ`, else `/etc/localtime`, else `/etc/TZ`, which is all
/// that OpenWrt has.
fn local_zone() -> Option<TimeZone> {
    TimeZone::local().ok().or_else(|| {
        let rules = std::fs::read_to_string("/etc/TZ").ok()?;
        TimeZone::from_posix_tz(rules.trim()).ok()
    })
}

/// The logger's way to the writing thread. `write` takes one whole line.
struct Queue {
    sender: Sender<Entry>,
    lost_count: u64,
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lost_count > 0 {
            let note = format!(
                "{} log lines were lost: nobody read them\n",
                self.lost_count
            );
            if self.sender.try_send(Entry::Line(note.into_bytes())).is_ok() {
                self.lost_count = 0;
            }
        }
        if let Err(TrySendError::Full(_)) = self.sender.try_send(Entry::Line(line.to_vec())) {
            self.lost_count += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Body of the thread `log`: ends when the last sender is gone, which is never before exit.
fn write_lines(receiver: &Receiver<Entry>) {
    let output = io::stdout();
    for entry in receiver {
        match entry {
            // A closed standard output is no reason to stop: there is nobody to tell.
            Entry::Line(line) => drop(output.lock().write_all(&line)),
            Entry::Flush(done) => drop(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(arguments: fmt::Arguments<'_>, colour: bool) -> String {
        let mut line = Vec::new();
        write_line(&mut line, None, Mark::of(Level::Warn), colour, &arguments).unwrap();
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_line_has_time_level_and_text() {
        let line = line(format_args!("hello {}", 5), false);
        let (time, rest) = line.split_at("2026-11-20 09:28:54.697".len());
        assert_eq!(rest, "  WARN  hello 5\n");
        assert!(
            time.chars()
                .zip("dddd-dd-dd dd:dd:dd.ddd".chars())
                .all(|(is, want)| {
                    if want == 'd' {
                        is.is_ascii_digit()
                    } else {
                        is == want
                    }
                })
        );
    }

    #[test]
    fn the_level_alone_is_coloured() {
        assert!(line(format_args!("x"), true).ends_with("  \x1b[33mWARN\x1b[0m  x\n"));
    }

    #[test]
    fn a_peer_cannot_forge_a_line() {
        let line = line(format_args!("{}", "a\nb\x1b[2J"), false);
        assert!(line.ends_with("  a\\nb\\u{1b}[2J\n"), "{line}");
    }

    #[test]
    fn a_long_line_is_cut() {
        let line = line(format_args!("{}", "é".repeat(LOG_LINE_SIZE_MAX)), false);
        assert!(line.len() < LOG_LINE_SIZE_MAX + 64);
        assert!(line.ends_with("…\n"));
    }

    #[test]
    fn what_repeats_is_summarised() {
        let repeated = Repeated::new(Level::Warn, "tests");
        let start = Instant::now();
        let admitted_count = (0..100).filter(|_| repeated.admit(start)).count();
        assert_eq!(admitted_count, LOG_REPEAT_MAX as usize);
        assert_eq!(repeated.take_hidden(start), 0);
        let later = start + LOG_REPEAT_INTERVAL;
        let hidden_count = 100 - u64::from(LOG_REPEAT_MAX);
        assert_eq!(repeated.take_hidden(later), hidden_count);
        assert_eq!(repeated.take_hidden(later), 0);
        assert!(repeated.admit(later));
    }

    #[test]
    fn a_full_queue_loses_lines_and_says_so() {
        let (sender, receiver) = bounded(1);
        let mut queue = Queue {
            sender,
            lost_count: 0,
        };
        for line in ["1\n", "2\n", "3\n"] {
            queue.write_all(line.as_bytes()).unwrap();
        }
        assert!(matches!(receiver.try_recv(), Ok(Entry::Line(line)) if line == b"1\n"));
        queue.write_all(b"4\n").unwrap();
        let Ok(Entry::Line(note)) = receiver.try_recv() else {
            panic!("no note")
        };
        assert_eq!(
            String::from_utf8(note).unwrap(),
            "2 log lines were lost: nobody read them\n"
        );
    }
}
