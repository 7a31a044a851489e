//! What `weightctl` logs when it does an agent's work itself.

use weightd_harness::{FakeGcs, Fault, FaultProxy, require};

use crate::{
    place::Place,
    program::{Ended, on_a_terminal},
};

const SOURCE: &str = "gs://models/m";
const AGAIN: &str = "a range failed; trying again";
const BESIDE: &str = "asking once more beside it";

/// A bucket with a model behind a proxy, and a place that reads from there.
async fn troubled(gcs: &FakeGcs) -> (FaultProxy, Place) {
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    gcs.create_bucket("models").await.unwrap();
    gcs.upload("models", "m/tokenizer.bin", vec![3; 24 << 20]).await.unwrap();
    let settings =
        "[fetch]\nstall = \"1s\"\ngive_up = \"20s\"\nmax_requests = 2\nmin_requests = 1\nrange = \"8MiB\"";
    let place = Place::new(settings).gcs(&proxy.url());
    (proxy, place)
}

fn spoil(proxy: &FaultProxy) {
    proxy.inject("alt=media", 1, Fault::Status { code: 503, retry_after: None });
    proxy.inject("alt=media", 1, Fault::Delay(std::time::Duration::from_secs(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn verbose_tells_of_retries_and_stalls_and_nothing_else_does() {
    let gcs = require!(FakeGcs::start().await);
    let (proxy, place) = troubled(&gcs).await;
    for (options, variable, is_told) in
        [("", "", false), ("-v ", "", true), ("--verbose ", "", true), ("", "weightd_fetch=debug", true)]
    {
        spoil(&proxy);
        let mut command = place.embedded(&format!("{options}prefetch {SOURCE}"));
        command.env("WEIGHTD_LOG", variable);
        let ended = Ended::of(&mut command);
        for line in [AGAIN, BESIDE] {
            assert_eq!(ended.words.contains(line), is_told, "{options}{variable}: {}", ended.words);
        }
        ended.done();
        proxy.clear();
        place.run(&format!("rm {SOURCE}")).done();
    }
    let mut wrong = place.embedded("ls");
    Ended::of(wrong.env("WEIGHTD_LOG", "!!")).failed(64, &["agent.log", "!!"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn log_lines_stand_above_the_bars() {
    let gcs = require!(FakeGcs::start().await);
    let (proxy, place) = troubled(&gcs).await;
    spoil(&proxy);
    let mut command = place.embedded(&format!("-v prefetch {SOURCE}"));
    command.env("NO_COLOR", "1");
    let shown = tokio::task::spawn_blocking(move || on_a_terminal(&command)).await.unwrap();
    assert!(shown.contains("0%"), "there are bars: {shown:?}");
    let told: Vec<_> = shown.lines().filter(|line| line.contains(AGAIN) || line.contains(BESIDE)).collect();
    assert!(told.len() >= 2, "{shown:?}");
    for line in told {
        // What stood on this line before was cleared.
        let line = without_escapes(line.rsplit('\r').next().unwrap());
        assert!(line.starts_with("20") && !line.contains('%'), "{line:?} in {shown:?}");
    }
}

/// The text without `ESC [ … letter`.
fn without_escapes(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    let after = |part: &str| {
        part.trim_start_matches(|c: char| !c.is_ascii_alphabetic()).chars().skip(1).collect::<String>()
    };
    parts.fold(first, |whole, part| whole + &after(part))
}
