//! Models that are wanted on this node: each has a task that brings it, keeps it, and lists its source now and then.
//!
//! The caller says the whole list each time, so that nothing has to be added up: an agent that was restarted, a list that
//! was changed meanwhile and a call that broke off all end with the same list said again.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weightd_fetch::FetchError;
use weightd_proto::v1::{self, Failure, FailureKind};
use weightd_store::{SnapshotRecord, Store, StoreError, Wish};
use weightd_types::{Layout, Selection, SnapshotKey, SourceUri};

use crate::{Control, failure, info};

#[cfg(test)]
mod tests;

/// How often a source is listed again unless the caller says otherwise.
const LIST_AGAIN: Duration = Duration::from_secs(3600);
/// Wait before a failed attempt is made again; doubles up to the limit. It is made for ever: whoever wants the model may
/// be given the right to read it at any time, and nobody tells the agent.
const PAUSE: Duration = Duration::from_secs(5);
const PAUSE_LIMIT: Duration = Duration::from_secs(300);
/// How often a model that is here is looked at: it may be removed by force, or lose a chunk.
const LOOK: Duration = Duration::from_secs(2);

/// What tells wishes apart.
type Name = (SourceUri, Layout);

/// The models that are wanted, and the tasks that see to them.
#[derive(Debug)]
pub(crate) struct Wishes {
    /// Held while the list changes, which takes several writes to the index.
    kept: tokio::sync::Mutex<BTreeMap<Name, Kept>>,
    list_again_seconds: Arc<AtomicU64>,
}

/// One that is seen to.
#[derive(Debug)]
struct Kept {
    priority: Arc<AtomicI32>,
    state: Arc<Mutex<State>>,
    /// It is being let go of, and a call that broke off, or the disk, left that half done. Its token does not say so: it is
    /// cancelled with the agent too.
    is_ending: bool,
    cancelled: CancellationToken,
    tasks: TaskTracker,
}

/// How one stands.
#[derive(Debug, Clone, Default)]
struct State {
    /// What is kept for it: what serves first, what is on its way last.
    snapshots: Vec<SnapshotKey>,
    failure: Option<Failed>,
}

/// Why something failed, for programs and for people.
type Failed = (FailureKind, String);

impl Kept {
    fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Default for Wishes {
    fn default() -> Self {
        let list_again_seconds = Arc::new(AtomicU64::new(LIST_AGAIN.as_secs()));
        Self { kept: tokio::sync::Mutex::default(), list_again_seconds }
    }
}

impl Wishes {
    /// Goes on with what an earlier run was told to keep.
    pub(crate) async fn resume(&self, control: &Control) -> Result<(), StoreError> {
        let mut kept = self.kept.lock().await;
        for wish in control.store().wishes().await? {
            kept.entry((wish.source.clone(), wish.layout)).or_insert_with(|| self.see_to(control, wish));
        }
        Ok(())
    }

    /// Makes the list what the caller says it is, and says how each model stands. What fails for one model is said of that
    /// one and stops no other.
    pub(crate) async fn set(
        &self,
        control: &Control,
        request: v1::SetWantedRequest,
    ) -> Result<v1::SetWantedResponse, StoreError> {
        let list_again = request.list_again_after.and_then(|after| u64::try_from(after.seconds).ok());
        let list_again = list_again.filter(|seconds| *seconds > 0).unwrap_or(LIST_AGAIN.as_secs());
        self.list_again_seconds.store(list_again, Ordering::Relaxed);
        let models: Vec<_> = request.models.into_iter().map(|model| (name_of(&model), model)).collect();
        let mut wanted = BTreeMap::<Name, i32>::new();
        for (name, model) in &models {
            if let Ok(name) = name {
                let priority = wanted.entry(name.clone()).or_insert(model.priority);
                *priority = (*priority).max(model.priority);
            }
        }
        let mut kept = self.kept.lock().await;
        // An agent that ends cancels its tasks, which is not to be taken for the end of what they see to.
        if control.stopping.is_cancelled() {
            return Err(StoreError::Closed);
        }
        if !request.keep_others {
            let_go(control.store(), &mut kept, &wanted).await?;
        }
        let mut failed = BTreeMap::<Name, Failed>::new();
        for (name, priority) in wanted {
            if let Err(error) = self.want(control, &mut kept, &name, priority).await {
                failed.insert(name, of_one(error)?);
            }
        }
        let mut answer = v1::SetWantedResponse::default();
        for (name, model) in models {
            answer.models.push(state_of(control, &kept, &failed, name, model).await?);
        }
        Ok(answer)
    }

