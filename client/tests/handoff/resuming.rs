//! When the agent ends, and the next one comes.

use std::time::Duration;

use weightd_client::handoff::Error;
use weightd_proto::v1::FailureKind;

use crate::agent::{Agent, Client, LONG, Model, bytes};

const SIZES: &[usize] = &[4096, 4096, 4096];

/// The first agent brings one tensor and ends; the next ones do as the function has it.
fn succeeded_by(mut next: impl FnMut(Client) + Send + 'static) -> Agent {
    let mut is_first = true;
    Agent::serving(move |client| {
        client.hear_open();
        if !std::mem::take(&mut is_first) {
            return next(client);
        }
        client.lend(&Model::new(&[SIZES]));
        client.say_ready(&[0..1], false);
    })
}

#[test]
fn the_next_agent_brings_what_is_missing() {
    let agent = succeeded_by(|client| {
        client.lend(&Model::new(&[SIZES]));
        while let Some(want) = client.hear_want() {
            want.tensors.iter().for_each(|range| client.say_ready(&[range.start..range.end], false));
        }
    });
    let session = agent.open().unwrap();
    session.wait(&[0..1], false).unwrap();
    let error = session.wait(&[0..3], false).unwrap_err();
    assert!(matches!(error, Error::AgentGone { .. }) && error.is_absence(), "{error}");
    assert!(error.to_string().contains("resume"), "{error}");

    let next = session.resume(LONG).unwrap();
    assert!(std::ptr::eq(session.table(), next.table()), "a table that is the same is there once");
    assert!(session.is_ready(0, false) && !next.is_ready(0, false));
    assert!(session.has_any() && !next.has_any());
    next.wait(&[1..3], false).unwrap();
    assert_eq!((bytes(&session, 0), bytes(&next, 2)), (vec![0; 4096], vec![2; 4096]));
}

#[test]
fn another_snapshot_and_other_tensors_are_not_gone_on_with() {
    let mut tries = 0;
    let agent = succeeded_by(move |client| {
        tries += 1;
        let mut model = if tries == 1 { Model::new(&[SIZES]) } else { Model::new(&[&[4096]]) };
        if tries == 1 {
            model.snapshot = "07aa.aligned".to_owned();
        }
        client.lend(&model);
        client.hear();
    });
    let session = agent.open().unwrap();
    for now in ["07aa.aligned", "5f0c.aligned"] {
        let error = session.resume(LONG).unwrap_err();
        assert!(matches!(&error, Error::Changed { .. }), "{error}");
        assert!(error.to_string().contains(now) && !error.is_absence(), "{error}");
    }
}

#[test]
fn the_next_agent_may_take_its_time_and_may_never_come() {
    let agent = succeeded_by(|_| ());
    let session = agent.open().unwrap();
    let short = Duration::from_millis(300);
    assert!(matches!(session.resume(short), Err(Error::AgentGone { .. })));
    let socket = agent.socket();
    std::fs::remove_file(&socket).unwrap();
    assert!(matches!(session.resume(short), Err(Error::Connect { .. })));
}

#[test]
fn a_failure_of_the_next_agent_is_told() {
    let agent = succeeded_by(|client| client.say_failed(FailureKind::Memory, "5f0c.aligned does not fit"));
    let session = agent.open().unwrap();
    assert_eq!(session.resume(LONG).unwrap_err().kind(), FailureKind::Memory);
}
