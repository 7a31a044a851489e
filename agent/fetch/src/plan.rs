//! What to ask for next: pure, so that every decision can be tested with values.
//!
//! Blobs wait in order of rank. The planner hands out requests: neighbouring missing pieces of one object, up to a
//! range's length. A piece never arrives twice at once. Demands (someone is reading right there) go before everything
//! else, take pieces away from a long request that would come to them only later, and hurry one that comes to them soon.

mod blob;
mod under_way;

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use weightd_types::{BlobKey, ByteRange, CHUNK_BYTES, Placement};

use crate::urgency::Urgency;
use blob::{Blob, Piece, Rank};
use under_way::{Errand, UnderWay};

/// Ranges of one blob that are remembered before it is known.
const EARLY_RANGES: usize = 64;

/// One request to an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The blob it is for.
    pub key: BlobKey,
    /// Indices of its pieces in object order.
    pub pieces: Range<usize>,
    /// The bytes of the object to ask for.
    pub object: ByteRange,
    /// Whether someone waits for it, which may change while it is under way.
    pub(crate) urgency: Urgency,
    /// Which arrival of the blob it belongs to: a late answer to a flight that was given up must not be taken for one
    /// to the next flight.
    arrival: u64,
    /// Its own number, which no other request has.
    number: u64,
}

#[derive(Debug)]
struct Demand {
    key: BlobKey,
    pieces: VecDeque<usize>,
}

/// What is wanted, and what to ask for next.
#[derive(Debug)]
pub struct Planner {
    range_bytes: u64,
    /// Requests that may be in flight at once, as far as was said.
    slots: usize,
    /// Held by all who take blobs in their order: then requests are as short as can be, so that what comes is what comes next.
    following: Arc<()>,
    blobs: HashMap<BlobKey, Blob>,
    waiting: BTreeSet<(Rank, BlobKey)>,
    demands: VecDeque<Demand>,
    /// What follows a demand in its file: it goes after all demands, and before everything else.
    ahead: VecDeque<Demand>,
    /// Demands for blobs that are not known yet.
    early: HashMap<BlobKey, Vec<ByteRange>>,
    /// Requests that have not ended, by number.
    under_way: HashMap<u64, UnderWay>,
    missing_bytes: u64,
    /// What has come since there was nothing to bring.
    landed_bytes: u64,
    arrivals: u64,
    preferences: u64,
    /// Blobs that someone waits for all of, also those that are not known yet, and which of those they were.
    preferred: HashMap<BlobKey, u64>,
    requests: u64,
}

impl Planner {
    /// A planner whose requests are at most `range_bytes` long, rounded up to a whole piece.
    pub fn new(range_bytes: u64) -> Self {
        Self {
            range_bytes,
            slots: 1,
            following: Arc::default(),
            blobs: HashMap::new(),
            waiting: BTreeSet::new(),
            demands: VecDeque::new(),
            ahead: VecDeque::new(),
            early: HashMap::new(),
            under_way: HashMap::new(),
            missing_bytes: 0,
            landed_bytes: 0,
            arrivals: 0,
            preferences: 0,
            preferred: HashMap::new(),
            requests: 0,
        }
    }

    /// Wants a blob, of those of a priority in the order of their turns. `is_here` says which of its pieces are written already.
    /// One that is wanted already stays as it is.
    pub fn add(
        &mut self,
        key: BlobKey,
        placement: Arc<Placement>,
        is_here: impl Fn(usize) -> bool,
        priority: i32,
        turn: u64,
    ) {
        if self.blobs.contains_key(&key) {
            return;
        }
        self.arrivals += 1;
        let is_large = placement.blob_len() > CHUNK_BYTES;
        let (priority, preference) =
            (Reverse(priority), self.preferred.get(&key).copied().unwrap_or(u64::MAX));
        let rank = Rank { priority, is_large, preference, turn, arrival: self.arrivals };
        let state = |at| if is_here(at) { Piece::Here } else { Piece::Missing };
        let pieces: Vec<_> = (0..placement.pieces().len()).map(state).collect();
        let missing = pieces.iter().zip(placement.pieces()).filter(|(state, _)| **state == Piece::Missing);
        self.missing_bytes += missing.map(|(_, piece)| piece.object.len()).sum::<u64>();
        self.blobs.insert(key, Blob { placement, pieces, cursor: 0, rank, ahead: ByteRange::new(0, 0) });
        self.waiting.insert((rank, key));
        for range in self.early.remove(&key).unwrap_or_default() {
            self.demand(key, range);
        }
    }

    /// Wants a blob sooner than it did.
    pub fn raise(&mut self, key: &BlobKey, priority: i32) {
        self.rank_anew(key, |rank| rank.priority = rank.priority.min(Reverse(priority)));
    }

