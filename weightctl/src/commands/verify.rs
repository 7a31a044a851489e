//! `weightctl verify`.

use weightd_client::Client;
use weightd_proto::v1::{VerifyRequest, verify_event::Event};
use weightd_types::display_bytes;

use crate::{
    error::CommandError,
    output::Output,
    progress::Progress,
    view::{BadChunkView, VerifyView},
};

/// Checks what is stored; an error when something stays bad.
pub(crate) async fn run(
    client: &Client,
    snapshot: String,
    repair: bool,
    output: &Output,
) -> Result<(), CommandError> {
    let mut events = client.verify(VerifyRequest { snapshot, repair }).await?;
    let mut progress = Progress::new();
    let mut bad_chunks: Vec<BadChunkView> = Vec::new();
    while let Some(event) = events.next().await? {
        match event.event {
            Some(Event::Progress(update)) => {
                progress.checked(update.done_bytes, update.total_bytes, output);
            }
            Some(Event::Bad(bad)) => bad_chunks.push(bad.into()),
            Some(Event::Summary(summary)) => {
                progress.clear();
                return conclude(&VerifyView::new(summary, bad_chunks), output);
            }
            None => {}
        }
    }
    Err(CommandError::NoResult)
}

fn conclude(view: &VerifyView, output: &Output) -> Result<(), CommandError> {
    output.show(view)?;
    let checked = format!("{} in {} blobs", display_bytes(view.checked_bytes), view.checked_blobs);
    match (view.bad_chunks, view.bad_chunks - view.repaired_chunks.min(view.bad_chunks)) {
        (0, _) => output.words(&format!("checked {checked}: all as recorded")),
        (bad, 0) => output.words(&format!("checked {checked}: {bad} bad chunks, all fetched again")),
        (_, left) => {
            return Err(CommandError::Corrupt(format!("checked {checked}: {left} chunks are bad")));
        }
    }
    Ok(())
}
