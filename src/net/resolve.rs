//! Names to addresses, with a cache, a deadline, and one question at a time for each name.
//!
//! The system's resolver cannot be interrupted, so it runs on helper threads: whoever asks waits
//! until his own deadline, and the answer of a slow question serves the next one who asks.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::name_server;
use crate::config::options::NamePolicy;
use crate::limits::{
    NAME_ADDRESSES_MAX, NAME_FAILURE_DURATION, NAME_STACK_SIZE_MIN, NAME_THREADS_MAX,
    NAME_WANTED_INTERVAL, NAMES_MAX, SERVERS_CACHE_DURATION,
};
use crate::runtime::threads::{Crew, lock};

/// The addresses of one name, in the order in which they should be tried.
pub type Addresses = Arc<[IpAddr]>;

/// Why a name has no addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolveError {
    name: String,
    reason: String,
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "name '{}' does not resolve: {}", self.name, self.reason)
    }
}

impl std::error::Error for ResolveError {}

/// Resolves names for an instance.
#[derive(Clone)]
pub struct Resolver {
    shared: Arc<Shared>,
    helpers: Crew,
}

struct Shared {
    /// Name servers to ask; empty: the system's resolver.
    servers: Vec<SocketAddr>,
    cache_duration: Duration,
    /// How long one question may take.
    timeout: Duration,
    names: Mutex<HashMap<String, Entry>>,
}

enum Entry {
    Asked(Arc<Question>),
    Known {
        result: Result<Addresses, ResolveError>,
        until: Instant,
    },
}

/// A question that is under way.
#[derive(Default)]
struct Question {
    answer: Mutex<Option<Result<Addresses, ResolveError>>>,
    answered: Condvar,
}

impl Resolver {
    /// Makes a resolver with an empty cache; `timeout` bounds one question to a name server.
    pub fn new(policy: &NamePolicy, timeout: Duration, stack_size: usize) -> Self {
        let (servers, cache_duration) = match policy {
            NamePolicy::System { cache } => (Vec::new(), *cache),
            NamePolicy::Servers(servers) => (servers.clone(), SERVERS_CACHE_DURATION),
        };
        let names = Mutex::default();
        let stack_size = stack_size.max(NAME_STACK_SIZE_MIN);
        Self {
            shared: Arc::new(Shared {
                servers,
                cache_duration,
                timeout,
                names,
            }),
            helpers: Crew::new("name", stack_size, NAME_THREADS_MAX),
        }
    }

    /// Returns the addresses of `name`.
    ///
    /// Blocks: while the question is under way, at most until `deadline`, and hardly longer than
    /// `is_wanted` says so.
    /// Errors: no such name, no answer in time; a retry can help later.
    pub fn look_up(
        &self,
        name: &str,
        deadline: Instant,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Addresses, ResolveError> {
        let question = match self.known_or_asked(name) {
            Ok(result) => return result,
            Err(question) => question,
        };
        let mut answer = lock(&question.answer);
        loop {
            if let Some(answer) = &*answer {
                return answer.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(error(name, "no answer in time"));
            }
            let slice = left.min(NAME_WANTED_INTERVAL);
            let waited = question.answered.wait_timeout(answer, slice);
            answer = waited.unwrap_or_else(PoisonError::into_inner).0;
            if answer.is_none() && !is_wanted() {
                return Err(error(name, "nobody waits for it any more"));
            }
        }
    }

    /// Has `name` looked up, if it is not known, for those who will ask for it.
    pub fn prepare(&self, name: &str) {
        // Known, asked for already, or asked for now: all is well.
        let _ = self.known_or_asked(name);
    }

    /// Returns the addresses of `name` if they are known already.
    pub fn cached(&self, name: &str) -> Option<Result<Addresses, ResolveError>> {
        match lock(&self.shared.names).get(name) {
            Some(Entry::Known { result, until }) if *until > Instant::now() => Some(result.clone()),
            _ => None,
        }
    }

    /// Forgets the addresses of `name`: none of them answered, so they may have changed.
    pub fn forget(&self, name: &str) {
        let mut names = lock(&self.shared.names);
        if let Some(Entry::Known { result: Ok(_), .. }) = names.get(name) {
            names.remove(name);
        }
    }

    /// Ends the helper threads that have nothing to do.
    pub fn close(&self) {
        // One that hangs in the system's resolver ends with the process.
        self.helpers.close(Duration::ZERO);
    }

    fn known_or_asked(&self, name: &str) -> Result<Result<Addresses, ResolveError>, Arc<Question>> {
        let mut names = lock(&self.shared.names);
        match names.get(name) {
            Some(Entry::Known { result, until }) if *until > Instant::now() => {
                return Ok(result.clone());
            }
            Some(Entry::Asked(question)) => return Err(Arc::clone(question)),
            _ => {}
        }
        let question = Arc::new(Question::default());
        names.insert(name.to_owned(), Entry::Asked(Arc::clone(&question)));
        drop(names);
        let (shared, asked, owned) = (
            Arc::clone(&self.shared),
            Arc::clone(&question),
            name.to_owned(),
        );
        let task = move || {
            // A name that was asked for and never answered could not be asked for again.
            let result = catch_unwind(AssertUnwindSafe(|| shared.ask(&owned)))
                .unwrap_or_else(|_| Err(error(&owned, "the look-up failed by a panic")));
            shared.settle(&owned, &asked, result);
        };
        if let Err(refused) = self.helpers.run(task) {
            let result = Err(error(name, &refused.to_string()));
            self.shared.settle(name, &question, result);
        }
        Err(question)
    }
}

impl Shared {
    fn ask(&self, name: &str) -> Result<Addresses, ResolveError> {
        let found = if self.servers.is_empty() {
            // The port is only there because the interface wants one.
            let found = (name, 0)
                .to_socket_addrs()
                .map_err(|e| error(name, &e.to_string()))?;
            found.map(|address| address.ip()).collect()
        } else {
            let deadline = Instant::now() + self.timeout;
            name_server::look_up(&self.servers, name, deadline)
                .map_err(|e| error(name, &e.to_string()))?
        };
        let addresses = in_turns(&found);
        if addresses.is_empty() {
            return Err(error(name, "it has no address"));
        }
        Ok(addresses.into())
    }