    /// Someone waits for all of a blob: it goes before those that nobody waits for, and after those that someone did before. Said
    /// again it changes nothing.
    pub fn prefer(&mut self, key: BlobKey) {
        self.preferences += 1;
        let preference = *self.preferred.entry(key).or_insert(self.preferences);
        self.rank_anew(&key, |rank| rank.preference = preference);
    }

    fn rank_anew(&mut self, key: &BlobKey, change: impl FnOnce(&mut Rank)) {
        let Some(blob) = self.blobs.get_mut(key) else { return };
        let was_waiting = self.waiting.remove(&(blob.rank, *key));
        change(&mut blob.rank);
        if was_waiting {
            self.waiting.insert((blob.rank, *key));
        }
    }

    /// Wants a range of a blob before everything else, and what follows it in the blob soon. A blob that is not known
    /// yet is remembered.
    pub fn demand(&mut self, key: BlobKey, range: ByteRange) {
        let Some(blob) = self.blobs.get_mut(&key) else {
            let early = self.early.entry(key).or_default();
            if !early.contains(&range) && early.len() < EARLY_RANGES {
                early.push(range);
            }
            return;
        };
        let follows = blob.look_ahead(range);
        let under_way = &mut self.under_way;
        let first_of = |number| under_way.get(&number).and_then(UnderWay::bulk);
        let taken_back = blob.take_back(ByteRange::new(range.start, follows.end), self.slots, first_of);
        for (number, piece) in blob.coming_in(range) {
            if let Some(request) = under_way.get_mut(&number) {
                request.hurry(piece);
            }
        }
        if taken_back > 0 {
            self.missing_bytes += taken_back;
            self.waiting.insert((blob.rank, key));
        }
        let (pieces, ahead) = (blob.missing_in(range), blob.missing_in(follows));
        if !pieces.is_empty() {
            self.demands.push_back(Demand { key, pieces });
        }
        // A reader that goes on through a file wants ahead what it wanted ahead before.
        self.ahead.retain(|known| known.key != key);
        if !ahead.is_empty() {
            self.ahead.push_back(Demand { key, pieces: ahead });
        }
    }

    /// Someone takes blobs in their order, and has little room for what comes before its turn, for as long as they keep that.
    pub fn follow(&self) -> Arc<()> {
        Arc::clone(&self.following)
    }

    /// Looks again at what is here of a range: a chunk that rotted on the way is missing again.
    pub fn reconsider(&mut self, key: &BlobKey, range: ByteRange, is_here: impl Fn(usize) -> bool) {
        let Some(blob) = self.blobs.get_mut(key) else { return };
        for piece in blob.pieces_in(range) {
            if blob.pieces[piece] == Piece::Here && !is_here(piece) {
                blob.pieces[piece] = Piece::Missing;
                blob.cursor = blob.cursor.min(piece);
                self.missing_bytes += blob.placement.pieces()[piece].object.len();
                self.waiting.insert((blob.rank, *key));
            }
        }
    }

    /// Whether someone is waiting for a range right now.
    pub fn has_demand(&self) -> bool {
        !self.demands.is_empty()
    }

    /// The next request for someone who waits for a range.
    pub fn next_demanded(&mut self) -> Option<Request> {
        self.take_first(|planner| &mut planner.demands, Errand::Demand)
    }

    /// The next request of a queue, whose demands take turns. One is so long that all connections share what is wanted, and its
    /// beginning comes first; those ahead are short.
    fn take_first(
        &mut self,
        queue: impl Fn(&mut Self) -> &mut VecDeque<Demand>,
        errand: Errand,
    ) -> Option<Request> {
        while let Some(demand) = queue(self).front_mut() {
            let (key, first, wanted) = (demand.key, demand.pieces.pop_front(), demand.pieces.len() + 1);
            let Some(first) = first else {
                queue(self).pop_front();
                continue;
            };
            let Some(blob) = self.blobs.get(&key) else { continue };
            if blob.pieces[first] == Piece::Missing {
                let limit = match errand {
                    Errand::Ahead => self.share(0),
                    Errand::Demand | Errand::Bulk => self.share(wanted as u64 * CHUNK_BYTES),
                };
                queue(self).rotate_left(1);
                return Some(self.take(key, first, wanted, limit, errand));
            }
        }
        None
    }

