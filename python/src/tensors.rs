//! What `weightd.open` gives: the tensors of a model by their names.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pyo3::{
    prelude::*,
    types::{PyIterator, PyList},
};

use crate::{error::Error, files::Files, tensor::Tensor};

/// How tensors came here. Hand-off by an agent will be another way.
const MAPPED_FILES: &str = "mapped files";

/// The tensors of a model.
#[pyclass(module = "weightd", frozen)]
#[derive(Debug)]
pub(crate) struct Tensors {
    path: PathBuf,
    /// None once it was closed. Tensors that were given out live on.
    files: Mutex<Option<Arc<Files>>>,
}

/// Opens a file of tensors, or all of a directory.
#[pyfunction]
pub(crate) fn open(py: Python<'_>, path: PathBuf) -> PyResult<Tensors> {
    let files = py.detach(|| Files::open(&path))?;
    Ok(Tensors { path, files: Mutex::new(Some(Arc::new(files))) })
}

impl Tensors {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Files>>> {
        // What is in there is replaced as a whole, so a panic elsewhere leaves nothing half done.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> Result<Arc<Files>, Error> {
        self.lock().clone().ok_or_else(|| Error::Closed(self.path.clone()))
    }
}

#[pymethods]
impl Tensors {
    #[getter]
    fn path(&self) -> &Path {
        &self.path
    }

    #[getter]
    #[expect(clippy::unused_self, reason = "one way so far")]
    fn how(&self) -> &'static str {
        MAPPED_FILES
    }

    /// The files that the tensors are in.
    #[getter(files)]
    fn paths(&self) -> Result<Vec<PathBuf>, Error> {
        Ok(self.files()?.files.iter().map(|file| file.path.to_path_buf()).collect())
    }

    /// Names, sorted.
    fn keys(&self) -> Result<Vec<String>, Error> {
        Ok(self.files()?.by_name().map(|entry| entry.name.to_owned()).collect())
    }

    /// Names as the tensors lie in their files.
    fn offset_keys(&self) -> Result<Vec<String>, Error> {
        Ok(self.files()?.by_offset().map(|entry| entry.name.to_owned()).collect())
    }

    fn values(&self) -> Result<Vec<Tensor>, Error> {
        Ok(self.files()?.by_name().map(|entry| Tensor::new(&entry)).collect())
    }

    fn items(&self) -> Result<Vec<(String, Tensor)>, Error> {
        Ok(self.files()?.by_name().map(|entry| (entry.name.to_owned(), Tensor::new(&entry))).collect())
    }

    /// What the files say of themselves. What two of them contradict each other in is left out.
    fn metadata(&self) -> Result<BTreeMap<String, String>, Error> {
        let files = self.files()?;
        let mut merged: BTreeMap<&String, Option<&String>> = BTreeMap::new();
        for (name, value) in files.files.iter().flat_map(|file| file.header.metadata()) {
            merged
                .entry(name)
                .and_modify(|known| *known = known.filter(|known| *known == value))
                .or_insert(Some(value));
        }
        Ok(merged.into_iter().filter_map(|(name, value)| Some((name.clone(), value?.clone()))).collect())
    }

    /// Lets go of the files. Tensors that were given out stay as they are.
    fn close(&self) {
        self.lock().take();
    }

    fn __len__(&self) -> Result<usize, Error> {
        Ok(self.files()?.len())
    }

    fn __contains__(&self, name: &Bound<'_, PyAny>) -> PyResult<bool> {
        let files = self.files()?;
        Ok(name.extract::<String>().is_ok_and(|name| files.find(&name).is_some()))
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        PyList::new(py, self.keys()?)?.try_iter()
    }

    fn __getitem__(&self, name: &str) -> Result<Tensor, Error> {
        let files = self.files()?;
        let entry = files.find(name);
        let missing = || Error::NoTensor { path: self.path.clone(), tensor: name.to_owned() };
        entry.as_ref().map(Tensor::new).ok_or_else(missing)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, _raised: &Bound<'_, PyAny>) {
        self.close();
    }

    fn __repr__(&self) -> String {
        let state = match &*self.lock() {
            Some(files) => format!("{} tensors, {MAPPED_FILES}", files.len()),
            None => "closed".to_owned(),
        };
        format!("<weightd.Tensors of {:?}: {state}>", self.path)
    }
}
