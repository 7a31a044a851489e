use weightd_types::{BlobId, Checksums, Layout, Object, ObjectPath, Version};

use super::*;

const C: u64 = CHUNK_BYTES;

fn key(name: &str) -> BlobKey {
    let object = Object {
        path: ObjectPath::new(name).unwrap(),
        size: 1,
        version: Version::Generation(1),
        checksums: Checksums::default(),
    };
    BlobKey { id: BlobId::of(&"memory://m".parse().unwrap(), &object), layout: Layout::Original }
}

fn add(planner: &mut Planner, name: &str, chunks: u64, priority: i32) {
    planner.add(key(name), Arc::new(Placement::original(chunks * C)), |_| false, priority);
}

/// Everything a planner hands out, as (blob, pieces), each request landing at once.
fn drain(planner: &mut Planner) -> Vec<(BlobKey, Range<usize>)> {
    let mut out = Vec::new();
    while let Some(request) = planner.next(1) {
        planner.landed(&request, request.pieces.clone());
        planner.ended(&request);
        out.push((request.key, request.pieces));
    }
    out
}

#[test]
fn ranges_are_long_and_cover_everything_once() {
    let mut planner = Planner::new(4 * C);
    add(&mut planner, "a", 20, 0);
    let requests = drain(&mut planner);
    assert_eq!(requests[0].1, 0..4);
    let pieces: Vec<usize> = requests.iter().flat_map(|(_, pieces)| pieces.clone()).collect();
    assert_eq!(pieces, (0..20).collect::<Vec<_>>());
    assert_eq!(planner.missing_bytes(), 0);
}

#[test]
fn the_last_ranges_are_short() {
    let mut planner = Planner::new(8 * C);
    add(&mut planner, "a", 16, 0);
    let first = planner.next(4).unwrap();
    assert_eq!(first.pieces, 0..2, "16 chunks over 4 connections, twice each");
    let lengths: Vec<_> =
        std::iter::from_fn(|| planner.next(4)).map(|request| request.pieces.len()).collect();
    assert_eq!(*lengths.last().unwrap(), 1);
}

#[test]
fn what_is_here_is_not_asked_for() {
    let mut planner = Planner::new(8 * C);
    planner.add(key("a"), Arc::new(Placement::original(5 * C)), |piece| piece == 2, 0);
    let requests: Vec<_> = drain(&mut planner).into_iter().map(|(_, pieces)| pieces).collect();
    assert_eq!(requests, [0..2, 3..5]);
}

#[test]
fn nothing_is_in_flight_twice_and_failures_come_again() {
    let mut planner = Planner::new(2 * C);
    add(&mut planner, "a", 4, 0);
    let (first, second) = (planner.next(1).unwrap(), planner.next(1).unwrap());
    assert_eq!((first.pieces.clone(), second.pieces), (0..2, 2..4));
    assert_eq!(planner.next(1), None);
    planner.landed(&first, [0]);
    planner.ended(&first);
    let again = planner.next(1).unwrap();
    assert_eq!(again.pieces, 1..2, "piece 0 landed, piece 1 did not");
    assert_eq!(again.object, ByteRange::new(C, 2 * C));
}

#[test]
fn priority_then_size_then_arrival_decide() {
    let mut planner = Planner::new(8 * C);
    add(&mut planner, "large", 3, 0);
    add(&mut planner, "small", 1, 0);
    add(&mut planner, "urgent", 3, 5);
    let order: Vec<_> = drain(&mut planner).into_iter().map(|(key, _)| key).collect();
    assert_eq!(order, [key("urgent"), key("small"), key("large")]);
}

#[test]
fn a_raised_blob_overtakes() {
    let mut planner = Planner::new(C);
    add(&mut planner, "a", 2, 0);
    add(&mut planner, "b", 2, 0);
    planner.raise(&key("b"), 1);
    assert_eq!(planner.next(1).unwrap().key, key("b"));
}

