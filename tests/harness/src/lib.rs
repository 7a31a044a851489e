//! Real servers, models and faults for tests and benchmarks.
//!
//! A server here is the real thing wherever one exists: fake-gcs-server, moto, Azurite and WsgiDAV run as processes
//! on a free loopback port, in a directory of their own, and end with the value that started them (or with the test,
//! however it ends). `cargo xtask tools` installs them into the checkout's `.tools`. Where one is missing, starting
//! it says [`Unready::NotInstalled`], and [`require!`] turns that into a skip that the task runner counts.
//!
//! What does not exist as a package is served in process: [`StaticServer`], [`HubServer`], [`Guard`], [`ScriptedServer`], and [`FaultProxy`], which
//! stands before any of them and spoils what passes. So is [`BucketServer`], for when the emulator of Cloud Storage would be
//! what is measured; [`BucketProcess`] is one with a process of its own.

mod azure;
mod binary;
mod bucket;
pub mod cluster;
mod gcs;
mod guard;
mod hub;
mod loop_mount;
mod model;
pub mod mounts;
mod name;
mod net;
mod process;
mod proxy;
mod s3;
mod scripted;
mod serve;
mod skip;
mod small_disk;
mod static_server;
mod tls;
mod tools;
mod upstream;
mod webdav;
mod wire;

pub use azure::AzureServer;
pub use binary::binary;
pub use bucket::{BucketOptions, BucketProcess, BucketServer, Placed, Shape};
pub use gcs::{FakeGcs, GcsOptions, Upload, Uploaded};
pub use guard::{Guard, service_account_token, subject_token};
pub use hub::{HubServer, Repository};
pub use loop_mount::LoopMount;
pub use model::{
    Dtype, Model, ModelShape, Pattern, Tensor, TensorDigest, assert_same_tensors, tensor_digests,
    write_safetensors,
};
pub use net::unused_port;
pub use process::Unready;
pub use proxy::{Fault, FaultProxy};
pub use s3::S3Server;
pub use scripted::{Scripted, ScriptedServer};
pub use serve::{Recorded, RequestLog};
pub use skip::{Outcome, skip};
pub use small_disk::SmallDisk;
pub use static_server::{StaticFile, StaticServer};
pub use tls::Tls;
pub use tools::{csi_sanity, fincore, fio, python, torch_python, vllm_python};
pub use webdav::WebDavServer;
pub use wire::Wire;
