//! What is known of a ring: which tensors are in it, who has them, and what is to be said about it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::param::page_size;
use weightd_proto::v1::{
    HandoffDelivered, HandoffFull, HandoffRange, HandoffRelease, HandoffWant, handoff_answer::Answer,
    handoff_request::Request as Said,
};

use super::{
    Table,
    line::{Notes, RANGES, out_of_order},
};

/// Where every tensor begins.
const ALIGNMENT: usize = 256;
/// Most tensors that one packet releases. Each takes up to 5 bytes of its 64 KiB.
const RELEASES: usize = 8192;
/// For how long nothing may be given back while the ring is full, before nobody waits for that any more.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A ring, and what of the tensors of a table is in it.
#[derive(Debug)]
pub(super) struct RingState {
    table: Arc<Table>,
    bytes: usize,
    tensors: Vec<Whereabouts>,
    /// The pages of what is in the ring, from the first of each tensor.
    pages: BTreeMap<usize, Pages>,
    /// How many wait for each tensor that someone waits for.
    awaited: HashMap<usize, usize>,
    /// What has no room, as the agent said, if nothing came since.
    full: Option<Full>,
    /// When something was given back last.
    released: Option<Instant>,
    /// What the agent is to be told, in this order: it is that of what happened here.
    outbox: VecDeque<Said>,
    /// Whether a thread is telling it.
    is_telling: bool,
}

/// Where a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whereabouts {
    Away,
    /// It was wanted.
    Coming,
    /// In the ring, from there on, and nobody has it.
    There(usize),
    /// In the ring as well, and in use.
    Taken(usize),
}

#[derive(Debug)]
struct Pages {
    end: usize,
    tensor: usize,
}

#[derive(Debug, Clone, Copy)]
struct Full {
    tensor: usize,
    /// How much of the ring it takes.
    bytes: usize,
    since: Instant,
}

/// What someone who waits for a tensor can do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is there: where its bytes begin. From now on it is in use.
    Take(usize),
    /// The agent is to be told something.
    Tell,
    /// There is no room, nor will there be: so many tensors with so many bytes are in use.
    Stuck { tensors: usize, held: usize },
}

/// Someone who waits for a tensor.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) position: usize,
    since: Instant,
    /// Whether the agent was told that this one comes before others.
    is_wanted: bool,
}

impl Awaited {
    pub(super) fn new(position: usize) -> Self {
        Self { position, since: Instant::now(), is_wanted: false }
    }
}

impl RingState {
    pub(super) fn new(table: Arc<Table>, bytes: usize) -> Self {
        let tensors = vec![Whereabouts::Away; table.tensors().len()];
        Self {
            table,
            bytes,
            tensors,
            pages: BTreeMap::new(),
            awaited: HashMap::new(),
            full: None,
            released: None,
            outbox: VecDeque::new(),
            is_telling: false,
        }
    }

    /// Whether a tensor can be taken without waiting.
    pub(super) fn is_there(&self, position: usize) -> bool {
        self.bytes_of(position) == 0 || matches!(self.tensors[position], Whereabouts::There(_))
    }

    /// Puts tensors before others, in this order.
    pub(super) fn want(&mut self, tensors: impl IntoIterator<Item = usize>) {
        let mut wanted = Vec::new();
        for position in tensors {
            let is_absent = matches!(self.tensors[position], Whereabouts::Away | Whereabouts::Coming);
            if is_absent && self.bytes_of(position) > 0 {
                self.tensors[position] = Whereabouts::Coming;
                wanted.push(number(position));
            }
        }
        for ranges in HandoffRange::joined(wanted).chunks(RANGES) {
            self.outbox.push_back(Said::Want(HandoffWant { tensors: ranges.to_vec(), verified: false }));
        }
    }

    /// Someone begins to wait for a tensor.
    pub(super) fn begin(&mut self, awaited: &Awaited) {
        *self.awaited.entry(awaited.position).or_default() += 1;
    }