    /// The next request, when `slots` may be in flight at once. Towards the end ranges get shorter, so that no single
    /// connection is left with the last of the work. Of several, they begin short, too: until something has come it is not known
    /// what is wanted first, and connections that share a network are the slower the more there are.
    pub fn next(&mut self, slots: usize) -> Option<Request> {
        self.slots = slots.max(1);
        let first =
            self.next_demanded().or_else(|| self.take_first(|planner| &mut planner.ahead, Errand::Ahead));
        if first.is_some() {
            return first;
        }
        while let Some(&(rank, key)) = self.waiting.first() {
            let found = self.blobs.get_mut(&key).and_then(|blob| {
                let missing = blob.pieces[blob.cursor..].iter().position(|state| *state == Piece::Missing);
                blob.cursor = missing.map_or(blob.pieces.len(), |at| blob.cursor + at);
                missing.map(|_| blob.cursor)
            });
            let Some(first) = found else {
                self.waiting.remove(&(rank, key));
                continue;
            };
            let limit = match slots {
                _ if Arc::strong_count(&self.following) > 1 => self.share(0),
                0 | 1 => self.range_bytes,
                _ => self.share(self.landed_bytes.min(self.missing_bytes / 2)),
            };
            return Some(self.take(key, first, usize::MAX, limit, Errand::Bulk));
        }
        None
    }

    /// What each request has of so many bytes, within bounds.
    fn share(&self, bytes: u64) -> u64 {
        (bytes / self.slots as u64).clamp(CHUNK_BYTES.min(self.range_bytes), self.range_bytes)
    }

    /// Takes missing neighbours from `first` on: at most `count`, until they are `limit` bytes long.
    fn take(&mut self, key: BlobKey, first: usize, count: usize, limit: u64, errand: Errand) -> Request {
        self.requests += 1;
        let number = self.requests;
        let blob = self.blobs.get_mut(&key).expect("callers looked it up");
        let pieces = blob.placement.pieces();
        let (mut end, mut len) = (first, 0);
        while end < pieces.len() && end - first < count && len < limit && blob.pieces[end] == Piece::Missing {
            blob.pieces[end] = Piece::Asked(number);
            len += pieces[end].object.len();
            end += 1;
        }
        self.missing_bytes -= len;
        let under_way = UnderWay::new(errand, first);
        let urgency = under_way.urgency().clone();
        self.under_way.insert(number, under_way);
        Request {
            key,
            pieces: first..end,
            object: ByteRange::at(pieces[first].object.start, len),
            urgency,
            arrival: blob.rank.arrival,
            number,
        }
    }

    /// Says that a request comes to a piece now. Answers whether it still should: a demand may have taken it away.
    pub fn begins(&mut self, request: &Request, piece: usize) -> bool {
        let Some(blob) = self.blob_of(request) else { return false };
        if blob.pieces[piece] != Piece::Asked(request.number) {
            return false;
        }
        blob.pieces[piece] = Piece::Arriving(request.number);
        if let Some(under_way) = self.under_way.get_mut(&request.number) {
            under_way.comes_to(piece);
        }
        true
    }

    /// Says that pieces of a request are written.
    pub fn landed(&mut self, request: &Request, pieces: impl IntoIterator<Item = usize>) {
        let Some(blob) = self.blob_of(request) else { return };
        let mut landed = 0;
        for piece in pieces {
            blob.pieces[piece] = Piece::Here;
            landed += blob.placement.pieces()[piece].object.len();
        }
        self.landed_bytes += landed;
    }

    /// Says that a request ended; what did not land of it is missing again.
    pub fn ended(&mut self, request: &Request) {
        self.under_way.remove(&request.number);
        let Some(blob) = self.blob_of(request) else { return };
        let mut missing_again = 0;
        for piece in request.pieces.clone() {
            if matches!(blob.pieces[piece], Piece::Asked(of) | Piece::Arriving(of) if of == request.number) {
                blob.pieces[piece] = Piece::Missing;
                blob.cursor = blob.cursor.min(piece);
                missing_again += blob.placement.pieces()[piece].object.len();
            }
        }
        let (rank, is_waiting) = (blob.rank, blob.cursor < blob.pieces.len());
        self.missing_bytes += missing_again;
        if is_waiting {
            self.waiting.insert((rank, request.key));
        }
    }

    fn blob_of(&mut self, request: &Request) -> Option<&mut Blob> {
        self.blobs.get_mut(&request.key).filter(|blob| blob.rank.arrival == request.arrival)
    }

    /// Wants a blob no longer.
    pub fn remove(&mut self, key: &BlobKey) {
        if let Some(blob) = self.blobs.remove(key) {
            let missing = blob
                .pieces
                .iter()
                .zip(blob.placement.pieces())
                .filter(|(state, _)| **state == Piece::Missing);
            self.missing_bytes -= missing.map(|(_, piece)| piece.object.len()).sum::<u64>();
            self.waiting.remove(&(blob.rank, *key));
            self.demands.retain(|demand| demand.key != *key);
            self.ahead.retain(|demand| demand.key != *key);
            self.preferred.remove(key);
            if self.blobs.is_empty() {
                self.landed_bytes = 0;
                self.preferred.clear();
            }
        }
    }

    /// Bytes that nobody has asked for yet.
    pub fn missing_bytes(&self) -> u64 {
        self.missing_bytes
    }
}

#[cfg(test)]
mod tests;
