//! Which parts of tensors are needed: `slices={"*.q_proj.weight": (0, rank, ranks)}`.

use pyo3::prelude::*;
use weightd_client::handoff::Slice;
use weightd_types::{Cut, Slicing};

use crate::error::Error;

/// Patterns of names in their order, and how what they fit is cut; `None` leaves it whole.
#[derive(Debug, Default)]
pub(crate) struct Slices(Vec<(String, Option<Cut>)>);

impl<'py> FromPyObject<'_, 'py> for Slices {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if given.is_none() {
            return Ok(Self::default());
        }
        let Ok(items) = given.call_method0("items") else {
            let problem = "slices is a mapping of patterns of names to (dimension, part, parts) or None";
            return Err(Error::Argument(problem.to_owned()).into());
        };
        items.try_iter()?.map(|item| rule(&item?)).collect::<PyResult<_>>().map(Self)
    }
}

fn rule(item: &Bound<'_, PyAny>) -> PyResult<(String, Option<Cut>)> {
    let (pattern, cut): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
    let problem = || {
        let problem = "is none: a pattern of names has (dimension, part, parts), counted from 0, or None";
        Error::Argument(format!("the slice {pattern}: {cut} {problem}"))
    };
    let name = pattern.extract().map_err(|_| problem())?;
    if cut.is_none() {
        return Ok((name, None));
    }
    // As numbers that an agent can be told.
    let (dimension, part, parts) = cut.extract::<(u32, u32, u32)>().map_err(|_| problem())?;
    let cut = Cut { dimension: dimension as usize, part: part as usize, parts: parts as usize };
    Ok((name, Some(cut)))
}

impl Slices {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What cuts files.
    pub(crate) fn slicing(&self) -> Result<Slicing, Error> {
        Slicing::new(self.0.iter().cloned()).map_err(|source| Error::Argument(source.to_string()))
    }

    /// What an agent is asked for.
    pub(crate) fn asked(&self) -> Vec<Slice> {
        let number = |number: usize| u32::try_from(number).expect("it was one");
        let asked = |(tensors, cut): &(String, Option<Cut>)| {
            let tensors = tensors.clone();
            match *cut {
                None => Slice { tensors, ..Slice::default() },
                Some(Cut { dimension, part, parts }) => {
                    Slice { tensors, dimension: number(dimension), part: number(part), parts: number(parts) }
                }
            }
        };
        self.0.iter().map(asked).collect()
    }
}
