//! What is built is what was asked for.

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Command};

use serde_json::Value;
use weightd_harness::{FakeGcs, LoopMount, ModelShape, Wire, require};

use super::{ODD, SOURCE, Workshop, assert_same_file, assert_same_model, snapshots, system};
use crate::{place::number, program::Ended};

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_finds_every_byte_in_an_image_and_it_is_the_same_twice() {
    let gcs = require!(FakeGcs::start().await);
    let wire = Wire::start(&gcs.endpoint()).await.unwrap();
    let workshop = Workshop::new(&gcs, wire.url(), &ModelShape::demo(), "").await;
    let built = workshop.build("disk.raw");
    assert!(built.words.contains("all as recorded"), "{}", built.words);
    let told = built.done();
    for words in [
        "gcloud compute images create disk ",
        "--secondary-boot-disk=disk-image=global/images/disk",
        "diskImageName: disk",
        "pd.csi.storage.gke.io",
        "access-mode=READ_ONLY_MANY",
    ] {
        assert!(told.contains(words), "{words} is not in:\n{told}");
    }
    // One pass over the sources: their bytes, and headers once more.
    let size = workshop.demo.file_bytes().unwrap() + (45 << 20);
    assert!(wire.received() < size + (2 << 20), "{} of {size}", wire.received());

    let image = workshop.place.at("disk.raw");
    assert_eq!(fs::metadata(&image).unwrap().len() % (1 << 30), 0);
    let said = system(Command::new("e2fsck").arg("-fn").arg(&image));
    assert!(!said.contains("Fix"), "{said}");
    let mounted = require!(LoopMount::read_only(&image, &workshop.place.at("disk")));
    let (demo, odd) = snapshots(mounted.path());
    assert_same_model(&workshop.demo.directory, &demo);
    assert_same_model(&workshop.odd, &odd);
    assert!(fs::metadata(demo.join(".weightd.sock")).unwrap().is_file());
    for found in [fs::metadata(&demo).unwrap(), fs::metadata(demo.join("config.json")).unwrap()] {
        assert_eq!((found.uid(), found.mode() & 0o222), (0, 0), "someone may write it");
    }
    let provenance: Value =
        serde_json::from_slice(&fs::read(mounted.path().join("provenance.json")).unwrap()).unwrap();
    let object = &provenance["snapshots"][0]["objects"][0];
    assert!(object["version"]["generation"].is_i64() && object["checksums"]["crc32c"].is_u64(), "{object}");
    drop(mounted);

    workshop.build("again.raw").done();
    assert_same_file(&image, &workshop.place.at("again.raw"));
}

