//! One thing at a time is done to one target, in the order in which it was asked for. kubelet mostly sees to that by
//! itself, but not across its restarts, and not when it has lost patience with a call that goes on.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedMutexGuard, watch};

/// Whose turn it is, of all targets.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns {
    places: Arc<Mutex<HashMap<PathBuf, Arc<Place>>>>,
}

#[derive(Debug)]
struct Place {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// How many want the volume away.
    leaving: watch::Sender<usize>,
}

/// Someone's turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Given back before the visit ends.
    _guard: OwnedMutexGuard<()>,
    visit: Visit,
}

/// Someone who waits for their turn, or has it.
#[derive(Debug)]
struct Visit {
    places: Arc<Mutex<HashMap<PathBuf, Arc<Place>>>>,
    target: PathBuf,
    place: Arc<Place>,
    is_leaving: bool,
}

impl Turns {
    /// Waits for the turn of someone who wants a volume there.
    pub(crate) async fn come(&self, target: &Path) -> Turn {
        self.take(target, false).await
    }

    /// Waits for the turn of someone who wants it away, and lets whoever waits for its bytes know.
    pub(crate) async fn leave(&self, target: &Path) -> Turn {
        self.take(target, true).await
    }

    async fn take(&self, target: &Path, is_leaving: bool) -> Turn {
        let visit = self.visit(target, is_leaving);
        let guard = Arc::clone(&visit.place.turn).lock_owned().await;
        Turn { _guard: guard, visit }
    }

    fn visit(&self, target: &Path, is_leaving: bool) -> Visit {
        let mut places = lock(&self.places);
        let new = || Arc::new(Place { turn: Arc::default(), leaving: watch::Sender::new(0) });
        let place = Arc::clone(places.entry(target.to_owned()).or_insert_with(new));
        if is_leaving {
            place.leaving.send_modify(|count| *count += 1);
        }
        Visit { places: Arc::clone(&self.places), target: target.to_owned(), place, is_leaving }
    }
}

impl Turn {
    /// Waits until someone wants the volume away.
    pub(crate) async fn is_unwanted(&self) {
        // The sender lives as long as this does.
        let _ = self.visit.place.leaving.subscribe().wait_for(|count| *count > 0).await;
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut places = lock(&self.places);
        if self.is_leaving {
            self.place.leaving.send_modify(|count| *count -= 1);
        }
        // Only the map and this visit know the place, and no one else can come to know it while the map is locked.
        if Arc::strong_count(&self.place) == 2 {
            places.remove(&self.target);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const NEVER: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn one_target_has_one_turn_and_another_its_own() {
        let (turns, one, other) = (Turns::default(), Path::new("/one"), Path::new("/other"));
        let first = turns.come(one).await;
        let _elsewhere = turns.come(other).await;
        assert!(timeout(NEVER, turns.come(one)).await.is_err(), "it is taken");
        drop(first);
        let _second = timeout(NEVER, turns.come(one)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_the_turn_hears_of_who_wants_it_away_and_no_longer_when_that_one_gave_up() {
        let (turns, target) = (Turns::default(), Path::new("/t"));
        let held = turns.come(target).await;
        assert!(timeout(NEVER, held.is_unwanted()).await.is_err());
        let leaving = turns.clone();
        let waiting = tokio::spawn(async move { leaving.leave(Path::new("/t")).await });
        timeout(NEVER, held.is_unwanted()).await.unwrap();
        waiting.abort();
        let _ = waiting.await;
        assert!(timeout(NEVER, held.is_unwanted()).await.is_err());
    }

    #[tokio::test]
    async fn nothing_is_kept_of_targets_that_nobody_visits() {
        let turns = Turns::default();
        let held = turns.come(Path::new("/t")).await;
        let waiting = turns.visit(Path::new("/t"), true);
        assert_eq!(lock(&turns.places).len(), 1);
        drop(held);
        assert_eq!(lock(&turns.places).len(), 1);
        drop(waiting);
        assert!(lock(&turns.places).is_empty());
    }
}
