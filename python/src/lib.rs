//! The Python package `weightd`: the tensors of a model, as frameworks take them, without a copy.
//!
//! Here is what Python cannot do: checking headers, mapping files and what an agent lends, and lending memory by DLPack. What frameworks want
//! on top is Python, in `weightd/` beside this crate.

mod agents;
mod borrow;
mod cuda;
mod dlpack;
mod dtype;
mod error;
mod files;
mod layout;
mod lease;
mod memory;
mod model;
mod names;
mod opening;
mod slices;
mod streaming;
mod target;
mod tensor;
mod tensors;

use pyo3::pymodule;

/// What `weightd/__init__.py` shows of this.
#[pymodule(name = "_native")]
mod native {
    #[pymodule_export]
    use crate::{opening::open, target::_settle, tensor::Tensor, tensors::Tensors};
}
