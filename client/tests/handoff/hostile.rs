//! An agent that lies. Each lie is told by name, and no byte outside of a mapping is ever within reach.

use std::{
    ops::Range,
    os::fd::{AsFd, OwnedFd},
};

use prost::Message;
use rustix::fs::SealFlags;
use weightd_client::handoff::Error;
use weightd_proto::v1::{HandoffArenas, HandoffOpened, HandoffTensor, handoff_answer::Answer};

use crate::agent::{Agent, Client, LONG, Model, RingFile, memory};

/// What is said of an agent that does this.
fn told_of(lie: impl Fn(Client) + Send + 'static) -> String {
    let agent = Agent::serving(lie);
    match agent.open() {
        Err(error @ Error::Broken { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

fn with_arena(arena: impl Fn() -> OwnedFd + Send + 'static, lengths: &'static [u64]) -> String {
    told_of(move |client| {
        client.say_opened(&Model::new(&[&[4096]]));
        let arenas = HandoffArenas { first: 0, lengths: lengths.to_vec() };
        client.say(Answer::Arenas(arenas), &[arena().as_fd()]);
    })
}

#[test]
fn tables_that_lie_are_refused() {
    type Lie = fn(&mut HandoffTensor);
    let lies: [(Lie, &str); 16] = [
        (|tensor| tensor.offset = 8192, "outside of its arena"),
        (|tensor| tensor.offset = 256, "outside of its arena"),
        (|tensor| tensor.offset = u64::MAX - 255, "outside of its arena"),
        (|tensor| tensor.offset = 1, "multiple of 256"),
        (|tensor| tensor.bytes = 4095, "bytes"),
        (|tensor| tensor.bytes = u64::MAX, "bytes"),
        (|tensor| tensor.shape = vec![1 << 62, 1 << 62], "bytes"),
        (|tensor| tensor.shape = vec![u64::MAX, 0], "bytes"),
        (|tensor| tensor.dtype = "F7".to_owned(), "type is unknown"),
        (|tensor| (tensor.dtype, tensor.shape) = ("F4".to_owned(), vec![8191]), "bytes"),
        (|tensor| tensor.strides = vec![1, 1], "not as many as its dimensions"),
        (|tensor| tensor.strides = vec![2], "outside of its arena"),
        (|tensor| tensor.strides = vec![0], "overlap"),
        (|tensor| tensor.strides = vec![u64::MAX], "beyond all memory"),
        (|tensor| tensor.arena = 1, "arena that is not there"),
        (|tensor| tensor.file = 1, "file that is not there"),
    ];
    for (lie, words) in lies {
        let told = told_of(move |client| {
            let mut model = Model::new(&[&[4096]]);
            lie(&mut model.table.tensors[0]);
            client.lend(&model);
        });
        assert!(told.contains(words) && told.contains("\"t0\""), "{words}: {told}");
    }
}

#[test]
fn tensors_that_overlap_are_refused() {
    let told = told_of(|client| {
        let mut model = Model::new(&[&[4096, 4096]]);
        model.table.tensors[1].offset = 2048;
        client.lend(&model);
    });
    assert!(told.contains("overlap"), "{told}");
}

#[test]
fn arenas_that_could_lose_their_memory_are_refused() {
    let told = with_arena(|| memory(&[], 4096, SealFlags::GROW), &[4096]);
    assert!(told.contains("not sealed"), "{told}");
    let told = with_arena(|| memory(&[], 4095, SealFlags::SHRINK), &[4096]);
    assert!(told.contains("4095"), "{told}");
    let told = with_arena(|| memory(&[], 4096, SealFlags::SHRINK), &[u64::MAX]);
    assert!(told.contains("4096"), "{told}");
    let told = with_arena(|| tempfile::tempfile().unwrap().into(), &[0]);
    assert!(told.contains("no file in memory"), "{told}");
}

#[test]
fn descriptors_that_do_not_fit_are_refused() {
    let told = with_arena(|| memory(&[], 4096, SealFlags::SHRINK), &[4096, 4096]);
    assert!(told.contains("other arenas"), "{told}");
    let told = with_arena(|| memory(&[], 4096, SealFlags::SHRINK), &[]);
    assert!(told.contains("1 descriptors for 0 arenas"), "{told}");
    let none = told_of(|client| {
        let model = Model::new(&[&[4096]]);
        client.say_opened(&model);
        client.say(Answer::Arenas(HandoffArenas { first: 0, lengths: vec![4096] }), &[]);
    });
    assert!(none.contains("other arenas"), "{none}");
    let table = told_of(|client| client.say(Answer::Opened(HandoffOpened::default()), &[]));
    assert!(table.contains("0 descriptors"), "{table}");
    let first = told_of(|client| {
        let model = Model::new(&[&[4096]]);
        client.say_opened(&model);
        let arenas = HandoffArenas { first: 1, lengths: vec![4096] };
        client.say(Answer::Arenas(arenas), &[model.arenas[0].as_fd()]);
    });
    assert!(first.contains("other arenas"), "{first}");
}

#[test]
fn tables_that_are_none_are_refused() {
    let with = |table: fn() -> OwnedFd, table_bytes: u64| {
        told_of(move |client| {
            let opened = HandoffOpened { table_bytes, ..HandoffOpened::default() };
            client.say(Answer::Opened(opened), &[table().as_fd()]);
        })
    };
    let told = with(|| memory(&[], 8, SealFlags::SHRINK), 8);
    assert!(told.contains("table that is not sealed"), "{told}");
    let told = with(|| memory(&[], 8, SealFlags::SHRINK | SealFlags::WRITE), 9);
    assert!(told.contains("table that has 8 bytes"), "{told}");
    let told = with(|| memory(&[0xff; 8], 8, SealFlags::SHRINK | SealFlags::WRITE), 8);
    assert!(told.contains("table that is none"), "{told}");
    let told = with(|| memory(&[], 8, SealFlags::SHRINK | SealFlags::WRITE), 1 << 40);
    assert!(told.contains("allowed"), "{told}");
}

#[test]
fn packets_that_are_none_are_refused() {
    for junk in [&[0xff; 100][..], &[0x3a, 0x00], b"hello", &[0x0a]] {
        let told = told_of(move |client| client.say_bytes(junk, &[]));
        assert!(told.contains("message"), "{junk:?}: {told}");
    }
    let told = told_of(|client| client.say_bytes(&vec![0; (64 << 10) + 1], &[]));
    assert!(told.contains("64 KiB"), "{told}");
    let told = told_of(|client| client.say_ready(&[0..1], true));
    assert!(told.contains("order"), "{told}");
    let told = told_of(|client| {
        let model = Model::new(&[&[4096]]);
        client.say_opened(&model);
        client.say_opened(&model);
    });
    assert!(told.contains("order"), "{told}");
}

#[test]
fn ready_tensors_that_are_not_there_end_the_session() {
    for range in [0..3, 2..3, Range { start: 3, end: 1 }, u32::MAX..u32::MAX] {
        let agent = Agent::serving(move |client| {
            client.hear_open();
            client.lend(&Model::new(&[&[4096, 4096]]));
            client.say_ready(std::slice::from_ref(&range), true);
            client.hear();
        });
        let error = agent.open().unwrap().wait(&[0..2], false).unwrap_err();
        assert!(matches!(error, Error::Broken { .. }), "{error}");
    }
}

#[test]
fn an_answer_that_ends_in_the_middle_is_no_answer() {
    let agent = Agent::serving(|client| client.say_opened(&Model::new(&[&[4096]])));
    let patience = std::time::Duration::from_millis(300);
    let request = weightd_client::handoff::Request::default();
    let error = weightd_client::handoff::open(&agent.socket(), &request, patience).unwrap_err();
    assert!(matches!(error, Error::AgentGone { .. }), "{error}");
}

#[test]
fn any_bytes_as_a_table_are_refused_or_read() {
    let mut table = Model::new(&[&[4096, 300], &[0, 17]]).table.encode_to_vec();
    for at in 0..table.len() {
        for flip in [1, 0x80, 0xff] {
            table[at] ^= flip;
            let flipped = table.clone();
            let agent = Agent::serving(move |client| {
                let model = Model::new(&[&[4096, 300], &[0, 17]]).complete();
                let bytes = flipped.len() as u64;
                let file = memory(&flipped, bytes, SealFlags::SHRINK | SealFlags::WRITE);
                client.say(Answer::Opened(model.opened()), &[file.as_fd()]);
                client.say_arenas(&model);
            });
            if let Ok(session) = agent.open() {
                for tensor in session.table().tensors().iter().filter(|tensor| tensor.bytes > 0) {
                    assert!(tensor.offset + tensor.bytes <= session.arena(tensor.arena).bytes());
                }
            }
            table[at] ^= flip;
        }
    }
}

/// What is told of an agent that does this with a ring of four pages, for tensors of a page, of three bytes and of none.
fn told_of_ring(lie: impl Fn(&Client, &mut Model, &RingFile) + Send + 'static) -> String {
    let agent = Agent::serving(move |client| {
        client.hear_open();
        lie(&client, &mut Model::new(&[&[4096, 3, 0]]), &RingFile::new(4 * 4096));
        while client.hear().is_some() {}
    });
    let taken = agent.stream().and_then(|stream| {
        stream.take(1, LONG)?;
        stream.take(0, LONG)
    });
    match taken {
        Err(error @ Error::Broken { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn places_that_are_none_in_the_ring_are_refused() {
    type Places = &'static [(u32, u64)];
    let lies: [(Places, &str); 10] = [
        (&[(0, 4 * 4096)], "outside of the ring"),
        (&[(0, 3 * 4096 + 256)], "outside of the ring"),
        (&[(0, u64::MAX - 255)], "outside of the ring"),
        (&[(0, 1)], "no multiple of 256"),
        (&[(0, 0), (1, 0)], "on pages of another one"),
        (&[(0, 256), (1, 4096 + 512)], "on pages of another one"),
        (&[(1, 4096 + 512), (0, 256)], "on pages of another one"),
        (&[(0, 0), (0, 8192)], "twice"),
        (&[(2, 0)], "has no bytes"),
        (&[(3, 0)], "tensor that is not there"),
    ];
    for (places, words) in lies {
        let told = told_of_ring(move |client, model, ring| {
            ring.lend(client, model);
            client.say_delivered(places);
        });
        assert!(told.contains(words), "{places:?}: {told}");
    }
}

#[test]
fn a_ring_that_is_none_is_refused() {
    let told = told_of_ring(|client, _, _| client.lend(&Model::new(&[&[3], &[3]])));
    assert!(told.contains("2 arenas"), "{told}");
    let told = told_of_ring(|client, model, ring| {
        (model.table.tensors[0].shape, model.table.tensors[0].strides) = (vec![2, 2048], vec![4096, 1]);
        ring.lend(client, model);
    });
    assert!(told.contains("\"t0\"") && told.contains("do not follow each other"), "{told}");
    let told = told_of_ring(|client, model, ring| {
        ring.lend(client, model);
        client.say_full(3, 4096);
    });
    assert!(told.contains("tensor that is not there"), "{told}");
    let told = told_of_ring(|client, model, ring| {
        ring.lend(client, model);
        client.say_ready(&[0..1], false);
    });
    assert!(told.contains("order"), "{told}");
    // And of what stays nothing is delivered.
    let agent = Agent::serving(|client| {
        client.hear_open();
        client.lend(&Model::new(&[&[4096]]));
        client.say_delivered(&[(0, 0)]);
        client.hear();
    });
    let error = agent.open().unwrap().wait(&[0..1], false).unwrap_err();
    assert!(error.to_string().contains("order"), "{error}");
}
