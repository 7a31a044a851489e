//! The command line: help, man page and completions all come from this definition.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
    parser::ValueSource,
};
use weightd_image::Model;
use weightd_proto::v1;
use weightd_types::{Selection, SourceUri, parse_bytes};

use weightd_daemon::Exit;

const AFTER_HELP: &str = "\
Exit codes: 0 done, 64 usage, 65 corrupt data, 66 not found, 69 agent or source unavailable, 71 memory, \
74 disk, 75 try again, 77 not permitted, 130 interrupted.";

/// Brings model weights into a verified store on this machine, and looks after them.
#[derive(Debug, Parser)]
#[command(name = "weightctl", version, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    place: Place,
    /// How to print data.
    #[arg(short = 'o', long, global = true, value_enum, default_value_t = Format::Table)]
    format: Format,
    #[command(subcommand)]
    command: Command,
}

/// Which agent does the work.
#[derive(Debug, Args)]
struct Place {
    /// Socket of the agent [default: /run/weightd/weightd.sock]
    #[arg(long, global = true, env = "WEIGHTD_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Work on the store in DIR without an agent: this process does its work.
    #[arg(long, global = true, env = "WEIGHTD_STORE", value_name = "DIR")]
    store: Option<PathBuf>,
    /// Work without an agent, configured by this file as an agent would be.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Without an agent: read public buckets without credentials.
    #[arg(long, global = true)]
    anonymous: bool,
    /// Without an agent: project that pays for requests to requester-pays buckets.
    #[arg(long, global = true, value_name = "PROJECT")]
    user_project: Option<String>,
    /// Without an agent: log to stderr; -vv says more.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Without an agent: what to log, such as warn or info,weightd_fetch=debug.
    #[arg(long, global = true, env = "WEIGHTD_LOG", value_name = "LEVEL")]
    log: Option<String>,
}

impl Place {
    /// What to log; nothing unless asked. Retries are our own debug lines, so that an agent's log is not full of them.
    fn log_filter(&self) -> Option<String> {
        match (&self.log, self.verbose) {
            (Some(log), 0) => Some(log.clone()).filter(|log| !log.is_empty()),
            (_, 0) => None,
            (_, 1) => Some("info,weightd=debug".to_owned()),
            (_, 2) => Some("debug".to_owned()),
            (_, _) => Some("trace".to_owned()),
        }
    }
}

/// How to print data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For a person.
    Table,
    /// For a program.
    Json,
}

/// How bytes are placed in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// Safetensors placed for mapping; all other files as they are.
    Aligned,
    /// Byte for byte as at the origin.
    Original,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Bring a source's files into the store, verified.
    Prefetch(Prefetch),
    /// List the snapshots in the store.
    Ls,
    /// Show one snapshot with its files.
    Get(OneSnapshot),
    /// Show transfers in flight and the use of the disk.
    Status {
        /// Show it again every second, until interrupted.
        #[arg(long, short)]
        watch: bool,
    },
    /// Never evict a snapshot.
    Pin(OneSnapshot),
    /// Let a snapshot be evicted again when room is needed.
    Unpin(OneSnapshot),
    /// Remove a snapshot that nobody uses.
    Rm {
        #[command(flatten)]
        which: OneSnapshot,
        /// Remove it although it is pinned.
        #[arg(long)]
        force: bool,
        /// Succeed also when there is no such snapshot, as after a removal that was interrupted.
        #[arg(long)]
        ignore_missing: bool,
    },
    /// Remove what no snapshot needs, and evict down to the quota.
    Gc {
        /// Also remove what interrupted transfers left, which they could resume from.
        #[arg(long)]
        partials: bool,
    },
    /// Read what is stored, check it, and fetch bad chunks again.
    Verify {
        /// Source URI, snapshot id or the beginning of one; the whole store without.
        #[arg(value_name = "URI|ID")]
        snapshot: Option<String>,
        /// Only report bad chunks.
        #[arg(long)]
        no_repair: bool,
    },
    /// Print the directory of a complete snapshot.
    Path(OneSnapshot),
    /// Show what a prefetch would take, without fetching it.
    Resolve(Resolve),
    /// Show a source's files at a directory, read-only, also while they load.
    Mount(Mount),
    /// Take a volume away.
    Umount {
        /// Where it is mounted.
        #[arg(value_name = "TARGET")]
        target: PathBuf,
    },
    /// List volumes, and what went wrong with them lately.
    Mounts,
    /// Build disk images with models in them, and look into them. Needs no agent, and no privileges.
    #[command(subcommand)]
    Image(Image),
    /// Bring models into a mounted directory, as a read-only tier of other nodes. Needs no agent.
    Export(Export),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one per command into a directory.
    #[command(hide = true)]
    Man {
        /// Where to write them.
        directory: Option<PathBuf>,
    },
}

