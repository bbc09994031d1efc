//! The state file: what survives the master.
//!
//! Written whole into a new file, which takes the place of the old one only when it is on disk.
//! A file that cannot be read is moved aside and never written over.
//!
//! Source: `master-api.md`, "State".

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::Level;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::instance::{
    Bytes, Definition, Instance, KEY_ENTRY_ID, Kind, Live, Meta, Peer, Record, Status,
};
use crate::limits::{INSTANCES_MAX, STATE_FILE_SIZE_MAX};
use crate::runtime::clock::unix_seconds;
use crate::runtime::log::Repeated;
use crate::runtime::random::random_bytes;
use crate::wire::gob::{GobInstance, decode_instances};

const STATE: &str = "nodepass.json";
const BACKUP: &str = "nodepass.json.backup";
const LOCK: &str = "nodepass.lock";
/// State of 1.x masters.
const GOB: &str = "nodepass.gob";
/// Where a system keeps what programs remember.
const SYSTEM_FOLDER: &str = "/var/lib/nodepass";
/// Shape of the file; another one is refused.
const VERSION: u32 = 1;

/// Why there is no state to work with.
#[derive(Debug)]
pub enum StoreError {
    /// Another master works with it.
    Locked(PathBuf),
    /// The folder, or a file in it, cannot be used.
    Unusable(PathBuf, io::Error),
    /// The system gives no random bytes for a key.
    NoKey(io::Error),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked(folder) => write!(
                f,
                "another master works with the state in {}; stop it, or give this one a folder of \
                 its own by NP_STATE_DIR",
                folder.display()
            ),
            Self::Unusable(path, error) => write!(
                f,
                "the state cannot be kept in {}: {error}; name another folder by NP_STATE_DIR",
                path.display()
            ),
            Self::NoKey(error) => write!(f, "no API key can be made: {error}"),
        }
    }
}

impl std::error::Error for StoreError {}

/// What a state file has in it.
#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    instances: Vec<Instance>,
}

/// The folder of the state, locked.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
    /// How the folder itself is brought to disk; another one in tests.
    sync_folder: fn(&File) -> io::Result<()>,
    unsynced: Repeated,
}

