//! `weightctl image`.

use std::path::{Path, PathBuf};

use tokio::{sync::watch, task::spawn_blocking};
use weightd_image::{Build, ImageError, Output as Place, Progress as Done, Verified, build, instructions};
use weightd_types::display_bytes;

use crate::{
    cli::{BuildImage, Image, Target},
    connection::origins,
    error::CommandError,
    output::Output,
    progress::watching,
    view::{BuiltView, ImageView, VerifiedImageView},
};

/// Seconds since 1970 of all times in an image: the variable that reproducible builds have for it.
const TIME_VARIABLE: &str = "SOURCE_DATE_EPOCH";

/// Runs the command.
pub(crate) async fn run(target: &Target, command: Image, output: &Output) -> Result<(), CommandError> {
    match command {
        Image::Build(options) => build_one(target, &options, output).await,
        Image::Ls { file } => {
            let listing = blocking(move || weightd_image::list(&file)).await?;
            output.show(&ImageView::from(listing))
        }
        Image::Verify { file } => {
            let verified = verify(file, output).await?;
            conclude(verified, output)
        }
    }
}

async fn build_one(target: &Target, options: &BuildImage, output: &Output) -> Result<(), CommandError> {
    let (origins, fetch) = origins(target)?;
    let wish = Build {
        models: options.models(),
        output: Place::parse(&options.output)?,
        size: options.size,
        label: options.label.clone(),
        time: time()?,
    };
    let (progress, seen) = watch::channel(Done::default());
    let building = Box::pin(build(&wish, origins, fetch, &progress));
    let draft = watching(seen, "written", output, building).await?;
    let checked = match draft.file().filter(|_| !options.no_verify) {
        Some(file) => match read_back(file, &wish.output, output).await {
            Ok(words) => Some(words),
            Err(fault @ CommandError::BadImage(_)) => {
                // Nothing gets its name that is not what was recorded; the next build begins anew.
                if let Err(error) = draft.discard() {
                    output.words(&format!("what was written stays: {error}"));
                }
                return Err(fault);
            }
            Err(error) => return Err(error),
        },
        None => None,
    };
    let built = draft.publish()?;
    let seconds = built.elapsed.as_secs_f64();
    output.words(&format!(
        "built {}: a disk of {}, {} in {seconds:.1} s ({})",
        wish.output.name(),
        display_bytes(built.disk_bytes),
        display_bytes(built.fetched_bytes),
        crate::view::rate(built.fetched_bytes, seconds),
    ));
    if let Some(words) = checked {
        output.words(&words);
    }
    output.show(&BuiltView::new(&wish.output, &built, instructions(&wish.output, &built)))
}

/// Reads a file that has no name yet. What to say of it if it is sound.
async fn read_back(file: &Path, place: &Place, output: &Output) -> Result<String, CommandError> {
    match verify(file.to_owned(), output).await {
        Ok(verified) => sound(&verified),
        Err(
            error @ (ImageError::Archive { .. } | ImageError::Damaged { .. } | ImageError::NotAnImage { .. }),
        ) => {
            let message =
                format!("{}: not what was written was read back ({error}); build it again", place.name());
            Err(CommandError::BadImage(message))
        }
        Err(error) => Err(error.into()),
    }
}

async fn verify(file: PathBuf, output: &Output) -> Result<Verified, ImageError> {
    let (progress, seen) = watch::channel(Done::default());
    let verifying = blocking(move || weightd_image::verify(&file, &progress));
    watching(seen, "checked", output, verifying).await
}

fn conclude(verified: Verified, output: &Output) -> Result<(), CommandError> {
    let words = sound(&verified);
    output.show(&VerifiedImageView::from(verified))?;
    output.words(&words?);
    Ok(())
}

/// What to say of an image in which nothing is wrong.
fn sound(verified: &Verified) -> Result<String, CommandError> {
    let checked = format!("checked {} in {} blobs", display_bytes(verified.checked_bytes), verified.blobs);
    match verified.faults.as_slice() {
        [] => Ok(format!("{checked}: all as recorded")),
        [first, ..] => {
            let (count, file) = (verified.faults.len(), first.path.display());
            let which = if count == 1 { "a fault".to_owned() } else { format!("{count} faults, the first") };
            let message = format!("{checked}: {which} in {file}: {}; build it again", first.why);
            Err(CommandError::BadImage(message))
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(ImageError::Usage("interrupted".to_owned())),
    }
}

/// The same image has the same times, whenever it is built.
fn time() -> Result<u64, CommandError> {
    match std::env::var(TIME_VARIABLE) {
        Err(_) => Ok(1),
        Ok(text) => text.parse().ok().filter(|time| *time > 0).ok_or_else(|| {
            CommandError::Usage(format!("{TIME_VARIABLE}={text}: write seconds since 1970, or leave it out"))
        }),
    }
}
