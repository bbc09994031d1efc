//! The state file of a 1.x master: one shape of the gob encoding of Go.
//!
//! A gob stream is a row of messages, each behind its size. A message with a negative type id
//! defines that type; the first one with a positive id is the value, here a map from instance id to
//! instance. The definitions name the fields of a struct, so files of versions with more, fewer or
//! other fields are read as well: what has no name we know is skipped by its type.
//!
//! What was left out of a struct had the zero value of its type, which Go does not write.
//!
//! Source: documentation of Go's package encoding/gob, "Encoding Details".

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use self::definition::{Field, Type, decode_definition};
pub use self::error::{GobError, GobErrorReason};
use self::reader::{MAP_ENTRY_SIZE_MIN, Place, Reader};
use crate::limits::{
    GOB_DEPTH_MAX, GOB_INSTANCES_COUNT_MAX, GOB_SIZE_MAX, GOB_TAGS_COUNT_MAX, GOB_TYPES_COUNT_MAX,
};

mod definition;
mod error;
mod reader;
#[cfg(test)]
mod tests;

type TypeId = i64;

// Types that every stream knows.
const BOOL: TypeId = 1;
const INT: TypeId = 2;
const UINT: TypeId = 3;
const FLOAT: TypeId = 4;
const BYTES: TypeId = 5;
const TEXT: TypeId = 6;
const COMPLEX: TypeId = 7;
const INTERFACE: TypeId = 8;
/// The first id that a stream may define: those below are kept for types that all know.
const DEFINED_FIRST: TypeId = 64;

/// One entry of the map: an instance, or the API key under the id `********`.
///
/// Byte counts are the fields named as in the API, `TCPRX` for `tcprx`, which are taken for what it
/// showed. The fields `…Base` and `…Reset` beside them are skipped: no answer of the API has them, and
/// all they can serve for is to go on counting while a child runs. (All counts of the recorded file
/// are 0, so it says nothing against that.)
#[derive(Clone, Default, PartialEq, Eq)]
pub struct GobInstance {
    /// The id, which is the key of the map as well.
    pub id: String,
    /// The name that the user gave.
    pub alias: String,
    /// `client` or `server`; empty for the API key.
    pub kind: String,
    /// `running`, `stopped` or `error` when the file was written; empty for the API key.
    pub status: String,
    /// The URL; of the entry of the API key, the key.
    pub url: String,
    /// The URL with all defaults; of the entry of the API key, the id of the master.
    pub config: String,
    /// Whether it is started with the master.
    pub restart: bool,
    /// What the user noted about it.
    pub meta: GobMeta,
    /// Run mode; of this and what follows, the last known. A number below zero is read as 0.
    pub mode: u64,
    /// Round trip (ms).
    pub ping: u64,
    /// Idle pool connections.
    pub pool_count: u64,
    /// Open TCP sessions.
    pub tcp_sessions_count: u64,
    /// Open UDP sessions.
    pub udp_sessions_count: u64,
    /// `tcprx` of the API (bytes).
    pub tcp_received: u64,
    /// `tcptx` of the API (bytes).
    pub tcp_sent: u64,
    /// `udprx` of the API (bytes).
    pub udp_received: u64,
    /// `udptx` of the API (bytes).
    pub udp_sent: u64,
}

/// What a user noted about an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GobMeta {
    /// The other end of a tunnel.
    pub peer: GobPeer,
    /// Tags by their keys.
    pub tags: BTreeMap<String, String>,
}

/// What a user noted about the other end of a tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GobPeer {
    /// Id of the service that both ends make.
    pub sid: String,
    /// Its type.
    pub kind: String,
    /// Its name.
    pub alias: String,
}

impl fmt::Debug for GobInstance {
    /// Without the URLs, which hold keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GobInstance")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Returns the instances of a state file, in the order of the file, which is any; the entry of the
/// API key is among them.
///
/// Only the first value counts, as for a 1.x master: nothing behind it is looked at.
///
/// Errors: what [`GobErrorReason`] lists; there is no reading a part of a damaged file.
pub fn decode_instances(input: &[u8]) -> Result<Vec<GobInstance>, GobError> {
    let mut reader = Reader::new(input);
    if input.len() > GOB_SIZE_MAX {
        return Err(reader.error(GobErrorReason::TooLarge));
    }
    let mut types = Types(BTreeMap::new());
    while reader.left() > 0 {
        let mut message = reader.take_message()?;
        let id_offset = message.position;
        let id = message.take_int()?;
        if id >= 0 {
            let instances = types.read_instances(&mut message, id)?;
            message.finish()?;
            return Ok(instances);
        }
        let definition = decode_definition(&mut message)?;
        message.finish()?;
        types.define(id, definition).map_err(|reason| GobError {
            offset: id_offset,
            reason,
        })?;
    }
    Err(reader.error(GobErrorReason::NoValue))
}

/// All types that the stream has defined up to now.
struct Types<'a>(BTreeMap<TypeId, Type<'a>>);

