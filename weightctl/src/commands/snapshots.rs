//! The commands that are one question and one answer about snapshots.

use weightd_client::Client;
use weightd_proto::v1::{
    CollectGarbageRequest, GetRequest, PinRequest, RemoveRequest, ResolveRequest, SnapshotInfo, UnpinRequest,
};

use crate::{
    cli::Resolve,
    error::CommandError,
    output::Output,
    view::{GarbageView, ObjectsView, RemovedView, ResolveView, SnapshotView, SnapshotsView, State},
};

/// `weightctl ls`
pub(crate) async fn list(client: &Client, output: &Output) -> Result<(), CommandError> {
    let snapshots = SnapshotsView::from(client.list().await?);
    if snapshots.is_empty() {
        output.words("the store is empty; `weightctl prefetch URI` fills it");
    }
    output.show(&snapshots)
}

/// `weightctl get`
pub(crate) async fn get(client: &Client, snapshot: String, output: &Output) -> Result<(), CommandError> {
    let answer = client.get(GetRequest { snapshot, summary: false }).await?;
    output.show(&ObjectsView::from(answer))
}

/// `weightctl pin`
pub(crate) async fn pin(client: &Client, snapshot: String, output: &Output) -> Result<(), CommandError> {
    show(client.pin(PinRequest { snapshot }).await?.snapshot, output)
}

/// `weightctl unpin`
pub(crate) async fn unpin(client: &Client, snapshot: String, output: &Output) -> Result<(), CommandError> {
    show(client.unpin(UnpinRequest { snapshot }).await?.snapshot, output)
}

fn show(snapshot: Option<SnapshotInfo>, output: &Output) -> Result<(), CommandError> {
    output.show(&SnapshotView::from(snapshot.ok_or(CommandError::NoResult)?))
}

/// `weightctl rm`
pub(crate) async fn remove(
    client: &Client,
    wish: RemoveRequest,
    output: &Output,
) -> Result<(), CommandError> {
    output.show(&RemovedView::from(client.remove(wish).await?))
}

/// `weightctl gc`
pub(crate) async fn collect_garbage(
    client: &Client,
    partials: bool,
    output: &Output,
) -> Result<(), CommandError> {
    output.show(&GarbageView::from(client.collect_garbage(CollectGarbageRequest { partials }).await?))
}

/// `weightctl path`: nothing but the directory on stdout, for `$(weightctl path …)`.
pub(crate) async fn path(client: &Client, snapshot: String, output: &Output) -> Result<(), CommandError> {
    let answer = client.get(GetRequest { snapshot: snapshot.clone(), summary: true }).await?;
    let found = SnapshotView::from(answer.snapshot.ok_or(CommandError::NoResult)?);
    match (found.state, found.directory) {
        (State::Complete, Some(directory)) => output.data(&directory),
        (State::Complete, None) => Err(CommandError::TryAgain {
            message: format!(
                "{snapshot} is complete, and in no one directory: a read-only tier has some of its files"
            ),
            remedy: format!("weightctl mount {} TARGET", found.source),
        }),
        (State::Loading, _) => Err(CommandError::TryAgain {
            message: format!("{snapshot} is not complete yet"),
            remedy: "`weightctl prefetch` waits for a transfer that runs; `weightctl status` shows it"
                .to_owned(),
        }),
        _ => Err(CommandError::TryAgain {
            message: format!("{snapshot} is not complete, and no transfer runs"),
            remedy: format!("weightctl prefetch {}", found.source),
        }),
    }
}

/// `weightctl resolve`
pub(crate) async fn resolve(client: &Client, what: &Resolve, output: &Output) -> Result<(), CommandError> {
    let request = ResolveRequest {
        source: what.source.clone(),
        selection: Some(what.selection()),
        layout: what.layout().into(),
    };
    output.show(&ResolveView::from(client.resolve(request).await?))
}
