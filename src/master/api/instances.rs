//! `/instances`: what there is, and changes of it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tiny_http::Request;

use super::reply::{Reply, action_of};
use super::router::Router;
use crate::config::instance::{InstanceUrl, complete};
use crate::limits::API_BODY_SIZE_MAX;
use crate::master::changes::{Change, Edit};
use crate::master::instance::{Definition, check_length, distinct_tags};

/// A JSON object. Without it an array would do as well, its elements taken for the members in their
/// order.
#[derive(Default)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Members(PhantomData))
    }
}

/// Body of POST and PUT.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Order {
    alias: Option<String>,
    url: Option<String>,
}

/// Body of PATCH. A member that is missing, or null, changes nothing.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Patch {
    alias: Option<String>,
    action: Option<String>,
    restart: Option<bool>,
    meta: Option<Object<MetaPatch>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct MetaPatch {
    peer: Option<Object<PeerPatch>>,
    #[serde(deserialize_with = "optional_tags")]
    tags: Option<BTreeMap<String, String>>,
}

/// A member that is null becomes empty; one that is missing stays.
#[derive(Default, Deserialize)]
#[serde(default)]
struct PeerPatch {
    #[serde(deserialize_with = "text_or_null")]
    sid: Option<String>,
    #[serde(rename = "type", deserialize_with = "text_or_null")]
    kind: Option<String>,
    #[serde(deserialize_with = "text_or_null")]
    alias: Option<String>,
}

fn text_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(Some(text.unwrap_or_default()))
}

fn optional_tags<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    #[derive(Deserialize)]
    struct Tags(#[serde(deserialize_with = "distinct_tags")] BTreeMap<String, String>);
    let tags = Option::<Tags>::deserialize(deserializer)?;
    Ok(tags.map(|tags| tags.0))
}

/// Returns the body of a request, which is JSON of this shape.
///
/// Errors: the answer that says that it is not.
pub fn read_body<T: DeserializeOwned>(request: &mut Request) -> Result<T, Reply> {
    let mut body = Vec::new();
    let size_max = u64::try_from(API_BODY_SIZE_MAX).unwrap_or(u64::MAX);
    let read = request.as_reader().take(size_max).read_to_end(&mut body);
    read.map_err(|error| Reply::error(400, format!("Invalid request body: {error}")))?;
    serde_json::from_slice(&body)
        .map_err(|error| Reply::error(400, format!("Invalid request body: {error}")))
}

/// All instances.
pub fn list(router: &Router) -> Reply {
    Reply::json(200, &router.registry.all())
}

/// One instance.
pub fn show(router: &Router, id: &str) -> Result<Reply, Reply> {
    match router.registry.find(id) {
        Some(instance) => Ok(Reply::json(200, &instance)),
        None => Err(Reply::error(404, "Instance not found")),
    }
}

/// A new instance.
pub fn create(router: &Router, request: &mut Request) -> Result<Reply, Reply> {
    let Object(order): Object<Order> = read_body(request)?;
    let url = completed(router, order.url)?;
    let alias = order.alias.unwrap_or_default();
    check("Instance alias", &alias)?;
    let created = router.changes.make(Change::Create { url, alias })?;
    Ok(Reply::json(201, &created))
}