    /// Waits for it no longer.
    pub(super) fn end(&mut self, awaited: &Awaited) {
        if let Some(count) = self.awaited.get_mut(&awaited.position) {
            *count -= 1;
            if *count == 0 {
                self.awaited.remove(&awaited.position);
            }
        }
    }

    /// What someone who waits can do now; none when there is only waiting.
    pub(super) fn step(&mut self, awaited: &mut Awaited) -> Option<Step> {
        let position = awaited.position;
        if self.bytes_of(position) == 0 {
            return Some(Step::Take(0));
        }
        match self.tensors[position] {
            Whereabouts::There(offset) => {
                self.tensors[position] = Whereabouts::Taken(offset);
                return Some(Step::Take(offset));
            }
            Whereabouts::Coming if awaited.is_wanted => {}
            // What was wanted with many others may be far behind them.
            Whereabouts::Away | Whereabouts::Coming => {
                awaited.is_wanted = true;
                self.want([position]);
            }
            Whereabouts::Taken(_) => {}
        }
        self.make_room();
        if !self.outbox.is_empty() && !self.is_telling {
            return Some(Step::Tell);
        }
        self.is_stuck(awaited).then(|| self.stuck())
    }

    /// Takes note that a tensor is in use no longer.
    pub(super) fn give_back(&mut self, position: usize) {
        self.release(position);
        self.released = Some(Instant::now());
        // Whoever waits for it cannot know when to want it again.
        if self.awaited.contains_key(&position) {
            self.want([position]);
        }
    }

    /// The next that the agent is to be told, unless another thread is telling it.
    pub(super) fn next_to_tell(&mut self) -> Option<Said> {
        if self.is_telling {
            return None;
        }
        let said = self.outbox.pop_front()?;
        self.is_telling = true;
        Some(said)
    }

    /// It was told.
    pub(super) fn was_told(&mut self) {
        self.is_telling = false;
    }

    fn bytes_of(&self, position: usize) -> usize {
        self.table.tensors()[position].bytes
    }

    /// Gives back what nobody has asked for, when there is no room for what someone has.
    fn make_room(&mut self) {
        if self.full.is_none() {
            return;
        }
        let idle: Vec<_> = self.pages.values().map(|pages| pages.tensor).collect();
        for position in idle {
            let is_there = matches!(self.tensors[position], Whereabouts::There(_));
            if is_there && !self.awaited.contains_key(&position) {
                self.release(position);
                self.released = Some(Instant::now());
            }
        }
    }

    fn release(&mut self, position: usize) {
        let before = mem::replace(&mut self.tensors[position], Whereabouts::Away);
        if let Whereabouts::There(offset) | Whereabouts::Taken(offset) = before {
            self.pages.remove(&first_page(offset));
        }
        match self.outbox.back_mut() {
            Some(Said::Release(release)) if release.tensors.len() < RELEASES => {
                release.tensors.push(number(position));
            }
            _ => {
                let tensors = vec![number(position)];
                self.outbox.push_back(Said::Release(HandoffRelease { tensors }));
            }
        }
    }

    /// Whether there is no room for a tensor, and nobody has made any for long.
    fn is_stuck(&self, awaited: &Awaited) -> bool {
        let Some(full) = self.full else { return false };
        let last = [Some(awaited.since), Some(full.since), self.released].into_iter().flatten().max();
        if last.is_none_or(|last| last.elapsed() < PATIENCE) {
            return false;
        }
        let needed = if full.tensor == awaited.position {
            full.bytes
        } else {
            // An agent may leave something before the first byte, as long as it is less than a page.
            self.bytes_of(awaited.position) + page_size()
        };
        !self.has_room(needed)
    }

    fn stuck(&self) -> Step {
        let held = self.pages.iter().map(|(start, pages)| pages.end - start).sum();
        Step::Stuck { tensors: self.pages.len(), held }
    }

    fn has_room(&self, bytes: usize) -> bool {
        let ends = [0].into_iter().chain(self.pages.values().map(|pages| pages.end));
        let starts = self.pages.keys().copied().chain([self.bytes]);
        ends.zip(starts).any(|(end, start)| start.saturating_sub(end) >= bytes)
    }