/// What to bring, and how.
#[derive(Debug, Args)]
pub(crate) struct Prefetch {
    #[command(flatten)]
    pub(crate) what: Resolve,
    /// Never evict the snapshot.
    #[arg(long)]
    pub(crate) pin: bool,
    /// Transfers with a higher number go first.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "N")]
    pub(crate) priority: i32,
    /// Return at once; the agent goes on by itself.
    #[arg(long)]
    pub(crate) detach: bool,
}

/// What to show, and how.
#[derive(Debug, Args)]
pub(crate) struct Mount {
    #[command(flatten)]
    pub(crate) what: Resolve,
    /// Directory to mount it at; made when it is missing.
    #[arg(value_name = "TARGET")]
    pub(crate) target: PathBuf,
    /// How it is read.
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    mode: Mode,
    /// Return only when every byte is here and verified.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Once it is complete, have the agent read it into the page cache, as far as there is memory for it.
    #[arg(long)]
    pub(crate) warm_up: bool,
    /// Have the agent bring the tensors into the memory that model servers share, before one of them asks.
    #[arg(long)]
    pub(crate) resident: bool,
    /// Never evict the snapshot.
    #[arg(long)]
    pub(crate) pin: bool,
}

/// How a volume is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// By the kernel when the snapshot is complete, else through FUSE.
    Auto,
    /// By the kernel, once the snapshot is complete.
    Bind,
    /// Through FUSE.
    Fuse,
}

impl Mount {
    /// As the protocol has it.
    pub(crate) fn mode(&self) -> v1::VolumeMode {
        match self.mode {
            Mode::Auto => v1::VolumeMode::Unspecified,
            Mode::Bind => v1::VolumeMode::Bind,
            Mode::Fuse => v1::VolumeMode::Fuse,
        }
    }
}

/// Which files of a source.
#[derive(Debug, Args)]
pub(crate) struct Resolve {
    /// gs://bucket/prefix, s3://, az://, https://, hf://org/name@revision or file:///directory
    #[arg(value_name = "URI")]
    pub(crate) source: String,
    /// Take only files that match; * also matches /. May be repeated.
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Leave out files that match. May be repeated.
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// How the bytes are placed in the store.
    #[arg(long, value_enum, default_value_t = Layout::Aligned)]
    layout: Layout,
}

/// What to do with an image.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Build an image: a raw disk, or the archive that Compute Engine imports.
    Build(BuildImage),
    /// List the models and files in an image, without mounting it.
    Ls {
        /// A raw disk, a block device, or a .tar.gz.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Read an image whole, and compare everything with what was recorded when it was built.
    Verify {
        /// A raw disk, a block device, or a .tar.gz.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// What an image is to hold, and where it goes.
#[derive(Debug, Args)]
pub(crate) struct BuildImage {
    /// A model: gs://bucket/prefix, s3://, az://, https://, hf://org/name@revision or file:///directory. May be repeated.
    #[arg(long = "model", value_name = "URI", required = true)]
    models: Vec<SourceUri>,
    #[command(flatten)]
    which: Which,
    /// Where it goes: FILE.raw (a disk), FILE.tar.gz or gs://bucket/name.tar.gz (what Compute Engine imports).
    #[arg(long, value_name = "OUTPUT")]
    pub(crate) output: String,
    /// Length of the disk, whole GiB, such as 100GiB [default: as few as suffice]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) size: Option<u64>,
    /// Name of the file system, up to 16 bytes.
    #[arg(long, default_value = "weights")]
    pub(crate) label: String,
    /// Do not read the file back when it is done.
    #[arg(long)]
    pub(crate) no_verify: bool,
}

/// What to bring into a directory.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The directory: where the volume is mounted, or any other.
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,
    /// Models: gs://bucket/prefix, s3://, az://, https://, hf://org/name@revision or file:///directory.
    #[arg(value_name = "URI", required = true)]
    models: Vec<SourceUri>,
    #[command(flatten)]
    which: Which,
}

/// Which files of models.
#[derive(Debug, Args)]
struct Which {
    /// Take only files that match; * also matches /. May be repeated.
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Leave out files that match. May be repeated.
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// How the bytes are placed.
    #[arg(long, value_enum, default_value_t = Layout::Aligned)]
    layout: Layout,
}

impl Which {
    fn of(&self, models: &[SourceUri]) -> Vec<Model> {
        let layout = match self.layout {
            Layout::Aligned => weightd_types::Layout::Aligned,
            Layout::Original => weightd_types::Layout::Original,
        };
        let selection = Selection { include: self.include.clone(), exclude: self.exclude.clone() };
        let model =
            |source: &SourceUri| Model { source: source.clone(), selection: selection.clone(), layout };
        models.iter().map(model).collect()
    }
}

impl BuildImage {
    /// What it is to hold.
    pub(crate) fn models(&self) -> Vec<Model> {
        self.which.of(&self.models)
    }
}

impl Export {
    /// What to bring.
    pub(crate) fn models(&self) -> Vec<Model> {
        self.which.of(&self.models)
    }
}

impl Command {
    /// Whether it is done without any agent, in this process or elsewhere.
    fn is_done_alone(&self) -> bool {
        matches!(self, Self::Image(_) | Self::Export(_))
    }
}

/// Which snapshot.
#[derive(Debug, Args)]
pub(crate) struct OneSnapshot {
    /// Source URI, snapshot id, or the beginning of one.
    #[arg(value_name = "URI|ID")]
    pub(crate) snapshot: String,
}

impl Resolve {
    /// As the protocol has it.
    pub(crate) fn selection(&self) -> v1::Selection {
        v1::Selection { include: self.include.clone(), exclude: self.exclude.clone() }
    }

    /// As the protocol has it.
    pub(crate) fn layout(&self) -> v1::Layout {
        match self.layout {
            Layout::Aligned => v1::Layout::Aligned,
            Layout::Original => v1::Layout::Original,
        }
    }
}

/// Who does the work.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The agent that listens there.
    Socket(PathBuf),
    /// This process.
    Embedded(Embedded),
}

