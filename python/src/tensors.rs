//! What `weightd.open` gives: the tensors of a model by their names.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pyo3::{
    prelude::*,
    types::{PyIterator, PyList},
};

use crate::{
    agents::ranges,
    error::Error,
    model::{Lender, Model},
    target::Target,
    tensor::{Tensor, shown},
};

const MAPPED_FILES: &str = "mapped files";
const SHARED_MEMORY: &str = "shared memory";
const STREAM: &str = "stream";

/// The tensors of a model.
#[pyclass(module = "weightd", frozen)]
#[derive(Debug)]
pub(crate) struct Tensors {
    path: PathBuf,
    how: &'static str,
    /// Why they are not in shared memory.
    why: Option<String>,
    target: Target,
    /// None once it was closed. Tensors that were given out live on.
    model: Mutex<Option<Arc<Model>>>,
}

impl Tensors {
    /// `why` says why they are not in shared memory, where they are not.
    pub(crate) fn new(path: PathBuf, model: Model, why: Option<String>, target: Target) -> Self {
        let how = match model.lender() {
            None => MAPPED_FILES,
            Some(Lender::Lease(_)) => SHARED_MEMORY,
            Some(Lender::Stream(_)) => STREAM,
        };
        Self { path, how, why, target, model: Mutex::new(Some(Arc::new(model))) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Model>>> {
        // What is in there is replaced as a whole, so a panic elsewhere leaves nothing half done.
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn model(&self) -> Result<Arc<Model>, Error> {
        self.lock().clone().ok_or_else(|| Error::Closed(self.path.clone()))
    }

    /// A tensor as it is given out.
    fn given(&self, tensor: &Tensor) -> Tensor {
        tensor.clone().on(self.target.clone())
    }

    fn missing(&self, name: &str) -> Error {
        Error::NoTensor { path: self.path.clone(), tensor: name.to_owned() }
    }
}

#[pymethods]
impl Tensors {
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        shown(py, &self.path)
    }

    #[getter]
    fn how(&self) -> &'static str {
        self.how
    }

    #[getter]
    fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// Where they are given out: "cpu", "cuda:0", or what JAX calls it.
    #[getter]
    fn device<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.target.shown(py)
    }

    /// How they get there; None where they are there already.
    #[getter]
    fn transfer(&self) -> Option<&'static str> {
        self.target.transfer()
    }

    /// Why not in a better way.
    #[getter]
    fn transfer_why(&self) -> Option<String> {
        self.target.transfer_why()
    }

    /// For whoever measures.
    #[getter]
    fn _registering_seconds(&self) -> f64 {
        self.target.registering_seconds()
    }

    /// The files that the tensors are in.
    #[getter(files)]
    fn paths<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.model()?.paths().map(|path| shown(py, path)).collect()
    }

    /// Names, sorted.
    fn keys(&self) -> Result<Vec<String>, Error> {
        Ok(self.model()?.by_name().map(|tensor| tensor.name().to_owned()).collect())
    }

    /// Names as the tensors lie in their files.
    fn offset_keys(&self) -> Result<Vec<String>, Error> {
        Ok(self.model()?.by_offset().iter().map(|tensor| tensor.name().to_owned()).collect())
    }

    fn values(&self) -> Result<Vec<Tensor>, Error> {
        Ok(self.model()?.by_name().map(|tensor| self.given(tensor)).collect())
    }

    fn items(&self) -> Result<Vec<(String, Tensor)>, Error> {
        Ok(self.model()?.by_name().map(|tensor| (tensor.name().to_owned(), self.given(tensor))).collect())
    }

    /// What the files say of themselves. What two of them contradict each other in is left out.
    fn metadata(&self) -> Result<BTreeMap<String, String>, Error> {
        Ok(self.model()?.metadata())
    }

    /// Waits until the tensors of these names, or all, may be used without waiting; with `verified`, until they and what was
    /// given out of them before are known to be what the origin has. Mapped files wait as they are read, and do not tell. What
    /// comes through a ring comes in this order from now on.
    #[pyo3(signature = (names=None, *, verified=None))]
    fn wait(&self, py: Python<'_>, names: Option<Vec<String>>, verified: Option<bool>) -> PyResult<()> {
        let model = self.model()?;
        let tensors: Vec<&Tensor> = match names {
            None => model.by_offset().iter().collect(),
            Some(names) => {
                let find = |name: String| model.find(&name).ok_or_else(|| self.missing(&name));
                names.into_iter().map(find).collect::<Result<_, _>>()?
            }
        };
        let positions = ranges(tensors.into_iter().filter_map(Tensor::position));
        match model.lender() {
            None => {}
            Some(Lender::Lease(lease)) => lease.wait(py, &positions, verified.unwrap_or(lease.verified()))?,
            Some(Lender::Stream(stream)) => stream.want(py, &positions),
        }
        Ok(())
    }

    /// Lets go of the files. Tensors that were given out stay as they are.
    fn close(&self) {
        self.lock().take();
    }

    fn __len__(&self) -> Result<usize, Error> {
        Ok(self.model()?.len())
    }

    fn __contains__(&self, name: &Bound<'_, PyAny>) -> PyResult<bool> {
        let model = self.model()?;
        Ok(name.extract::<String>().is_ok_and(|name| model.find(&name).is_some()))
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        PyList::new(py, self.keys()?)?.try_iter()
    }

    fn __getitem__(&self, name: &str) -> Result<Tensor, Error> {
        let model = self.model()?;
        let tensor = model.find(name).ok_or_else(|| self.missing(name))?;
        Ok(self.given(tensor))
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
            Some(model) => format!("{} tensors, {}", model.len(), self.how()),
            None => "closed".to_owned(),
        };
        format!("<weightd.Tensors of {:?}: {state}>", self.path)
    }
}
