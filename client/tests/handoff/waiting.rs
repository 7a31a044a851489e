//! Who waits for what, and who learns of it.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use weightd_client::handoff::Error;
use weightd_proto::v1::{FailureKind, HandoffRange};

use crate::agent::{Agent, LONG, Model};

const SHORT: Duration = Duration::from_millis(20);
/// Tensors of whole pages, and then two that share one.
const SIZES: &[usize] = &[4096, 4096, 4096, 300, 300];

fn ranges(ranges: &[(u32, u32)]) -> Vec<HandoffRange> {
    ranges.iter().map(|&(start, end)| HandoffRange { start, end }).collect()
}

#[test]
fn tensors_are_wanted_and_then_ready() {
    let agent = Agent::serving(|client| {
        client.hear_open();
        client.lend(&Model::new(&[SIZES]));
        let want = client.hear_want().unwrap();
        assert_eq!(want.tensors, ranges(&[(2, 3), (0, 1)]));
        client.say_ready(&[2..3], false);
        client.say_ready(&[0..2], false);
        let want = client.hear_want().unwrap();
        assert_eq!(want.tensors, ranges(&[(0, 1)]));
        client.say_ready(&[0..5], true);
        client.hear();
    });
    let session = agent.open().unwrap();
    assert!(!session.is_ready(0, false));
    session.wait(&[2..3, 0..1], false).unwrap();
    assert!(session.is_ready(0, false) && session.is_ready(1, false) && !session.is_ready(0, true));
    session.wait(&[0..1], true).unwrap();
    assert!(session.is_complete());
    // Nothing need be asked any more.
    session.wait(&[0..5], true).unwrap();
}

#[test]
fn a_tensor_is_not_ready_before_everything_on_its_pages_is() {
    let (go, may_go) = mpsc::channel();
    let agent = Agent::serving(move |client| {
        client.hear_open();
        client.lend(&Model::new(&[SIZES]));
        assert_eq!(client.hear_want().unwrap().tensors, ranges(&[(3, 5)]));
        client.say_ready(&[4..5], false);
        may_go.recv().unwrap();
        client.say_ready(&[3..4], false);
        client.hear();
    });
    let session = agent.open().unwrap();
    session.want(&[4..5], false).unwrap();
    assert!(!session.wait_for(&[4..5], false, SHORT).unwrap());
    go.send(()).unwrap();
    assert!(session.wait_for(&[4..5], false, LONG).unwrap());
}

#[test]
fn what_is_not_waited_for_is_learned_all_the_same() {
    let agent = Agent::serving(|client| {
        client.lend(&Model::new(&[SIZES]));
        client.say_ready(&[0..3], true);
        client.say_ready(&[3..5], true);
        client.hear_open();
        client.hear();
    });
    let session = agent.open().unwrap();
    while !session.is_complete() {
        thread::yield_now();
    }
}

#[test]
fn threads_wait_at_once_and_each_hears_of_its_own() {
    let sizes = vec![4096; 32];
    let agent = Agent::serving(move |client| {
        client.hear_open();
        client.lend(&Model::new(&[&sizes]));
        // In an order of its own, one at a time, when all have asked.
        let wanted: Vec<_> = (0..32).map(|_| client.hear_want().unwrap().tensors[0].start).collect();
        for position in wanted.into_iter().rev() {
            client.say_ready(&[position..position + 1], false);
        }
        client.hear();
    });
    let session = Arc::new(agent.open().unwrap());
    let threads = (0..32).map(|position| {
        let session = session.clone();
        thread::spawn(move || session.wait(&[position..position + 1], false))
    });
    for waiting in threads.collect::<Vec<_>>() {
        waiting.join().unwrap().unwrap();
    }
}

#[test]
fn a_flood_of_what_is_ready_keeps_nobody_from_asking() {
    let agent = Agent::serving(|client| {
        let many = vec![4096; 20_000];
        client.hear_open();
        client.lend(&Model::new(&[&many]));
        // Far more than a socket holds, and nothing is heard meanwhile.
        (0..19_999).for_each(|position| client.say_ready(&[position..position + 1], true));
        while let Some(want) = client.hear_want() {
            if want.tensors.last().unwrap().end == 20_000 {
                client.say_ready(&[19_999..20_000], true);
            }
        }
    });
    let session = agent.open().unwrap();
    thread::scope(|scope| {
        for step in 2..6 {
            let session = &session;
            scope.spawn(move || {
                let every_other: Vec<_> = (0..20_000).step_by(step).map(|at| at..at + 1).collect();
                session.wait(&every_other, false)
            });
        }
    });
    session.wait(&[0..20_000], true).unwrap();
}

#[test]
fn when_the_agent_fails_all_who_wait_hear_why_and_what_was_ready_stays() {
    let agent = Agent::serving(|client| {
        client.hear_open();
        client.lend(&Model::new(&[SIZES]));
        client.hear_want();
        client.say_ready(&[0..1], false);
        client.hear_want();
        client.say_failed(FailureKind::Unavailable, "gs://models/x cannot be reached");
    });
    let session = agent.open().unwrap();
    session.wait(&[0..1], false).unwrap();
    let fails = |range| match session.wait(&[range], false).unwrap_err() {
        Error::Failed { kind, .. } => assert_eq!(kind, FailureKind::Unavailable),
        other => panic!("{other:?}"),
    };
    thread::scope(|scope| (1..5).for_each(|at| drop(scope.spawn(move || fails(at..at + 1)))));
    fails(0..5);
    session.wait(&[0..1], false).unwrap();
}

#[test]
fn when_bytes_were_wrong_nothing_provisional_is_right_any_more() {
    let agent = Agent::serving(|client| {
        client.hear_open();
        client.lend(&Model::new(&[SIZES]));
        client.hear_want();
        client.say_ready(&[0..1], true);
        client.say_ready(&[1..2], false);
        client.hear_want();
        client.say_failed(FailureKind::Corrupt, "0.safetensors is not what the origin has");
    });
    let session = agent.open().unwrap();
    session.wait(&[0..2], false).unwrap();
    assert_eq!(session.wait(&[2..3], false).unwrap_err().kind(), FailureKind::Corrupt);
    assert!(session.is_ready(0, false) && !session.is_ready(1, false));
    assert_eq!(session.wait(&[1..2], false).unwrap_err().kind(), FailureKind::Corrupt);
}