/// How this process does an agent's work.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Embedded {
    /// The store; the configuration file's without.
    pub(crate) store: Option<PathBuf>,
    /// An agent's configuration.
    pub(crate) config: Option<PathBuf>,
    /// Read public buckets without credentials.
    pub(crate) anonymous: bool,
    /// Who pays for requests to requester-pays buckets.
    pub(crate) user_project: Option<String>,
    /// What to log; nothing without.
    pub(crate) log: Option<String>,
}

/// A command line that makes sense.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) target: Target,
    pub(crate) format: Format,
    pub(crate) command: Command,
}

/// The definition, for completions and manual pages.
pub(crate) fn definition() -> clap::Command {
    Cli::command()
}

/// Reads a command line.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, clap::Error> {
    let matches = definition().try_get_matches_from(arguments)?;
    let cli = Cli::from_arg_matches(&matches)?;
    let is_alone = cli.command.is_done_alone();
    let target = target(cli.place, &matches, is_alone)
        .map_err(|text| definition().error(clap::error::ErrorKind::ArgumentConflict, text))?;
    Ok(Arguments { target, format: cli.format, command: cli.command })
}

/// What the command line says goes before what the environment says.
fn target(place: Place, matches: &ArgMatches, is_alone: bool) -> Result<Target, String> {
    let typed = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
    let (typed_socket, typed_place) = (typed("socket"), typed("store") || typed("config"));
    let log = place.log_filter();
    let Place { socket, store, config, anonymous, user_project, .. } = place;
    let embedded = store.is_some() || config.is_some();
    match socket {
        _ if is_alone => Ok(Target::Embedded(Embedded { store, config, anonymous, user_project, log })),
        Some(_) if typed_socket && typed_place => {
            Err("--socket names an agent, --store and --config work without one: choose".to_owned())
        }
        Some(_) if embedded && !typed_socket && !typed_place => {
            Err("WEIGHTD_SOCKET and WEIGHTD_STORE are both set: choose with --socket or --store".to_owned())
        }
        socket if embedded && !typed_socket => {
            drop(socket);
            Ok(Target::Embedded(Embedded { store, config, anonymous, user_project, log }))
        }
        _ if anonymous || user_project.is_some() => {
            Err("--anonymous and --user-project go with --store; an agent has them in its configuration"
                .to_owned())
        }
        socket => Ok(Target::Socket(socket.unwrap_or_else(|| weightd_client::DEFAULT_SOCKET.into()))),
    }
}

/// Prints help, the version, or what is wrong with the command line.
pub(crate) fn report(error: &clap::Error) -> Exit {
    // A closed pipe is the reader's choice.
    let _ = error.print();
    if error.use_stderr() { Exit::Usage } else { Exit::Done }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Arguments, clap::Error> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
    }

    #[test]
    fn options_may_stand_on_either_side_of_the_command() {
        for line in ["weightctl --store /s -o json ls", "weightctl ls --store /s -o json"] {
            let arguments = read(line).unwrap();
            assert_eq!(arguments.format, Format::Json);
            let expected = Embedded { store: Some("/s".into()), ..Embedded::default() };
            assert_eq!(arguments.target, Target::Embedded(expected));
        }
    }

    #[test]
    fn an_agent_and_a_store_cannot_both_do_the_work() {
        let error = read("weightctl --socket /a --store /s ls").unwrap_err();
        assert!(error.to_string().contains("choose"), "{error}");
        assert_eq!(report(&error), Exit::Usage);
        assert!(read("weightctl --anonymous ls").is_err());
        assert_eq!(
            read("weightctl ls").unwrap().target,
            Target::Socket(weightd_client::DEFAULT_SOCKET.into())
        );
    }
}
