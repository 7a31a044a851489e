//! What a ConfigMap says of models: read strictly, entry by entry, so that a mistake in one stops no other.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use weightd_types::{Layout, SourceUri};

/// The key of a ConfigMap in which the models are.
pub const KEY: &str = "models.yaml";

/// More in one ConfigMap is a mistake: no node holds them.
const MOST: usize = 256;
/// Longest source.
const LONGEST: usize = 2048;
/// Beyond this, numbers are a mistake.
const PRIORITIES: std::ops::RangeInclusive<i32> = -1000..=1000;

/// One model that some nodes are to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Model {
    /// Where from.
    pub(crate) source: SourceUri,
    /// How its bytes are placed.
    pub(crate) layout: Layout,
    /// Higher goes first.
    pub(crate) priority: i32,
    /// Whether a node without it is not ready for pods that need weights.
    pub(crate) required: bool,
    /// Labels that a node must have; none means every node.
    pub(crate) node_selector: BTreeMap<String, String>,
}

impl Model {
    /// Whether a node with these labels is to have it.
    pub(crate) fn is_for(&self, labels: &BTreeMap<String, String>) -> bool {
        self.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// What was read, and what is wrong with the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Read {
    /// The entries that make sense.
    pub(crate) models: Vec<Model>,
    /// What does not, each with what to write instead.
    pub(crate) complaints: Vec<String>,
    /// Whether nothing could be read at all: then what was known before still holds.
    pub(crate) is_broken: bool,
}

impl Read {
    fn broken(complaint: String) -> Self {
        Self { complaints: vec![complaint], is_broken: true, ..Self::default() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    source: String,
    #[serde(default)]
    layout: Option<String>,
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    node_selector: BTreeMap<String, String>,
}

/// Reads the data of a ConfigMap.
pub(crate) fn read(data: &BTreeMap<String, String>) -> Read {
    let Some(text) = data.get(KEY) else {
        return Read::broken(format!("there is no key {KEY}: write the list of models below it"));
    };
    let mut read = read_text(text);
    let others = data.keys().filter(|key| *key != KEY);
    read.complaints.extend(others.map(|key| format!("key {key} is not read: the models belong into {KEY}")));
    read
}

fn read_text(text: &str) -> Read {
    let mut document: BTreeMap<String, Value> = match serde_saphyr::from_str(text) {
        Ok(document) => document,
        Err(error) => {
            return Read::broken(format!(
                "{KEY} is no YAML that begins with `models:`: {}",
                line(&error.to_string())
            ));
        }
    };
    let entries = match document.remove("models") {
        Some(Value::Array(entries)) => entries,
        Some(Value::Null) => Vec::new(),
        Some(_) => {
            return Read::broken(format!(
                "{KEY}: `models` is no list: write `- source: gs://bucket/model` below it"
            ));
        }
        None => return Read::broken(format!("{KEY} has no `models:`: write the list of models below it")),
    };
    let mut read = Read::default();
    read.complaints.extend(
        document.keys().map(|key| format!("{KEY}: {key:?} is unknown: only `models` may stand there")),
    );
    if entries.len() > MOST {
        read.complaints.push(format!("{KEY}: {} models, of which the first {MOST} are taken", entries.len()));
    }
    for (at, entry) in entries.into_iter().take(MOST).enumerate() {
        match check(entry) {
            Ok(model) => read.models.push(model),
            Err(why) => read.complaints.push(format!("models[{at}] is left out: {why}")),
        }
    }
    read
}

fn check(entry: Value) -> Result<Model, String> {
    let named = entry.get("source").and_then(Value::as_str).unwrap_or("an entry without a source").to_owned();
    let named: String = named.chars().take(200).collect();
    let refused = |why: &str| format!("{named}: {why}");
    let entry: Entry = serde_json::from_value(entry).map_err(|error| {
        let hint = if error.to_string().contains("expected a string") { "; put it into quotes" } else { "" };
        refused(&format!("{}{hint}", line(&error.to_string())))
    })?;
    if entry.source.len() > LONGEST || entry.source.chars().any(char::is_control) {
        return Err(refused("the source is too long, or has control characters in it"));
    }
    let source: SourceUri =
        entry.source.parse().map_err(|error: weightd_types::InvalidUri| error.to_string())?;
    let layout = match entry.layout.as_deref() {
        None => Layout::Aligned,
        Some(layout) => layout
            .parse()
            .map_err(|_| refused(&format!("layout {layout:?} is unknown: write aligned or original")))?,
    };
    if !PRIORITIES.contains(&entry.priority) {
        return Err(refused(&format!("priority {} is not within -1000 to 1000", entry.priority)));
    }
    Ok(Model {
        source,
        layout,
        priority: entry.priority,
        required: entry.required,
        node_selector: entry.node_selector,
    })
}

/// The first line of what a parser says; it shows the text around it in more.
fn line(words: &str) -> &str {
    words.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(text: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(KEY.to_owned(), text.to_owned())])
    }