    /// Has one model seen to, if it is not yet.
    async fn want(
        &self,
        control: &Control,
        kept: &mut BTreeMap<Name, Kept>,
        name: &Name,
        priority: i32,
    ) -> Result<(), StoreError> {
        let mut wish = Wish::new(name.0.clone(), name.1, priority);
        if let Some(known) = kept.get(name) {
            if !known.is_ending {
                known.priority.store(priority, Ordering::Relaxed);
                return Ok(());
            }
            // Half let go of, and wanted again: what was kept for it is kept on.
            known.tasks.wait().await;
            wish = wish.keeping(&known.state().snapshots);
        }
        control.store().set_wish(wish.clone()).await?;
        tracing::info!(source = %name.0, layout = %name.1, "wanted on this node");
        kept.insert(name.clone(), self.see_to(control, wish));
        Ok(())
    }

    fn see_to(&self, control: &Control, wish: Wish) -> Kept {
        let state = Arc::new(Mutex::new(State { snapshots: wish.snapshots().collect(), failure: None }));
        let priority = Arc::new(AtomicI32::new(wish.priority));
        let (cancelled, tasks) = (control.stopping.child_token(), TaskTracker::new());
        let task = Task {
            control: control.clone(),
            wish,
            priority: Arc::clone(&priority),
            state: Arc::clone(&state),
            cancelled: cancelled.clone(),
            list_again_seconds: Arc::clone(&self.list_again_seconds),
        };
        control.tasks.spawn(tasks.track_future(task.run()));
        tasks.close();
        Kept { priority, state, is_ending: false, cancelled, tasks }
    }
}

/// Ends what is no longer wanted. Each step can be repeated, because the caller may go away between any two. What the disk
/// does not let go of is tried again with the next call.
async fn let_go(
    store: &Store,
    kept: &mut BTreeMap<Name, Kept>,
    wanted: &BTreeMap<Name, i32>,
) -> Result<(), StoreError> {
    let over: Vec<Name> = kept.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
    for name in over {
        let Some(known) = kept.get_mut(&name) else { continue };
        let is_first = !std::mem::replace(&mut known.is_ending, true);
        known.cancelled.cancel();
        known.tasks.wait().await;
        match store.forget_wish(&Wish::new(name.0.clone(), name.1, 0)).await {
            Ok(()) => {
                tracing::info!(source = %name.0, layout = %name.1, "no longer wanted on this node");
                kept.remove(&name);
            }
            Err(StoreError::Closed) => return Err(StoreError::Closed),
            Err(error) if is_first => {
                tracing::warn!(source = %name.0, %error, "no longer wanted, and cannot be let go of yet");
            }
            Err(_) => {}
        }
    }
    Ok(())
}

/// Sees to one model until it is no longer wanted.
struct Task {
    control: Control,
    wish: Wish,
    priority: Arc<AtomicI32>,
    state: Arc<Mutex<State>>,
    cancelled: CancellationToken,
    list_again_seconds: Arc<AtomicU64>,
}

impl Task {
    async fn run(mut self) {
        // What the operator wants is fetched as the node.
        let _lease = self.control.access.operator(&self.wish.source);
        let mut pause = PAUSE;
        while !self.cancelled.is_cancelled() {
            let outcome = self.bring().await;
            let failed = outcome.as_ref().err().map(|error| (failure::of_fetch(error), error.to_string()));
            let is_failed = failed.is_some();
            if let Err(error) = outcome {
                tracing::warn!(source = %self.wish.source, %error, "a wanted model could not be brought and is tried again");
            }
            self.lock().failure = failed;
            let cancelled = self.cancelled.clone();
            let rest = async {
                match is_failed {
                    true => sleep(pause).await,
                    false => self.watch().await,
                }
            };
            cancelled.run_until_cancelled(rest).await;
            pause = if is_failed { (pause * 2).min(PAUSE_LIMIT) } else { PAUSE };
        }
    }

