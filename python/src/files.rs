//! The files of a model: found, checked and mapped.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use weightd_types::{HeaderError, ModelFiles, SafetensorsHeader, Slicing, WeightIndex, WeightIndexError};

use crate::{
    error::Error,
    layout::Layout,
    memory::Memory,
    model::{Model, ModelFile},
    tensor::{Place, Tensor},
};

/// Which files a path stands for.
#[derive(Debug)]
pub(crate) struct Choice {
    /// In the order in which their tensors are counted.
    pub(crate) files: Vec<PathBuf>,
    /// What chose them, and its path.
    index: Option<(PathBuf, WeightIndex)>,
}

impl Choice {
    /// Looks at a file, or into a directory. No file of tensors is opened.
    pub(crate) fn of(path: &Path) -> Result<Self, Error> {
        let kind = fs::metadata(path).map_err(|source| failed(path, source))?;
        if kind.is_dir() { directory(path) } else { Ok(Self { files: vec![path.to_owned()], index: None }) }
    }

    /// Maps the files, of which these slices are needed.
    pub(crate) fn map(&self, slicing: &Slicing) -> Result<Model, Error> {
        let (mut files, mut tensors) = (Vec::with_capacity(self.files.len()), Vec::new());
        for path in &self.files {
            files.push(map(path, slicing, &mut tensors)?);
        }
        let model = self.checked(Model::new(files, tensors, None)?)?;
        let missing = |source| Error::Slice { what: self.what(), source };
        slicing.check_names(|name| model.find(name).is_some()).map_err(missing)?;
        Ok(model)
    }

    /// What errors are about that are none of a single file.
    fn what(&self) -> PathBuf {
        match (&self.index, self.files.as_slice()) {
            (Some((index, _)), _) => index.clone(),
            (None, [file]) => file.clone(),
            (None, files) => files.first().and_then(|file| file.parent()).unwrap_or(Path::new("")).to_owned(),
        }
    }

    /// A model that has all that its index says.
    pub(crate) fn checked(&self, model: Model) -> Result<Model, Error> {
        if let Some((path, index)) = &self.index {
            let directory = path.parent().unwrap_or(Path::new(""));
            for shard in index.shards() {
                let file = directory.join(shard);
                index
                    .check_tensors(shard, |tensor| model.has(&file, tensor))
                    .map_err(|source| Error::Index { path: path.clone(), source })?;
            }
        }
        Ok(model)
    }
}

/// Maps a file, and adds its tensors.
fn map(path: &Path, slicing: &Slicing, tensors: &mut Vec<Tensor>) -> Result<ModelFile, Error> {
    let io = |source| failed(path, source);
    // Asked before it is opened: opening a pipe waits for whoever writes to it.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(Error::NoFile(path.to_owned()));
    }
    let file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let invalid = |source| Error::Header { path: path.to_owned(), source };
    let header = SafetensorsHeader::parse(raw_header(&file, bytes, path)?, bytes).map_err(invalid)?;
    let memory = Arc::new(Memory::map(&file, bytes).map_err(io)?);
    let path: Arc<Path> = path.into();
    for (name, info) in header.tensors() {
        let (start, end) = info.data_offsets;
        let slice = slicing.slice(name, info.dtype, &info.shape);
        let slice = slice.map_err(|source| Error::Slice { what: path.to_path_buf(), source })?;
        let (from, layout) = match slice {
            None => (0, Layout::new(info.dtype, &info.shape, None, end - start)),
            Some(slice) => {
                let strides = (!slice.is_contiguous()).then_some(slice.strides.as_slice());
                (slice.start, Layout::new(info.dtype, &slice.shape, strides, slice.bytes()))
            }
        };
        let place = Place::Here { memory: memory.clone(), offset: header.raw().len() + start + from };
        tensors.push(Tensor::new(path.clone(), name, layout, place));
    }
    Ok(ModelFile { path, metadata: header.metadata().clone() })
}

/// Length field and JSON. They are read, not mapped: whoever cuts the file short meanwhile gives an error, not a signal.
fn raw_header(file: &File, bytes: u64, path: &Path) -> Result<Bytes, Error> {
    let invalid = |source| Error::Header { path: path.to_owned(), source };
    let mut prefix = [0; 8];
    if bytes < prefix.len() as u64 {
        return Err(invalid(HeaderError::TooShort(bytes)));
    }
    file.read_exact_at(&mut prefix, 0).map_err(|source| failed(path, source))?;
    let length = SafetensorsHeader::length(&prefix, bytes).map_err(invalid)?;
    #[expect(clippy::cast_possible_truncation, reason = "at most 100 MB")]
    let mut raw = vec![0; length as usize];
    file.read_exact_at(&mut raw, 0).map_err(|source| failed(path, source))?;
    Ok(raw.into())
}

/// The files that a directory's index names, or all of them when there is none.
fn directory(path: &Path) -> Result<Choice, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(|source| failed(path, source))? {
        // No file of a model has a name that is no text.
        names.extend(entry.map_err(|source| failed(path, source))?.file_name().into_string());
    }
    match ModelFiles::among(names.iter().map(String::as_str)) {
        ModelFiles::None => Err(Error::NoWeights(path.to_owned())),
        ModelFiles::All(names) => {
            Ok(Choice { files: names.iter().map(|name| path.join(name)).collect(), index: None })
        }
        ModelFiles::Index(name) => indexed(path, name),
        ModelFiles::Ambiguous(names) => {
            let names = names.into_iter().map(str::to_owned).collect();
            Err(Error::Indices { directory: path.to_owned(), names })
        }
    }
}

/// The files that an index names. What else is in the directory is not of this model.
fn indexed(directory: &Path, name: &str) -> Result<Choice, Error> {
    let path = directory.join(name);
    let invalid = |source: WeightIndexError| Error::Index { path: path.clone(), source };
    let kind = fs::metadata(&path).map_err(|source| failed(&path, source))?;
    if !kind.is_file() {
        return Err(Error::NoFile(path.clone()));
    }
    WeightIndex::check_length(kind.len()).map_err(invalid)?;
    let json = fs::read(&path).map_err(|source| failed(&path, source))?;
    let index = WeightIndex::parse(&json).map_err(invalid)?;
    let shards = index.shards();
    if let Some(shard) = shards.iter().find(|shard| !is_below(Path::new(shard))) {
        return Err(Error::Outside { path, shard: (*shard).to_owned() });
    }
    index.check_shards(|shard| directory.join(shard).exists()).map_err(invalid)?;
    let files: Vec<_> = shards.into_iter().map(|shard| directory.join(shard)).collect();
    if files.is_empty() {
        return Err(Error::NoWeights(directory.to_owned()));
    }
    Ok(Choice { files, index: Some((path, index)) })
}

/// Whether a path stays below the directory that it is relative to.
fn is_below(path: &Path) -> bool {
    let mut parts = path.components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// What the system said of a path.
pub(crate) fn failed(path: &Path, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound => Error::NotFound(path.to_owned()),
        _ => Error::Io { path: path.to_owned(), source },
    }
}