    /// Takes note of a tensor that has come.
    fn deliver(&mut self, position: usize, offset: usize) -> Result<(), String> {
        let Some(tensor) = self.table.tensors().get(position) else {
            return Err("delivered a tensor that is not there".to_owned());
        };
        let problem = |problem: &str| Err(format!("delivered the tensor {:?} {problem}", tensor.name));
        if tensor.bytes == 0 {
            return problem("which has no bytes");
        }
        if !matches!(self.tensors[position], Whereabouts::Away | Whereabouts::Coming) {
            return problem("twice");
        }
        if !offset.is_multiple_of(ALIGNMENT) {
            return problem("at no multiple of 256 bytes");
        }
        let Some(end) = offset.checked_add(tensor.bytes).filter(|&end| end <= self.bytes) else {
            return problem("outside of the ring");
        };
        let (start, end) = (first_page(offset), end.next_multiple_of(page_size()));
        let before = self.pages.range(..end).next_back();
        if before.is_some_and(|(_, before)| before.end > start) {
            return problem("on pages of another one");
        }
        self.pages.insert(start, Pages { end, tensor: position });
        self.tensors[position] = Whereabouts::There(offset);
        Ok(())
    }

    fn learn_delivered(&mut self, delivered: &HandoffDelivered) -> Result<(), String> {
        self.full = None;
        delivered.places.iter().try_for_each(|place| {
            let offset = usize::try_from(place.offset).unwrap_or(usize::MAX);
            self.deliver(place.tensor as usize, offset)
        })
    }

    fn learn_full(&mut self, full: HandoffFull) -> Result<(), String> {
        let tensor = full.tensor as usize;
        if tensor >= self.tensors.len() {
            return Err("has no room for a tensor that is not there".to_owned());
        }
        let bytes = usize::try_from(full.bytes).unwrap_or(usize::MAX);
        self.full = Some(Full { tensor, bytes, since: Instant::now() });
        Ok(())
    }
}

impl Notes for RingState {
    fn learn(&mut self, answer: Answer) -> Result<(), String> {
        match answer {
            Answer::Delivered(delivered) => self.learn_delivered(&delivered),
            Answer::Full(full) => self.learn_full(full),
            Answer::Opened(_) | Answer::Arenas(_) | Answer::Ready(_) | Answer::Failed(_) => {
                Err(out_of_order())
            }
        }
    }

    fn forget_provisional(&mut self) {
        for whereabouts in &mut self.tensors {
            if matches!(whereabouts, Whereabouts::There(_)) {
                *whereabouts = Whereabouts::Away;
            }
        }
    }
}

fn first_page(offset: usize) -> usize {
    offset / page_size() * page_size()
}

/// A position as it is told. Tables with more tensors than fit are refused.
#[expect(clippy::cast_possible_truncation, reason = "the table has no more")]
fn number(position: usize) -> u32 {
    position as u32
}

#[cfg(test)]
mod tests {
    use bolero::TypeGenerator;
    use prost::Message;
    use weightd_proto::v1::{HandoffFile, HandoffPlace, HandoffTable, HandoffTensor};

    use super::*;
    use crate::handoff::table::Room;

    /// What happens to a ring, by an agent that says what it likes and by whoever uses it.
    #[derive(Debug, TypeGenerator)]
    enum Happening {
        Delivered(Vec<(u8, u8)>),
        Full(u8),
        Want(u8),
        Take(u8),
        GiveBack(u8),
        Tell,
    }

    fn ring(pages: usize) -> RingState {
        let tensor = |bytes: u64| HandoffTensor {
            name: format!("{bytes} bytes"),
            dtype: "U8".to_owned(),
            shape: vec![bytes],
            bytes,
            ..HandoffTensor::default()
        };
        let page = page_size() as u64;
        let tensors = [1, 0, page, page + 1, 3 * page, 300, 256, 2 * page].map(tensor).into();
        let table = HandoffTable { files: vec![HandoffFile::default()], tensors };
        let table = Table::parse(&table.encode_to_vec(), Room::Ring).unwrap();
        RingState::new(Arc::new(table), pages * page_size())
    }