    /// One attempt: what the source has now, kept beside what serves until it is complete. What is written down is never
    /// cut off in the middle: a wish that was forgotten must not come back.
    async fn bring(&mut self) -> Result<(), FetchError> {
        let (fetcher, selection) = (self.control.fetcher.clone(), Selection::default());
        let resolve = fetcher.resolve(&self.wish.source, &selection);
        let Some(resolution) = self.cancelled.run_until_cancelled(resolve).await else { return Ok(()) };
        self.wish.priority = self.priority.load(Ordering::Relaxed);
        let transfer = fetcher.prefetch(resolution?, self.wish.layout, self.wish.priority);
        let (store, key) = (fetcher.store(), transfer.key());
        let hold = store.expect(transfer.manifest().as_ref().clone()).await?;
        let is_complete = |key: &SnapshotKey| store.snapshot(key).is_some_and(|record| record.complete);
        let serving = self.wish.snapshots().find(|known| *known != key && is_complete(known));
        let both: Vec<_> =
            if is_complete(&key) { vec![key] } else { serving.into_iter().chain([key]).collect() };
        self.keep(store, &both).await?;
        let Some(brought) = self.cancelled.run_until_cancelled(transfer.wait()).await else { return Ok(()) };
        brought?;
        self.keep(store, &[key]).await?;
        drop(hold);
        Ok(())
    }

    async fn keep(&mut self, store: &Store, snapshots: &[SnapshotKey]) -> Result<(), StoreError> {
        store.set_wish(self.wish.clone().keeping(snapshots)).await?;
        self.wish = self.wish.clone().keeping(snapshots);
        self.lock().snapshots = snapshots.to_vec();
        Ok(())
    }

    /// Returns when the source is to be listed again, or when what is here has lost something.
    async fn watch(&self) {
        // Three quarters to five quarters of the time, so that nodes that began together do not stay together.
        let spread = 768 + RandomState::new().hash_one(()) % 512;
        let wait = || {
            let seconds = self.list_again_seconds.load(Ordering::Relaxed);
            Duration::from_millis(seconds.saturating_mul(1000).saturating_mul(spread) / 1024)
        };
        let (store, started) = (self.control.store(), Instant::now());
        let is_complete = |key| store.snapshot(&key).is_some_and(|record| record.complete);
        while started.elapsed() < wait() && self.wish.snapshots().all(is_complete) {
            sleep(LOOK.min(wait())).await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name_of(model: &v1::WantedModel) -> Result<Name, String> {
    let source: Result<SourceUri, _> = model.source.parse();
    source.map(|source| (source, info::wanted_layout(model.layout()))).map_err(|error| error.to_string())
}

/// What an error of the store says of the one model it came with. A store that is closed says nothing of any.
fn of_one(error: StoreError) -> Result<Failed, StoreError> {
    match error {
        StoreError::Closed => Err(error),
        _ => Ok((failure::of_store(&error), error.to_string())),
    }
}

async fn state_of(
    control: &Control,
    kept: &BTreeMap<Name, Kept>,
    failed: &BTreeMap<Name, Failed>,
    name: Result<Name, String>,
    model: v1::WantedModel,
) -> Result<v1::WantedState, StoreError> {
    let mut state = match &name {
        Err(invalid) => State { failure: Some((FailureKind::Usage, invalid.clone())), ..State::default() },
        Ok(name) => kept.get(name).map(Kept::state).unwrap_or_default(),
    };
    if let Some(failed) = name.ok().and_then(|name| failed.get(&name)) {
        state.failure = Some(failed.clone());
    }
    let mut answer =
        v1::WantedState { source: model.source, layout: model.layout, ..v1::WantedState::default() };
    let records: Vec<_> = state.snapshots.iter().filter_map(|key| control.store().snapshot(key)).collect();
    if let Some(record) = records.iter().find(|record| record.complete).or(records.last()) {
        answer.snapshot_id = record.manifest.id.to_string();
        answer.complete = record.complete;
        answer.total_bytes = record.manifest.size();
        match present_bytes(control, record).await {
            Ok(bytes) => answer.present_bytes = bytes,
            Err(error) => state.failure = Some(of_one(error)?),
        }
    }
    if let Some((kind, message)) = state.failure {
        (answer.failure_message, answer.failure) = (message, Some(Failure::new(kind, "")));
    }
    Ok(answer)
}

async fn present_bytes(control: &Control, record: &SnapshotRecord) -> Result<u64, StoreError> {
    match control.transfer_of(record.key()) {
        Some(transfer) if !record.complete => Ok(transfer.done_bytes()),
        _ => Ok(control.describe(record).await?.present_bytes),
    }
}
