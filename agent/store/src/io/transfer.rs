//! One read or write on its way, as steps that a descriptor can take. The ring and the threads both run it, so
//! short transfers, interruptions and alignment are handled in one place.

use std::{collections::VecDeque, io, os::unix::fs::FileExt, sync::Arc};

use rustix::io::Errno;
use tokio::sync::oneshot;

use super::{Buffer, IoFile, file::block_bytes};

/// Writes under way at once: at 8 MiB each enough for any disk, and few enough that a read which comes behind them, in a
/// queue that only the disk can see, waits for milliseconds.
const WRITES_AT_ONCE: usize = 4;

/// Reads into lent memory under way at once: 128 MiB past the page cache, for which a disk gives most. Whoever lends has more of them
/// wait, so that a disk has the next before anyone sums what it gave.
const FILLS_AT_ONCE: usize = 32;

/// Most bytes that a step reads past the cache: whoever reads many chunks at once has their beginnings before all of them.
const READ_STEP_BYTES: usize = 4 << 20;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the file into the buffer.
    Read,
    /// From the buffer into the file.
    Write,
}

/// What a transfer is, as far as its turn goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Into a buffer of a pool, which has few.
    Read,
    /// Into lent memory, of which there is much, and someone waits for it.
    AwaitedFill,
    /// The same, and nobody waits for it yet.
    Fill,
    /// Nobody waits for it.
    Write,
}

/// How many transfers are under way, of the kinds of which that is limited.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct UnderWay {
    awaited_fills: usize,
    fills: usize,
    writes: usize,
}

impl UnderWay {
    pub(super) fn begun(&mut self, kind: Kind) {
        if let Some(count) = self.count(kind) {
            *count += 1;
        }
    }

    pub(super) fn ended(&mut self, kind: Kind) {
        if let Some(count) = self.count(kind) {
            *count -= 1;
        }
    }

    fn count(&mut self, kind: Kind) -> Option<&mut usize> {
        match kind {
            Kind::Read => None,
            Kind::AwaitedFill => Some(&mut self.awaited_fills),
            Kind::Fill => Some(&mut self.fills),
            Kind::Write => Some(&mut self.writes),
        }
    }
}

/// The next system call: `len` bytes at `start` of the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) direct: bool,
    pub(super) start: usize,
    pub(super) len: usize,
}

/// What bytes move into or out of.
#[derive(Debug)]
pub(super) enum Memory {
    /// A read's, which nobody else sees until it is done.
    Filling(Buffer),
    /// A write's, which others may read meanwhile.
    Shared(Arc<Buffer>),
}

impl Memory {
    pub(super) fn buffer(&self) -> &Buffer {
        match self {
            Self::Filling(buffer) => buffer,
            Self::Shared(buffer) => buffer,
        }
    }

    /// The buffer of a read.
    pub(super) fn into_filled(self) -> Buffer {
        match self {
            Self::Filling(buffer) => buffer,
            Self::Shared(_) => unreachable!("only a read's buffer is given back"),
        }
    }

    /// Leaves the memory to the kernel, which may still be at work in it.
    pub(super) fn abandon(&mut self) {
        match self {
            Self::Filling(buffer) => buffer.abandon_memory(),
            Self::Shared(buffer) => buffer.abandon_shared_memory(),
        }
    }
}

/// A read or write. Holds its memory until it is done.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) file: Arc<IoFile>,
    pub(super) memory: Memory,
    /// Where the buffer's first byte lies in the file.
    offset: u64,
    /// How many bytes are wanted.
    end: usize,
    /// How many bytes have moved.
    done: usize,
    outcome: Option<io::Result<()>>,
}

/// A transfer and who waits for it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) transfer: Transfer,
    reply: oneshot::Sender<Answer>,
}

/// Jobs that wait for their turn: what someone waits for goes first, and writes last.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    reads: VecDeque<Job>,
    awaited_fills: VecDeque<Job>,
    fills: VecDeque<Job>,
    writes: VecDeque<Job>,
}

