//! The tensors of one model, wherever they lie.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{agents::ranges, error::Error, lease::Lease, streaming::Streaming, tensor::Tensor};

/// Files, and the tensors that are in them.
#[derive(Debug)]
pub(crate) struct Model {
    files: Vec<ModelFile>,
    /// File by file, and of each as they lie in it.
    tensors: Vec<Tensor>,
    /// Positions in `tensors`, in order of their names.
    by_name: Vec<usize>,
    /// Who lends them, unless they are in files of this process.
    lender: Option<Lender>,
}

/// Who brings tensors.
#[derive(Debug, Clone)]
pub(crate) enum Lender {
    /// Into memory that stays.
    Lease(Arc<Lease>),
    /// Through a ring.
    Stream(Arc<Streaming>),
}

/// A file of tensors.
#[derive(Debug)]
pub(crate) struct ModelFile {
    pub(crate) path: Arc<Path>,
    /// What it says of itself.
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Model {
    /// Of files, and of tensors in their order. A name that two tensors have is nobody's.
    pub(crate) fn new(
        files: Vec<ModelFile>,
        tensors: Vec<Tensor>,
        lender: Option<Lender>,
    ) -> Result<Self, Error> {
        let by_name = order(&tensors);
        let twice = by_name.windows(2).find(|pair| tensors[pair[0]].name() == tensors[pair[1]].name());
        if let Some(pair) = twice {
            let [first, second] = [pair[0], pair[1]].map(|at| tensors[at].path().to_path_buf());
            return Err(Error::Duplicate { tensor: tensors[pair[0]].name().to_owned(), first, second });
        }
        Ok(Self { files, tensors, by_name, lender })
    }

    /// Of its tensors those that are kept, by their order.
    pub(crate) fn only(self, kept: &[bool]) -> Self {
        let Self { files, tensors, lender, .. } = self;
        let tensors = tensors.into_iter().zip(kept).filter(|(_, kept)| **kept);
        let tensors: Vec<_> = tensors.map(|(tensor, _)| tensor).collect();
        Self { files, by_name: order(&tensors), tensors, lender }
    }

    /// Has its tensors brought in their order. `are_all`: as agents do by themselves.
    pub(crate) fn begin(&self, are_all: bool) {
        let chosen = || ranges(self.tensors.iter().filter_map(Tensor::position));
        match &self.lender {
            Some(Lender::Lease(lease)) if !are_all => lease.choose(chosen()),
            Some(Lender::Lease(_)) | None => {}
            Some(Lender::Stream(stream)) => stream.choose(chosen(), are_all),
        }
    }

    /// How many tensors there are.
    pub(crate) fn len(&self) -> usize {
        self.tensors.len()
    }

    /// All tensors in order of their names.
    pub(crate) fn by_name(&self) -> impl Iterator<Item = &Tensor> {
        self.by_name.iter().map(|&at| &self.tensors[at])
    }

    /// All tensors as they lie in their files, file by file.
    pub(crate) fn by_offset(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of that name.
    pub(crate) fn find(&self, name: &str) -> Option<&Tensor> {
        let found = self.by_name.binary_search_by(|&at| self.tensors[at].name().cmp(name)).ok()?;
        Some(&self.tensors[self.by_name[found]])
    }

    /// Who brings them.
    pub(crate) fn lender(&self) -> Option<&Lender> {
        self.lender.as_ref()
    }

    /// The files that they are in.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| &*file.path)
    }

    /// What the files say of themselves. What two of them contradict each other in is left out.
    pub(crate) fn metadata(&self) -> BTreeMap<String, String> {
        let mut merged: BTreeMap<&String, Option<&String>> = BTreeMap::new();
        for (name, value) in self.files.iter().flat_map(|file| &file.metadata) {
            merged
                .entry(name)
                .and_modify(|known| *known = known.filter(|known| *known == value))
                .or_insert(Some(value));
        }
        merged.into_iter().filter_map(|(name, value)| Some((name.clone(), value?.clone()))).collect()
    }

    /// Whether the tensor is in that file.
    pub(crate) fn has(&self, file: &PathBuf, name: &str) -> bool {
        self.find(name).is_some_and(|tensor| tensor.path() == file)
    }
}

/// Positions in the order of names.
fn order(tensors: &[Tensor]) -> Vec<usize> {
    let mut by_name: Vec<usize> = (0..tensors.len()).collect();
    by_name.sort_unstable_by_key(|&at| (tensors[at].name(), at));
    by_name
}
