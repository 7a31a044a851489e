//! Every metric is moved by something.

use std::time::Duration;

use prometheus_client::{encoding::text::encode, registry::Registry};
use weightd_fetch::Config;
use weightd_source::{Fault, Faults, Rule};
use weightd_types::Layout;

use crate::{
    common::{Fixture, hasty, put_model, soon},
    verify::{blob_path, flip},
};

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_moves() {
    let faults = Faults::new(1)
        .with(Rule::reads(Fault::Flip { at: 12_000_000 }).of("1.safetensors").times(1))
        .with(Rule::reads(Fault::Throttle { retry_after: None }).of("config.json").times(1))
        .with(Rule::reads(Fault::Stall { after: 0, lasting: None }).of("2.safetensors").times(1));
    let config = Config {
        bandwidth_bytes: Some(20 << 20),
        give_up: Duration::from_secs(5),
        scrub_bytes: Some(1 << 40),
        ..hasty()
    };
    let fixture = Fixture::faulty(&faults, config).await;
    put_model(&fixture.origin);
    let text = || {
        let (mut registry, mut text) = (Registry::default(), String::new());
        fixture.fetcher.metrics().register(&mut registry);
        encode(&mut text, &registry).unwrap();
        text
    };
    let mut moved = std::collections::BTreeSet::new();
    let watch = async {
        loop {
            let text = text();
            let values = text.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
            moved.extend(values.filter_map(|line| line.split(' ').next().map(str::to_owned)));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let work = async {
        soon(fixture.prefetch(Layout::Aligned)).await.unwrap();
        flip(&blob_path(&fixture, "2.safetensors", ""), 9_000_000);
        let mut damaged = fixture.fetcher.scrub();
        soon(damaged.recv()).await.unwrap();
        crate::scrub::until_round_ended(&fixture).await;
        fixture.origin.put("model/bad.safetensors", "abc");
        soon(fixture.prefetch(Layout::Aligned)).await.unwrap_err();
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    tokio::select! {
        () = work => {}
        () = watch => {}
    }
    for line in text().lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(' ').next().unwrap();
        assert!(name.starts_with("weightd_fetch_") && moved.contains(name), "nobody moves {name}");
    }
    assert_eq!(moved.len(), 14, "{moved:?}");
}
