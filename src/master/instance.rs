//! What an instance is, as the API and the state file have it.
//!
//! Source: `master-api.md`, "Instance" and "API key".

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::Core;
use crate::limits::TEXT_LENGTH_MAX;
use crate::wire::checkpoint::Checkpoint;

/// The id of the entry that stands for the API key.
pub const KEY_ENTRY_ID: &str = "********";

/// What an instance runs as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It is none: the entry of the API key.
    #[default]
    #[serde(rename = "")]
    KeyEntry,
    /// `server://`
    Server,
    /// `client://`
    Client,
}

impl From<Core> for Kind {
    fn from(core: Core) -> Self {
        match core {
            Core::Server => Self::Server,
            Core::Client => Self::Client,
            Core::Master => Self::KeyEntry,
        }
    }
}

/// How an instance fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is none: the entry of the API key.
    #[default]
    #[serde(rename = "")]
    None,
    /// It has a process that has complained of nothing.
    Running,
    /// It has no process.
    Stopped,
    /// It complains, is silent, or has ended by a failure.
    Error,
}

/// What others have to say about an instance; the master only keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// The other end.
    pub peer: Peer,
    /// Words of the user's own.
    #[serde(deserialize_with = "distinct_tags")]
    pub tags: BTreeMap<String, String>,
}

/// The other end of an instance's tunnel, in the words of a dashboard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Peer {
    /// The service that both belong to.
    pub sid: String,
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name.
    pub alias: String,
}

/// What is known of an instance for good: this is what is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Definition {
    /// Eight hex digits, or [`KEY_ENTRY_ID`].
    pub id: String,
    /// Its name; of the key entry that of the master.
    pub alias: String,
    /// What it runs as.
    pub kind: Kind,
    /// What the user gave, completed; of the key entry the key.
    pub url: String,
    /// The same with every default; of the key entry the id of the master.
    pub config: String,
    /// It is started with the master, and again when it ends by itself.
    pub restart: bool,
    /// What others say about it.
    pub meta: Meta,
    /// It is to run.
    pub is_wanted: bool,
}

impl Definition {
    /// Returns whether this is the entry of the API key.
    pub fn is_key_entry(&self) -> bool {
        self.kind == Kind::KeyEntry
    }
}

/// What changes while an instance runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// How it fares.
    pub status: Status,
    /// Its last checkpoint; the counts of bytes in it are of one process alone.
    pub checkpoint: Checkpoint,
    /// Bytes over all its processes.
    pub bytes: Bytes,
}

/// Bytes read from and written to the application side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Read from TCP sockets.
    pub tcp_received: u64,
    /// Written to TCP sockets.
    pub tcp_sent: u64,
    /// Received in datagrams.
    pub udp_received: u64,
    /// Sent in datagrams.
    pub udp_sent: u64,
}

impl Bytes {
    /// Adds what a process has moved between two of its checkpoints.
    pub fn add_since(&mut self, before: &Checkpoint, now: &Checkpoint) {
        let add = |sum: &mut u64, before: u64, now: u64| {
            // Beyond it the figures could not be read by those who take them as signed.
            const MAX: u64 = i64::MAX as u64;
            *sum = sum.saturating_add(now.saturating_sub(before)).min(MAX);
        };
        add(
            &mut self.tcp_received,
            before.tcp_received,
            now.tcp_received,
        );
        add(&mut self.tcp_sent, before.tcp_sent, now.tcp_sent);
        add(
            &mut self.udp_received,
            before.udp_received,
            now.udp_received,
        );
        add(&mut self.udp_sent, before.udp_sent, now.udp_sent);
    }
}

/// An instance as the API shows it and the state file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the members are those of the specification")]
pub struct Instance {
    pub id: String,
    pub alias: String,
    #[serde(rename = "type")]
    pub kind: Kind,
    pub status: Status,
    pub url: String,
    pub config: String,
    pub restart: bool,
    pub meta: Meta,
    pub mode: u8,
    pub ping: u64,
    pub pool: u64,
    pub tcps: u64,
    pub udps: u64,
    pub tcprx: u64,
    pub tcptx: u64,
    pub udprx: u64,
    pub udptx: u64,
}

impl Instance {
    /// Puts together what is known of an instance.
    pub fn new(definition: &Definition, live: &Live) -> Self {
        let checkpoint = &live.checkpoint;
        Self {
            id: definition.id.clone(),
            alias: definition.alias.clone(),
            kind: definition.kind,
            status: live.status,
            url: definition.url.clone(),
            config: definition.config.clone(),
            restart: definition.restart,
            meta: definition.meta.clone(),
            mode: checkpoint.mode,
            ping: u64::try_from(checkpoint.ping.as_millis()).unwrap_or(u64::MAX),
            pool: checkpoint.pool_count,
            tcps: checkpoint.tcp_sessions_count,
            udps: checkpoint.udp_sessions_count,
            tcprx: live.bytes.tcp_received,
            tcptx: live.bytes.tcp_sent,
            udprx: live.bytes.udp_received,
            udptx: live.bytes.udp_sent,
        }
    }

