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
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::api::backend::Backend;
use self::api::front::Front;
use self::api::router::Router;
use self::api::tcping::Tcping;
use self::changes::{Changes, GivenOrders, Maker};
use self::host::Host;
use self::instance::Record;
use self::registry::Registry;
use self::store::{Store, StoreError};
use self::supervisor::{Command, Commands, Supervisor};
use crate::config::Config;
use crate::limits::{
    API_CONNECTIONS_MAX, API_THREADS_ENDING_MAX, CHANGE_TIMEOUT, INSTANCE_STOP_TIMEOUT, Limits,
    STOP_TIMEOUT,
};
use crate::net::cover::{CoverError, ServerCover};
use crate::net::listen::{ListenError, Listeners, Protocols, canonical};
use crate::net::resolve::Resolver;
use crate::runtime::cooldown::Cooldown;
use crate::runtime::descriptors;
use crate::runtime::event::{Event, RaisedAtEnd};
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
/// The folder of the state is locked before anything else. The API takes its address before an
/// instance can; but the instances come back whatever becomes of it: they may be the way by which
/// people reach this host.
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
    let master = Master {
        config,
        limits,
        resolver: Resolver::new(
            &config.options.names,
            limits.tcp_dial_timeout,
            limits.stack_size,
        ),
    };
    let first = match master.open(signals, store.folder()) {
        // What failed only because a signal came is no failure.
        Err(_) if signals.wait(Some(Instant::now()), None) => return Ok(()),
        Err(error) if !error.is_passing() => return Err(never(error)),
        first => first,
    };
    let instances = master
        .start_instances(store, records, log)
        .map_err(|error| never(MasterError::System(error)))?;
    let (api, is_told) = match master.open_api(first, &instances, signals) {
        Ok(Opening::Open(api)) => {
            let is_told = signals.wait(None, Some(&instances.ended));
            (Some(api), Ok(is_told))
        }
        Ok(Opening::Told) => (None, Ok(true)),
        Ok(Opening::Failed) => (None, Ok(false)),
        Err(error) => (None, Err(error)),
    };
    log::info!("Master stopping");
    if instances.stop(api, signals, limits) {
        log::info!("Master stopped");
    }
    if is_told? {
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

/// What came of it that the API was to open.
enum Opening {
    Open(Api),
    /// A signal came before.
    Told,
    /// The supervisor has failed before.
    Failed,
}

impl Master<'_> {
    /// Has the instances come back that are to run.
    ///
    /// Errors: the system is short of threads or descriptors.
    fn start_instances(
        &self,
        store: Store,
        records: Vec<Record>,
        log: &Log,
    ) -> io::Result<Instances> {
        // Each instance takes some.
        descriptors::raise_limit();
        let stack_size = self.limits.stack_size;
        let registry = Arc::new(Registry::new(records));
        let folder = store.folder().to_owned();
        let (commands, mailbox) = supervisor::mailbox()?;
        let (changes, orders) = changes::queue();
        let mut maker = Maker {
            orders,
            store,
            registry: Arc::clone(&registry),
            commands: commands.clone(),
            backup_interval: self.limits.reload_interval,
            given: GivenOrders::default(),
            is_ahead: false,
        };
        let kept = Arc::new(Event::new()?);
        let on_end = RaisedAtEnd(Arc::clone(&kept));
        let maker = spawn("changes", stack_size, move || {
            let _on_end = on_end;
            maker.run();
        })?;
        let ended = Arc::new(Event::new()?);
        let supervisor = Supervisor::start(
            mailbox,
            Arc::clone(&registry),
            changes.clone(),
            log.foreign_lines(),
            self.limits.clone(),
            Arc::clone(&ended),
        )?;
        Ok(Instances {
            started_at: Instant::now(),
            folder,
            registry,
            changes,
            maker,
            kept,
            commands,
            supervisor,
            ended,
        })
    }

    /// Opens the API, however often that has to be tried after the `first` time.
    ///
    /// Blocks: until it is open, or the master is to end.
    /// Errors: it will never open; the reason has been logged.
    fn open_api(
        &self,
        first: Result<Door, MasterError>,
        instances: &Instances,
        signals: &Signals,
    ) -> Result<Opening, MasterError> {
        let mut cooldown = Cooldown::new(self.limits.service_cooldown);
        let mut opened = first;
        loop {
            let error = match opened {
                Ok(door) => {
                    let started = self.start_api(door, instances);
                    return started.map(Opening::Open).map_err(|error| {
                        let error = MasterError::System(error);
                        log::error!("Master error: {error}");
                        error
                    });
                }
                // What failed only because a signal came is no failure.
                Err(_) if signals.wait(Some(Instant::now()), None) => return Ok(Opening::Told),
                Err(error) => error,
            };
            log::error!("Master error: {error}");
            if !error.is_passing() {
                return Err(error);
            }
            if cooldown.wait_beside(signals, Some(&instances.ended)) {
                return Ok(Opening::Told);
            }
            if instances.ended.is_raised() {
                return Ok(Opening::Failed);
            }
            opened = self.open(signals, &instances.folder);
        }
    }

    /// Takes the address of the API, with a certificate and the server behind.
    fn open(&self, signals: &Signals, state_folder: &Path) -> Result<Door, MasterError> {
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
        let folders: Vec<PathBuf> = vec![std::env::temp_dir(), state_folder.to_owned()];
        let backend = Backend::start(folders).map_err(MasterError::System)?;
        Ok(Door {
            listener,
            cover: Arc::new(cover),
            backend,
        })
    }

    /// Serves whoever comes in.
    ///
    /// Errors: the system is short of threads or descriptors.
    fn start_api(&self, door: Door, instances: &Instances) -> io::Result<Api> {
        let stack_size = self.limits.stack_size;
        let router = Arc::new(Router {
            config: self.config.clone(),
            limits: self.limits.clone(),
            registry: Arc::clone(&instances.registry),
            changes: instances.changes.clone(),
            host: Host::default(),
            tcping: Tcping::new(self.resolver.clone()),
            started_at: instances.started_at,
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
        Ok(Api {
            front,
            backend: door.backend,
            handlers,
            dispatcher,
            reloader,
            is_stopping,
        })
    }
}

/// The API of a master that runs.
struct Api {
    front: Front,
    backend: Backend,
    handlers: Crew,
    dispatcher: JoinHandle<()>,
    reloader: JoinHandle<()>,
    is_stopping: Arc<Event>,
}

/// The instances of a master that runs, and what is kept of them.
struct Instances {
    started_at: Instant,
    /// Where that is.
    folder: PathBuf,
    registry: Arc<Registry>,
    changes: Changes,
    maker: JoinHandle<()>,
    /// Raised when the thread of changes has ended, and so everything has been kept.
    kept: Arc<Event>,
    commands: Commands,
    supervisor: JoinHandle<()>,
    /// Raised when the supervisor has ended.
    ended: Arc<Event>,
}

impl Instances {
    /// Ends everything: no more requests, then the instances, then the state is written and
    /// subscribers are told; returns whether all of it came about.
    ///
    /// Blocks: until then, bounded; a second signal cuts it short, and the instances are killed.
    fn stop(self, api: Option<Api>, signals: &Signals, limits: &Limits) -> bool {
        if let Some(api) = &api {
            api.front.drain();
            api.is_stopping.raise();
        }
        self.commands.send(Command::End);
        // Those that take their time, and those that have to be killed.
        let patience = limits.shutdown_timeout.max(Duration::from_secs(5));
        let deadline = Instant::now() + patience + 2 * INSTANCE_STOP_TIMEOUT;
        if signals.wait(Some(deadline), Some(&self.ended)) {
            return false;
        }
        self.registry.close();
        self.changes.end();
        // A disk may hang, and with it the thread.
        if signals.wait(Some(Instant::now() + CHANGE_TIMEOUT), Some(&self.kept)) {
            return false;
        }
        let is_kept = if self.kept.is_raised() {
            self.maker.join().is_ok()
        } else {
            log::error!("The last state cannot be written in time; the one before stays");
            false
        };
        let is_closed = api.is_none_or(Api::close);
        // One that hangs would keep the program from ending.
        let has_ended = self.ended.is_raised() && self.supervisor.join().is_ok();
        is_kept && is_closed && has_ended
    }
}

impl Api {
    /// Ends all connections; returns whether no thread has failed.
    ///
    /// Blocks: until then, bounded.
    fn close(self) -> bool {
        let has_reloaded = self.reloader.join().is_ok();
        self.backend.close();
        self.handlers.close(STOP_TIMEOUT);
        self.front.stop(Instant::now() + STOP_TIMEOUT);
        self.dispatcher.join().is_ok() && has_reloaded
    }
}
