//! `weightctl status`.

use std::time::Duration;

use weightd_client::Client;

use crate::{error::CommandError, output::Output, view::StatusView};

/// Shows transfers and the disk, once or until interrupted.
pub(crate) async fn run(client: &Client, watch: bool, output: &Output) -> Result<(), CommandError> {
    if !watch {
        return output.show(&StatusView::from(client.status().await?));
    }
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        output.show_next(&StatusView::from(client.status().await?))?;
    }
}
