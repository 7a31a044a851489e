//! Volumes.

use std::path::{Path, PathBuf};

use weightd_client::Client;
use weightd_proto::v1::{PublishRequest, VolumeServing};

use crate::{
    cli::Mount,
    error::CommandError,
    output::Output,
    view::{VolumeView, VolumesView},
};

/// The option, if there is one, that only an agent can heed.
fn agents_work(options: &Mount) -> Option<&'static str> {
    if options.resident { Some("--resident") } else { options.warm_up.then_some("--warm-up") }
}

/// `weightctl mount`. Without an agent this process serves what still loads, until someone ends it.
pub(crate) async fn mount(
    client: &Client,
    options: &Mount,
    is_embedded: bool,
    output: &Output,
) -> Result<(), CommandError> {
    if let Some(option) = agents_work(options).filter(|_| is_embedded) {
        return Err(CommandError::Usage(format!(
            "{option} is the work of an agent, which goes on after the command: leave out --store and --config"
        )));
    }
    let request = PublishRequest {
        source: options.what.source.clone(),
        selection: Some(options.what.selection()),
        layout: options.what.layout().into(),
        target_path: absolute(&options.target)?,
        mode: options.mode().into(),
        wait: options.wait,
        pin: options.pin,
        warm_up: options.warm_up,
        resident: options.resident,
        ..PublishRequest::default()
    };
    let volume = client.publish(request).await?.volume.ok_or(CommandError::NoResult)?;
    let (serving, target_path) = (volume.serving(), volume.target_path.clone());
    output.show(&VolumeView::from(volume))?;
    if is_embedded && serving != VolumeServing::Bind {
        output.words("this process serves the volume; end it with Ctrl-C, or unmount the volume");
        until_unmounted(client, &target_path).await?;
    }
    Ok(())
}

/// Waits until a volume is gone, whoever unmounts it.
async fn until_unmounted(client: &Client, target: &str) -> Result<(), CommandError> {
    loop {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let volumes = client.list_volumes().await?.volumes;
        if !volumes.iter().any(|volume| volume.target_path == target) {
            return Ok(());
        }
    }
}

/// `weightctl umount`
pub(crate) async fn unmount(client: &Client, target: &Path, output: &Output) -> Result<(), CommandError> {
    let target = absolute(target)?;
    if !client.unpublish(target.clone()).await? {
        output.words(&format!("nothing was mounted at {target}"));
    }
    Ok(())
}

/// `weightctl mounts`
pub(crate) async fn list(client: &Client, output: &Output) -> Result<(), CommandError> {
    let answer = client.list_volumes().await?;
    if answer.volumes.is_empty() {
        output.words("there are no volumes; `weightctl mount URI TARGET` makes one");
    }
    output.show(&VolumesView::from(answer))
}

/// The agent works elsewhere: a path is relative to where it was typed.
fn absolute(path: &Path) -> Result<String, CommandError> {
    let path: PathBuf = std::path::absolute(path)
        .map_err(|error| CommandError::Usage(format!("{}: {error}", path.display())))?;
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| CommandError::Usage(format!("{}: a target must be UTF-8", path.display())))
}