impl Waiting {
    pub(super) fn push(&mut self, job: Job) {
        match job.transfer.kind() {
            Kind::Read => self.reads.push_back(job),
            Kind::AwaitedFill => self.awaited_fills.push_back(job),
            Kind::Fill => self.fills.push_back(job),
            Kind::Write => self.writes.push_back(job),
        }
    }

    /// The next job beside what is under way: none of a kind of which that is enough.
    pub(super) fn pop(&mut self, under_way: UnderWay) -> Option<Job> {
        let UnderWay { awaited_fills, fills, writes } = under_way;
        let mut next = self.reads.pop_front();
        // Whatever hangs that nobody waits for: what someone does goes past it.
        if next.is_none() && awaited_fills < FILLS_AT_ONCE {
            next = self.awaited_fills.pop_front();
        }
        if next.is_none() && awaited_fills + fills < FILLS_AT_ONCE {
            next = self.fills.pop_front();
        }
        if next.is_none() && writes < WRITES_AT_ONCE {
            next = self.writes.pop_front();
        }
        next
    }

    pub(super) fn is_empty(&self) -> bool {
        let Self { reads, awaited_fills, fills, writes } = self;
        [reads, awaited_fills, fills, writes].into_iter().all(VecDeque::is_empty)
    }

    /// All of them, to be failed.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Job> + use<> {
        let all = std::mem::take(self);
        all.reads.into_iter().chain(all.awaited_fills).chain(all.fills).chain(all.writes)
    }
}

/// The memory back, and how it went.
pub(super) type Answer = (Memory, io::Result<()>);

impl Job {
    /// A job, and where its answer will come.
    pub(super) fn new(transfer: Transfer) -> (Self, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        (Self { transfer, reply }, answer)
    }

    /// Tells the caller. One that went away leaves the buffer to be dropped, back into its pool.
    pub(super) fn answer(self) {
        drop(self.reply.send(self.transfer.finish()));
    }
}

impl Transfer {
    /// Fills `buffer` with `len` bytes from `offset`.
    pub(super) fn read(file: Arc<IoFile>, offset: u64, len: usize, buffer: Buffer) -> Self {
        let refused = if !offset.is_multiple_of(super::BLOCK_BYTES) {
            Some(format!("a read at {offset} does not begin on a block"))
        } else if len.next_multiple_of(block_bytes()) > buffer.capacity() {
            Some(format!("a read of {len} bytes does not fit a buffer"))
        } else {
            None
        };
        let outcome = refused.map(|why| Err(io::Error::new(io::ErrorKind::InvalidInput, why)));
        Self { file, memory: Memory::Filling(buffer), offset, end: len, done: 0, outcome }
    }

    /// Writes what is filled of `buffer` at `offset`.
    pub(super) fn write(file: Arc<IoFile>, offset: u64, buffer: Arc<Buffer>) -> Self {
        let end = buffer.len();
        Self { file, memory: Memory::Shared(buffer), offset, end, done: 0, outcome: None }
    }

