use std::{os::unix::fs::FileExt, panic};

use super::*;

fn total(shape: &ModelShape) -> u64 {
    shape.shards().iter().flatten().map(Tensor::bytes).sum()
}

#[test]
fn the_default_model_is_the_one_that_was_measured() {
    let shards = ModelShape::default().shards();
    assert_eq!(total(&ModelShape::default()) / 10_000_000, 371);
    assert_eq!(shards.len(), 4);
    assert!(total(&ModelShape::tiny()) < 8 << 20);
    assert!((150..250).contains(&(total(&ModelShape::demo()) / 1_000_000)));
    for shape in [ModelShape::tiny(), ModelShape::small(), ModelShape::demo()] {
        assert_eq!(shape.shards().len() as u64, shape.shards);
    }
    for bytes in [1_000_000_000, 8_000_000_000] {
        let got = total(&ModelShape::of_bytes(bytes));
        assert!(got.abs_diff(bytes) < bytes / 4, "{bytes} asked, {got} got");
    }
}

#[test]
fn files_are_what_the_library_reads_and_repeat_exactly() {
    for shape in [
        ModelShape::tiny(),
        ModelShape { shards: 1, ..ModelShape::tiny() },
        ModelShape { fp8: true, ..ModelShape::tiny() },
    ] {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let model = Model::write(first.path(), &shape).unwrap();
        Model::write(second.path(), &shape).unwrap();
        assert_same_tensors(first.path(), second.path());
        for name in model.files.iter().filter(|name| name.ends_with(".safetensors")) {
            safetensors::SafeTensors::deserialize(&fs::read(first.path().join(name)).unwrap()).unwrap();
        }
        assert!(model.file_bytes().unwrap() > model.tensor_bytes);
        assert_eq!(model.shards.len() as u64, shape.shards);
        assert_eq!(model.files.contains(&"model.safetensors.index.json".to_owned()), shape.shards > 1);
    }
}

#[test]
fn fp8_models_put_tensors_at_odd_places() {
    let shard = &ModelShape { fp8: true, ..ModelShape::tiny() }.shards()[0];
    assert_eq!(shard[0].dtype, Dtype::F32);
    let weights = shard.iter().position(|tensor| tensor.dtype == Dtype::F8E4m3).unwrap();
    let before: u64 = shard[..weights].iter().map(Tensor::bytes).sum();
    assert_ne!(before % 64, 0);
}

#[test]
fn one_flipped_byte_is_seen() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let model = Model::write(first.path(), &ModelShape::tiny()).unwrap();
    Model::write(second.path(), &ModelShape::tiny()).unwrap();
    let file = fs::File::options().read(true).write(true).open(second.path().join(&model.files[0])).unwrap();
    let at = file.metadata().unwrap().len() - 5;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    assert!(panic::catch_unwind(|| assert_same_tensors(first.path(), second.path())).is_err());
}
