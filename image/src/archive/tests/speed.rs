//! How fast it is: `cargo test --release speed -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use super::*;

/// The best of a few runs, in GB/s, of something that moves `len` bytes.
fn best(name: &str, len: usize, mut run: impl FnMut()) {
    let time = (0..9).map(|_| {
        let begun = Instant::now();
        run();
        begun.elapsed()
    });
    let time = time.min().unwrap_or(Duration::MAX);
    println!("{name}: {:.2} GB/s", len as f64 / time.as_secs_f64() / 1e9);
}

#[test]
#[ignore = "measures; says nothing in a debug build"]
fn speed() {
    let data = [ByteRange::at(0, GIB / 4)];
    let bytes = bytes_for(&data, 7);
    let plan = Plan::new(GIB, data, 1).unwrap();
    let mut out = Vec::with_capacity(9 << 20);
    best("copy", bytes.len(), || {
        for chunk in bytes.chunks(8 << 20) {
            out.clear();
            out.extend_from_slice(chunk);
        }
    });
    best("sum", bytes.len(), || assert_ne!(gzip::Crc32::of(&bytes).0, 0));
    for chunk_bytes in [64 << 10, 1 << 20, 8 << 20] {
        best(&format!("encode, {} KiB a write", chunk_bytes >> 10), bytes.len(), || {
            let mut encoder = Encoder::new(plan.clone());
            for chunk in bytes.chunks(chunk_bytes) {
                out.clear();
                encoder.write(chunk, &mut out).unwrap();
            }
            encoder.finish(&mut out).unwrap();
        });
    }
    let packed = archive_of(plan, &bytes);
    let mut buffer = vec![0; 1 << 20];
    best("read", bytes.len(), || {
        let mut reader = Reader::open(&packed[..]).unwrap();
        while reader.next_run(&mut buffer).unwrap().is_some() {}
    });
}