impl Store {
    /// Takes the folder over and returns what was kept there; a new key where there was nothing.
    ///
    /// `chosen` is the folder that the user names, if any; otherwise one is looked for.
    ///
    /// Errors: the folder cannot be used, or another master uses it. Where everything is on disk
    /// already, a disk that takes no more is no error: instances may be the only way to this host.
    pub fn open(chosen: Option<&Path>) -> Result<(Self, Vec<Record>), StoreError> {
        let folder = match chosen {
            Some(folder) => folder.to_owned(),
            None => find_folder(),
        };
        let unusable = |error| StoreError::Unusable(folder.clone(), error);
        fs::create_dir_all(&folder).map_err(unusable)?;
        let lock = open_private(&folder.join(LOCK)).map_err(unusable)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::Locked(folder)),
            Err(error) => return Err(unusable(error.into())),
        }
        let store = Self {
            folder,
            _lock: lock,
            sync_folder: File::sync_all,
            unsynced: Repeated::new(Level::Error, "changes that a power cut might undo"),
        };
        let Loaded {
            records,
            is_on_disk,
            is_key_new,
        } = store.load()?;
        // A folder that cannot be written to is better found out now.
        let kept = to_keep(&records);
        let path = store.folder.join(STATE);
        match store.save(&kept).and_then(|()| store.save_backup(&kept)) {
            Ok(()) => {}
            Err(error) if is_on_disk => log::error!(
                "Cannot write the state to {}: {error}; nothing can be changed until that works",
                path.display()
            ),
            Err(error) => return Err(StoreError::Unusable(path, error)),
        }
        if is_key_new && let Some(entry) = records.first() {
            log::info!(
                "API key made: {}; kept in {}",
                entry.definition.url,
                path.display()
            );
        }
        Ok((store, records))
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes everything; on disk when it returns.
    ///
    /// With the new file in place nothing can be taken back: that the folder cannot be brought to
    /// disk is logged, as a power cut might then undo the change.
    ///
    /// Blocks: until then.
    /// Errors: the disk is full or broken; what was there before is untouched.
    pub fn save(&self, instances: &[Instance]) -> io::Result<()> {
        self.write(STATE, instances)
    }

    /// Writes a second file of the same, for when the first one is damaged.
    ///
    /// Blocks, errors: as [`Store::save`].
    pub fn save_backup(&self, instances: &[Instance]) -> io::Result<()> {
        self.write(BACKUP, instances)
    }

    fn write(&self, name: &str, instances: &[Instance]) -> io::Result<()> {
        let text = encode(instances).map_err(io::Error::other)?;
        let path = self.folder.join(name);
        let new = self.folder.join(format!("{name}.new"));
        // What can fail comes before the new file is in place.
        let folder = File::open(&self.folder)?;
        let written = open_private(&new).and_then(|mut file| {
            file.set_len(0)?;
            file.write_all(&text)?;
            file.sync_all()
        });
        let placed = written.and_then(|()| fs::rename(&new, &path));
        if let Err(error) = placed {
            // It takes room that may be wanted; if it cannot go, the next attempt overwrites it.
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        if let Err(error) = (self.sync_folder)(&folder) {
            self.unsynced.log(format_args!(
                "The folder {} cannot be synced: {error}; {name} is written, and a power cut might \
                 bring back the one before",
                self.folder.display()
            ));
        }
        Ok(())
    }

    /// Returns what was kept, or else the beginning of something new.
    fn load(&self) -> Result<Loaded, StoreError> {
        for name in [STATE, BACKUP] {
            let path = self.folder.join(name);
            let fault = match read_bounded(&path) {
                Ok(None) => continue,
                Ok(Some(text)) => match decode(&text) {
                    Ok(records) => {
                        if name == BACKUP {
                            log::error!("The backup {} is used", path.display());
                        }
                        return Ok(Loaded {
                            records,
                            is_on_disk: true,
                            is_key_new: false,
                        });
                    }
                    Err(fault) => fault,
                },
                Err(error) => error.to_string(),
            };
            let aside = move_aside(&path)?;
            log::error!(
                "The state file {} cannot be used: {fault}; it has been moved to {}",
                path.display(),
                aside.display()
            );
        }
        let mut records = self.import();
        let is_entry = |record: &Record| record.definition.is_key_entry();
        let is_key_new = !records.first().is_some_and(is_entry);
        if is_key_new {
            records.insert(0, new_key_entry()?);
        }
        Ok(Loaded {
            records,
            is_on_disk: false,
            is_key_new,
        })
    }

    /// Returns the state of a 1.x master, if there is one. It stays as it is.
    fn import(&self) -> Vec<Record> {
        let path = self.folder.join(GOB);
        let read = match read_bounded(&path) {
            Ok(None) => return Vec::new(),
            Ok(Some(bytes)) => decode_instances(&bytes).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(instances) => {
                let records = imported(instances);
                let runnable = records
                    .iter()
                    .filter(|record| !record.definition.is_key_entry());
                log::info!(
                    "{} instances taken over from {}, which stays as it is",
                    runnable.count(),
                    path.display()
                );
                records
            }
            Err(fault) => {
                log::error!(
                    "The state of a 1.x master in {} cannot be used: {fault}; it stays as it is",
                    path.display()
                );
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
impl Store {
    /// From now on the folder cannot be brought to disk.
    pub fn break_sync(&mut self) {
        self.sync_folder = |_| Err(io::Error::other("the disk is broken"));
    }
}

/// What a start finds.
struct Loaded {
    /// The API key first.
    records: Vec<Record>,
    /// A file of ours has all of it.
    is_on_disk: bool,
    /// Nobody knows the key yet.
    is_key_new: bool,
}

/// [`Content`] to be written.
#[derive(Serialize)]
struct ContentRef<'a> {
    version: u32,
    instances: &'a [Instance],
}

/// Returns what is to be kept of all instances.
pub fn to_keep(records: &[Record]) -> Vec<Instance> {
    records
        .iter()
        .map(|record| Instance::to_keep(&record.definition, record.live.bytes))
        .collect()
}

/// Returns the entry of a new key.
fn new_key_entry() -> Result<Record, StoreError> {
    let id: [u8; 8] = random_bytes().map_err(StoreError::NoKey)?;
    let definition = Definition {
        id: String::from(KEY_ENTRY_ID),
        kind: Kind::KeyEntry,
        url: new_api_key().map_err(StoreError::NoKey)?,
        config: hex(&id),
        ..Definition::default()
    };
    Ok(Record {
        definition: Arc::new(definition),
        live: Live::default(),
    })
}

/// Returns a key that nobody can guess: 32 hex digits.
///
/// Errors: the system gives no random bytes.
pub fn new_api_key() -> io::Result<String> {
    random_bytes::<16>().map(|bytes| hex(&bytes))
}

/// Returns the bytes as hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the folder in which the state is, or is to be.
fn find_folder() -> PathBuf {
    let own = std::env::current_exe()
        .ok()
        .and_then(|program| program.parent().map(Path::to_owned))
        .unwrap_or_else(|| PathBuf::from("."));
    let candidates = [own.join("gob"), own.clone(), PathBuf::from(SYSTEM_FOLDER)];
    // The backup alone is what a start leaves that was cut short while it moved a damaged file.
    for names in [&[STATE, GOB][..], &[BACKUP]] {
        let has_one = |folder: &&PathBuf| names.iter().any(|name| folder.join(name).exists());
        if let Some(folder) = candidates.iter().find(has_one) {
            return folder.clone();
        }
    }
    let system = Path::new(SYSTEM_FOLDER);
    let is_writable = rustix::fs::access(system, rustix::fs::Access::WRITE_OK).is_ok();
    if is_writable && system.is_dir() {
        system.to_owned()
    } else {
        own
    }
}

fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// Returns the content of a file; `None` if there is none.
fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut content = Vec::new();
    file.take(STATE_FILE_SIZE_MAX + 1)
        .read_to_end(&mut content)?;
    let is_too_large = u64::try_from(content.len()).is_ok_and(|size| size > STATE_FILE_SIZE_MAX);
    if is_too_large {
        let text = format!("it is larger than {STATE_FILE_SIZE_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(Some(content))
}

/// Returns what a state file with these instances has in it.
///
/// Errors: none that is known; texts and numbers can always be written.
pub fn encode(instances: &[Instance]) -> serde_json::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(&ContentRef {
        version: VERSION,
        instances,
    })?;
    text.push(b'\n');
    Ok(text)
}

/// Reads what a state file has in it; the error says what is wrong with it.
pub fn decode(text: &[u8]) -> Result<Vec<Record>, String> {
    let content: Content = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if content.version != VERSION {
        return Err(format!(
            "it is of version {}, and this program knows version {VERSION}",
            content.version
        ));
    }
    check(&content.instances)?;
    Ok(content
        .instances
        .into_iter()
        .map(Instance::into_parts)
        .collect())
}

/// Checks what the rest of the program relies on.
fn check(instances: &[Instance]) -> Result<(), String> {
    let is_key = |instance: &Instance| instance.id == KEY_ENTRY_ID;
    let is_entry = |instance: &Instance| instance.kind == Kind::KeyEntry;
    match instances.split_first() {
        Some((first, _)) if !is_key(first) || !is_entry(first) || first.url.is_empty() => {
            return Err(String::from("it does not begin with the API key"));
        }
        None => return Err(String::from("it is empty")),
        Some((_, rest)) if rest.iter().any(|other| is_key(other) || is_entry(other)) => {
            return Err(String::from("it has more than one API key"));
        }
        Some((_, rest)) if rest.len() > INSTANCES_MAX => {
            return Err(format!("it has more than {INSTANCES_MAX} instances"));
        }
        Some(_) => {}
    }
    let mut ids = HashSet::new();
    match instances.iter().find(|instance| !ids.insert(&instance.id)) {
        Some(twice) => Err(format!("it has instance {} twice", twice.id)),
        None => Ok(()),
    }
}

/// Moves a file that cannot be used to where nobody writes over it; returns where that is.
fn move_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let seconds = unix_seconds();
    let name = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{seconds}"));
        if number > 0 {
            name.push(format!("-{number}"));
        }
        PathBuf::from(name)
    };
    let aside = (0..).map(name).find(|aside| !aside.exists());
    let aside = aside.unwrap_or_else(|| name(0));
    fs::rename(path, &aside).map_err(|error| StoreError::Unusable(path.to_owned(), error))?;
    Ok(aside)
}

/// Returns the instances of a 1.x master, behind the key if it had one.
fn imported(instances: Vec<GobInstance>) -> Vec<Record> {
    let mut key_entry = None;
    let mut records = Vec::new();
    for gob in instances {
        let kind = match gob.kind.as_str() {
            "server" => Kind::Server,
            "client" => Kind::Client,
            _ => Kind::KeyEntry,
        };
        let is_key = gob.id == KEY_ENTRY_ID;
        if is_key != (kind == Kind::KeyEntry) || records.len() >= INSTANCES_MAX {
            log::error!(
                "Instance {} is not taken over: it is of no known kind",
                gob.id
            );
            continue;
        }
        let record = Record {
            live: Live {
                status: match kind {
                    Kind::KeyEntry => Status::None,
                    Kind::Server | Kind::Client => Status::Stopped,
                },
                bytes: Bytes {
                    tcp_received: gob.tcp_received,
                    tcp_sent: gob.tcp_sent,
                    udp_received: gob.udp_received,
                    udp_sent: gob.udp_sent,
                },
                ..Live::default()
            },
            definition: Arc::new(Definition {
                is_wanted: gob.restart || matches!(gob.status.as_str(), "running" | "error"),
                id: gob.id,
                alias: gob.alias,
                kind,
                url: gob.url,
                config: gob.config,
                restart: gob.restart,
                meta: Meta {
                    peer: Peer {
                        sid: gob.meta.peer.sid,
                        kind: gob.meta.peer.kind,
                        alias: gob.meta.peer.alias,
                    },
                    tags: gob.meta.tags,
                },
            }),
        };
        if is_key && !record.definition.url.is_empty() {
            key_entry = Some(record);
        } else if !is_key {
            records.push(record);
        }
    }
    // The order in which a map was written says nothing.
    records.sort_by(|one, other| one.definition.id.cmp(&other.definition.id));
    records.splice(0..0, key_entry);
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, kind: Kind) -> Instance {
        Instance {
            id: String::from(id),
            kind,
            url: String::from("x"),
            ..Instance::default()
        }
    }

    fn key() -> Instance {
        instance(KEY_ENTRY_ID, Kind::KeyEntry)
    }

    #[test]
    fn a_state_without_sense_is_refused() {
        let client = || instance("0000000a", Kind::Client);
        assert_eq!(check(&[key()]), Ok(()));
        assert_eq!(check(&[key(), client()]), Ok(()));
        for bad in [
            vec![],
            vec![client()],
            vec![client(), key()],
            vec![key(), key()],
            vec![key(), client(), client()],
            vec![Instance::default()],
        ] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_this_version_is_read() {
        let write = |version| {
            serde_json::to_vec(&ContentRef {
                version,
                instances: &[key()],
            })
            .unwrap()
        };
        assert_eq!(decode(&write(VERSION)).unwrap().len(), 1);
        assert!(decode(&write(2)).unwrap_err().contains("version 2"));
        let whole = write(VERSION);
        for end in 0..whole.len() {
            assert!(decode(&whole[..end]).is_err());
        }
    }

    #[test]
    fn keys_are_32_hex_digits_and_differ() {
        let (one, other) = (new_api_key().unwrap(), new_api_key().unwrap());
        assert_ne!(one, other);
        assert!(one.len() == 32 && one.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
