use std::collections::HashSet;

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use weightd_types::{BlobId, Checksums, Layout, Object, ObjectPath, Run, Version};

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
    planner.add(key(name), Arc::new(Placement::original(chunks * C)), |_| false, priority, 0);
}

/// One that has brought so much already that it asks for long ranges.
fn under_way(range_bytes: u64) -> Planner {
    Planner { landed_bytes: 1 << 40, ..Planner::new(range_bytes) }
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
    let mut planner = under_way(8 * C);
    add(&mut planner, "a", 16, 0);
    let first = planner.next(4).unwrap();
    assert_eq!(first.pieces, 0..2, "16 chunks over 4 connections, twice each");
    let lengths: Vec<_> =
        std::iter::from_fn(|| planner.next(4)).map(|request| request.pieces.len()).collect();
    assert_eq!(*lengths.last().unwrap(), 1);
}

#[test]
fn ranges_grow_with_what_has_come() {
    let mut planner = Planner::new(8 * C);
    add(&mut planner, "a", 64, 0);
    let first: Vec<_> = (0..4).map(|_| planner.next(4).unwrap()).collect();
    assert!(first.iter().all(|request| request.pieces.len() == 1), "{first:?}");
    for request in &first {
        planner.landed(request, request.pieces.clone());
        planner.ended(request);
    }
    let mut lengths = Vec::new();
    while let Some(request) = planner.next(4) {
        planner.landed(&request, request.pieces.clone());
        planner.ended(&request);
        lengths.push(request.pieces.len());
    }
    assert_eq!(lengths[..4], [1, 2, 2, 3]);
    planner.remove(&key("a"));
    add(&mut planner, "b", 64, 0);
    assert_eq!(planner.next(4).unwrap().pieces.len(), 1, "after a pause it is as at first");
}

#[test]
fn requests_are_short_while_someone_has_little_room() {
    let mut planner = under_way(8 * C);
    add(&mut planner, "a", 64, 0);
    assert_eq!(planner.next(2).unwrap().pieces, 0..8);
    let following = planner.follow();
    assert_eq!(planner.next(2).unwrap().pieces, 8..9);
    assert_eq!(planner.next(1).unwrap().pieces, 9..10);
    drop(following);
    assert_eq!(planner.next(2).unwrap().pieces, 10..18);
}

