//! Copies to a CUDA device, by the driver alone: it is loaded when somebody asks for such a device, and nothing of CUDA is
//! needed to build this.
//!
//! What an agent lends is registered with the driver, so that the device reads it where it lies. What cannot be registered
//! goes through buffers that the driver made. Copies are made on a stream of their own; whoever gets a tensor has its own
//! stream wait for them, not itself. What is copied from is held until the device has read it.

mod copying;
mod device;
mod driver;
mod flights;
mod registration;
mod staging;
mod uploads;

pub(crate) use device::{Device, Refusal};
pub(crate) use driver::Failure;
pub(crate) use registration::{Lent, Window};
pub(crate) use uploads::{Source, Space, Uploader};