    pub(super) fn direction(&self) -> Direction {
        match self.memory {
            Memory::Filling(_) => Direction::Read,
            Memory::Shared(_) => Direction::Write,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match &self.memory {
            Memory::Filling(buffer) if buffer.is_lent() && buffer.is_awaited() => Kind::AwaitedFill,
            Memory::Filling(buffer) if buffer.is_lent() => Kind::Fill,
            Memory::Filling(_) => Kind::Read,
            Memory::Shared(_) => Kind::Write,
        }
    }

    /// What to do next; `None` when the transfer is over.
    pub(super) fn next(&self) -> Option<Step> {
        let remaining = self.end.saturating_sub(self.done);
        if self.outcome.is_some() || remaining == 0 {
            return None;
        }
        let alignment = self.file.memory_alignment();
        let (direct, len) = plan(self.direction(), self.position(), self.done, remaining, alignment);
        Some(Step { direct, start: self.done, len })
    }

    /// Where in the file the next step begins.
    pub(super) fn position(&self) -> u64 {
        self.offset + self.done as u64
    }

    /// Notes what the system call of a step returned: bytes moved, or an error.
    pub(super) fn advance(&mut self, result: Result<usize, Errno>) {
        match result {
            Ok(0) if self.direction() == Direction::Read => self.outcome = Some(Ok(())),
            Ok(0) => self.fail(io::ErrorKind::WriteZero.into()),
            Ok(moved) => self.done += moved,
            // The same step comes again.
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => self.fail(error.into()),
        }
    }

    /// Ends the transfer with an error.
    pub(super) fn fail(&mut self, error: io::Error) {
        self.outcome = Some(Err(error));
    }

    /// Takes all steps with plain system calls.
    pub(super) fn run(&mut self) {
        while let Some(step) = self.next() {
            let result = self.call(step);
            self.advance(result);
        }
    }

    fn call(&mut self, step: Step) -> Result<usize, Errno> {
        let position = self.position();
        let range = step.start..step.start + step.len;
        let file = self.file.descriptor(step.direct);
        let moved = match &mut self.memory {
            Memory::Filling(buffer) => file.read_at(&mut buffer.whole_mut()[range], position),
            Memory::Shared(buffer) => file.write_at(&buffer.whole()[range], position),
        };
        moved.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    /// The memory and the outcome, once [`Transfer::next`] says `None`.
    pub(super) fn finish(mut self) -> Answer {
        if let Memory::Filling(buffer) = &mut self.memory {
            // A direct read takes whole blocks, so more than was asked for may have come.
            buffer.set_len(self.done.min(self.end));
        }
        (self.memory, self.outcome.unwrap_or(Ok(())))
    }
}

/// Whether to bypass the cache, and for how many bytes. No two steps of a transfer share a block unless one of
/// them ended inside it, and then the rest of that block goes through the cache, after it.
fn plan(
    direction: Direction,
    position: u64,
    start: usize,
    remaining: usize,
    alignment: Option<usize>,
) -> (bool, usize) {
    let block = block_bytes();
    let Some(alignment) = alignment else { return (false, remaining) };
    let head =
        usize::try_from(position.next_multiple_of(super::BLOCK_BYTES) - position).expect("less than a block");
    if !(start + head).is_multiple_of(alignment) {
        // Even from the next block on, the device could not take this memory.
        (false, remaining)
    } else if head > 0 {
        (false, head.min(remaining))
    } else if direction == Direction::Read {
        (true, remaining.next_multiple_of(block).min(READ_STEP_BYTES))
    } else if remaining >= block {
        (true, remaining - remaining % block)
    } else {
        (false, remaining)
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use std::ptr::NonNull;

    use memmap2::MmapMut;

    use super::{Direction::*, *};

    /// Runs a plan with system calls that move at most `most` bytes.
    fn steps(
        direction: Direction,
        offset: u64,
        len: usize,
        alignment: usize,
        most: usize,
    ) -> Vec<(bool, usize)> {
        let (mut done, mut steps) = (0, Vec::new());
        while done < len {
            let (direct, n) = plan(direction, offset + done as u64, done, len - done, Some(alignment));
            let moved = n.min(most);
            steps.push((direct, moved));
            done += moved;
        }
        steps
    }

    #[test]
    fn whole_blocks_go_direct_and_the_rest_through_the_cache() {
        assert_eq!(steps(Write, 8192, 8192, 512, usize::MAX), [(true, 8192)]);
        assert_eq!(steps(Write, 0, 8192 + 100, 512, usize::MAX), [(true, 8192), (false, 100)]);
        assert_eq!(steps(Write, 4096, 100, 512, usize::MAX), [(false, 100)]);
        assert_eq!(steps(Write, 4000, 50, 4, usize::MAX), [(false, 50)]);
    }

    #[test]
    fn an_odd_offset_goes_direct_only_if_memory_is_aligned_for_it() {
        assert_eq!(
            steps(Write, 4096 - 512, 9000, 512, usize::MAX),
            [(false, 512), (true, 8192), (false, 296)]
        );
        assert_eq!(steps(Write, 100, 9000, 512, usize::MAX), [(false, 9000)]);
    }

    #[test]
    fn short_writes_finish_their_block_through_the_cache() {
        let short = steps(Write, 0, 12288, 512, 4096 + 1024);
        assert_eq!(short, [(true, 5120), (false, 3072), (true, 4096)]);
    }

    #[test]
    fn reads_take_whole_blocks() {
        assert_eq!(steps(Read, 4096, 5000, 512, usize::MAX), [(true, 8192)]);
        let (step, rest) = (READ_STEP_BYTES, 5000);
        assert_eq!(steps(Read, 0, step + rest, 512, usize::MAX), [(true, step), (true, 8192)]);
        assert_eq!(plan(Read, 0, 0, 100, None), (false, 100));
    }

    #[test]
    fn results_of_system_calls_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let file = Arc::new(IoFile::create(&directory.path().join("blob"), 0, false).unwrap());
        let pool = super::super::BufferPool::new(1).unwrap();
        let write = || {
            let mut buffer = pool.try_acquire().unwrap();
            buffer.set_len(10_000);
            Transfer::write(Arc::clone(&file), 0, Arc::new(buffer))
        };
        let mut transfer = write();
        let whole = transfer.next();
        for interruption in [Errno::INTR, Errno::AGAIN] {
            transfer.advance(Err(interruption));
            assert_eq!(transfer.next(), whole, "the same step again");
        }
        transfer.advance(Ok(4000));
        assert_eq!(transfer.next(), Some(Step { direct: false, start: 4000, len: 6000 }));
        transfer.advance(Ok(6000));
        assert_eq!(transfer.next(), None);
        transfer.finish().1.unwrap();

        for (result, kind) in
            [(Ok(0), io::ErrorKind::WriteZero), (Err(Errno::NOSPC), io::ErrorKind::StorageFull)]
        {
            let mut transfer = write();
            transfer.advance(Ok(4096));
            transfer.advance(result);
            assert_eq!(transfer.next(), None);
            let (buffer, outcome) = transfer.finish();
            assert_eq!((buffer.buffer().len(), outcome.unwrap_err().kind()), (10_000, kind));
        }
    }

    #[test]
    fn reads_go_first_and_no_more_of_the_others_than_a_disk_needs() {
        let directory = tempfile::tempdir().unwrap();
        let file = Arc::new(IoFile::create(&directory.path().join("blob"), 0, false).unwrap());
        let pool = super::super::BufferPool::new(3).unwrap();
        let mut waiting = Waiting::default();
        let pooled = || pool.try_acquire().unwrap();
        let mut memory = MmapMut::map_anon(2 * 4096).unwrap();
        let mut lend = |at: usize| {
            let start = NonNull::new(memory[at..].as_mut_ptr()).unwrap();
            // SAFETY: the memory outlasts the buffers, each has its own of it, and nothing is read into either.
            unsafe { Buffer::lent(start, 4096, Box::new(Nobody)) }
        };
        let (awaited, for_later) = (lend(0), lend(4096).for_later());
        let write = || Job::new(Transfer::write(Arc::clone(&file), 0, Arc::new(pooled()))).0;
        let read = |buffer| Job::new(Transfer::read(Arc::clone(&file), 0, 1, buffer)).0;
        for job in [write(), write(), read(for_later), read(awaited), read(pooled())] {
            waiting.push(job);
        }
        let mut pop = |awaited_fills, fills, writes| {
            let under_way = UnderWay { awaited_fills, fills, writes };
            waiting.pop(under_way).map(|job| job.transfer.kind())
        };
        let (fills, writes) = (FILLS_AT_ONCE, WRITES_AT_ONCE);
        assert_eq!(pop(fills, fills, writes), Some(Kind::Read));
        assert_eq!(pop(fills, fills, writes), None);
        assert_eq!(pop(fills, fills, writes - 1), Some(Kind::Write));
        assert_eq!(pop(0, fills, writes), Some(Kind::AwaitedFill), "past all that nobody waits for");
        assert_eq!(pop(1, fills - 1, writes), None);
        assert_eq!(pop(0, fills - 1, writes), Some(Kind::Fill));
        assert!(!waiting.is_empty());
        assert_eq!((waiting.take_all().count(), waiting.is_empty()), (1, true));
    }

    struct Nobody;

    impl super::super::Lender for Nobody {
        fn landed(&self, _: weightd_types::Crc32c) {}
    }
}
