//! From a bucket to an image.

use std::{fs, process::Command};

use anyhow::Result;
use weightd_benches::{BUCKET, SOURCE, Sample, Table, binary, gibibytes, gigabytes, run};

use crate::Bench;

pub(crate) fn measure(bench: &Bench) -> Result<String> {
    let names = ["floor: streamed and written", "disk.raw", "disk.tar.gz", "tar -Sczf of disk.raw"];
    let mut samples = [const { Sample { costs: Vec::new() } }; 4];
    for round in 1..=bench.rounds {
        eprintln!("build, round {round}");
        let out = bench.fresh("floor")?;
        let mut floor = bench.command(binary("floor")?);
        samples[0].costs.push(run(floor.args(["--bucket", BUCKET, "--prefix", "model", "--out"]).arg(&out))?);
        fs::remove_dir_all(&out)?;
        let built = bench.fresh("built")?;
        samples[1].costs.push(bench.build(SOURCE, &built.join("disk.raw"))?);
        if bench.with_tar {
            let archive = built.join("by-tar.tar.gz");
            let mut tar = Command::new("tar");
            tar.arg("-C").arg(&built).args(["--format=oldgnu", "-Sczf"]).arg(&archive).arg("disk.raw");
            samples[3].costs.push(run(&mut tar)?);
        }
        let built = bench.fresh("built")?;
        samples[2].costs.push(bench.build(SOURCE, &built.join("disk.tar.gz"))?);
        fs::remove_dir_all(&built)?;
    }
    let mut table = Table::new(&["what", "wall s", "GB/s", "speed / floor", "CPU s/GiB", "peak MiB"]);
    for (name, sample) in names.iter().zip(&samples).filter(|(_, sample)| !sample.costs.is_empty()) {
        table.push(vec![
            (*name).to_owned(),
            format!("{:.2}", sample.wall()),
            format!("{:.2}", gigabytes(bench.bytes) / sample.wall()),
            format!("{:.2}", sample.speed_relative_to(&samples[0])),
            format!("{:.2}", sample.cpu() / gibibytes(bench.bytes)),
            format!("{:.0}", sample.peak_mib()),
        ]);
    }
    let beside = match samples[3].costs.is_empty() {
        true => String::new(),
        false => format!(
            "From the bucket, the archive is made {:.1} times as fast as tar makes one of a disk that is here.\n\n",
            samples[2].speed_relative_to(&samples[3])
        ),
    };
    Ok(format!(
        "## Bucket to image, {:.2} GB\n\nEach is durable when it ends.\n\n{beside}{}\n",
        gigabytes(bench.bytes),
        table.markdown()
    ))
}