    #[test]
    fn every_setting_is_read_and_the_defaults_are_as_documented() {
        let read = read(&data(
            "models:\n- source: gs://models/llama\n  nodeSelector: {cloud.google.com/gke-accelerator: nvidia-l4}\n  \
             layout: original\n  priority: 7\n  required: true\n- source: hf://org/name@main\n",
        ));
        assert!(read.complaints.is_empty() && !read.is_broken, "{read:?}");
        let [first, second] = read.models.as_slice() else { panic!("{read:?}") };
        assert_eq!(first.source.to_string(), "gs://models/llama");
        assert_eq!((first.layout, first.priority, first.required), (Layout::Original, 7, true));
        assert_eq!((second.layout, second.priority, second.required), (Layout::Aligned, 0, false));
        let labels =
            |value: &str| BTreeMap::from([("cloud.google.com/gke-accelerator".into(), value.into())]);
        assert!(first.is_for(&labels("nvidia-l4")) && second.is_for(&labels("nvidia-l4")));
        assert!(!first.is_for(&labels("nvidia-a100")) && !first.is_for(&BTreeMap::new()));
    }

    #[test]
    fn a_bad_entry_is_named_and_stops_no_other() {
        for (entry, said) in [
            ("source: gs://models/x\n  pined: true", "unknown field `pined`"),
            ("source: gs://models/x\n  layout: flat", "write aligned or original"),
            ("source: models/x", "begin with one of"),
            ("source: gs://models/x\n  nodeSelector: {gpu: true}", "put it into quotes"),
            ("source: gs://models/x\n  priority: 5000", "-1000 to 1000"),
            ("source: gs://models/x\n  required: perhaps", "expected a boolean"),
            ("layout: aligned", "missing field `source`"),
        ] {
            let read = read(&data(&format!("models:\n- {entry}\n- source: gs://models/good\n")));
            assert_eq!(read.models.len(), 1, "{entry}: {read:?}");
            assert_eq!(read.models[0].source.to_string(), "gs://models/good");
            assert!(read.complaints.len() == 1 && read.complaints[0].contains(said), "{entry}: {read:?}");
            assert!(read.complaints[0].starts_with("models[0] is left out: "), "{read:?}");
            assert!(!read.is_broken);
        }
    }

    #[test]
    fn what_cannot_be_read_at_all_is_broken_and_says_what_to_write() {
        for (text, said) in [
            ("models: [", "no YAML"),
            ("- source: gs://x/y", "no YAML that begins with `models:`"),
            ("modls: []", "has no `models:`"),
            ("models: gs://x/y", "is no list"),
        ] {
            let read = read(&data(text));
            assert!(read.is_broken && read.models.is_empty(), "{text}: {read:?}");
            assert!(read.complaints[0].contains(said), "{text}: {read:?}");
        }
        assert!(super::read(&BTreeMap::new()).is_broken);
        let mut two = data("models: []");
        two.insert("other".into(), String::new());
        let read = super::read(&two);
        assert!(!read.is_broken && read.complaints[0].contains("key other is not read"), "{read:?}");
    }

    #[test]
    fn too_many_are_cut_off_and_aliases_do_not_grow_without_end() {
        let many: String = (0..300).map(|at| format!("- source: gs://models/{at}\n")).collect();
        let read = read(&data(&format!("models:\n{many}")));
        assert_eq!((read.models.len(), read.complaints.len()), (MOST, 1));
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for at in 1..12 {
            let before = format!("*a{}, ", at - 1).repeat(9);
            bomb += &format!("a{at}: &a{at} [{}]\n", before.trim_end_matches(", "));
        }
        assert!(super::read(&data(&(bomb + "models: []\n"))).is_broken);
    }
}
