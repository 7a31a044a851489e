//! `weightctl prefetch`.

use weightd_client::Client;
use weightd_proto::v1::{PrefetchRequest, prefetch_event::Event};
use weightd_types::display_bytes;

use crate::{
    cli::Prefetch,
    error::CommandError,
    output::Output,
    progress::Progress,
    view::{DetachedView, PrefetchView},
};

/// Starts or joins the transfer, shows how it goes, and what came of it.
pub(crate) async fn run(client: &Client, options: &Prefetch, output: &Output) -> Result<(), CommandError> {
    let mut events = client.prefetch(request(options)).await?;
    let mut progress = Progress::new();
    while let Some(event) = events.next().await? {
        match event.event {
            Some(Event::Resolved(resolved)) => progress.resolved(&resolved, output),
            Some(Event::Progress(update)) => progress.update(&update, output),
            Some(Event::Completed(completed)) => {
                progress.clear();
                let view = PrefetchView::from(completed);
                output.words(&summary(&view));
                return output.show(&view);
            }
            Some(Event::Detached(detached)) => {
                progress.clear();
                output.words("the agent goes on by itself; `weightctl status` shows how far it is");
                return output.show(&DetachedView { snapshot_id: detached.snapshot_id });
            }
            // Sent by a newer agent.
            None => {}
        }
    }
    Err(CommandError::NoResult)
}

fn request(options: &Prefetch) -> PrefetchRequest {
    PrefetchRequest {
        source: options.what.source.clone(),
        selection: Some(options.what.selection()),
        layout: options.what.layout().into(),
        pin: options.pin,
        priority: options.priority,
        detach: options.detach,
    }
}

fn summary(view: &PrefetchView) -> String {
    let (size, seconds) = (display_bytes(view.snapshot.size_bytes), view.elapsed_seconds);
    if view.fetched_bytes == 0 {
        return format!("already here: {} files, {size}", view.snapshot.object_count);
    }
    let fetched = display_bytes(view.fetched_bytes);
    let rate = crate::view::rate(view.fetched_bytes, seconds);
    let reused = match view.reused_bytes {
        0 => String::new(),
        bytes => format!(", {} were here already", display_bytes(bytes)),
    };
    let files = view.snapshot.object_count;
    let complete = how_complete(view.unverifiable_objects, files);
    format!("{complete}: {files} files, {size}; {fetched} fetched in {seconds:.1} s ({rate}){reused}")
}

/// Verified is what was compared with a checksum of the origin's.
fn how_complete(unverifiable: u32, files: u32) -> String {
    match unverifiable {
        0 => "complete and verified".to_owned(),
        all if all == files => "complete; the origin publishes no checksums to verify it by".to_owned(),
        some => format!("complete; the origin publishes no checksums of {some} files, the rest is verified"),
    }
}