#[test]
fn a_demand_overtakes_bulk_work_and_is_not_repeated_by_it() {
    let mut planner = Planner::new(2 * C);
    add(&mut planner, "urgent", 4, 9);
    add(&mut planner, "a", 8, 0);
    planner.demand(key("a"), ByteRange::new(5 * C + 7, 6 * C + 1));
    assert!(planner.has_demand());
    let request = planner.next(1).unwrap();
    assert_eq!((request.key, request.pieces), (key("a"), 5..7));
    assert!(!planner.has_demand() || planner.next_demanded().is_none());
    let rest: Vec<_> = drain(&mut planner).into_iter().filter(|(of, _)| *of == key("a")).collect();
    assert!(rest.iter().all(|(_, pieces)| !pieces.contains(&5) && !pieces.contains(&6)), "{rest:?}");
}

#[test]
fn a_demand_takes_from_a_request_what_would_come_late() {
    let mut planner = Planner::new(8 * C);
    add(&mut planner, "a", 8, 0);
    let bulk = planner.next(1).unwrap();
    assert!(planner.begins(&bulk, 0));
    planner.demand(key("a"), ByteRange::at(C, C));
    assert_eq!(planner.next_demanded(), None, "it comes next where it was asked for");
    planner.demand(key("a"), ByteRange::at(6 * C, C));
    let demanded = planner.next_demanded().unwrap();
    assert_eq!(demanded.pieces, 6..7);
    let came: Vec<_> =
        bulk.pieces.clone().skip(1).take_while(|&piece| planner.begins(&bulk, piece)).collect();
    assert_eq!(came, [1], "those ahead of the first demand were taken too");
    planner.landed(&bulk, [0, 1]);
    planner.ended(&bulk);
    assert!(planner.begins(&demanded, 6));
    planner.landed(&demanded, [6]);
    planner.ended(&demanded);
    let mut rest: Vec<_> = drain(&mut planner).into_iter().flat_map(|(_, pieces)| pieces).collect();
    rest.sort_unstable();
    assert_eq!(rest, [2, 3, 4, 5, 7], "nothing is lost, and nothing comes twice");
}

#[test]
fn a_removed_blob_is_forgotten() {
    let mut planner = Planner::new(C);
    add(&mut planner, "a", 2, 0);
    let request = planner.next(1).unwrap();
    planner.demand(key("a"), ByteRange::new(C, 2 * C));
    planner.remove(&key("a"));
    planner.ended(&request);
    assert_eq!(planner.next(1), None);
    assert_eq!(planner.missing_bytes(), 0);
}

#[test]
fn random_work_is_done_once_whatever_fails() {
    use rand::{RngExt, SeedableRng};
    let mut random = rand::rngs::StdRng::seed_from_u64(11);
    for _ in 0..200 {
        let mut planner = Planner::new(random.random_range(1..6) * C);
        let names = ["a", "b", "c"];
        for name in names {
            add(&mut planner, name, random.random_range(0..9), random.random_range(0..2));
        }
        let mut landed: HashMap<BlobKey, BTreeSet<usize>> = HashMap::new();
        let mut flying: Vec<Request> = Vec::new();
        loop {
            if random.random_bool(0.2) {
                let at = random.random_range(0..9) * C;
                planner.demand(key(names[random.random_range(0..3)]), ByteRange::at(at, 2 * C));
            }
            match planner.next(random.random_range(1..5)) {
                Some(request) => flying.push(request),
                None if flying.is_empty() => break,
                None => {}
            }
            if !flying.is_empty() && random.random_bool(0.6) {
                let request = flying.swap_remove(random.random_range(0..flying.len()));
                for piece in request.pieces.clone() {
                    if random.random_bool(0.7) && planner.begins(&request, piece) {
                        assert!(
                            landed.entry(request.key).or_default().insert(piece),
                            "piece {piece} landed twice"
                        );
                        planner.landed(&request, [piece]);
                    }
                }
                planner.ended(&request);
            }
        }
        assert_eq!(planner.missing_bytes(), 0);
    }
}