#[tokio::test(flavor = "multi_thread")]
async fn long_files_lie_in_long_pieces_on_two_mebibytes() {
    let gcs = require!(FakeGcs::start().await);
    let workshop = Workshop::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), "").await;
    let mounted = require!(workshop.mounted("disk", ""));
    let mut blobs = 0;
    for directory in fs::read_dir(mounted.path().join("blobs")).unwrap() {
        for blob in fs::read_dir(directory.unwrap().path()).unwrap().map(|entry| entry.unwrap()) {
            if blob.metadata().unwrap().len() > 2 << 20 {
                let said = system(Command::new("filefrag").arg("-v").arg("-b4096").arg(blob.path()));
                let first = said.lines().find(|line| line.trim_start().starts_with("0:")).unwrap();
                let start: u64 =
                    first.split(':').nth(2).unwrap().trim().split("..").next().unwrap().parse().unwrap();
                assert_eq!(start % 512, 0, "{said}");
                assert!(said.contains(": 1 extent found"), "{said}");
                blobs += 1;
            }
        }
    }
    assert_eq!(blobs, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn gnu_tar_unpacks_the_disk_from_an_archive_sparse_for_sparse() {
    let gcs = require!(FakeGcs::start().await);
    let workshop = Workshop::new(&gcs, &gcs.endpoint(), &ModelShape::small(), "").await;
    workshop.build("disk.raw").done();
    let built = workshop.build("disk.tar.gz");
    assert!(built.words.contains("all as recorded"), "{}", built.words);
    built.done();
    let unpacked = workshop.place.at("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let archive = workshop.place.at("disk.tar.gz");
    system(Command::new("tar").arg("-xSzf").arg(&archive).arg("-C").arg(&unpacked));
    let (raw, disk) = (workshop.place.at("disk.raw"), unpacked.join("disk.raw"));
    assert_same_file(&raw, &disk);
    let blocks = |path: &Path| fs::metadata(path).unwrap().blocks();
    assert!(blocks(&disk) <= blocks(&raw) + 64, "{} blocks for {}", blocks(&disk), blocks(&raw));
    let listed = system(Command::new("tar").args(["-tvzf"]).arg(&archive));
    assert!(listed.contains("disk.raw") && listed.lines().count() == 1, "{listed}");
    workshop.build("again.tar.gz").done();
    assert_same_file(&archive, &workshop.place.at("again.tar.gz"));

    let files = workshop.place.run(&format!("image ls {} -o json", archive.display())).json();
    assert_eq!(files["snapshots"].as_array().unwrap().len(), 2, "{files}");
    assert_eq!(files, workshop.place.run(&format!("image ls {} -o json", raw.display())).json());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_takes_the_archive_without_a_copy_here() {
    let gcs = require!(FakeGcs::start().await);
    let wire = Wire::start(&gcs.endpoint()).await.unwrap();
    let workshop = Workshop::new(&gcs, wire.url(), &ModelShape::small(), "").await;
    gcs.create_bucket("images").await.unwrap();
    workshop.build("disk.tar.gz").done();
    let place = &workshop.place;
    let before = fs::read_dir(place.at("")).unwrap().count();
    for _ in 0..2 {
        // The second takes the place of the first.
        let line =
            format!("image build --model {SOURCE} --model {ODD} --output gs://images/a/disk.tar.gz -o json");
        let built = place.run(&line).json();
        let stored = gcs.stat("images", "a/disk.tar.gz").await.unwrap();
        assert_eq!(stored.size, number(&built, "output_bytes"));
        assert_eq!(stored.size, fs::metadata(place.at("disk.tar.gz")).unwrap().len());
    }
    assert_eq!(fs::read_dir(place.at("")).unwrap().count(), before, "something was left here");
    let got = place.at("got.tar.gz");
    fs::write(&got, gcs.download("images", "a/disk.tar.gz").await.unwrap()).unwrap();
    assert_same_file(&place.at("disk.tar.gz"), &got);
    place
        .run(&format!("image build --model {SOURCE} --output gs://nowhere/x.tar.gz"))
        .failed(66, &["gs://nowhere", "no such bucket"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_in_particular_can_build_an_image() {
    let gcs = require!(FakeGcs::start().await);
    let workshop = Workshop::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let theirs = workshop.place.at("theirs");
    fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::chown(&theirs, Some(65_532), Some(65_532)).unwrap();
    let opened = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(workshop.place.at(""), opened).unwrap();
    let image = theirs.join("disk.raw");
    let mut build =
        workshop.place.unconfigured(&format!("image build --model {SOURCE} --output {}", image.display()));
    let mut unprivileged = Command::new("setpriv");
    unprivileged.args([
        "--reuid=65532",
        "--regid=65532",
        "--clear-groups",
        "--bounding-set=-all",
        "--no-new-privs",
    ]);
    unprivileged.arg(build.get_program()).args(build.get_args());
    unprivileged.envs(build.get_envs().filter_map(|(name, value)| Some((name, value?))));
    build.env_clear();
    Ended::of(&mut unprivileged).done();
    assert_eq!(fs::metadata(&image).unwrap().uid(), 65_532);
    let said = system(Command::new("e2fsck").arg("-fn").arg(&image));
    assert!(!said.contains("Fix"), "{said}");
}
