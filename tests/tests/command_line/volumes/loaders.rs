//! Loaders that others wrote.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use weightd_harness::{FakeGcs, mounts, python, require, torch_python};

use super::{fuse, metric};
use crate::place::Place;

/// Slow enough that a loader has to wait for most of its tensors.
const SLOWLY: &str = "[fetch]\nbandwidth = \"16MiB/s\"\n[volumes]\nread_ahead = \"1MiB\"";

/// `loader.py`, which has imported what it needs and waits for the word.
struct Loader {
    child: Child,
    words: BufReader<ChildStdout>,
}

impl Loader {
    fn start(python: &Path, framework: &str, task: &str, directory: &Path) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/command_line/volumes/loader.py");
        let mut command = Command::new(python);
        command.args([script, framework, task]).arg(directory).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut loader = Self { words: BufReader::new(child.stdout.take().unwrap()), child };
        let mut line = String::new();
        loader.words.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        loader
    }

    /// Lets it work, and gives what it says.
    fn go(mut self) -> String {
        self.child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let mut said = String::new();
        self.words.read_to_string(&mut said).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {said}");
        said
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn safe_open_reads_every_tensor_while_it_loads_and_after() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    read_every_tensor(&gcs, &require!(python()), "np").await;
}

/// Brain floats too, which numpy does not have.
#[tokio::test(flavor = "multi_thread")]
async fn pytorch_reads_every_tensor_while_it_loads_and_after() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    read_every_tensor(&gcs, &require!(torch_python()), "pt").await;
}

async fn read_every_tensor(gcs: &FakeGcs, python: &Path, framework: &str) {
    let place = Place::new(SLOWLY).gcs(&gcs.endpoint());
    let model = place.at("model");
    Loader::start(python, framework, "make", &model).go();
    gcs.create_bucket("models").await.unwrap();
    let _agent = place.agent().await;
    for layout in ["aligned", "original"] {
        // One source each: the second layout of the same blobs would be made from the first, and not loaded.
        gcs.place_directory("models", layout, &model).unwrap();
        let (source, target) = (format!("gs://models/{layout}"), place.at(layout));
        let [early, late] = [(); 2].map(|()| Loader::start(python, framework, "read", &target));
        let demands = metric(&place, "weightd_expose_demands_total");
        place.ask(&format!("mount {source} {} --layout {layout}", target.display())).done();
        assert_eq!(early.go(), "36 tensors are right\n");
        assert!(metric(&place, "weightd_expose_demands_total") > demands, "all was here before it was read");
        place.ask(&format!("prefetch {source} --layout {layout}")).done();
        assert_eq!(late.go(), "36 tensors are right\n");
        place.ask(&format!("umount {}", target.display())).done();
    }
    mounts::remove_below(&place.at(""));
}
