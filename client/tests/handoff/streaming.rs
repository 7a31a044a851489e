//! Tensors that come through a ring, are used, and make room for others.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use weightd_client::handoff::{self, Error, Request, Ring, Stream, Taken};
use weightd_proto::v1::{FailureKind, HandoffRange, handoff_request::Request as Said};

use crate::agent::{Agent, Client, LONG, Model, RingFile};

const PAGE: u64 = 4096;
const SHORT: Duration = Duration::from_millis(50);
/// Tensors of which a ring of four pages has room for one, two, or four.
const SIZES: &[usize] = &[4096, 3 * 4096, 100, 0, 5000, 4096, 4 * 4096, 1, 8192, 300];

/// A real agent, but for where its tensors are from.
fn with_ring(pages: u64, sizes: &'static [usize], wanted_only: bool) -> Agent {
    Agent::serving(move |client| {
        thread::spawn(move || {
            client.hear_open();
            RingFile::new(pages * PAGE).serve(&client, &Model::new(&[sizes]), wanted_only);
        });
    })
}

/// An agent of one client, with a ring of four pages, for tensors of a page each. It does as the function has it.
fn scripted(script: impl Fn(&Client, &RingFile) + Send + 'static) -> Agent {
    Agent::serving(move |client| {
        client.hear_open();
        let ring = RingFile::new(4 * PAGE);
        ring.lend(&client, &Model::new(&[&[4096; 8]]));
        script(&client, &ring);
        while client.hear().is_some() {}
    })
}

fn wanted(client: &Client) -> Vec<u32> {
    client.hear_want().unwrap().tensors.iter().flat_map(|range| range.start..range.end).collect()
}

fn take(stream: &Stream, position: usize) -> Taken {
    stream.take(position, LONG).unwrap().expect("it comes before long")
}

/// Its bytes, as whoever was given the address reads them.
fn read(taken: &Taken) -> Vec<u8> {
    let mut bytes = vec![0; taken.bytes()];
    File::open("/proc/self/mem")
        .unwrap()
        .read_exact_at(&mut bytes, taken.as_mut_ptr().addr() as u64)
        .unwrap();
    bytes
}

fn write(taken: &Taken, byte: u8) {
    let memory = OpenOptions::new().write(true).open("/proc/self/mem").unwrap();
    memory.write_all_at(&vec![byte; taken.bytes()], taken.as_mut_ptr().addr() as u64).unwrap();
}

fn is_right(taken: &Taken) -> bool {
    read(taken).iter().all(|&byte| byte == taken.position() as u8)
}

#[test]
fn a_ring_is_asked_for() {
    let agent = Agent::serving(|client| {
        let open = client.hear_open();
        let ring = open.ring.unwrap();
        assert_eq!((ring.bytes, ring.verified, open.wanted_only), (1 << 20, true, true));
        RingFile::new(PAGE).lend(&client, &Model::new(&[&[7], &[3]]));
        client.hear();
    });
    let request = Request { wanted_only: true, ..Request::default() };
    let ring = Ring { bytes: 1 << 20, verified: true };
    let stream = handoff::stream(&agent.socket(), &request, ring, LONG).unwrap();
    assert_eq!((stream.snapshot(), stream.source()), ("5f0c.aligned", "gs://models/x"));
    assert_eq!((stream.bytes(), stream.arena().map_shared().unwrap().len()), (4096, 4096));
    assert_eq!(stream.table().tensors()[1].name, "t1");
}

#[test]
fn every_tensor_comes_in_any_order_through_a_ring_that_is_smaller_than_all() {
    for wanted_only in [false, true] {
        let agent = with_ring(4, SIZES, wanted_only);
        let stream = agent.stream().unwrap();
        let orders =
            [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [6, 2, 9, 1, 0, 8, 3, 6, 4, 4], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]];
        for position in orders.into_iter().flatten() {
            let taken = take(&stream, position);
            assert_eq!((taken.position(), taken.bytes()), (position, SIZES[position]));
            assert!(is_right(&taken), "{taken:?}");
            // Nobody has to read that again.
            write(&taken, 99);
        }
    }
}

#[test]
fn threads_take_at_once() {
    let agent = with_ring(4, SIZES, false);
    let stream = agent.stream().unwrap();
    thread::scope(|scope| {
        for step in [1, 3, 7, 9] {
            let stream = &stream;
            scope.spawn(move || {
                for at in 0..200 {
                    let taken = take(stream, at * step % 10);
                    assert!(is_right(&taken), "{taken:?}");
                    write(&taken, 99);
                }
            });
        }
    });
}

