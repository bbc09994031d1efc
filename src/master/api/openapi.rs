//! The description of the API for programs: OpenAPI 3.1.1.
//!
//! It is written by hand, in `openapi.json`: what answers look like, what may be sent, every status
//! that an operation can answer with. Tests hold it against the types here, and against a master
//! that runs.

/// As build.rs made it out of the file of that name, for some prefix and version.
const DOCUMENT: &str = include_str!(concat!(env!("OUT_DIR"), "/openapi.json"));

/// The same for this version, with the API at that prefix.
pub fn document(api_prefix: &str) -> String {
    let version = concat!(r#""version":""#, env!("CARGO_PKG_VERSION"), r#"""#);
    DOCUMENT
        .replacen(r#""version":"0.0.0""#, version, 1)
        .replacen(
            r#""url":"/api/v1""#,
            &format!(r#""url":"{api_prefix}/v1""#),
            1,
        )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde::Serialize;
    use serde_json::Value;

    use super::document;
    use crate::limits::{INSTANCES_MAX, TEXT_LENGTH_MAX, URL_SIZE_MAX};
    use crate::master::api::tcping::TcpingResult;
    use crate::master::instance::{Instance, Kind, Meta, Peer, Status};

    fn parsed(api_prefix: &str) -> Value {
        serde_json::from_str(&document(api_prefix)).unwrap()
    }

    #[test]
    fn names_its_version_and_where_the_api_is() {
        let document = parsed("/admin/np");
        assert_eq!(document["openapi"], "3.1.1");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(document["servers"][0]["url"], "/admin/np/v1");
        assert_eq!(document["servers"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn is_what_the_file_says_without_white_space() {
        let mut written: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        written["info"]["version"] = env!("CARGO_PKG_VERSION").into();
        assert_eq!(parsed("/api"), written);
        assert!(!document("/api").contains('\n'));
    }

    /// Members of an object, or texts of a list.
    fn names(value: &Value) -> BTreeSet<&str> {
        match value {
            Value::Object(members) => members.keys().map(String::as_str).collect(),
            Value::Array(texts) => texts.iter().filter_map(Value::as_str).collect(),
            _ => panic!("no names: {value}"),
        }
    }

    #[test]
    fn has_the_members_that_answers_have() {
        fn check(schemas: &Value, name: &str, value: &impl Serialize) {
            let value = serde_json::to_value(value).unwrap();
            let schema = &schemas[name];
            assert_eq!(names(&schema["properties"]), names(&value), "{name}");
            assert_eq!(names(&schema["required"]), names(&value), "{name}");
        }
        let document = parsed("/api");
        let schemas = &document["components"]["schemas"];
        check(schemas, "Instance", &Instance::default());
        check(schemas, "Meta", &Meta::default());
        check(schemas, "Peer", &Peer::default());
        let result = TcpingResult {
            target: String::new(),
            connected: false,
            latency: 0,
            error: None,
        };
        check(schemas, "TcpingResult", &result);

        let members = &schemas["Instance"]["properties"];
        for kind in [Kind::KeyEntry, Kind::Server, Kind::Client] {
            let text = serde_json::to_value(kind).unwrap();
            assert!(members["type"]["enum"].as_array().unwrap().contains(&text));
        }
        for status in [
            Status::None,
            Status::Running,
            Status::Stopped,
            Status::Error,
        ] {
            let text = serde_json::to_value(status).unwrap();
            assert!(
                members["status"]["enum"]
                    .as_array()
                    .unwrap()
                    .contains(&text)
            );
        }
    }

    #[test]
    fn names_the_limits() {
        fn check(value: &Value, name: &str, limits: &mut usize) {
            match value {
                Value::Object(members) => {
                    if let Some(limit) = members.get("maxLength").and_then(Value::as_u64) {
                        let is_url = name == "InstanceUrlText";
                        let expected = if is_url {
                            URL_SIZE_MAX
                        } else {
                            TEXT_LENGTH_MAX
                        };
                        assert_eq!(usize::try_from(limit).unwrap(), expected, "{name}");
                        *limits += 1;
                    }
                    for (name, value) in members {
                        check(value, name, limits);
                    }
                }
                Value::Array(values) => values.iter().for_each(|each| check(each, name, limits)),
                _ => {}
            }
        }
        let document = parsed("/api");
        let mut limits = 0;
        check(&document, "", &mut limits);
        // Three aliases, two other texts of a peer, names and values of tags, the URL.
        assert_eq!(limits, 9);
        let text = document["info"]["description"].as_str().unwrap();
        assert!(
            text.contains(&format!(" {INSTANCES_MAX} instances")),
            "{text}"
        );
    }
}
