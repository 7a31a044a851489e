//! Copies that a device is making: what it reads is held until it has read it, by a thread that waits for that.

use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    sync::{Arc, Condvar, Mutex, PoisonError, Weak},
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

/// The copies to one device, in their order.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Task>,
    /// Of all that have room, whether their copies have begun or not.
    bytes: usize,
    /// How many those are.
    count: usize,
    /// Whether there is a thread to wait.
    is_attended: bool,
    /// Whether it is at something that is in the queue no longer.
    is_busy: bool,
}

/// What the thread does next.
enum Task {
    /// Waits for an event, and lets go of what is held until then.
    Wait { event: Handle, events: Arc<Events>, held: Vec<Held>, room: Room, failed: Weak<Failed> },
    /// Lets go of something, when all before it is done.
    Drop(Held),
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wait { .. } => "Wait",
            Self::Drop(_) => "Drop",
        })
    }
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
        device: &'static Device,
        event: Handle,
        events: Arc<Events>,
        held: Vec<Held>,
        room: Room,
        failed: &Arc<Failed>,
    ) {
        self.push(device, Task::Wait { event, events, held, room, failed: Arc::downgrade(failed) });
    }

    /// Lets go of something when all copies that have begun are over, on the thread: undoing a registration takes long.
    pub(super) fn bury(&self, device: &'static Device, dead: Held) {
        self.push(device, Task::Drop(dead));
    }

    /// Waits until nothing is on its way any more, but not longer than that.
    pub(super) fn settle(&self, patience: Duration) {
        let is_at_work = |state: &mut State| state.is_busy || (state.is_attended && !state.queue.is_empty());
        drop(self.changed.wait_timeout_while(lock(&self.state), patience, is_at_work));
    }

    fn push(&self, device: &'static Device, task: Task) {
        let mut state = lock(&self.state);
        state.queue.push_back(task);
        if !state.is_attended {
            let thread = thread::Builder::new().name(format!("weightd-cuda:{}", device.number()));
            let started = thread.spawn(move || device.flights().attend(device));
            // Without a thread it is tried again with the next copy, and until then nothing is let go of.
            state.is_attended = started.is_ok();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// What the thread does, until the process ends.
    fn attend(&self, device: &'static Device) {
        loop {
            let mut state = lock(&self.state);
            state.is_busy = false;
            self.changed.notify_all();
            let task = loop {
                match state.queue.pop_front() {
                    Some(task) => break task,
                    None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            state.is_busy = true;
            drop(state);
            match task {
                Task::Drop(dead) => drop(dead),
                Task::Wait { event, events, held, room, failed } => {
                    let outcome = device.enter().and_then(|_entered| device.wait_for(event));
                    if let (Err(failure), Some(failed)) = (outcome, failed.upgrade()) {
                        lock(&failed.0).get_or_insert(failure);
                    }
                    // Of a copy that failed the device reads nothing more.
                    drop(held);
                    events.give_back(event);
                    drop(room);
                }
            }
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
        if !self.device.is_ours() {
            return;
        }
        let Ok(_entered) = self.device.enter() else { return };
        for event in lock(&self.free).drain(..) {
            self.device.destroy_event(event);
        }
    }
}
