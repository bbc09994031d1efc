//! The state file of a 1.x master.

use std::collections::BTreeSet;

use nodepass::limits::{GOB_INSTANCES_COUNT_MAX, GOB_TAGS_COUNT_MAX};
use nodepass::wire::gob::{GobInstance, decode_instances};

use super::recordings;

/// What is read has no more than the file; what is refused is refused at a place in it.
pub fn run(input: &[u8]) -> bool {
    let instances = match decode_instances(input) {
        Ok(instances) => instances,
        Err(error) => {
            assert!(error.offset <= input.len());
            assert!(error.to_string().ends_with(&error.offset.to_string()));
            return false;
        }
    };
    let ids: BTreeSet<&str> = instances.iter().map(|found| found.id.as_str()).collect();
    assert_eq!(ids.len(), instances.len());
    assert!(instances.len() <= GOB_INSTANCES_COUNT_MAX);
    let tags_count: usize = instances.iter().map(|found| found.meta.tags.len()).sum();
    assert!(tags_count <= GOB_TAGS_COUNT_MAX);
    let texts_size: usize = instances.iter().map(texts_size).sum();
    assert!(texts_size <= input.len());
    // Nothing behind the value is looked at.
    let longer = decode_instances(&[input, b"more"].concat());
    assert!(longer.is_ok_and(|again| again == instances));
    true
}

fn texts_size(found: &GobInstance) -> usize {
    let peer = &found.meta.peer;
    let texts = [
        &found.id,
        &found.alias,
        &found.kind,
        &found.status,
        &found.url,
        &found.config,
        &peer.sid,
        &peer.kind,
        &peer.alias,
    ];
    let tags = found.meta.tags.iter().flat_map(|(key, value)| [key, value]);
    texts.into_iter().chain(tags).map(String::len).sum()
}

pub fn seeds() -> Vec<Vec<u8>> {
    vec![recordings::GOB.to_vec()]
}