impl<'a> Types<'a> {
    /// Takes the definition that came with the negative `id`.
    fn define(&mut self, id: TypeId, definition: Type<'a>) -> Result<(), GobErrorReason> {
        // The lowest number has no positive counterpart.
        let defined = id.checked_neg().filter(|id| *id >= DEFINED_FIRST);
        let id = defined.ok_or(GobErrorReason::Redefinition)?;
        if self.0.len() == GOB_TYPES_COUNT_MAX {
            return Err(GobErrorReason::TypesCount);
        }
        match self.0.insert(id, definition) {
            None => Ok(()),
            Some(_) => Err(GobErrorReason::Redefinition),
        }
    }

    /// Reads the value of the stream, which has the type `id`.
    fn read_instances(
        &self,
        reader: &mut Reader<'a>,
        id: TypeId,
    ) -> Result<Vec<GobInstance>, GobError> {
        let no_instances = reader.error(GobErrorReason::NoInstances);
        let Some(Type::Map { key: TEXT, element }) = self.0.get(&id) else {
            return Err(no_instances);
        };
        let Some(Type::Struct(fields)) = self.0.get(element) else {
            return Err(no_instances);
        };
        // What is no struct stands behind a zero, as if it were the only field of one.
        if reader.take_uint()? != 0 {
            return Err(no_instances);
        }
        let count = reader.take_count(MAP_ENTRY_SIZE_MIN)?;
        if count > GOB_INSTANCES_COUNT_MAX {
            return Err(reader.error(GobErrorReason::InstancesCount));
        }
        let mut ids = BTreeSet::new();
        let mut instances = Vec::new();
        let mut tags_count = 0;
        for _ in 0..count {
            let key_error = reader.error(GobErrorReason::Duplicate);
            let key = reader.take_text()?;
            if !ids.insert(key) {
                return Err(key_error);
            }
            let offset = reader.position;
            let at = |reason| GobError { offset, reason };
            let mut instance = self.read_instance(reader, fields)?;
            if instance.id.is_empty() {
                instance.id = key.to_owned();
            } else if instance.id != key {
                return Err(at(GobErrorReason::Id));
            }
            // Each alone has no more either, so what has been read by now is bounded.
            tags_count += instance.meta.tags.len();
            if tags_count > GOB_TAGS_COUNT_MAX {
                return Err(at(GobErrorReason::TagsCount));
            }
            instances.push(instance);
        }
        Ok(instances)
    }

