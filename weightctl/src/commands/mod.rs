//! What each command does: ask the agent, show the answer.

mod export;
mod image;
mod prefetch;
mod snapshots;
mod status;
mod verify;
mod volumes;

use weightd_proto::v1::RemoveRequest;

use crate::{
    cli::{Arguments, Command, Embedded, Target},
    connection::Connection,
    error::CommandError,
    output::Output,
    shell,
    signals::Signals,
};

/// Runs the command, until it is done or a signal ends it.
pub(crate) async fn run(arguments: Arguments, output: &Output) -> Result<(), CommandError> {
    let Arguments { target, command, .. } = arguments;
    match command {
        Command::Completions { shell } => shell::completions(shell, output),
        Command::Man { directory } => shell::man(directory.as_deref(), output),
        Command::Image(command) => {
            let meaning = "interrupted; what was written of a file is kept, the same command goes on with it";
            interruptible(meaning, image::run(&target, command, output)).await
        }
        Command::Export(options) => {
            let meaning = "interrupted; what has arrived is kept, the same command goes on with it";
            interruptible(meaning, export::run(&target, &options, output)).await
        }
        command => with_agent(&target, command, output).await,
    }
}

/// Runs work that a signal may end at any moment.
async fn interruptible(
    meaning: &str,
    work: impl Future<Output = Result<(), CommandError>>,
) -> Result<(), CommandError> {
    let mut signals = Signals::listen();
    tokio::select! {
        outcome = Box::pin(work) => outcome,
        exit = signals.next() => Err(CommandError::Interrupted { message: meaning.to_owned(), exit }),
    }
}

async fn with_agent(target: &Target, command: Command, output: &Output) -> Result<(), CommandError> {
    let mut signals = Signals::listen();
    let meaning = meaning_of_interruption(&command);
    let stopped = |exit| CommandError::Interrupted { message: meaning.to_owned(), exit };
    let connection = tokio::select! {
        connection = Connection::open(target) => connection?,
        exit = signals.next() => return Err(stopped(exit)),
    };
    let outcome = tokio::select! {
        outcome = Box::pin(dispatch(&connection, command, output)) => outcome,
        exit = signals.next() => Err(stopped(exit)),
    };
    tokio::select! {
        () = connection.close() => outcome,
        // A signal does not wait for what is being written down; the next run finds out what is there.
        exit = signals.next() => Err(stopped(exit)),
    }
}

async fn dispatch(connection: &Connection, command: Command, output: &Output) -> Result<(), CommandError> {
    let client = &connection.client;
    match command {
        Command::Prefetch(options) if options.detach && connection.is_embedded() => Err(CommandError::Usage(
            "--detach needs an agent that goes on: start weightd, and leave out --store".to_owned(),
        )),
        Command::Prefetch(options) => prefetch::run(client, &options, output).await,
        Command::Ls => snapshots::list(client, output).await,
        Command::Get(which) => snapshots::get(client, which.snapshot, output).await,
        Command::Status { watch } => status::run(client, watch, output).await,
        Command::Pin(which) => snapshots::pin(client, which.snapshot, output).await,
        Command::Unpin(which) => snapshots::unpin(client, which.snapshot, output).await,
        Command::Rm { which, force, ignore_missing } => {
            let wish = RemoveRequest { snapshot: which.snapshot, force, allow_missing: ignore_missing };
            snapshots::remove(client, wish, output).await
        }
        Command::Gc { partials } => snapshots::collect_garbage(client, partials, output).await,
        Command::Verify { snapshot, no_repair } => {
            verify::run(client, snapshot.unwrap_or_default(), !no_repair, output).await
        }
        Command::Path(which) => snapshots::path(client, which.snapshot, output).await,
        Command::Resolve(what) => snapshots::resolve(client, &what, output).await,
        Command::Mount(options) => volumes::mount(client, &options, connection.is_embedded(), output).await,
        Command::Umount { target } => volumes::unmount(client, &target, output).await,
        Command::Mounts => volumes::list(client, output).await,
        Command::Image(command) => image::run(&Target::Embedded(Embedded::default()), command, output).await,
        Command::Export(options) => {
            export::run(&Target::Embedded(Embedded::default()), &options, output).await
        }
        Command::Completions { shell } => shell::completions(shell, output),
        Command::Man { directory } => shell::man(directory.as_deref(), output),
    }
}

/// What a person should know who ends this command.
fn meaning_of_interruption(command: &Command) -> &'static str {
    match command {
        Command::Prefetch(_) => "interrupted; what has arrived is kept, the same command resumes",
        Command::Mount(_) => "the volume is unmounted; what has arrived is kept",
        Command::Verify { .. } => "interrupted; what was repaired stays so",
        _ => "interrupted",
    }
}
