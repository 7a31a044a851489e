//! Models that are wanted, and the condition.

use serde_json::json;
use weightd_harness::require;

use crate::cluster::{Cluster, until};

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_follows_config_maps_and_labels() {
    let mut cluster = require!(Cluster::start().await);
    for name in ["everywhere", "l4", "a100"] {
        cluster.origin.put(&format!("{name}/tokenizer.bin"), vec![1; 3 << 20]);
    }
    cluster.run(false);
    cluster
        .list(
            "models:\n- source: memory://m/everywhere\n  required: true\n- source: memory://m/l4\n  \
             nodeSelector: {gpu: l4}\n- source: memory://m/a100\n  nodeSelector: {gpu: a100}\n",
        )
        .await;
    let wanted = async |expected: &[&str]| {
        until(&format!("{expected:?} are here and wanted"), async || {
            let held = cluster.held().await;
            let names: Vec<_> = held.iter().filter(|(_, held)| **held == (true, true)).collect();
            let all = names.len() == expected.len();
            let each = names.iter().all(|(source, _)| expected.iter().any(|name| source.ends_with(name)));
            (all && each && held.values().filter(|held| held.0).count() == expected.len()).then_some(())
        })
        .await;
    };
    wanted(&["everywhere", "l4"]).await;
    let told = cluster.until_condition("True", "Complete").await;
    assert_eq!(told.message.as_deref(), Some("1 required models are here and verified"));
    cluster.patch_node(json!({"metadata": {"labels": {"gpu": "a100"}}})).await;
    wanted(&["everywhere", "a100"]).await;
    cluster.list("models: []").await;
    wanted(&[]).await;
    cluster.until_condition("True", "NothingRequired").await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_and_failures_are_events_that_name_what_to_do() {
    let mut cluster = require!(Cluster::start().await);
    cluster.origin.put("good/tokenizer.bin", vec![1; 3 << 20]);
    cluster.run(false);
    cluster
        .list(
            "models:\n- source: memory://m/good\n  pinned: true\n- source: memory://m/good\n  required: true\n\
             - source: memory://m/missing\n",
        )
        .await;
    cluster.until_condition("True", "Complete").await;
    let said = async |namespace: &str, object: &str, reason: &str, words: &[&str]| {
        until(&format!("an event {reason} about {object}"), async || {
            let events = cluster.events(namespace, object).await;
            let fits = |message: &String| words.iter().all(|word| message.contains(word));
            events.iter().any(|(message, found)| found == reason && fits(message)).then_some(())
        })
        .await;
    };
    said(cluster.name(), "models", "ModelsNotRead", &["models[0] is left out", "unknown field `pinned`"])
        .await;
    said("default", cluster.name(), "WeightsNotBrought", &["memory://m/missing"]).await;
    cluster.list("models: [").await;
    said(cluster.name(), "models", "ModelsNotRead", &["what it listed before still holds"]).await;
    assert_eq!(cluster.held().await.get("memory://m/good"), Some(&(true, true)));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_map_that_a_new_driver_cannot_read_frees_nothing_and_others_are_heeded() {
    let mut cluster = require!(Cluster::start().await);
    for name in ["before", "more"] {
        cluster.origin.put(&format!("{name}/tokenizer.bin"), vec![1; 3 << 20]);
    }
    let before = "models:\n- source: memory://m/before\n  required: true\n";
    cluster.list(before).await;
    cluster.run(true);
    cluster.until_condition("True", "Complete").await;
    cluster.stop().await;

    cluster.list("models: [").await;
    cluster.list_as("more", "models:\n- source: memory://m/more\n").await;
    cluster.registered.send_replace(true);
    cluster.run(true);
    let unknown = cluster.until_condition("Unknown", "ModelsNotRead").await;
    assert!(unknown.message.unwrap().contains("ConfigMap models cannot be read"));
    until("the list that can be read is brought", async || {
        (cluster.held().await.get("memory://m/more") == Some(&(true, true))).then_some(())
    })
    .await;
    assert_eq!(cluster.held().await.get("memory://m/before"), Some(&(true, true)), "nothing is let go of");
    assert!(cluster.taints().await.contains(&weightd_cluster::TAINT.to_owned()));

    cluster.list(before).await;
    cluster.until_condition("True", "Complete").await;
    until("the taint is gone", async || {
        (!cluster.taints().await.contains(&weightd_cluster::TAINT.to_owned())).then_some(())
    })
    .await;
    cluster.list("models: []").await;
    until("what is known not to be wanted is let go of", async || {
        (cluster.held().await.get("memory://m/before") == Some(&(false, true))).then_some(())
    })
    .await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_away_is_told_of_and_its_return_too() {
    let mut cluster = require!(Cluster::start().await);
    cluster.origin.put("a/tokenizer.bin", vec![1; 3 << 20]);
    cluster.list("models:\n- source: memory://m/a\n  required: true\n").await;
    cluster.run(false);
    let since = cluster.until_condition("True", "Complete").await.last_transition_time;
    // A restart that takes no time is no news.
    cluster.stop_agent().await;
    cluster.start_agent("").await;
    cluster.stop_agent().await;
    let unknown = cluster.until_condition("Unknown", "AgentAway").await;
    assert_ne!(unknown.last_transition_time, since);
    assert!(unknown.message.unwrap().contains("does not answer"));
    cluster.start_agent("").await;
    cluster.until_condition("True", "Complete").await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_and_the_time_of_the_change_stays() {
    let mut cluster = require!(Cluster::start().await);
    cluster.stop_agent().await;
    cluster.start_agent("[fetch]\nbandwidth = \"1MiB/s\"").await;
    cluster.origin.put("slow/tokenizer.bin", vec![1; 48 << 20]);
    cluster.list("models:\n- source: memory://m/slow\n  required: true\n").await;
    cluster.run(false);
    let first = cluster.until_condition("False", "Loading").await;
    let later = until("progress is told", async || {
        let found = cluster.condition().await?;
        (found.message.as_ref()?.contains("MiB of 48.0") && found.message != first.message).then_some(found)
    })
    .await;
    assert_eq!((later.status.as_str(), later.reason.as_deref()), ("False", Some("Loading")));
    assert_eq!(later.last_transition_time, first.last_transition_time, "it has been False all along");
    cluster.end().await;
}