/// Some members of an instance, and an action.
pub fn edit(router: &Router, id: String, request: &mut Request) -> Result<Reply, Reply> {
    // Whoever asks for what is not there is told that first.
    find(router, &id)?;
    let Object(patch): Object<Patch> = read_body(request)?;
    let action = match patch.action.as_deref() {
        None | Some("") => None,
        Some(name) => {
            let invalid = || Reply::error(400, format!("Invalid action: {name}"));
            Some(action_of(name).ok_or_else(invalid)?)
        }
    };
    let Object(meta) = patch.meta.unwrap_or_default();
    let Object(peer) = meta.peer.unwrap_or_default();
    let texts = [
        ("Instance alias", &patch.alias),
        ("Meta peer.sid", &peer.sid),
        ("Meta peer.type", &peer.kind),
        ("Meta peer.alias", &peer.alias),
    ];
    for (what, text) in texts {
        check(what, text.as_deref().unwrap_or_default())?;
    }
    for (key, value) in meta.tags.iter().flatten() {
        check("Meta tag key", key)?;
        check("Meta tag value", value)?;
    }
    let edit = Edit {
        alias: patch.alias,
        restart: patch.restart,
        peer_sid: peer.sid,
        peer_kind: peer.kind,
        peer_alias: peer.alias,
        tags: meta.tags,
        action,
    };
    let edited = router.changes.make(Change::Edit { id, edit })?;
    Ok(Reply::json(200, &edited))
}

/// Another URL for an instance.
pub fn replace(router: &Router, id: String, request: &mut Request) -> Result<Reply, Reply> {
    if find(router, &id)?.is_key_entry() {
        return Err(Reply::error(403, "Forbidden: API Key"));
    }
    let Object(order): Object<Order> = read_body(request)?;
    let url = completed(router, order.url)?;
    let replaced = router.changes.make(Change::Replace { id, url })?;
    Ok(Reply::json(200, &replaced))
}

/// An instance less.
pub fn remove(router: &Router, id: String) -> Result<Reply, Reply> {
    router.changes.make(Change::Remove { id })?;
    Ok(Reply::empty(204))
}

fn find(router: &Router, id: &str) -> Result<Arc<Definition>, Reply> {
    let found = router.registry.definition(id);
    found.ok_or_else(|| Reply::error(404, "Instance not found"))
}

fn completed(router: &Router, url: Option<String>) -> Result<InstanceUrl, Reply> {
    let url = url.filter(|url| !url.is_empty());
    let missing = || Reply::error(400, "Invalid request body: url is missing");
    let url = url.ok_or_else(missing)?;
    complete(&url, &router.config.options, &router.limits)
        .map_err(|error| Reply::error(400, error.to_string()))
}

fn check(what: &str, text: &str) -> Result<(), Reply> {
    check_length(what, text).map_err(|error| Reply::error(400, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> PeerPatch {
        let Object(patch) = serde_json::from_str::<Object<Patch>>(text).unwrap();
        patch.meta.unwrap().0.peer.unwrap().0
    }

    #[test]
    fn what_is_missing_stays_and_what_is_null_becomes_empty() {
        let patch = peer(r#"{"meta":{"peer":{"sid":null,"type":"1"},"tags":null}}"#);
        assert_eq!(patch.sid.as_deref(), Some(""));
        assert_eq!(patch.kind.as_deref(), Some("1"));
        assert_eq!(patch.alias, None);
        let patch = peer(r#"{"meta":{"peer":{}}}"#);
        assert!(patch.sid.is_none() && patch.kind.is_none() && patch.alias.is_none());
    }

    #[test]
    fn a_patch_may_be_empty_and_have_more_than_is_known() {
        for text in [
            "{}",
            r#"{"alias":null,"action":null,"restart":null,"meta":null}"#,
            r#"{"other":[1,{}]}"#,
            r#"{"meta":{}}"#,
        ] {
            let Object(patch) = serde_json::from_str::<Object<Patch>>(text).unwrap();
            assert!(patch.alias.is_none() && patch.restart.is_none(), "{text}");
        }
    }

    #[test]
    fn a_patch_of_another_shape_is_refused() {
        for text in [
            "",
            "{nope",
            "[]",
            r#"{"meta":[]}"#,
            r#"{"alias":1}"#,
            r#"{"restart":"yes"}"#,
            r#"{"meta":{"tags":{"a":"1","a":"2"}}}"#,
            r#"{"meta":{"tags":{"a":1}}}"#,
            r#"{"alias":"a","alias":"b"}"#,
        ] {
            assert!(
                serde_json::from_str::<Object<Patch>>(text).is_err(),
                "{text}"
            );
        }
    }
}