    fn read_instance(
        &self,
        reader: &mut Reader<'a>,
        fields: &[Field<'a>],
    ) -> Result<GobInstance, GobError> {
        let mut instance = GobInstance::default();
        let mut place = Place::default();
        while let Some(field) = place.next_field(reader, fields)? {
            let id = field.type_id;
            match field.name {
                "ID" => instance.id = reader.take_text_field("ID", id)?,
                "Alias" => instance.alias = reader.take_text_field("Alias", id)?,
                "Type" => instance.kind = reader.take_text_field("Type", id)?,
                "Status" => instance.status = reader.take_text_field("Status", id)?,
                "URL" => instance.url = reader.take_text_field("URL", id)?,
                "Config" => instance.config = reader.take_text_field("Config", id)?,
                "Restart" => instance.restart = reader.take_flag_field("Restart", id)?,
                "Meta" => instance.meta = self.read_meta(reader, id)?,
                "Mode" => instance.mode = reader.take_number_field("Mode", id)?,
                "Ping" => instance.ping = reader.take_number_field("Ping", id)?,
                "Pool" => instance.pool_count = reader.take_number_field("Pool", id)?,
                "TCPS" => instance.tcp_sessions_count = reader.take_number_field("TCPS", id)?,
                "UDPS" => instance.udp_sessions_count = reader.take_number_field("UDPS", id)?,
                "TCPRX" => instance.tcp_received = reader.take_number_field("TCPRX", id)?,
                "TCPTX" => instance.tcp_sent = reader.take_number_field("TCPTX", id)?,
                "UDPRX" => instance.udp_received = reader.take_number_field("UDPRX", id)?,
                "UDPTX" => instance.udp_sent = reader.take_number_field("UDPTX", id)?,
                _ => self.skip(reader, id, GOB_DEPTH_MAX)?,
            }
        }
        Ok(instance)
    }

    fn read_meta(&self, reader: &mut Reader<'a>, id: TypeId) -> Result<GobMeta, GobError> {
        let fields = self.fields_of(reader, "Meta", id)?;
        let mut meta = GobMeta::default();
        let mut place = Place::default();
        while let Some(field) = place.next_field(reader, fields)? {
            match field.name {
                "Peer" => meta.peer = self.read_peer(reader, field.type_id)?,
                "Tags" => meta.tags = self.read_tags(reader, field.type_id)?,
                _ => self.skip(reader, field.type_id, GOB_DEPTH_MAX)?,
            }
        }
        Ok(meta)
    }

    fn read_peer(&self, reader: &mut Reader<'a>, id: TypeId) -> Result<GobPeer, GobError> {
        let fields = self.fields_of(reader, "Peer", id)?;
        let mut peer = GobPeer::default();
        let mut place = Place::default();
        while let Some(field) = place.next_field(reader, fields)? {
            let id = field.type_id;
            match field.name {
                "SID" => peer.sid = reader.take_text_field("SID", id)?,
                "Type" => peer.kind = reader.take_text_field("Type", id)?,
                "Alias" => peer.alias = reader.take_text_field("Alias", id)?,
                _ => self.skip(reader, id, GOB_DEPTH_MAX)?,
            }
        }
        Ok(peer)
    }

    fn read_tags(
        &self,
        reader: &mut Reader<'a>,
        id: TypeId,
    ) -> Result<BTreeMap<String, String>, GobError> {
        let Some(Type::Map {
            key: TEXT,
            element: TEXT,
        }) = self.0.get(&id)
        else {
            return Err(reader.field_error("Tags", "map[string]string"));
        };
        let count = reader.take_count(MAP_ENTRY_SIZE_MIN)?;
        if count > GOB_TAGS_COUNT_MAX {
            return Err(reader.error(GobErrorReason::TagsCount));
        }
        let mut tags = BTreeMap::new();
        for _ in 0..count {
            let key_error = reader.error(GobErrorReason::Duplicate);
            let key = reader.take_text()?.to_owned();
            let value = reader.take_text()?.to_owned();
            if tags.insert(key, value).is_some() {
                return Err(key_error);
            }
        }
        Ok(tags)
    }

    /// Returns the fields of the struct that the known field `name` should be.
    fn fields_of(
        &self,
        reader: &Reader<'a>,
        name: &'static str,
        id: TypeId,
    ) -> Result<&[Field<'a>], GobError> {
        match self.0.get(&id) {
            Some(Type::Struct(fields)) => Ok(fields),
            _ => Err(reader.field_error(name, "struct")),
        }
    }

    /// Steps over a value, whatever it holds, at most `depth_left` deep.
    ///
    /// Each value takes at least one byte, so the time is bounded by the size of the file.
    fn skip(&self, reader: &mut Reader<'a>, id: TypeId, depth_left: usize) -> Result<(), GobError> {
        let Some(depth_left) = depth_left.checked_sub(1) else {
            return Err(reader.error(GobErrorReason::Depth));
        };
        match id {
            BOOL | INT | UINT | FLOAT => {
                reader.take_uint()?;
                return Ok(());
            }
            COMPLEX => {
                reader.take_uint()?;
                reader.take_uint()?;
                return Ok(());
            }
            BYTES | TEXT => {
                reader.take_bytes()?;
                return Ok(());
            }
            INTERFACE => return Err(reader.error(GobErrorReason::Interface)),
            _ => {}
        }
        match self.0.get(&id) {
            None => return Err(reader.error(GobErrorReason::UnknownType)),
            Some(Type::Opaque) => {
                reader.take_bytes()?;
            }
            Some(Type::List { element }) => {
                for _ in 0..reader.take_count(1)? {
                    self.skip(reader, *element, depth_left)?;
                }
            }
            Some(Type::Map { key, element }) => {
                for _ in 0..reader.take_count(MAP_ENTRY_SIZE_MIN)? {
                    self.skip(reader, *key, depth_left)?;
                    self.skip(reader, *element, depth_left)?;
                }
            }
            Some(Type::Struct(fields)) => {
                let mut place = Place::default();
                while let Some(field) = place.next_field(reader, fields)? {
                    self.skip(reader, field.type_id, depth_left)?;
                }
            }
        }
        Ok(())
    }
}
