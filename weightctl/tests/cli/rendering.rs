//! What answers look like, for people and for programs.

use weightd_proto::v1::{self, prefetch_event::Event};

use crate::{
    canned::{Canned, FakeAgent, snapshot},
    program::{ask, run, weightctl},
};

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[test]
fn a_list_is_a_table_or_an_array() {
    let agent = FakeAgent::start(Canned { list: vec![snapshot()], ..Canned::default() });
    assert_eq!(
        ask(&agent.socket, "ls").done(),
        "ID            SOURCE             STATE         SIZE  FILES  LAST USED\n\
         0123456789ab  gs://bucket/model  complete  3.00 GiB      2  -          pinned\n"
    );
    let data = json(&ask(&agent.socket, "ls -o json").done());
    assert_eq!(data[0]["state"], "complete");
    assert_eq!(data[0]["layout"], "aligned");
    assert_eq!(data[0]["resolved_at"], "2023-11-14T22:13:20Z");
    assert_eq!(data[0]["last_used_at"], serde_json::Value::Null);
}

#[test]
fn an_empty_list_is_no_data_for_people_and_an_empty_array_for_programs() {
    let agent = FakeAgent::start(Canned::default());
    let ended = ask(&agent.socket, "ls");
    assert!(ended.words.contains("weightctl prefetch"), "{}", ended.words);
    assert_eq!(ended.done(), "");
    assert_eq!(ask(&agent.socket, "ls --format json").done(), "[]\n");
}

#[test]
fn a_path_is_the_directory_and_nothing_else() {
    let get = v1::GetResponse { snapshot: Some(snapshot()), objects: vec![] };
    let agent = FakeAgent::start(Canned { get: Some(get), ..Canned::default() });
    let ended = ask(&agent.socket, "path gs://bucket/model");
    assert_eq!(ended.words, "");
    assert_eq!(ended.done(), "/store/snapshots/0123\n");
}

#[test]
fn a_prefetch_without_a_terminal_is_told_in_lines_without_escapes() {
    let file = |path: &str, verified| v1::FileProgress {
        path: path.to_owned(),
        done_bytes: 5,
        total_bytes: 5,
        verified,
    };
    let progress = v1::Progress {
        files: vec![file("a.safetensors", true), file("b.safetensors", false)],
        total_files: 2,
        ..v1::Progress::default()
    };
    let resolved = v1::Resolved {
        source: "gs://bucket/model".to_owned(),
        object_count: 2,
        total_bytes: 3 << 30,
        missing_bytes: 1 << 30,
        ..v1::Resolved::default()
    };
    let completed = v1::Completed {
        snapshot: Some(snapshot()),
        fetched_bytes: 1 << 30,
        reused_bytes: 2 << 30,
        elapsed_seconds: 0.5,
        unverifiable_objects: 0,
    };
    let prefetch = vec![Event::Resolved(resolved), Event::Progress(progress), Event::Completed(completed)];
    let agent = FakeAgent::start(Canned { prefetch, ..Canned::default() });
    let ended = ask(&agent.socket, "prefetch gs://bucket/model -o json");
    assert_eq!(
        ended.words,
        "gs://bucket/model: 2 files, 3.00 GiB, 1.00 GiB to fetch\n\
         complete: a.safetensors (5 B)\n\
         complete and verified: 2 files, 3.00 GiB; 1.00 GiB fetched in 0.5 s (2.00 GiB/s), 2.00 GiB were here already\n"
    );
    let data = json(&ended.done());
    assert_eq!(data["fetched_bytes"], 1_u64 << 30);
    assert_eq!(data["snapshot"]["directory"], "/store/snapshots/0123");
}

#[test]
fn nothing_is_called_verified_that_has_no_checksum() {
    for (unverifiable, said) in [(2, "publishes no checksums to verify"), (1, "no checksums of 1 files")] {
        let completed = v1::Completed {
            snapshot: Some(snapshot()),
            fetched_bytes: 1,
            unverifiable_objects: unverifiable,
            ..v1::Completed::default()
        };
        let agent =
            FakeAgent::start(Canned { prefetch: vec![Event::Completed(completed)], ..Canned::default() });
        let words = ask(&agent.socket, "prefetch gs://bucket/model").words;
        assert!(words.contains(said) && !words.contains("complete and verified"), "{words}");
    }
    let object = |checksum: &str| v1::ObjectInfo {
        path: checksum.to_owned(),
        checksum: checksum.to_owned(),
        verified: true,
        ..v1::ObjectInfo::default()
    };
    let get =
        v1::GetResponse { snapshot: Some(snapshot()), objects: vec![object("none"), object("crc32c 00")] };
    let agent = FakeAgent::start(Canned { get: Some(get), ..Canned::default() });
    let table = ask(&agent.socket, "get 012345").done();
    let rows: Vec<_> = table.lines().rev().take(2).collect();
    assert!(rows[0].contains("verified") && rows[1].contains("complete"), "{table}");
    assert!(!rows[1].contains("verified"), "{table}");
}

#[test]
fn status_names_transfers_with_rate_and_time_left() {
    let transfer = v1::Transfer {
        snapshot_id: "ab".repeat(32),
        source: "hf://org/name".to_owned(),
        done_bytes: 1 << 30,
        total_bytes: 4 << 30,
        rate_bytes: 1 << 29,
        eta_seconds: Some(6.0),
        priority: 3,
    };
    let status = v1::StatusResponse { transfers: vec![transfer], ..v1::StatusResponse::default() };
    let agent = FakeAgent::start(Canned { status: Some(status), ..Canned::default() });
    let table = ask(&agent.socket, "status").done();
    let row = table.lines().last().unwrap();
    for cell in ["abababababab", "hf://org/name", "25%", "1.00 GiB of 4.00 GiB", "512.00 MiB/s", "6 s", "3"] {
        assert!(row.contains(cell), "no {cell} in {row}");
    }
    assert_eq!(json(&ask(&agent.socket, "status -o json").done())["transfers"][0]["eta_seconds"], 6.0);
}

#[test]
fn a_snapshot_with_100_000_long_names_arrives() {
    let object = |number: usize| v1::ObjectInfo {
        path: format!("{number:06}{}", "n".repeat(1000)),
        version: "generation 1".to_owned(),
        ..v1::ObjectInfo::default()
    };
    let get = v1::GetResponse { snapshot: Some(snapshot()), objects: (0..100_000).map(object).collect() };
    let agent = FakeAgent::start(Canned { get: Some(get), ..Canned::default() });
    let data = json(&ask(&agent.socket, "get 012345 -o json").done());
    assert_eq!(data["objects"].as_array().unwrap().len(), 100_000);
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(weightctl().args(["completions", shell])).done();
        assert!(script.contains("prefetch") && script.contains("no-repair"), "{shell}");
    }
    assert!(run(weightctl().arg("man")).done().starts_with(".ie"));
    let directory = tempfile::tempdir().unwrap();
    run(weightctl().arg("man").arg(directory.path())).done();
    assert!(directory.path().join("weightctl-prefetch.1").exists());
}