#[test]
fn what_is_written_is_gone_once_it_was_given_back() {
    let agent = with_ring(1, &[4096, 4096], false);
    let stream = agent.stream().unwrap();
    let first = take(&stream, 0);
    let address = first.as_mut_ptr();
    write(&first, 99);
    assert!(!is_right(&first));
    drop(first);
    let second = take(&stream, 1);
    assert_eq!(second.as_mut_ptr(), address);
    assert!(is_right(&second));
    drop(second);
    assert!(is_right(&take(&stream, 0)));
}

#[test]
fn what_is_wanted_is_told_in_its_order_and_what_was_released_may_be_wanted_again() {
    let agent = scripted(|client, ring| {
        assert_eq!(wanted(client), [5, 1, 2]);
        [(5, 0), (1, 1), (2, 2)].into_iter().for_each(|(tensor, page)| ring.fill(tensor, page * PAGE, PAGE));
        client.say_delivered(&[(5, 0), (1, PAGE), (2, 2 * PAGE)]);
        assert_eq!(client.hear_release(), Some(vec![1]));
        assert_eq!(wanted(client), [1]);
        ring.fill(1, 3 * PAGE, PAGE);
        client.say_delivered(&[(1, 3 * PAGE)]);
    });
    let stream = agent.stream().unwrap();
    stream.want(&[5..6, 1..3]).unwrap();
    while !stream.is_there(2) {
        thread::yield_now();
    }
    let one = take(&stream, 1);
    assert_eq!((one.offset(), is_right(&one)), (4096, true));
    drop(one);
    let one = take(&stream, 1);
    assert_eq!((one.offset(), is_right(&one)), (3 * 4096, true));
    assert!(is_right(&take(&stream, 5)) && is_right(&take(&stream, 2)));
}

#[test]
fn a_tensor_that_someone_has_is_waited_for_until_it_has_come_again() {
    let agent = with_ring(4, SIZES, true);
    let stream = agent.stream().unwrap();
    let held = take(&stream, 4);
    write(&held, 99);
    assert!(stream.take(4, SHORT).unwrap().is_none());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| take(&stream, 4));
        thread::park_timeout(SHORT);
        assert!(!waiting.is_finished());
        drop(held);
        assert!(is_right(&waiting.join().unwrap()));
    });
}

#[test]
fn when_the_ring_is_full_what_nobody_waits_for_makes_room() {
    let (said, heard) = mpsc::channel();
    let agent = scripted(move |client, ring| {
        (0..4).for_each(|tensor| ring.fill(tensor, u64::from(tensor) * PAGE, PAGE));
        client.say_delivered(&[(0, 0), (1, PAGE), (2, 2 * PAGE), (3, 3 * PAGE)]);
        // Nobody waits for more, so all of these stay.
        client.say_full(4, PAGE);
        assert_eq!(wanted(client), [7]);
        client.say_full(7, PAGE);
        let Some(Said::Release(release)) = client.hear() else { panic!("nothing was released") };
        said.send(release.tensors).unwrap();
        ring.fill(7, PAGE, PAGE);
        client.say_delivered(&[(7, PAGE)]);
    });
    let stream = agent.stream().unwrap();
    while !stream.is_there(3) {
        thread::yield_now();
    }
    let zero = take(&stream, 0);
    let mut two = stream.taking(2);
    assert!(is_right(&take(&stream, 7)));
    // Who waits for a tensor finds it.
    assert_eq!(heard.recv().unwrap(), [1, 3]);
    assert!(is_right(&two.wait(LONG).unwrap().unwrap()) && is_right(&zero));
}

#[test]
fn a_ring_in_which_everything_is_in_use_is_told() {
    let agent = with_ring(4, SIZES, true);
    let stream = agent.stream().unwrap();
    let held = [take(&stream, 0), take(&stream, 4)];
    let since = Instant::now();
    let error = stream.take(8, LONG).unwrap_err();
    assert!(since.elapsed() >= Duration::from_secs(10), "others may be about to let go of something");
    assert_eq!((error.kind(), error.is_absence()), (FailureKind::Memory, false));
    let told = error.to_string();
    for words in
        ["\"t8\" of 8192 bytes", "ring of 16384 bytes", "2 tensors with 12288 bytes", "make the ring larger"]
    {
        assert!(told.contains(words), "{words}: {told}");
    }
    // It is no end.
    assert!(is_right(&take(&stream, 9)));
    drop(held);
    assert!(is_right(&take(&stream, 8)));
}