#[test]
fn what_is_here_is_not_asked_for() {
    let mut planner = Planner::new(8 * C);
    planner.add(key("a"), Arc::new(Placement::original(5 * C)), |piece| piece == 2, 0, 0);
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
fn who_was_asked_for_first_goes_before_who_was_ready_first() {
    let mut planner = Planner::new(8 * C);
    let mut add = |name, turn| {
        planner.add(key(name), Arc::new(Placement::original(3 * C)), |_| false, 0, turn);
    };
    add("third", 3);
    add("first", 1);
    add("second", 2);
    let order: Vec<_> = drain(&mut planner).into_iter().map(|(key, _)| key).collect();
    assert_eq!(order, [key("first"), key("second"), key("third")]);
}

#[test]
fn what_someone_waits_for_all_of_goes_before_what_nobody_does_in_their_order() {
    let mut planner = Planner::new(8 * C);
    for name in ["a", "b", "c", "d"] {
        add(&mut planner, name, 3, 0);
    }
    for name in ["d", "early", "c", "d"] {
        planner.prefer(key(name));
    }
    add(&mut planner, "early", 3, 0);
    let order: Vec<_> = drain(&mut planner).into_iter().map(|(key, _)| key).collect();
    assert_eq!(order, [key("d"), key("early"), key("c"), key("a"), key("b")]);
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
fn more_is_fetched_ahead_of_whoever_goes_on_and_a_chunk_of_whoever_jumps() {
    let mut planner = Planner::new(8 * C);
    add(&mut planner, "a", 64, 0);
    let mut ahead = |chunk: u64| {
        planner.demand(key("a"), ByteRange::new(chunk * C + 5, chunk * C + 9));
        let ahead = planner.blobs[&key("a")].ahead;
        (ahead.start / C, ahead.len() / C)
    };
    assert_eq!(ahead(10), (11, 1));
    assert_eq!(ahead(10), (11, 1), "said again");
    assert_eq!(ahead(12), (13, 2));
    assert_eq!(ahead(15), (16, 4));
    assert_eq!(ahead(20), (21, 4), "the limit");
    assert_eq!(ahead(40), (41, 1));
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
fn all_connections_share_a_long_demand_from_its_beginning_on() {
    let mut planner = Planner::new(8 * C);
    add(&mut planner, "a", 64, 0);
    planner.demand(key("a"), ByteRange::at(8 * C, 16 * C));
    let asked: Vec<_> = (0..4).map(|_| planner.next(4).unwrap().pieces).collect();
    assert_eq!(asked, [8..12, 12..15, 15..18, 18..20], "a quarter of what is left each");
    planner.demand(key("a"), ByteRange::at(40 * C, C));
    let next: Vec<_> = (0..3).map(|_| planner.next_demanded().unwrap().pieces).collect();
    assert_eq!(next, [20..21, 40..41, 21..22], "the short one does not wait for all of it");
}

/// How many pieces are still with each request.
fn kept(planner: &Planner, requests: &[Request]) -> Vec<usize> {
    let kept = |request: &Request| {
        let asked =
            |piece: &usize| planner.blobs[&request.key].pieces[*piece] == Piece::Asked(request.number);
        request.pieces.clone().filter(asked).count()
    };
    requests.iter().map(kept).collect()
}

#[test]
fn a_long_demand_leaves_to_a_request_what_would_come_no_sooner_elsewhere() {
    let mut planner = under_way(8 * C);
    add(&mut planner, "a", 64, 0);
    let bulk: Vec<_> = (0..4).map(|_| planner.next(4).unwrap()).collect();
    let asked: Vec<_> = bulk.iter().map(|request| request.pieces.clone()).collect();
    assert_eq!(asked, [0..8, 8..15, 15..22, 22..28]);
    planner.demand(key("a"), ByteRange::new(0, 28 * C));
    // Six of the first are asked for anew, and after these four more of the second, and so on.
    assert_eq!(kept(&planner, &bulk), [2, 3, 4, 5]);
    for _ in 0..8 {
        assert!(planner.next_demanded().is_some());
        planner.demand(key("a"), ByteRange::new(0, 28 * C));
        assert_eq!(kept(&planner, &bulk), [2, 3, 4, 5], "said again");
    }
}

#[test]
fn what_a_demand_waits_for_is_not_taken_from_its_request() {
    let mut planner = Planner::new(8 * C);
    add(&mut planner, "a", 8, 0);
    planner.demand(key("a"), ByteRange::at(0, 4 * C));
    let demanded = planner.next_demanded().unwrap();
    assert_eq!(demanded.pieces, 0..4);
    assert!(planner.begins(&demanded, 0));
    // Another reader, and the same one that looks again.
    planner.demand(key("a"), ByteRange::at(3 * C, C));
    planner.demand(key("a"), ByteRange::at(0, 4 * C));
    assert_eq!(planner.next_demanded(), None);
    assert!((1..4).all(|piece| planner.begins(&demanded, piece)), "its connection was given up");
    assert!(demanded.urgency.is_awaited());
}

/// Chunk 1 of a blob of many pieces, on its way because chunk 0 was demanded, and its pieces in the order of the object.
fn ahead() -> (Planner, Request, Vec<usize>) {
    let mut planner = Planner::new(8 * C);
    planner.add(key("a"), interleaved(32, C / 8), |_| false, 0, 0);
    // As of a reader who goes on through the file.
    planner.blobs.get_mut(&key("a")).unwrap().ahead = ByteRange::at(0, 2 * C);
    planner.demand(key("a"), ByteRange::at(0, C));
    while planner.next_demanded().is_some() {}
    let request = planner.next(1).unwrap();
    let wanted = planner.blobs[&key("a")].pieces_in(ByteRange::at(C, C));
    assert!(wanted.len() == 8 && wanted.iter().all(|piece| request.pieces.contains(piece)), "{request:?}");
    (planner, request, wanted)
}

#[test]
fn what_comes_ahead_is_hurried_and_not_cut_when_it_is_demanded() {
    let (mut planner, request, wanted) = ahead();
    assert!(planner.begins(&request, request.pieces.start) && !request.urgency.is_awaited());
    planner.demand(key("a"), ByteRange::at(C, C));
    assert!(request.urgency.is_awaited());
    assert_eq!(planner.next_demanded(), None, "it comes where it was asked for, within a chunk");
    for piece in request.pieces.clone().skip(1) {
        assert!(planner.begins(&request, piece), "piece {piece} was taken away");
        assert_eq!(request.urgency.is_awaited(), piece <= wanted[7], "piece {piece}");
    }
}

#[test]
fn a_demand_hurries_the_request_that_brings_it_and_only_so_far() {
    let mut planner = Planner::new(8 * C);
    add(&mut planner, "a", 8, 0);
    let bulk = planner.next(1).unwrap();
    assert!(planner.begins(&bulk, 0) && !bulk.urgency.is_awaited());
    planner.demand(key("a"), ByteRange::at(0, C));
    assert!(bulk.urgency.is_awaited(), "it brings that right now");
    assert!(planner.begins(&bulk, 1) && !bulk.urgency.is_awaited());
    planner.demand(key("a"), ByteRange::at(C, C));
    assert!(bulk.urgency.is_awaited());
    assert_eq!(planner.next_demanded(), None);
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

/// Large tensors with small ones between them, which the aligned layout puts at the end: chunks of many pieces.
fn interleaved(pairs: u64, len: u64) -> Arc<Placement> {
    const SMALL: u64 = 4;
    let run = |start, len, blob| Run { object: ByteRange::at(start, len), blob };
    let pair = |at| {
        let start = at * (len + SMALL);
        [run(start, len, at * len), run(start + len, SMALL, pairs * len + at * SMALL)]
    };
    let runs = (0..pairs).flat_map(pair).collect();
    Arc::new(Placement::checked(pairs * (len + SMALL), Bytes::new(), 0, runs).unwrap())
}

#[test]
fn random_work_is_done_once_whatever_fails() {
    let mut random = StdRng::seed_from_u64(11);
    for _ in 0..300 {
        let mut work = Work::new(&mut random);
        for _ in 0..random.random_range(0..150) {
            work.step(&mut random);
            work.check();
        }
        work.finish();
    }
}

/// A request, as far as its worker has come.
struct Flight {
    request: Request,
    /// The piece it comes to next; `None` once one was refused.
    next: Option<usize>,
    /// Pieces that came, and are not written.
    begun: Vec<usize>,
}

/// A planner, its workers, and what the disk has.
struct Work {
    planner: Planner,
    flights: Vec<Flight>,
    coming: HashSet<(BlobKey, usize)>,
    here: BTreeSet<(BlobKey, usize)>,
}

impl Work {
    const NAMES: [&str; 3] = ["a", "b", "c"];

    fn new(random: &mut StdRng) -> Self {
        let mut planner = Planner::new(random.random_range(1..6) * C);
        for name in Self::NAMES {
            let placement = match random.random_bool(0.5) {
                true => Arc::new(Placement::original(random.random_range(0..9) * C)),
                false => interleaved(random.random_range(1..40), C / 4),
            };
            planner.add(key(name), placement, |_| false, random.random_range(0..2), 0);
        }
        Self { planner, flights: Vec::new(), coming: HashSet::new(), here: BTreeSet::new() }
    }

    fn step(&mut self, random: &mut StdRng) {
        let at = random.random_range(0..self.flights.len().max(1));
        match random.random_range(0..100) {
            0..12 => {
                let name = Self::NAMES[random.random_range(0..3)];
                self.planner.demand(key(name), ByteRange::at(random.random_range(0..9) * C, 2 * C));
            }
            12..15 => self.rot(random),
            15..40 => self.ask(random.random_range(1..5)),
            _ if self.flights.is_empty() => {}
            40..75 => self.begin(at),
            75..92 => self.land(at, random.random_range(0..100)),
            _ => self.end(at),
        }
    }

    fn ask(&mut self, slots: usize) {
        let request = self.planner.next(slots);
        self.flights.extend(request.map(|request| {
            let next = Some(request.pieces.start);
            Flight { request, next, begun: Vec::new() }
        }));
    }

    fn begin(&mut self, at: usize) {
        let flight = &mut self.flights[at];
        let Some(piece) = flight.next.filter(|piece| *piece < flight.request.pieces.end) else { return };
        if !self.planner.begins(&flight.request, piece) {
            flight.next = None;
            return;
        }
        let which = (flight.request.key, piece);
        assert!(!self.here.contains(&which), "piece {piece} comes although it is here");
        assert!(self.coming.insert(which), "piece {piece} comes twice at once");
        flight.begun.push(piece);
        flight.next = Some(piece + 1);
    }

    /// Writes end in any order.
    fn land(&mut self, at: usize, which: usize) {
        let flight = &mut self.flights[at];
        if flight.begun.is_empty() {
            return;
        }
        let piece = flight.begun.swap_remove(which % flight.begun.len());
        self.coming.remove(&(flight.request.key, piece));
        self.here.insert((flight.request.key, piece));
        self.planner.landed(&flight.request, [piece]);
    }

    fn end(&mut self, at: usize) {
        let Flight { request, begun, .. } = self.flights.swap_remove(at);
        for piece in begun {
            self.coming.remove(&(request.key, piece));
        }
        self.planner.ended(&request);
    }

    /// A reader finds a piece rotten.
    fn rot(&mut self, random: &mut StdRng) {
        let which = random.random_range(0..self.here.len().max(1));
        let Some((of, piece)) = self.here.iter().nth(which).copied() else { return };
        self.here.remove(&(of, piece));
        let range = self.planner.blobs[&of].placement.pieces()[piece].blob_range();
        self.planner.reconsider(&of, range, |piece| self.here.contains(&(of, piece)));
    }

    /// Nothing fails any more.
    fn finish(&mut self) {
        loop {
            self.ask(2);
            if self.flights.is_empty() {
                break;
            }
            let pieces = self.flights[0].request.pieces.len();
            (0..pieces).for_each(|_| self.begin(0));
            (0..pieces).for_each(|_| self.land(0, 0));
            self.end(0);
            self.check();
        }
        let pieces: usize = self.planner.blobs.values().map(|blob| blob.pieces.len()).sum();
        assert_eq!((self.here.len(), self.planner.missing_bytes()), (pieces, 0));
        assert!(self.planner.under_way.is_empty());
    }

    fn check(&self) {
        let pieces =
            self.planner.blobs.values().flat_map(|blob| blob.pieces.iter().zip(blob.placement.pieces()));
        let missing = pieces.filter(|(state, _)| **state == Piece::Missing);
        let missing: u64 = missing.map(|(_, piece)| piece.object.len()).sum();
        assert_eq!(self.planner.missing_bytes(), missing);
    }
}
