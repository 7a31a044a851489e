//! What one node is to have: of all that is listed, what its labels select, each model once.

use std::collections::BTreeMap;

use weightd_proto::v1;
use weightd_types::{Layout, SourceUri};

use crate::models::Model;

/// A model that this node is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where from.
    pub(crate) source: SourceUri,
    /// How its bytes are placed.
    pub(crate) layout: Layout,
    /// Higher goes first.
    pub(crate) priority: i32,
    /// Whether the node is not ready without it.
    pub(crate) required: bool,
}

/// The models for a node with these labels, in a stable order. Where one is listed more than once, the highest priority
/// counts, and it is required if any entry says so.
pub(crate) fn wanted<'m>(
    models: impl Iterator<Item = &'m Model>,
    labels: &BTreeMap<String, String>,
) -> Vec<Wanted> {
    let mut wanted = BTreeMap::<(&SourceUri, Layout), Wanted>::new();
    for model in models.filter(|model| model.is_for(labels)) {
        let one = wanted.entry((&model.source, model.layout)).or_insert_with(|| Wanted {
            source: model.source.clone(),
            layout: model.layout,
            priority: model.priority,
            required: false,
        });
        one.priority = one.priority.max(model.priority);
        one.required |= model.required;
    }
    wanted.into_values().collect()
}

impl Wanted {
    /// As the agent is told.
    pub(crate) fn message(&self) -> v1::WantedModel {
        let layout = match self.layout {
            Layout::Original => v1::Layout::Original,
            Layout::Aligned => v1::Layout::Aligned,
        };
        v1::WantedModel { source: self.source.to_string(), layout: layout.into(), priority: self.priority }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(source: &str, priority: i32, required: bool, selector: &[(&str, &str)]) -> Model {
        let node_selector = selector.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Model { source: source.parse().unwrap(), layout: Layout::Aligned, priority, required, node_selector }
    }

    #[test]
    fn labels_select_and_what_is_listed_twice_is_wanted_once() {
        let models = [
            model("gs://m/a", 1, false, &[]),
            model("gs://m/b", 0, true, &[("gpu", "l4")]),
            model("gs://m/a", 5, true, &[("gpu", "l4")]),
            model("gs://m/c", 0, true, &[("gpu", "l4"), ("zone", "b")]),
        ];
        let of = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
            let found = wanted(models.iter(), &labels);
            found.iter().map(|one| (one.source.to_string(), one.priority, one.required)).collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), [("gs://m/a".to_owned(), 1, false)]);
        assert_eq!(
            of(&[("gpu", "l4")]),
            [("gs://m/a".to_owned(), 5, true), ("gs://m/b".to_owned(), 0, true)]
        );
        assert_eq!(of(&[("gpu", "l4"), ("zone", "b")]).len(), 3);
        let mut original = model("gs://m/a", 0, false, &[]);
        original.layout = Layout::Original;
        assert_eq!(wanted([&models[0], &original].into_iter(), &BTreeMap::new()).len(), 2);
    }
}