#[test]
fn a_ring_that_someone_makes_room_in_is_waited_for() {
    let agent = with_ring(4, SIZES, true);
    let stream = agent.stream().unwrap();
    let held = [take(&stream, 0), take(&stream, 2), take(&stream, 5)];
    thread::scope(|scope| {
        let waiting = scope.spawn(|| take(&stream, 6));
        for held in held {
            thread::park_timeout(SHORT);
            assert!(!waiting.is_finished() && is_right(&held));
        }
        assert!(is_right(&waiting.join().unwrap()));
    });
}

#[test]
fn what_was_taken_outlives_the_agent_and_the_stream_and_the_next_agent_brings_the_rest() {
    let mut agents = 0;
    let agent = Agent::serving(move |client| {
        agents += 1;
        client.hear_open();
        let (ring, mut model) = (RingFile::new(4 * PAGE), Model::new(&[&[4096; 8]]));
        // Where tensors would be means nothing, so it may be anything.
        model.table.tensors[0].offset = agents;
        if agents == 2 {
            model.snapshot = "07aa.aligned".to_owned();
            ring.lend(&client, &model);
            return drop(client.hear());
        }
        ring.lend(&client, &model);
        if agents == 1 {
            ring.fill(0, 0, PAGE);
            ring.fill(1, PAGE, PAGE);
            return client.say_delivered(&[(0, 0), (1, PAGE)]);
        }
        assert_eq!(wanted(&client), [2]);
        ring.fill(2, 0, PAGE);
        client.say_delivered(&[(2, 0)]);
        client.hear();
    });
    let stream = agent.stream().unwrap();
    let zero = take(&stream, 0);
    // What had come is there.
    assert!(is_right(&take(&stream, 1)));
    let error = stream.take(2, LONG).unwrap_err();
    assert!(error.is_absence() && matches!(error, Error::AgentGone { .. }), "{error}");
    assert!(matches!(stream.want(&[2..3]), Err(Error::AgentGone { .. })));
    let error = stream.reopen().wait(LONG).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }) && error.to_string().contains("07aa.aligned"), "{error}");
    let next = stream.reopen().wait(LONG).unwrap().unwrap();
    assert!(std::ptr::eq(stream.table(), next.table()), "a table that is the same is there once");
    let two = take(&next, 2);
    drop((stream, next));
    assert!(is_right(&zero) && is_right(&two));
}

#[test]
fn a_failure_is_told_and_what_was_never_confirmed_is_not_given_out_when_bytes_were_wrong() {
    for (kind, is_given) in [(FailureKind::Unavailable, true), (FailureKind::Corrupt, false)] {
        let agent = scripted(move |client, ring| {
            ring.fill(0, 0, PAGE);
            client.say_delivered(&[(0, 0)]);
            assert_eq!(wanted(client), [1]);
            client.say_failed(kind, "it cannot be");
        });
        let stream = agent.stream().unwrap();
        assert_eq!(stream.take(1, LONG).unwrap_err().kind(), kind);
        assert_eq!(stream.take(0, LONG).is_ok(), is_given);
    }
}

#[test]
fn the_lease_lasts_as_long_as_the_last_tensor() {
    let (said, heard) = mpsc::channel();
    let agent = scripted(move |client, ring| {
        ring.fill(0, 0, PAGE);
        client.say_delivered(&[(0, 0)]);
        while client.hear().is_some() {}
        said.send(()).unwrap();
    });
    let stream = agent.stream().unwrap();
    let zero = take(&stream, 0);
    drop(stream);
    assert!(heard.recv_timeout(SHORT).is_err() && is_right(&zero));
    drop(zero);
    heard.recv_timeout(LONG).unwrap();
}

#[test]
fn many_ranges_are_told_in_several_packets() {
    let agent = Agent::serving(|client| {
        client.hear_open();
        let many = vec![1; 20_000];
        RingFile::new(PAGE).lend(&client, &Model::new(&[&many]));
        let mut heard: Vec<HandoffRange> = Vec::new();
        while heard.len() < 10_000 {
            heard.extend(client.hear_want().unwrap().tensors);
        }
        client.say_failed(FailureKind::Usage, &format!("{} ranges", heard.len()));
    });
    let stream = agent.stream().unwrap();
    let every_other: Vec<_> = (0..20_000).step_by(2).map(|at| at..at + 1).collect();
    stream.want(&every_other).unwrap();
    assert_eq!(stream.take(0, LONG).unwrap_err().to_string(), "10000 ranges");
}
