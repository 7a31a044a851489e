//! Which tensors are needed: `names=` of `weightd.open`.

use std::{collections::HashSet, path::Path};

use pyo3::prelude::*;
use weightd_types::Selection;

use crate::{error::Error, model::Model, tensor::Tensor};

/// What makes a name a pattern, unless a tensor is called so.
const SPECIAL: [char; 5] = ['*', '?', '[', '{', '\\'];

/// Which tensors of a model.
#[derive(Debug)]
pub(crate) enum Names {
    All,
    /// Those that a function says.
    By(Py<PyAny>),
    /// Those of these names, and those that these patterns fit.
    Of(Vec<String>),
}

impl<'py> FromPyObject<'_, 'py> for Names {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if given.is_none() {
            return Ok(Self::All);
        }
        if given.is_callable() {
            return Ok(Self::By(given.to_owned().unbind()));
        }
        let problem =
            || Error::Argument("names is a function of a name, or names and patterns of names".to_owned());
        // Text is an iterable of letters, which nobody means.
        if given.extract::<String>().is_ok() {
            return Err(problem().into());
        }
        let names = given.try_iter().map_err(|_| problem())?;
        let names = names.map(|name| name?.extract::<String>().map_err(|_| problem().into()));
        Ok(Self::Of(names.collect::<PyResult<_>>()?))
    }
}

impl Names {
    pub(crate) fn are_all(&self) -> bool {
        matches!(self, Self::All)
    }

    /// The model of these tensors alone.
    pub(crate) fn of(&self, py: Python<'_>, path: &Path, model: Model) -> PyResult<Model> {
        let kept = match self {
            Self::All => return Ok(model),
            Self::By(function) => {
                let is_kept = |name: &str| function.bind(py).call1((name,))?.is_truthy();
                model.by_offset().iter().map(|tensor| is_kept(tensor.name())).collect::<PyResult<Vec<_>>>()?
            }
            Self::Of(names) => fitting(path, &model, names)?,
        };
        Ok(model.only(&kept))
    }
}

fn fitting(path: &Path, model: &Model, names: &[String]) -> Result<Vec<bool>, Error> {
    let (exact, others): (Vec<&String>, Vec<_>) = names.iter().partition(|name| model.find(name).is_some());
    if let Some(missing) = others.iter().find(|name| !name.contains(SPECIAL)) {
        return Err(Error::NoTensor { path: path.to_owned(), tensor: (*missing).clone() });
    }
    let exact: HashSet<&str> = exact.into_iter().map(String::as_str).collect();
    let tensors = model.by_offset();
    let mut kept: Vec<bool> = tensors.iter().map(|tensor| exact.contains(tensor.name())).collect();
    if !others.is_empty() {
        let patterns = Selection { include: others.into_iter().cloned().collect(), exclude: Vec::new() };
        let all = tensors.iter().map(Tensor::name).enumerate().collect();
        let fitting = patterns.divide_by_name(all, |&(_, name): &(usize, &str)| name);
        for (at, _) in fitting.map_err(|source| Error::Argument(source.to_string()))?.0 {
            kept[at] = true;
        }
    }
    Ok(kept)
}
