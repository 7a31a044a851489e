//! What is opened, and what is told when it is not.

use std::{fs, os::unix::net::UnixListener, time::Duration};

use weightd_client::handoff::{self, Dtype, Error, Request};
use weightd_proto::v1::FailureKind;

use crate::agent::{Agent, LONG, Model, bytes};

#[test]
fn a_session_has_the_tensors_of_what_was_asked_for() {
    let agent = Agent::serving(|client| {
        let open = client.hear_open();
        assert_eq!((open.version, open.source.as_str(), open.wanted_only), (1, "gs://models/x", true));
        assert_eq!(open.files, ["0.safetensors", "1.safetensors"]);
        client.lend(&Model::new(&[&[5000, 3], &[0, 7]]).complete());
        assert_eq!(client.hear(), None);
    });
    let request = Request {
        source: "gs://models/x".to_owned(),
        files: vec!["0.safetensors".to_owned(), "1.safetensors".to_owned()],
        wanted_only: true,
        slices: Vec::new(),
    };
    let session = handoff::open(&agent.socket(), &request, LONG).unwrap();
    assert_eq!((session.snapshot(), session.source()), ("5f0c.aligned", "gs://models/x"));
    assert_eq!(session.table().files()[1].path, "1.safetensors");
    assert_eq!(session.table().files()[1].metadata["format"], "pt");
    let tensor = &session.table().tensors()[3];
    assert_eq!((tensor.name.as_str(), tensor.dtype, tensor.shape.as_slice()), ("t3", Dtype::U8, &[7][..]));
    assert!(session.is_complete() && session.is_ready(0, true));
    session.wait(&[0..4], true).unwrap();
    for (position, length) in [5000, 3, 0, 7].into_iter().enumerate() {
        assert_eq!(bytes(&session, position), vec![position as u8; length]);
    }
}

#[test]
fn slices_are_asked_for_and_described_as_they_lie() {
    let agent = Agent::serving(|client| {
        let open = client.hear_open();
        let slices: Vec<_> = open
            .slices
            .iter()
            .map(|slice| (slice.tensors.as_str(), slice.dimension, slice.part, slice.parts))
            .collect();
        assert_eq!(slices, [("*.norm", 0, 0, 0), ("t*", 1, 1, 2)]);
        let mut model = Model::new(&[&[6000, 3]]).complete();
        let tensor = &mut model.table.tensors[0];
        (tensor.shape, tensor.strides, tensor.offset) = (vec![50, 60], vec![120, 1], 60);
        tensor.bytes = 3000;
        client.lend(&model);
        client.hear();
    });
    let slice = |tensors: &str, dimension, part, parts| handoff::Slice {
        tensors: tensors.to_owned(),
        dimension,
        part,
        parts,
    };
    let slices = vec![slice("*.norm", 0, 0, 0), slice("t*", 1, 1, 2)];
    let request = Request { slices, ..Request::default() };
    let session = handoff::open(&agent.socket(), &request, LONG).unwrap();
    let tensor = &session.table().tensors()[0];
    assert_eq!((tensor.shape.as_slice(), tensor.strides.as_deref()), (&[50, 60][..], Some(&[120, 1][..])));
    assert_eq!((tensor.offset, tensor.bytes, tensor.span), (60, 3000, 49 * 120 + 60));
    assert_eq!((&session.table().tensors()[1].strides, session.table().tensors()[1].span), (&None, 3));
}

#[test]
fn a_private_mapping_keeps_what_is_written_and_a_shared_one_is_for_reading() {
    let agent = Agent::serving(|client| client.lend(&Model::new(&[&[5000]]).complete()));
    let session = agent.open().unwrap();
    let (private, shared) = (session.arena(0).map_private().unwrap(), session.arena(0).map_shared().unwrap());
    assert_eq!((private.len(), shared.len()), (8192, 8192));
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let kind = |map: &handoff::MmapRaw| {
        let line = maps.lines().find(|line| line.starts_with(&format!("{:x}-", map.as_ptr().addr())));
        line.unwrap().split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!((kind(&private).as_str(), kind(&shared).as_str()), ("rw-p", "r--s"));
}

#[test]
fn models_of_many_tensors_and_of_many_arenas_are_opened() {
    let agent = Agent::serving(|client| {
        let many = vec![256; 90_000];
        client.lend(&Model::new(&[&many]).complete());
    });
    let session = agent.open().unwrap();
    assert_eq!(session.table().tensors().len(), 90_000);
    session.wait(&[0..90_000], true).unwrap();
    assert_eq!(bytes(&session, 89_999), [(89_999 % 256) as u8; 256]);

    let agent = Agent::serving(|client| client.lend(&Model::new(&[&[7][..]; 200]).complete()));
    let session = agent.open().unwrap();
    assert_eq!(session.arenas(), 200);
    assert_eq!(bytes(&session, 199), [199; 7]);
}

#[test]
fn a_failure_keeps_its_kind_and_its_remedy() {
    let agent = Agent::serving(|client| client.say_failed(FailureKind::Memory, "gs://models/x is too large"));
    // The client may come to say what it wants only after that.
    let error = agent.open().unwrap_err();
    assert_eq!(error.to_string(), "gs://models/x is too large");
    assert_eq!((error.kind(), error.remedy()), (FailureKind::Memory, Some("mend it")));
}

#[test]
fn each_kind_of_absence_is_told_and_names_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("handoff.sock");
    let fails = || {
        let error = handoff::open(&socket, &Request::default(), LONG).unwrap_err();
        assert!(error.to_string().contains(socket.to_str().unwrap()), "{error}");
        error
    };
    assert!(fails().is_absence());
    fs::write(&socket, "").unwrap();
    assert!(fails().is_absence());
    fs::remove_file(&socket).unwrap();
    let stream = UnixListener::bind(&socket).unwrap();
    assert!(!fails().is_absence());
    drop(stream);
    assert!(fails().is_absence());
}

#[test]
fn an_agent_that_never_answers_is_not_waited_for_longer_than_one_will() {
    let agent = Agent::serving(|client| while client.hear().is_some() {});
    let patience = Duration::from_millis(50);
    let error = handoff::open(&agent.socket(), &Request::default(), patience).unwrap_err();
    assert!(matches!(error, Error::Silent { .. }) && error.is_absence(), "{error}");
}

#[test]
fn an_agent_that_leaves_before_it_answers_is_followed_by_the_next() {
    let mut agents = 0;
    let agent = Agent::serving(move |client| {
        agents += 1;
        match agents {
            1 => {}
            2 => client.say_failed(FailureKind::TryAgain, "weightd is stopping"),
            _ => client.lend(&Model::new(&[&[3]]).complete()),
        }
    });
    assert!(agent.open().unwrap().is_complete());
}

#[test]
fn a_socket_with_a_long_path_is_found() {
    let agent = Agent::serving(|client| client.lend(&Model::new(&[&[3]]).complete()));
    let long = agent.socket().with_file_name("x".repeat(120));
    fs::create_dir(&long).unwrap();
    std::os::unix::fs::symlink("../socket", long.join("socket")).unwrap();
    assert!(handoff::open(&long.join("socket"), &Request::default(), LONG).unwrap().is_complete());
}
