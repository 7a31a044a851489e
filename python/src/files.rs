//! The files of a model: found, checked and mapped.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Component, Path},
    sync::Arc,
};

use bytes::Bytes;
use safetensors::tensor::TensorInfo;
use weightd_types::{HeaderError, SafetensorsHeader, WeightIndex, WeightIndexError};

use crate::{error::Error, memory::Memory};

/// What every file of tensors is called.
const EXTENSION: &str = ".safetensors";
/// What an index of shards is called.
const INDEX_EXTENSION: &str = ".safetensors.index.json";
/// Which index is taken where there are several: the one that everybody else reads.
const INDEX: &str = "model.safetensors.index.json";

/// The files of one model, and where each tensor is.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) files: Vec<OpenFile>,
    /// File and position in it of each tensor, in order of their names.
    by_name: Vec<(usize, usize)>,
}

/// A file of tensors.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) path: Arc<Path>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) header: SafetensorsHeader,
}

/// One tensor of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) file: &'a OpenFile,
    pub(crate) name: &'a str,
    pub(crate) info: &'a TensorInfo,
}

impl Entry<'_> {
    /// Where its bytes begin in the file's memory.
    pub(crate) fn offset(&self) -> usize {
        self.file.header.raw().len() + self.info.data_offsets.0
    }
}

impl Files {
    /// Opens a file, or all files of a directory.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let kind = fs::metadata(path).map_err(|source| failed(path, source))?;
        let files = if kind.is_dir() { directory(path)? } else { vec![OpenFile::open(path)?] };
        let by_name = by_name(&files)?;
        Ok(Self { files, by_name })
    }

    /// How many tensors there are.
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// All tensors in order of their names.
    pub(crate) fn by_name(&self) -> impl Iterator<Item = Entry<'_>> {
        self.by_name.iter().map(|&(file, at)| entry(&self.files[file], at))
    }

    /// All tensors as they lie in their files, file by file.
    pub(crate) fn by_offset(&self) -> impl Iterator<Item = Entry<'_>> {
        self.files.iter().flat_map(|file| (0..file.header.tensors().len()).map(move |at| entry(file, at)))
    }

    /// The tensor of that name.
    pub(crate) fn find(&self, name: &str) -> Option<Entry<'_>> {
        let name_of = |&(file, at): &(usize, usize)| self.files[file].header.tensors()[at].0.as_str();
        let found = self.by_name.binary_search_by(|place| name_of(place).cmp(name)).ok()?;
        let (file, at) = self.by_name[found];
        Some(entry(&self.files[file], at))
    }
}

impl OpenFile {
    fn open(path: &Path) -> Result<Self, Error> {
        let io = |source| failed(path, source);
        // Asked before it is opened: opening a pipe waits for whoever writes to it.
        if !fs::metadata(path).map_err(io)?.is_file() {
            return Err(Error::NoFile(path.to_owned()));
        }
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let invalid = |source| Error::Header { path: path.to_owned(), source };
        let header = SafetensorsHeader::parse(raw_header(&file, bytes, path)?, bytes).map_err(invalid)?;
        let memory = Memory::map(&file, bytes).map_err(io)?;
        Ok(Self { path: path.into(), memory: Arc::new(memory), header })
    }
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
fn directory(path: &Path) -> Result<Vec<OpenFile>, Error> {
    let (mut weights, mut indices) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(path).map_err(|source| failed(path, source))? {
        let name = entry.map_err(|source| failed(path, source))?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(INDEX_EXTENSION) {
            indices.push(name.to_owned());
        } else if name.ends_with(EXTENSION) {
            weights.push(name.to_owned());
        }
    }
    indices.sort();
    weights.sort();
    match indices.as_slice() {
        [] if weights.is_empty() => Err(Error::NoWeights(path.to_owned())),
        [] => weights.iter().map(|name| OpenFile::open(&path.join(name))).collect(),
        [only] => indexed(path, only),
        several if several.iter().any(|name| name == INDEX) => indexed(path, INDEX),
        _ => Err(Error::Indices { directory: path.to_owned(), names: indices }),
    }
}

/// The files that an index names. What else is in the directory is not of this model.
fn indexed(directory: &Path, name: &str) -> Result<Vec<OpenFile>, Error> {
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
    let mut files = Vec::with_capacity(shards.len());
    for shard in shards {
        let file = OpenFile::open(&directory.join(shard))?;
        index.check_tensors(shard, |tensor| file.header.has_tensor(tensor)).map_err(invalid)?;
        files.push(file);
    }
    if files.is_empty() { Err(Error::NoWeights(directory.to_owned())) } else { Ok(files) }
}

/// Whether a path stays below the directory that it is relative to.
fn is_below(path: &Path) -> bool {
    let mut parts = path.components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn entry(file: &OpenFile, at: usize) -> Entry<'_> {
    let (name, info) = &file.header.tensors()[at];
    Entry { file, name, info }
}

/// Where each tensor is, in order of their names; a name that two files have is nobody's.
fn by_name(files: &[OpenFile]) -> Result<Vec<(usize, usize)>, Error> {
    let name = |&(file, at): &(usize, usize)| files[file].header.tensors()[at].0.as_str();
    let mut places: Vec<_> = files
        .iter()
        .enumerate()
        .flat_map(|(file, open)| (0..open.header.tensors().len()).map(move |at| (file, at)))
        .collect();
    places.sort_unstable_by(|a, b| name(a).cmp(name(b)));
    match places.windows(2).find(|pair| name(&pair[0]) == name(&pair[1])) {
        None => Ok(places),
        Some(pair) => {
            let [first, second] = [pair[0].0.min(pair[1].0), pair[0].0.max(pair[1].0)]
                .map(|file| files[file].path.to_path_buf());
            Err(Error::Duplicate { tensor: name(&pair[0]).to_owned(), first, second })
        }
    }
}

fn failed(path: &Path, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound if path.to_string_lossy().contains("://") => Error::Uri(path.to_owned()),
        io::ErrorKind::NotFound => Error::NotFound(path.to_owned()),
        _ => Error::Io { path: path.to_owned(), source },
    }
}