    /// Gives the answer to all who wait, and keeps it if it is to be kept.
    fn settle(&self, name: &str, question: &Question, result: Result<Addresses, ResolveError>) {
        let duration = match &result {
            Ok(_) => self.cache_duration,
            Err(_) => self.cache_duration.min(NAME_FAILURE_DURATION),
        };
        let mut names = lock(&self.names);
        names.remove(name);
        if !duration.is_zero() && names.len() < NAMES_MAX {
            let until = Instant::now() + duration;
            names.insert(
                name.to_owned(),
                Entry::Known {
                    result: result.clone(),
                    until,
                },
            );
        }
        drop(names);
        *lock(&question.answer) = Some(result);
        question.answered.notify_all();
    }
}

fn error(name: &str, reason: &str) -> ResolveError {
    ResolveError {
        name: name.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Returns the addresses with both families taking turns, the family of the first one first, each
/// once, `NAME_ADDRESSES_MAX` at most.
///
/// Source: RFC 8305 section 4.
fn in_turns(found: &[IpAddr]) -> Vec<IpAddr> {
    let starts_with_v6 = found.first().is_some_and(IpAddr::is_ipv6);
    let mut first = found
        .iter()
        .filter(|address| address.is_ipv6() == starts_with_v6);
    let mut second = found
        .iter()
        .filter(|address| address.is_ipv6() != starts_with_v6);
    let mut addresses: Vec<IpAddr> = Vec::new();
    loop {
        let (one, other) = (first.next(), second.next());
        if one.is_none() && other.is_none() {
            return addresses;
        }
        for address in [one, other].into_iter().flatten() {
            if addresses.len() < NAME_ADDRESSES_MAX && !addresses.contains(address) {
                addresses.push(*address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolver(cache: Duration) -> Resolver {
        let policy = NamePolicy::System { cache };
        Resolver::new(&policy, Duration::from_secs(5), 256 * 1024)
    }

    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn families_take_turns() {
        let addresses = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let found = addresses(&["::1", "::2", "::1", "10.0.0.1", "::3"]);
        assert_eq!(
            in_turns(&found),
            addresses(&["::1", "10.0.0.1", "::2", "::3"])
        );
        let found = addresses(&["10.0.0.1", "10.0.0.2", "::1"]);
        assert_eq!(
            in_turns(&found),
            addresses(&["10.0.0.1", "::1", "10.0.0.2"])
        );
        let many: Vec<IpAddr> = (0..=255).map(|low| IpAddr::from([10, 0, 0, low])).collect();
        assert_eq!(in_turns(&many).len(), NAME_ADDRESSES_MAX);
    }

    #[test]
    fn answers_are_kept_and_can_be_forgotten() {
        let resolver = resolver(Duration::from_secs(60));
        assert!(resolver.cached("localhost").is_none());
        let found = resolver.look_up("localhost", deadline(), &|| true).unwrap();
        assert!(found.iter().all(IpAddr::is_loopback));
        assert_eq!(resolver.cached("localhost"), Some(Ok(found)));
        resolver.forget("localhost");
        assert!(resolver.cached("localhost").is_none());
    }

    #[test]
    fn without_a_cache_nothing_is_kept() {
        let resolver = resolver(Duration::ZERO);
        resolver.look_up("localhost", deadline(), &|| true).unwrap();
        assert!(resolver.cached("localhost").is_none());
        assert!(lock(&resolver.shared.names).is_empty());
    }

    #[test]
    fn a_deadline_in_the_past_is_kept() {
        let resolver = resolver(Duration::ZERO);
        // Nobody answers this question: a helper might be faster than a busy machine.
        let unanswered = Entry::Asked(Arc::new(Question::default()));
        lock(&resolver.shared.names).insert("localhost".to_owned(), unanswered);
        let error = resolver
            .look_up("localhost", Instant::now(), &|| true)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "name 'localhost' does not resolve: no answer in time"
        );
    }
}
