//! Ids of volumes that the controller made: `<snapshot id>.<layout>.<16 digits of the name and what was asked for>`.
//!
//! The id carries all there is to know, so that no one has to keep a list: the snapshot that the source was when the
//! volume was made, which every node then shows. Ids of inline volumes and those that people write are of no form.

use std::{collections::BTreeMap, fmt, str::FromStr};

use sha2::{Digest, Sha256};
use weightd_proto::v1;

const SNAPSHOT_DIGITS: usize = 64;
const NAME_DIGITS: usize = 16;

/// An id of the form above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeId {
    /// As the agent writes it.
    pub(crate) snapshot: String,
    layout: &'static str,
    name: String,
}

/// A text of another form.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OtherId;

impl VolumeId {
    /// The id of a volume of that name. The same name and parameters give the same id, and others another.
    pub(crate) fn new(
        snapshot: &str,
        layout: v1::Layout,
        name: &str,
        parameters: &BTreeMap<&String, &String>,
    ) -> Result<Self, OtherId> {
        let mut digest = Sha256::new();
        // Lengths first: no two lists of texts are the same bytes.
        let mut add = |text: &str| {
            digest.update((text.len() as u64).to_be_bytes());
            digest.update(text.as_bytes());
        };
        add(name);
        for (key, value) in parameters {
            add(key);
            add(value);
        }
        let name = hex::encode(&digest.finalize()[..NAME_DIGITS / 2]);
        format!("{snapshot}.{}.{name}", word(layout)).parse()
    }
}

fn word(layout: v1::Layout) -> &'static str {
    match layout {
        v1::Layout::Original => "original",
        v1::Layout::Aligned | v1::Layout::Unspecified => "aligned",
    }
}

fn are_digits(text: &str, count: usize) -> bool {
    text.len() == count && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl FromStr for VolumeId {
    type Err = OtherId;

    fn from_str(text: &str) -> Result<Self, OtherId> {
        let parts: Vec<&str> = text.split('.').collect();
        let &[snapshot, layout, name] = parts.as_slice() else { return Err(OtherId) };
        let layout = ["aligned", "original"].into_iter().find(|known| *known == layout).ok_or(OtherId)?;
        if !are_digits(snapshot, SNAPSHOT_DIGITS) || !are_digits(name, NAME_DIGITS) {
            return Err(OtherId);
        }
        Ok(Self { snapshot: snapshot.to_owned(), layout, name: name.to_owned() })
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.snapshot, self.layout, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str, parameters: &[(&str, &str)]) -> String {
        let owned: Vec<(String, String)> =
            parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let parameters = owned.iter().map(|(key, value)| (key, value)).collect();
        VolumeId::new(&"ab".repeat(32), v1::Layout::Aligned, name, &parameters).unwrap().to_string()
    }

    #[test]
    fn an_id_is_a_function_of_what_was_asked_for_and_comes_back() {
        let one = id("pvc-1", &[("source", "gs://x")]);
        assert_eq!(one, id("pvc-1", &[("source", "gs://x")]));
        assert!(one.len() <= 128, "{one}");
        let parsed: VolumeId = one.parse().unwrap();
        assert_eq!((parsed.snapshot.as_str(), parsed.to_string()), ("ab".repeat(32).as_str(), one.clone()));
        let others =
            [id("pvc-2", &[("source", "gs://x")]), id("pvc-1", &[("source", "gs://y")]), id("pvc-1", &[])];
        assert!(others.iter().all(|other| *other != one));
        assert_ne!(id("a", &[("b", "cd")]), id("a", &[("bc", "d")]));
    }

    #[test]
    fn other_ids_are_told_apart() {
        let snapshot = "ab".repeat(32);
        for text in [
            String::new(),
            "fake-vol-id".to_owned(),
            format!("csi-{snapshot}"),
            format!("{snapshot}.aligned"),
            format!("{snapshot}.packed.0123456789abcdef"),
            format!("{snapshot}.aligned.0123456789ABCDEF"),
            format!("{snapshot}.aligned.0123456789abcdef.x"),
            format!("{}é.aligned.0123456789abcdef", &snapshot[2..]),
        ] {
            assert_eq!(text.parse::<VolumeId>(), Err(OtherId), "{text}");
        }
    }

    #[test]
    fn a_snapshot_that_is_none_gives_no_id() {
        assert!(VolumeId::new("0123", v1::Layout::Original, "n", &BTreeMap::new()).is_err());
    }

    #[test]
    fn no_text_panics() {
        bolero::check!().with_type::<String>().for_each(|text: &String| {
            if let Ok(id) = text.parse::<VolumeId>() {
                assert_eq!(id.to_string(), *text);
            }
        });
    }
}