    /// Whether everything in the ring has pages of its own in there, and nothing else has any.
    fn check(ring: &RingState) {
        let mut end = 0;
        for (&start, pages) in &ring.pages {
            assert!(end <= start && start < pages.end && pages.end <= ring.bytes, "{ring:?}");
            end = pages.end;
            let (Whereabouts::There(offset) | Whereabouts::Taken(offset)) = ring.tensors[pages.tensor] else {
                panic!("{ring:?}");
            };
            assert!(start <= offset && offset + ring.bytes_of(pages.tensor) <= pages.end, "{ring:?}");
        }
        let is_in = |at: &&Whereabouts| matches!(at, Whereabouts::There(_) | Whereabouts::Taken(_));
        assert_eq!(ring.tensors.iter().filter(is_in).count(), ring.pages.len(), "{ring:?}");
    }

    #[test]
    fn whatever_an_agent_says_no_two_tensors_share_a_page() {
        bolero::check!().with_type::<Vec<Happening>>().for_each(|happenings| {
            let mut ring = ring(6);
            let mut told: Vec<u32> = Vec::new();
            for happening in happenings {
                let position = |number: &u8| usize::from(number % 8);
                match happening {
                    Happening::Delivered(places) => {
                        let place = |(tensor, offset): &(u8, u8)| HandoffPlace {
                            tensor: u32::from(tensor % 9),
                            offset: 128 * u64::from(*offset),
                        };
                        let places = places.iter().map(place).collect();
                        if ring.learn(Answer::Delivered(HandoffDelivered { places })).is_err() {
                            return check(&ring);
                        }
                    }
                    Happening::Full(tensor) => {
                        let full = HandoffFull { tensor: u32::from(tensor % 8), bytes: 4096 };
                        ring.learn(Answer::Full(full)).unwrap();
                    }
                    Happening::Want(number) => ring.want([position(number)]),
                    Happening::Take(number) => {
                        let mut awaited = Awaited::new(position(number));
                        ring.begin(&awaited);
                        let _step = ring.step(&mut awaited);
                        ring.end(&awaited);
                    }
                    Happening::GiveBack(number) => {
                        if let Whereabouts::Taken(_) = ring.tensors[position(number)] {
                            ring.give_back(position(number));
                        }
                    }
                    Happening::Tell => {
                        if let Some(Said::Release(release)) = ring.next_to_tell() {
                            told.extend(release.tensors);
                        }
                        ring.was_told();
                    }
                }
                check(&ring);
            }
            assert!(ring.awaited.is_empty() && told.iter().all(|&tensor| ring.bytes_of(tensor as usize) > 0));
        });
    }

    #[test]
    fn what_is_given_back_and_wanted_is_told_in_the_order_of_that() {
        let mut ring = ring(6);
        let places = vec![HandoffPlace { tensor: 0, offset: 0 }, HandoffPlace { tensor: 2, offset: 8192 }];
        ring.learn(Answer::Delivered(HandoffDelivered { places })).unwrap();
        let mut first = Awaited::new(0);
        ring.begin(&first);
        assert_eq!(ring.step(&mut first), Some(Step::Take(0)));
        ring.end(&first);
        // Another one waits for the same, and is not told that it is to be wanted.
        let mut second = Awaited::new(0);
        ring.begin(&second);
        assert_eq!(ring.step(&mut second), None);
        ring.give_back(0);
        let said: Vec<_> = std::iter::from_fn(|| {
            let said = ring.next_to_tell();
            assert!(ring.next_to_tell().is_none(), "one thread tells it");
            ring.was_told();
            said
        })
        .collect();
        assert_eq!(said[0], Said::Release(HandoffRelease { tensors: vec![0] }));
        let Said::Want(want) = &said[1] else { panic!("{said:?}") };
        assert_eq!((want.tensors.as_slice(), said.len()), (&[HandoffRange { start: 0, end: 1 }][..], 2));
    }
}
