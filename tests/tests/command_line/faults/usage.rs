//! What cannot be done as asked.

use std::fs;

use crate::{
    place::Place,
    program::{Ended, words},
};

#[test]
fn a_uri_that_is_none_is_quoted() {
    let place = Place::new("");
    place.run("prefetch models/llama").failed(64, &["models/llama", "gs://"]);
    place.run("prefetch ftp://models/llama").failed(64, &["ftp", "gs://"]);
    place.run("prefetch gs://").failed(64, &["gs://"]);
    place.run("prefetch gs://models/a --include [").failed(64, &["["]);
    place.run("prefetch").failed(64, &["<URI>"]);
    place.run("fetch gs://models/a").failed(64, &["fetch"]);
}

#[test]
fn all_mistakes_of_a_configuration_are_told_at_once() {
    let place =
        Place::new("colour = 1\n[fetch]\nrange = \"big\"\nspeed = 3\n[source.gcs]\nendpoin = \"http://x\"");
    let told = ["store.colour", "fetch.range", "big", "fetch.speed", "endpoin", "4 mistakes", "bandwidth"];
    place.run("ls").failed(64, &told);
    Ended::of(place.agent_command().stderr(std::process::Stdio::piped())).failed(64, &told);
    assert!(!place.at("store").exists(), "nothing was begun");
    fs::write(place.at("weightd.toml"), "[store\n").unwrap();
    place.run("ls").failed(64, &["TOML", "line 1"]);
    let mut missing = crate::program::program("weightctl");
    missing.arg("--config").arg(place.at("none.toml")).args(words("ls"));
    Ended::of(&mut missing).failed(64, &["none.toml"]);
}

#[test]
fn an_agent_that_is_away_is_named_with_the_way_to_do_without() {
    let place = Place::new("");
    place.ask("ls").failed(69, &["weightd.sock", "--store"]);
    place.ask("prefetch gs://models/a").failed(69, &["weightd.sock"]);
    drop(std::os::unix::net::UnixListener::bind(place.socket()).unwrap());
    place.ask("ls").failed(69, &["weightd.sock"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_has_one_agent_and_the_second_is_told_which() {
    let place = Place::new("");
    let agent = place.agent().await;
    let pid = agent.0.id().to_string();
    let told = ["in use by another agent", &pid, "--socket"];
    place.run("ls").failed(75, &told);
    let mut second = place.agent_command();
    second.arg("--socket").arg(place.at("second.sock")).stderr(std::process::Stdio::piped());
    second.args(["--metrics-address", "off"]);
    Ended::of(&mut second).failed(75, &told);
    assert!(!place.at("second.sock").exists());
    place.ask("ls").done();
}