    /// Returns what is to be kept: whether it runs is whether it is to run, and what is of the
    /// moment is left out.
    pub fn to_keep(definition: &Definition, bytes: Bytes) -> Self {
        let status = match (definition.is_key_entry(), definition.is_wanted) {
            (true, _) => Status::None,
            (false, true) => Status::Running,
            (false, false) => Status::Stopped,
        };
        let live = Live {
            status,
            bytes,
            ..Live::default()
        };
        Self::new(definition, &live)
    }

    /// Takes apart what was kept. Nothing of it runs.
    pub fn into_parts(self) -> Record {
        let live = Live {
            status: match self.kind {
                Kind::KeyEntry => Status::None,
                Kind::Server | Kind::Client => Status::Stopped,
            },
            checkpoint: Checkpoint::default(),
            bytes: Bytes {
                tcp_received: self.tcprx,
                tcp_sent: self.tcptx,
                udp_received: self.udprx,
                udp_sent: self.udptx,
            },
        };
        let definition = Definition {
            id: self.id,
            alias: self.alias,
            kind: self.kind,
            url: self.url,
            config: self.config,
            restart: self.restart,
            meta: self.meta,
            // What comes back with the master runs from then on.
            is_wanted: self.restart || matches!(self.status, Status::Running | Status::Error),
        };
        Record {
            definition: Arc::new(definition),
            live,
        }
    }
}

/// All that is known of an instance.
#[derive(Clone, Debug)]
pub struct Record {
    /// For good.
    pub definition: Arc<Definition>,
    /// For now.
    pub live: Live,
}

impl Record {
    /// Returns the instance as the API shows it.
    pub fn show(&self) -> Instance {
        Instance::new(&self.definition, &self.live)
    }
}

/// Returns an error text if `text`, which is the `what` of an instance, is too long.
pub fn check_length(what: &str, text: &str) -> Result<(), String> {
    // Characters, as people count.
    if text.chars().count() > TEXT_LENGTH_MAX {
        return Err(format!("{what} exceeds maximum length {TEXT_LENGTH_MAX}"));
    }
    Ok(())
}

/// Reads tags; a key that comes twice is an error, as one of the two would be lost.
pub fn distinct_tags<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    struct Tags;
    impl<'de> Visitor<'de> for Tags {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of texts")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut tags = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<String, String>()? {
                if tags.contains_key(&key) {
                    return Err(A::Error::custom(format!("duplicate tag key '{key}'")));
                }
                tags.insert(key, value);
            }
            Ok(tags)
        }
    }
    deserializer.deserialize_map(Tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_has_the_members_of_the_specification_in_their_order() {
        let text = serde_json::to_string(&Instance {
            id: String::from("1e2b9ab8"),
            kind: Kind::Server,
            status: Status::Running,
            ..Instance::default()
        });
        assert_eq!(
            text.unwrap(),
            r#"{"id":"1e2b9ab8","alias":"","type":"server","status":"running","url":"","config":"","restart":false,"meta":{"peer":{"sid":"","type":"","alias":""},"tags":{}},"mode":0,"ping":0,"pool":0,"tcps":0,"udps":0,"tcprx":0,"tcptx":0,"udprx":0,"udptx":0}"#
        );
    }

    #[test]
    fn what_is_kept_comes_back() {
        let definition = Definition {
            id: String::from("1e2b9ab8"),
            alias: String::from("web"),
            kind: Kind::Client,
            restart: true,
            is_wanted: true,
            ..Definition::default()
        };
        let bytes = Bytes {
            tcp_sent: 7,
            ..Bytes::default()
        };
        let record = Instance::to_keep(&definition, bytes).into_parts();
        assert_eq!(*record.definition, definition);
        assert_eq!(record.live.bytes, bytes);
        assert_eq!(record.live.status, Status::Stopped);
    }

    #[test]
    fn bytes_are_those_of_all_processes() {
        let at = |tcp_received| Checkpoint {
            tcp_received,
            ..Checkpoint::default()
        };
        let mut bytes = Bytes::default();
        bytes.add_since(&Checkpoint::default(), &at(10));
        bytes.add_since(&at(10), &at(15));
        bytes.add_since(&Checkpoint::default(), &at(3));
        assert_eq!(bytes.tcp_received, 18);
        bytes.add_since(&Checkpoint::default(), &at(u64::MAX));
        assert_eq!(bytes.tcp_received, i64::MAX as u64);
    }

    #[test]
    fn a_text_may_have_256_characters() {
        let text = "é".repeat(256);
        assert_eq!(check_length("Alias", &text), Ok(()));
        assert_eq!(
            check_length("Alias", &format!("{text}x")),
            Err(String::from("Alias exceeds maximum length 256"))
        );
    }

    #[test]
    fn a_tag_comes_once() {
        let read = |text| serde_json::from_str::<Meta>(text);
        assert_eq!(read(r#"{"tags":{"a":"1","b":"2"}}"#).unwrap().tags.len(), 2);
        let error = read(r#"{"tags":{"a":"1","a":"1"}}"#).unwrap_err();
        assert!(error.to_string().contains("duplicate tag key 'a'"));
    }
}
