//! `weightd-csi` as a process.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use weightd_csi::{DRIVER, Driver, InvalidOption, Options};
use weightd_daemon::{Exit, LogConfig, LogFormat, end_at_the_second, logging};

const AFTER_HELP: &str = "\
Exit codes: 0 ended by a signal, 64 usage, 69 socket or port unavailable, 75 another driver is at work, 77 not permitted, \
130 and 143 ended at once by a second SIGINT or SIGTERM.";

/// Shows models to the pods of this node, which name them in volumes of the driver csi.weightd.io.
#[derive(Debug, Parser)]
#[command(name = "weightd-csi", version, after_help = AFTER_HELP, max_term_width = 110)]
struct Flags {
    /// Socket for kubelet's calls, as unix:///PATH.
    #[arg(long, value_name = "URI")]
    endpoint: String,
    /// The agent's socket.
    #[arg(long, value_name = "PATH", default_value = weightd_client::DEFAULT_SOCKET)]
    agent: PathBuf,
    /// Name of this node in the cluster.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_id: String,
    /// Where kubelet looks for plugins, /var/lib/kubelet/plugins_registry; without it kubelet is not told of the driver.
    #[arg(long, value_name = "DIR")]
    registration_dir: Option<PathBuf>,
    /// The endpoint's path as kubelet sees it, when it is another [default: the endpoint's own]
    #[arg(long, value_name = "PATH")]
    kubelet_endpoint_path: Option<PathBuf>,
    /// kubelet's directory; targets outside of it are refused.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    kubelet_directory: PathBuf,
    /// Where /live, /ready and /metrics are served, or "off".
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9465")]
    http_address: String,
    /// How many seconds one call waits for a volume that must be ready (1 to 110); then kubelet asks again.
    #[arg(long, value_name = "SECONDS", default_value_t = 110)]
    ready_within: u64,
    /// Does the node's part in the cluster: reads ConfigMaps of this namespace that list models, tells of them in the node's
    /// condition WeightsReady, and takes the startup taint off.
    #[arg(long, value_name = "NAMESPACE")]
    cluster_namespace: Option<String>,
    /// Leaves the startup taint until the required models are here.
    #[arg(long, requires = "cluster_namespace")]
    ready_needs_models: bool,
    /// After how many seconds the source of a wanted model is listed again.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, requires = "cluster_namespace", value_parser = clap::value_parser!(u64).range(60..=31_536_000))]
    list_models_after: u64,
    /// error, warn, info, debug, trace or off, also per module.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: String,
    /// Form of the log.
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"], default_value = "text")]
    log_format: String,
}

fn main() -> ExitCode {
    begin().into()
}

fn begin() -> Exit {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            // A closed pipe is the reader's choice.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done };
        }
    };
    let options = match options(&flags) {
        Ok(options) => options,
        Err(error) => return failed(Exit::Usage, &error),
    };
    if let Err(error) = logging::check(&flags.log) {
        return failed(Exit::Usage, &format!("--log {:?}: {error}", flags.log));
    }
    let format = if flags.log_format == "json" { LogFormat::Json } else { LogFormat::Text };
    logging::init(&LogConfig { format, filter: flags.log.clone() });
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(run(options, cluster(&flags))),
        Err(error) => failed(Exit::Unavailable, &format!("cannot start: {error}")),
    }
}

fn options(flags: &Flags) -> Result<Options, InvalidOption> {
    let endpoint = Options::endpoint(&flags.endpoint)?;
    let options = Options {
        kubelet_endpoint: flags.kubelet_endpoint_path.clone().unwrap_or_else(|| endpoint.clone()),
        endpoint,
        agent: flags.agent.clone(),
        node_id: flags.node_id.clone(),
        registration_directory: flags.registration_dir.clone(),
        kubelet_directory: flags.kubelet_directory.clone(),
        http_address: Options::http_address(&flags.http_address)?,
        ready_within: Duration::from_secs(flags.ready_within),
    };
    options.check()?;
    Ok(options)
}

/// The node's part in the cluster, if it is to do one.
fn cluster(flags: &Flags) -> Option<weightd_cluster::Options> {
    flags.cluster_namespace.clone().map(|namespace| weightd_cluster::Options {
        node: flags.node_id.clone(),
        namespace,
        ready_needs_models: flags.ready_needs_models,
        list_again_after: Duration::from_secs(flags.list_models_after),
    })
}

/// Serves until a signal asks for the end.
async fn run(options: Options, cluster: Option<weightd_cluster::Options>) -> Exit {
    let (endpoint, agent) = (options.endpoint.clone(), options.agent.clone());
    let signals = end_at_the_second()
        .and_then(|()| Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)));
    let (mut terminate, mut interrupt) = match signals {
        Ok(signals) => signals,
        Err(error) => return failed(Exit::Unavailable, &format!("cannot listen for signals: {error}")),
    };
    let mut registry = Registry::default();
    let cluster = match cluster {
        Some(options) => match Part::new(options, &mut registry).await {
            Ok(part) => Some(part),
            Err(error) => return failed(Exit::Unavailable, &error),
        },
        None => None,
    };
    let driver = match Driver::start(options, registry).await {
        Ok(driver) => driver,
        Err(error) => return failed(error.kind().into(), &error),
    };
    let stopping = CancellationToken::new();
    let cluster = cluster.map(|part| tokio::spawn(part.run(&driver, stopping.clone())));
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(driver = DRIVER, endpoint = %endpoint.display(), agent = %agent.display(), version, "ready");
    let signal = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal, "ending: no new calls, those in flight finish");
    stopping.cancel();
    driver.shutdown().await;
    if let Some(cluster) = cluster
        && let Err(error) = cluster.await
    {
        tracing::error!(%error, "the node's part in the cluster ended badly");
    }
    Exit::Done
}

/// The node's part in the cluster, before it begins.
struct Part {
    options: weightd_cluster::Options,
    api: weightd_cluster::Api,
    metrics: weightd_cluster::Metrics,
}

impl Part {
    async fn new(
        options: weightd_cluster::Options,
        registry: &mut Registry,
    ) -> Result<Self, weightd_cluster::ClusterError> {
        let (api, metrics) = (weightd_cluster::client().await?, weightd_cluster::Metrics::default());
        metrics.register(registry);
        Ok(Self { options, api, metrics })
    }

    fn run(self, driver: &Driver, stopping: CancellationToken) -> impl Future<Output = ()> + use<> {
        let (agent, registered) = (driver.client(), driver.registered());
        weightd_cluster::run(self.options, self.api, agent, registered, self.metrics, stopping)
    }
}

/// Words go to stderr; one that is closed changes nothing.
fn failed(exit: Exit, error: &dyn std::fmt::Display) -> Exit {
    let _ = writeln!(io::stderr().lock(), "error: {error}");
    exit
}
