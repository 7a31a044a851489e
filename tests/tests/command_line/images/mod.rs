//! Images and tiers as an operator sees them: built by the program, mounted by the kernel, served by an agent.

mod builds;
mod damage;
mod faults;
mod handoff;
mod kills;
mod tiers;

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::Command,
};

use weightd_harness::{
    Dtype, FakeGcs, LoopMount, Model, ModelShape, Tensor, assert_same_tensors, write_safetensors,
};

use crate::{place::Place, program::Ended};

pub(crate) const SOURCE: &str = "gs://models/demo";
/// A model in which tensors change places: some are no multiple of 64 bytes long.
pub(crate) const ODD: &str = "gs://models/odd";

/// A bucket with two models, and a place to build in.
pub(crate) struct Workshop {
    pub(crate) place: Place,
    pub(crate) demo: Model,
    pub(crate) odd: PathBuf,
}

impl Workshop {
    pub(crate) async fn new(gcs: &FakeGcs, endpoint: &str, shape: &ModelShape, more: &str) -> Self {
        let place = Place::new(more).gcs(endpoint);
        let demo = Model::write(&place.at("model"), shape).unwrap();
        let odd = place.at("odd");
        write_odd(&odd);
        gcs.create_bucket("models").await.unwrap();
        gcs.place_directory("models", "demo", &demo.directory).unwrap();
        gcs.place_directory("models", "odd", &odd).unwrap();
        Self { place, demo, odd }
    }

    /// Builds an image of both models.
    pub(crate) fn build(&self, output: &str) -> Ended {
        let path = self.place.at(output);
        self.place.run(&format!("image build --model {SOURCE} --model {ODD} --output {}", path.display()))
    }

    /// An image of the first model, built and mounted.
    pub(crate) fn mounted(&self, name: &str, more: &str) -> Result<LoopMount, weightd_harness::Unready> {
        let image = self.place.at(&format!("{name}.raw"));
        let line = format!("image build --model {SOURCE} --output {} {more}", image.display());
        self.place.run(line.trim_end()).done();
        LoopMount::read_only(&image, &self.place.at(&format!("disks/{name}")))
    }
}

/// Scales of odd lengths before the tensors they belong to, as in fp8 checkpoints; small files and an empty one beside them.
fn write_odd(directory: &Path) {
    fs::create_dir_all(directory.join("sub/deep")).unwrap();
    let tensors: Vec<Tensor> = (0..40)
        .flat_map(|layer| {
            [
                Tensor::new(format!("layer.{layer:02}.scale"), Dtype::F32, [1 + layer % 5]),
                Tensor::new(format!("layer.{layer:02}.weight"), Dtype::Bf16, [512, 1024]),
                Tensor::new(format!("layer.{layer:02}.zero"), Dtype::Bf16, [3, 7]),
            ]
        })
        .collect();
    write_safetensors(&directory.join("model.safetensors"), &tensors, 7).unwrap();
    fs::write(directory.join("config.json"), "{}").unwrap();
    fs::write(directory.join("sub/deep/empty.txt"), "").unwrap();
    fs::write(directory.join("sub/three.dat"), vec![3; (3 << 20) + 5]).unwrap();
}

/// The directories of snapshots in a store or image, by the number of their files: the odd model has four.
pub(crate) fn snapshots(store: &Path) -> (PathBuf, PathBuf) {
    let directories = fs::read_dir(store.join("snapshots")).unwrap().map(|entry| entry.unwrap().path());
    let directories: Vec<PathBuf> = directories.filter(|path| path.is_dir()).collect();
    let (odd, demo): (Vec<_>, Vec<_>) = directories.into_iter().partition(|path| path.join("sub").exists());
    (demo.into_iter().next().unwrap(), odd.into_iter().next().unwrap())
}

/// Compares every file of a directory with its original, tensors by their names.
#[track_caller]
pub(crate) fn assert_same_model(original: &Path, stored: &Path) {
    assert_same_tensors(original, stored);
    let mut waiting = vec![PathBuf::new()];
    while let Some(below) = waiting.pop() {
        for entry in fs::read_dir(original.join(&below)).unwrap() {
            let entry = entry.unwrap();
            let name = below.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                waiting.push(name);
            } else if name.extension().is_none_or(|extension| extension != "safetensors") {
                let same = fs::read(original.join(&name)).unwrap() == fs::read(stored.join(&name)).unwrap();
                assert!(same, "{} has other bytes", name.display());
            }
        }
    }
}

/// Runs a program of the system that must succeed, and gives what it said.
#[track_caller]
pub(crate) fn system(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

/// Compares two sparse files, holes and all.
#[track_caller]
pub(crate) fn assert_same_file(one: &Path, other: &Path) {
    let (mut one, mut other) = (File::open(one).unwrap(), File::open(other).unwrap());
    assert_eq!(one.seek(SeekFrom::End(0)).unwrap(), other.seek(SeekFrom::End(0)).unwrap());
    one.rewind().unwrap();
    other.rewind().unwrap();
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0_u64;
    loop {
        let len = read_full(&mut one, &mut ours);
        assert_eq!(len, read_full(&mut other, &mut theirs));
        if len == 0 {
            return;
        }
        assert!(ours[..len] == theirs[..len], "the files differ after byte {at}");
        at += len as u64;
    }
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> usize {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]).unwrap() {
            0 => break,
            read => len += read,
        }
    }
    len
}
