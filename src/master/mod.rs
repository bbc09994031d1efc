//! The master: instances as child processes, behind a REST API with events.
//!
//! ```text
//!  client ⇄ front ⇄ tiny_http ⇄ router ──▶ registry ──▶ events
//!                                  │           ▲
//!                                  ▼           │
//!                               changes ──▶ supervisor ⇄ instances
//!                                  │
//!                                  ▼
//!                             state file
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`api`] | HTTP: what comes in, what goes out |
//! | [`instance`] | what an instance is |
//! | [`registry`] | what there is at this moment; who is told when it changes |
//! | [`subscription`] | what waits for one who is told |
//! | [`changes`] | what is changed, and in which order |
//! | [`store`] | what survives the master |
//! | [`supervisor`] | the processes |
//! | [`host`] | figures of the machine |

pub mod api;
pub mod changes;
pub mod host;
pub mod instance;
pub mod registry;
pub mod store;
pub mod subscription;
pub mod supervisor;

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::api::backend::Backend;
use self::api::front::Front;
use self::api::router::Router;
use self::api::tcping::Tcping;
use self::changes::{Changes, GivenOrders, Maker};
use self::host::Host;
use self::registry::Registry;
use self::store::{Store, StoreError};
use self::supervisor::{Command, Commands, Supervisor};
use crate::config::Config;
use crate::limits::{
    API_CONNECTIONS_MAX, API_THREADS_ENDING_MAX, INSTANCE_STOP_TIMEOUT, Limits, STOP_TIMEOUT,
};
use crate::net::cover::{CoverError, ServerCover};
use crate::net::listen::{ListenError, Listeners, Protocols, canonical};
use crate::net::resolve::Resolver;
use crate::runtime::cooldown::Cooldown;
use crate::runtime::event::Event;
use crate::runtime::log::Log;
use crate::runtime::shutdown::Signals;
use crate::runtime::threads::{Crew, spawn};

/// Why a master cannot run.
#[derive(Debug)]
pub enum MasterError {
    /// No state to work with.
    Store(StoreError),
    /// No listener; a retry can help.
    Listen(ListenError),
    /// No certificate; with files that are put right a retry can help.
    Cover(CoverError),
    /// The system is short of something; a retry can help.
    System(io::Error),
}

impl MasterError {
    /// Returns whether the next attempt may go better.
    fn is_passing(&self) -> bool {
        match self {
            Self::Store(_) => false,
            Self::Cover(error) => error.is_passing(),
            Self::Listen(_) | Self::System(_) => true,
        }
    }
}

impl fmt::Display for MasterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => write!(f, "{error}"),
            Self::Listen(error) => write!(f, "{error}"),
            Self::Cover(error) => write!(f, "{error}"),
            Self::System(error) => write!(f, "the system refuses: {error}"),
        }
    }
}

/// Runs a master until a signal ends it.
///
/// Blocks: until SIGINT or SIGTERM, and then until all instances have ended, bounded.
/// Errors: it will never run, or has failed; the reason has been logged.
pub fn run(
    config: &Config,
    limits: &Limits,
    signals: &Signals,
    log: &Log,
) -> Result<(), MasterError> {
    log::info!("Master started: {}", config.to_url());
    let never = |error: MasterError| {
        log::error!("Master error: {error}");
        error
    };
    Signals::outlive_file_limit().map_err(|error| never(MasterError::System(error)))?;
    let (store, records) = Store::open(limits.state_directory.as_deref())
        .map_err(|error| never(MasterError::Store(error)))?;
    let mut cooldown = Cooldown::new(limits.service_cooldown);
    let master = Master {
        config,
        limits,
        resolver: Resolver::new(
            &config.options.names,
            limits.tcp_dial_timeout,
            limits.stack_size,
        ),
    };
    let door = loop {
        let error = match master.open(signals, &store) {
            Ok(door) => break door,
            // What failed only because a signal came is no failure.
            Err(_) if signals.wait(Some(Instant::now()), None) => return Ok(()),
            Err(error) => error,
        };
        log::error!("Master error: {error}");
        if !error.is_passing() {
            return Err(error);
        }
        if cooldown.wait(signals) {
            return Ok(());
        }
    };
    let registry = Arc::new(Registry::new(records));
    let running = master
        .start(door, store, registry, log)
        .map_err(|error| never(MasterError::System(error)))?;
    let is_told = signals.wait(None, Some(&running.ended));
    log::info!("Master stopping");
    if running.stop(signals, limits) {
        log::info!("Master stopped");
    }
    if is_told {
        return Ok(());
    }
    // Whoever started this program may start it again.
    let failure = io::Error::other("the thread that has all instances has failed");
    Err(never(MasterError::System(failure)))
}

/// What a start needs.
struct Master<'a> {
    config: &'a Config,
    limits: &'a Limits,
    resolver: Resolver,
}

/// Where clients come in.
struct Door {
    listener: TcpListener,
    cover: Arc<ServerCover>,
    backend: Backend,
}

