//! Copies that a device is making: what it reads is held until it has read it, by a thread that waits for that. What takes long to
//! let go of is let go of by that thread too, when it has nothing to wait for.

use std::{
    any::Any,
    collections::VecDeque,
    fmt, io,
    sync::{
        Arc, Condvar, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    device::Device,
    driver::{Failure, Handle},
};
use crate::agents::lock;

/// Most copies at once. Each has an event.
const MAX_FLIGHTS: usize = 1024;

/// Anything that has to stay.
pub(super) type Held = Box<dyn Any + Send>;

/// Lets go of a part of something, and says whether there is more.
pub(super) type Undoing = Box<dyn FnMut() -> bool + Send>;

/// The copies to one device, in their order.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether the process ends, and the driver is not to be called any more.
    is_ending: AtomicBool,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Flight>,
    /// What is let go of when nothing is waited for.
    undoing: VecDeque<Undoing>,
    /// Of all that have room, whether their copies have begun or not.
    bytes: usize,
    /// How many those are.
    count: usize,
    /// Whether the thread waits for one that is in the queue no longer.
    is_waiting: bool,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("bytes", &self.bytes)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

/// A copy, what is held until its event comes to pass, and who is told if it failed.
struct Flight {
    event: Handle,
    events: Arc<Events>,
    held: Vec<Held>,
    room: Room,
    failed: Weak<Failed>,
}

/// What the thread does next.
enum Task {
    Wait(Flight),
    Undo(Undoing),
}

/// Room for so many bytes of a copy, given back when this is dropped.
#[derive(Debug)]
pub(super) struct Room {
    flights: Arc<Flights>,
    bytes: usize,
}

/// What came of copies after they had begun.
#[derive(Debug, Default)]
pub(super) struct Failed(Mutex<Option<Failure>>);

/// Events of a device that are used again and again.
#[derive(Debug)]
pub(super) struct Events {
    device: &'static Device,
    free: Mutex<Vec<Handle>>,
}

impl Flights {
    /// Waits for room for so many bytes, of which there may be `limit` at once, or one copy of any length. None when the
    /// patience is over.
    pub(super) fn room(self: &Arc<Self>, bytes: usize, limit: usize, patience: Duration) -> Option<Room> {
        let deadline = Instant::now() + patience;
        let mut state = lock(&self.state);
        while state.count > 0 && (state.bytes.saturating_add(bytes) > limit || state.count >= MAX_FLIGHTS) {
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.bytes = state.bytes.saturating_add(bytes);
        state.count += 1;
        Some(Room { flights: self.clone(), bytes })
    }

    /// Holds something until an event has come to pass.
    pub(super) fn hold(
        &self,
        event: Handle,
        events: Arc<Events>,
        held: Vec<Held>,
        room: Room,
        failed: &Arc<Failed>,
    ) {
        lock(&self.state).queue.push_back(Flight {
            event,
            events,
            held,
            room,
            failed: Arc::downgrade(failed),
        });
        self.changed.notify_all();
    }

    /// Lets go of something, part by part, on the thread: undoing a registration takes long, and a copy is not to wait for it.
    pub(super) fn undo(&self, undoing: Undoing) {
        if self.is_ending() {
            // The process's end does it.
            std::mem::forget(undoing);
            return;
        }
        lock(&self.state).undoing.push_back(undoing);
        self.changed.notify_all();
    }

    /// Waits until no copy is on its way any more, but not longer than that. From now on nothing is undone: who ends the process
    /// does that, and takes the driver from under whoever is in it.
    pub(super) fn settle(&self, patience: Duration) {
        self.is_ending.store(true, Ordering::Relaxed);
        let is_at_work = |state: &mut State| state.is_waiting || !state.queue.is_empty();
        drop(self.changed.wait_timeout_while(lock(&self.state), patience, is_at_work));
    }

    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Relaxed)
    }

    /// Starts the thread, which goes on until the process ends.
    pub(super) fn start(self: &Arc<Self>, device: &'static Device) -> io::Result<()> {
        let this = self.clone();
        let thread = thread::Builder::new().name(format!("weightd-cuda:{}", device.number()));
        thread.spawn(move || this.attend(device)).map(drop)
    }

    fn attend(&self, device: &'static Device) {
        loop {
            match self.next() {
                Task::Wait(Flight { event, events, held, room, failed }) => {
                    let outcome = device.enter().and_then(|_entered| device.wait_for(event));
                    if let (Err(failure), Some(failed)) = (outcome, failed.upgrade()) {
                        lock(&failed.0).get_or_insert(failure);
                    }
                    // Of a copy that failed the device reads nothing more.
                    drop(held);
                    events.give_back(event);
                    drop(room);
                }
                Task::Undo(mut undoing) => {
                    if undoing() {
                        lock(&self.state).undoing.push_front(undoing);
                    }
                }
            }
        }
    }

    /// Waits for something to do.
    fn next(&self) -> Task {
        let mut state = lock(&self.state);
        state.is_waiting = false;
        self.changed.notify_all();
        loop {
            if let Some(flight) = state.queue.pop_front() {
                state.is_waiting = true;
                return Task::Wait(flight);
            }
            if self.is_ending() {
                state.undoing.drain(..).for_each(std::mem::forget);
            } else if let Some(undoing) = state.undoing.pop_front() {
                return Task::Undo(undoing);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut state = lock(&self.flights.state);
        state.bytes = state.bytes.saturating_sub(self.bytes);
        state.count = state.count.saturating_sub(1);
        drop(state);
        self.flights.changed.notify_all();
    }
}

impl Failed {
    /// What went wrong first.
    pub(super) fn get(&self) -> Option<Failure> {
        lock(&self.0).clone()
    }
}

impl Events {
    pub(super) fn new(device: &'static Device) -> Self {
        Self { device, free: Mutex::default() }
    }

    /// An event that nobody uses. The device's context must be the thread's.
    pub(super) fn take(&self) -> Result<Handle, Failure> {
        let free = lock(&self.free).pop();
        free.map_or_else(|| self.device.create_event(), Ok)
    }

    /// Nobody waits for it any more.
    pub(super) fn give_back(&self, event: Handle) {
        lock(&self.free).push(event);
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let Some(_entered) = self.device.enter_to_undo() else { return };
        for event in lock(&self.free).drain(..) {
            self.device.destroy_event(event);
        }
    }
}
