//! `weightctl export`.

use tokio::sync::watch;
use weightd_image::{Progress as Done, export};
use weightd_types::display_bytes;

use crate::{
    cli::{Export, Target},
    connection::origins,
    error::CommandError,
    output::Output,
    progress::watching,
    view::ExportedView,
};

/// Runs the command.
pub(crate) async fn run(target: &Target, options: &Export, output: &Output) -> Result<(), CommandError> {
    let (origins, fetch) = origins(target)?;
    let (progress, seen) = watch::channel(Done::default());
    let models = options.models();
    let exporting = export(&models, &options.to, origins, fetch, &progress);
    let exported = watching(seen, "here", output, exporting).await?;
    let seconds = exported.elapsed.as_secs_f64();
    output.words(&format!(
        "complete and verified in {}: {} fetched in {seconds:.1} s ({}), {} were here already",
        options.to.display(),
        display_bytes(exported.fetched_bytes),
        crate::view::rate(exported.fetched_bytes, seconds),
        display_bytes(exported.reused_bytes),
    ));
    output.show(&ExportedView::new(&options.to, &exported))
}