impl Master<'_> {
    fn open(&self, signals: &Signals, store: &Store) -> Result<Door, MasterError> {
        let options = &self.config.options;
        let (certificate, key) = (&options.certificate_file, &options.key_file);
        let cover = ServerCover::new(
            options.tls,
            certificate.as_deref(),
            key.as_deref(),
            &[b"http/1.1"],
        )
        .map_err(MasterError::Cover)?;
        let protocols = Protocols {
            tcp: true,
            udp: false,
            joins_datagrams: false,
        };
        let listeners = Listeners::bind(
            &self.config.tunnel,
            protocols,
            &self.resolver,
            self.limits.tcp_dial_timeout,
            &|| !signals.is_pending(),
        );
        let Some(listener) = listeners.map_err(MasterError::Listen)?.tcp else {
            unreachable!("it was asked for")
        };
        let folders: Vec<PathBuf> = vec![std::env::temp_dir(), store.folder().to_owned()];
        let backend = Backend::start(folders).map_err(MasterError::System)?;
        Ok(Door {
            listener,
            cover: Arc::new(cover),
            backend,
        })
    }

    fn start(
        &self,
        door: Door,
        store: Store,
        registry: Arc<Registry>,
        log: &Log,
    ) -> io::Result<Running> {
        let stack_size = self.limits.stack_size;
        let (commands, mailbox) = supervisor::mailbox()?;
        let (changes, orders) = changes::queue();
        let maker = Maker {
            orders,
            store,
            registry: Arc::clone(&registry),
            commands: commands.clone(),
            backup_interval: self.limits.reload_interval,
            given: GivenOrders::default(),
        };
        let maker = spawn("changes", stack_size, move || maker.run())?;
        let ended = Arc::new(Event::new()?);
        let supervisor = Supervisor::start(
            mailbox,
            Arc::clone(&registry),
            changes.clone(),
            log.foreign_lines(),
            self.limits.clone(),
            Arc::clone(&ended),
        )?;
        let router = Arc::new(Router {
            config: self.config.clone(),
            limits: self.limits.clone(),
            registry: Arc::clone(&registry),
            changes: changes.clone(),
            host: Host::default(),
            tcping: Tcping::new(self.resolver.clone()),
            started_at: Instant::now(),
        });
        // Each connection has one request under way at most.
        let handlers_max = API_CONNECTIONS_MAX + API_THREADS_ENDING_MAX;
        let handlers = Crew::new("handler", stack_size, handlers_max);
        let (backend, crew) = (door.backend.clone(), handlers.clone());
        let dispatcher = spawn("dispatch", stack_size, move || {
            while let Some(received) = backend.receive() {
                let router = Arc::clone(&router);
                // Refused, it is answered with 500 by being dropped.
                if let Err(refused) = crew.run(move || router.answer(received)) {
                    log::warn!("A request cannot be answered: {refused}");
                }
            }
        })?;
        let (cover, is_stopping) = (Arc::clone(&door.cover), Arc::new(Event::new()?));
        let (interval, stop) = (self.limits.reload_interval, Arc::clone(&is_stopping));
        let reloader = spawn("reload", stack_size, move || {
            while !stop.wait(interval) {
                cover.reload();
            }
        })?;
        let scheme = if door.cover.is_tls() { "https" } else { "http" };
        let front = Front::start(door.listener, door.cover, door.backend.clone(), stack_size)?;
        let address = canonical(front.address());
        let prefix = &self.config.api_prefix;
        log::info!("API listening on tcp {address}: {scheme}://{address}{prefix}/v1");
        Ok(Running {
            front,
            backend: door.backend,
            handlers,
            dispatcher,
            reloader,
            is_stopping,
            registry,
            changes,
            maker,
            commands,
            supervisor,
            ended,
        })
    }
}

/// A master that runs.
struct Running {
    front: Front,
    backend: Backend,
    handlers: Crew,
    dispatcher: JoinHandle<()>,
    reloader: JoinHandle<()>,
    is_stopping: Arc<Event>,
    registry: Arc<Registry>,
    changes: Changes,
    maker: JoinHandle<()>,
    commands: Commands,
    supervisor: JoinHandle<()>,
    /// Raised when the supervisor has ended.
    ended: Arc<Event>,
}

impl Running {
    /// Ends everything: no more requests, then the instances, then the state is written and
    /// subscribers are told; returns whether all of it came about.
    ///
    /// Blocks: until then, bounded; a second signal cuts it short, and the instances are killed.
    fn stop(self, signals: &Signals, limits: &Limits) -> bool {
        self.front.drain();
        self.is_stopping.raise();
        self.commands.send(Command::End);
        // Those that take their time, and those that have to be killed.
        let patience = limits.shutdown_timeout.max(Duration::from_secs(5));
        let deadline = Instant::now() + patience + 2 * INSTANCE_STOP_TIMEOUT;
        if signals.wait(Some(deadline), Some(&self.ended)) {
            return false;
        }
        self.registry.close();
        self.changes.end();
        let threads = [self.maker, self.reloader];
        let has_panicked = threads.into_iter().any(|thread| thread.join().is_err());
        self.backend.close();
        self.handlers.close(STOP_TIMEOUT);
        self.front.stop(Instant::now() + STOP_TIMEOUT);
        let has_panicked = self.dispatcher.join().is_err() || has_panicked;
        // One that hangs would keep the program from ending.
        let has_ended = self.ended.is_raised() && self.supervisor.join().is_ok();
        has_ended && !has_panicked
    }
}
