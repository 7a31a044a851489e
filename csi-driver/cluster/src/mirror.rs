//! What the API was last heard to hold.

use std::collections::BTreeMap;

use kube::{Resource, ResourceExt, runtime::watcher::Event};

/// Objects by name, as a watch tells of them. Nothing is known until a whole list was heard: an empty list and no list
/// are different things when what is not listed is let go.
#[derive(Debug)]
pub(crate) struct Mirror<K> {
    known: Option<BTreeMap<String, K>>,
    coming: BTreeMap<String, K>,
}

impl<K> Default for Mirror<K> {
    fn default() -> Self {
        Self { known: None, coming: BTreeMap::new() }
    }
}

impl<K: Resource> Mirror<K> {
    pub(crate) fn hear(&mut self, event: Event<K>) {
        match event {
            Event::Init => self.coming.clear(),
            Event::InitApply(object) => drop(self.coming.insert(object.name_any(), object)),
            Event::InitDone => self.known = Some(std::mem::take(&mut self.coming)),
            Event::Apply(object) => {
                if let Some(known) = &mut self.known {
                    known.insert(object.name_any(), object);
                }
            }
            Event::Delete(object) => {
                if let Some(known) = &mut self.known {
                    known.remove(&object.name_any());
                }
            }
        }
    }

    pub(crate) fn known(&self) -> Option<&BTreeMap<String, K>> {
        self.known.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn named(name: &str) -> ConfigMap {
        serde_json::from_value(serde_json::json!({"metadata": {"name": name}})).unwrap()
    }

    #[test]
    fn a_list_counts_when_it_is_whole_and_replaces_what_was_missed() {
        let mut mirror = Mirror::default();
        let names = |mirror: &Mirror<ConfigMap>| {
            mirror.known().map(|known| known.keys().cloned().collect::<Vec<_>>())
        };
        mirror.hear(Event::Init);
        mirror.hear(Event::InitApply(named("a")));
        assert_eq!(names(&mirror), None);
        mirror.hear(Event::InitDone);
        mirror.hear(Event::Apply(named("b")));
        assert_eq!(names(&mirror).unwrap(), ["a", "b"]);
        mirror.hear(Event::Delete(named("a")));
        assert_eq!(names(&mirror).unwrap(), ["b"]);
        mirror.hear(Event::Init);
        mirror.hear(Event::InitApply(named("c")));
        assert_eq!(names(&mirror).unwrap(), ["b"], "the old list holds until the new one is whole");
        mirror.hear(Event::InitDone);
        assert_eq!(names(&mirror).unwrap(), ["c"]);
    }
}
