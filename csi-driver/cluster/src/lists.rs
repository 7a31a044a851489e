//! The ConfigMaps that list models, read as they change.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;

use crate::models::{Model, Read, read};

/// What every ConfigMap that counts has as a label.
pub const LABEL: &str = "weightd.io/models=true";

/// What the ConfigMaps were last read as.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    by_name: BTreeMap<String, List>,
}

#[derive(Debug)]
struct List {
    version: Option<String>,
    /// `None` where it could never be read since this process began: what it lists is not known, and may be anything.
    models: Option<Vec<Model>>,
    complaints: Vec<String>,
}

impl Lists {
    /// Reads what changed. One that cannot be read at all any more keeps the models it listed before: a slip of the pen
    /// must not free models that pods are about to need.
    pub(crate) fn renew(&mut self, maps: &BTreeMap<String, ConfigMap>) {
        self.by_name.retain(|name, _| maps.contains_key(name));
        for (name, map) in maps {
            let version = map.resource_version();
            let before = self.by_name.remove(name);
            let list = match before {
                Some(list) if list.version == version => list,
                before => renewed(before, version, read(map.data.as_ref().unwrap_or(&BTreeMap::new()))),
            };
            self.by_name.insert(name.clone(), list);
        }
    }

    /// What is listed, as far as that is known.
    pub(crate) fn models(&self) -> impl Iterator<Item = &Model> {
        self.by_name.values().filter_map(|list| list.models.as_ref()).flatten()
    }

    /// The ConfigMaps of which nobody knows what they list, each with what is wrong with it.
    pub(crate) fn unread(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_name.iter().filter(|(_, list)| list.models.is_none()).map(|(name, list)| {
            (name.as_str(), list.complaints.first().map(String::as_str).unwrap_or_default())
        })
    }

    /// What is wrong, by the name of the ConfigMap.
    pub(crate) fn complaints(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_name.iter().flat_map(|(name, list)| {
            list.complaints.iter().map(move |complaint| (name.as_str(), complaint.as_str()))
        })
    }
}

fn renewed(before: Option<List>, version: Option<String>, read: Read) -> List {
    let Read { models, mut complaints, is_broken } = read;
    let models = if is_broken { before.and_then(|before| before.models) } else { Some(models) };
    if is_broken {
        let holds = match &models {
            None => "; until it can be read, no model is let go of",
            Some(models) if models.is_empty() => "",
            Some(_) => "; what it listed before still holds",
        };
        complaints.iter_mut().for_each(|complaint| complaint.push_str(holds));
    }
    List { version, models, complaints }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(version: u32, text: &str) -> BTreeMap<String, ConfigMap> {
        let map = json!({
            "metadata": {"name": "m", "resourceVersion": version.to_string()},
            "data": {crate::models::KEY: text},
        });
        BTreeMap::from([("m".to_owned(), serde_json::from_value(map).unwrap())])
    }

    #[test]
    fn a_list_that_becomes_unreadable_keeps_its_models_and_one_that_is_emptied_does_not() {
        let mut lists = Lists::default();
        let sources =
            |lists: &Lists| lists.models().map(|model| model.source.to_string()).collect::<Vec<_>>();
        lists.renew(&map(1, "models:\n- source: gs://m/a\n"));
        assert_eq!(sources(&lists), ["gs://m/a"]);
        for version in 2..4 {
            lists.renew(&map(version, "models: ["));
            assert_eq!(sources(&lists), ["gs://m/a"]);
            let (name, complaint) = lists.complaints().next().unwrap();
            assert!(name == "m" && complaint.ends_with("what it listed before still holds"), "{complaint}");
        }
        lists.renew(&map(4, "models:\n- source: gs://m/b\n"));
        assert_eq!((sources(&lists), lists.complaints().count()), (vec!["gs://m/b".to_owned()], 0));
        lists.renew(&map(5, "models: []"));
        assert!(sources(&lists).is_empty());
        lists.renew(&map(6, "models:\n- source: gs://m/b\n"));
        lists.renew(&BTreeMap::new());
        assert!(sources(&lists).is_empty());
    }

    #[test]
    fn a_list_that_could_never_be_read_is_not_known_and_others_are() {
        let mut lists = Lists::default();
        let mut maps = map(1, "models: [");
        maps.extend([("good".to_owned(), map(1, "models:\n- source: gs://m/a\n").remove("m").unwrap())]);
        lists.renew(&maps);
        assert_eq!(lists.models().count(), 1);
        let unread: Vec<_> = lists.unread().collect();
        assert!(unread.len() == 1 && unread[0].0 == "m", "{unread:?}");
        assert!(unread[0].1.ends_with("until it can be read, no model is let go of"), "{unread:?}");
        maps.extend(map(2, "still: broken"));
        lists.renew(&maps);
        assert_eq!(lists.unread().count(), 1, "another mistake does not make it known");
        maps.extend(map(3, "models: []"));
        lists.renew(&maps);
        assert_eq!((lists.unread().count(), lists.models().count()), (0, 1));
        maps.extend(map(4, "models: ["));
        lists.renew(&maps);
        assert_eq!(lists.unread().count(), 0, "it was known to list nothing");
        maps.remove("m");
        lists.renew(&maps);
        maps.extend(map(5, "models: ["));
        lists.renew(&maps);
        assert_eq!(lists.unread().count(), 1, "one of the same name is another");
    }
}
