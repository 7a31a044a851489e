//! Volumes as processes see them: real mounts, read in every way, while everything around them fails.

mod binds;
mod content;
mod economy;
mod fio;
mod kills;
mod lifecycle;
mod loaders;
mod metrics;
mod outlive;
mod takeover;
mod trouble;

use std::{fs::File, path::PathBuf};

use memmap2::Mmap;
use tokio::net::UnixStream;
use weightd_harness::{FakeGcs, Model, ModelShape, Unready, mounts};

use crate::{daemon::get, place::Place, program::until};

pub(crate) const SOURCE: &str = "gs://models/demo";

/// Slow enough that what happens next happens while it loads.
pub(crate) const SLOW: &str = "[fetch]\nbandwidth = \"64MiB/s\"\n[volumes]\nread_ahead = \"1MiB\"";

/// A place with an agent's volumes in it, which are gone with it.
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) model: Model,
}

impl Node {
    /// With a model in the bucket, which is read through `endpoint`.
    pub(crate) async fn new(gcs: &FakeGcs, endpoint: &str, shape: &ModelShape, more: &str) -> Self {
        let place = Place::new(more).gcs(endpoint);
        let model = Model::write(&place.at("model"), shape).unwrap();
        gcs.create_bucket("models").await.unwrap();
        gcs.place_directory("models", "demo", &model.directory).unwrap();
        Self { place, model }
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.place.at("target")
    }

    /// Mounts the model as it lies at the origin.
    pub(crate) fn mount(&self, more: &str) {
        let line = format!("mount {SOURCE} {} --layout original {more}", self.target().display());
        self.place.ask(line.trim_end()).done();
    }

    /// The model's last shard, which comes last when nobody asks for it.
    pub(crate) fn last_shard(&self) -> String {
        self.model.files.iter().rfind(|name| name.ends_with(".safetensors")).unwrap().clone()
    }

    /// How the one volume is served, and how far it is.
    pub(crate) fn volume(&self) -> (String, String) {
        let answer = self.place.ask("mounts -o json").json();
        let volume = &answer["volumes"][0];
        (volume["serving"].as_str().unwrap().to_owned(), volume["state"].as_str().unwrap().to_owned())
    }

    pub(crate) async fn until_complete(&self) {
        until("the snapshot is complete", async || (self.volume().1 == "complete").then_some(())).await;
    }

    /// Waits until the kernel reads these files itself when they are opened: it goes by the name of a file that was
    /// loading for a second longer.
    pub(crate) async fn until_passed_through(&self, names: &[String]) {
        for name in names {
            until("a file is opened straight from the store", async || {
                let before = metric(&self.place, "weightd_expose_passthrough_opens_total");
                File::open(self.target().join(name)).unwrap();
                (metric(&self.place, "weightd_expose_passthrough_opens_total") > before).then_some(())
            })
            .await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.place.at("log")).unwrap_or_default();
            eprintln!("the agent's log:\n{log}");
        }
        mounts::remove_below(&self.place.at(""));
    }
}

/// Whether volumes can be mounted here; says why not.
pub(crate) fn fuse() -> Result<(), Unready> {
    let refused = |why: String| Unready::NotAllowed { what: "mounting".to_owned(), why };
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    device.map_err(|error| refused(format!("/dev/fuse: {error}")))?;
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err(refused("it needs root".to_owned())) }
}

/// A file of a volume as loaders have it.
pub(crate) fn map(file: &File) -> Mmap {
    #[expect(unsafe_code, reason = "this is what loaders do")]
    // SAFETY: files of a volume never change.
    unsafe { Mmap::map(file) }.unwrap()
}

/// What the agent's metrics say of one of them now.
pub(crate) fn metric(place: &Place, name: &str) -> u64 {
    let text = get(place, "/metrics").expect("the agent serves its metrics").1;
    let mut values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    values.next().unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
}

/// Waits until the agent's socket answers.
pub(crate) async fn until_listening(place: &Place) {
    until("the agent listens", async || UnixStream::connect(place.socket()).await.ok()).await;
}
