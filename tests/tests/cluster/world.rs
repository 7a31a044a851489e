//! The cluster that all tests share, with weightd installed and a bucket that its pods reach.

use std::{
    fmt::Debug,
    io::Write,
    process::{Command, Output, Stdio},
    sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::runtime::Runtime;
use weightd_harness::{
    FakeGcs, FaultProxy, GcsOptions, Guard, Unready,
    cluster::{
        Cluster, Node,
        install::{self, Settings},
        runner::Wanted,
    },
};

/// More than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Servers of this process outlive the test that started them, so they need a runtime of their own.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

/// What all tests share. It is never dropped: the cluster's runner ends it with this process, and all that is below the
/// cluster's directory.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) nodes: Vec<Node>,
    pub(crate) gcs: FakeGcs,
    /// Before the bucket: knows who may read what. `models` is open to everybody, `private` to whom a test says.
    pub(crate) guard: Guard,
    /// Between the pods and the guard.
    pub(crate) proxy: FaultProxy,
}

/// The world, for one test at a time; or why there is none.
pub(crate) fn world() -> Result<MutexGuard<'static, World>, Unready> {
    static WORLD: OnceLock<Result<Mutex<World>, Unready>> = OnceLock::new();
    match WORLD.get_or_init(|| World::begin().map(Mutex::new)) {
        // Whoever panicked has cleaned up behind itself.
        Ok(world) => Ok(world.lock().unwrap_or_else(PoisonError::into_inner)),
        Err(error) => Err(again(error)),
    }
}

/// The same reason once more, for the next test.
fn again(error: &Unready) -> Unready {
    match error {
        Unready::NotInstalled { what, path } => {
            Unready::NotInstalled { what: what.clone(), path: path.clone() }
        }
        Unready::NotAllowed { what, why } => Unready::NotAllowed { what: what.clone(), why: why.clone() },
        other => Unready::Failed { what: "the cluster".to_owned(), why: other.to_string() },
    }
}

impl World {
    fn begin() -> Result<Self, Unready> {
        let cluster = Cluster::start(&Wanted { nodes: 2, ..Wanted::default() })?;
        let gcs = RUNTIME.block_on(FakeGcs::start_below(&cluster.directory(), GcsOptions::default()))?;
        let guard = RUNTIME.block_on(Guard::start_at(cluster.host(), &gcs.endpoint())).unwrap();
        let proxy = RUNTIME.block_on(FaultProxy::start_at(cluster.host(), &guard.url())).unwrap();
        for bucket in ["models", "private"] {
            RUNTIME.block_on(gcs.create_bucket(bucket)).unwrap();
        }
        guard.open("models");
        let nodes = cluster.nodes().unwrap();
        let settings =
            Settings { bucket: proxy.url(), token_url: Some(guard.token_url()), resident_limit: 0 };
        install::install(&cluster, &settings).unwrap();
        Ok(Self { cluster, nodes, gcs, guard, proxy })
    }

    /// Runs kubectl; its words in an error are the test's.
    #[track_caller]
    pub(crate) fn kubectl(&self, line: &str) -> String {
        done(self.try_kubectl(line))
    }

    /// Runs kubectl, which may fail.
    pub(crate) fn try_kubectl(&self, line: &str) -> Output {
        self.cluster.kubectl().args(line.split(' ')).stdin(Stdio::null()).output().unwrap()
    }

    /// What kubectl says, as data.
    #[track_caller]
    pub(crate) fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.kubectl(&format!("{line} -o json"))).unwrap()
    }

    /// Makes objects of YAML, strictly.
    #[track_caller]
    pub(crate) fn apply(&self, namespace: &str, yaml: &str) -> String {
        let mut command = self.cluster.kubectl();
        command.args(["--namespace", namespace, "apply", "--validate=strict", "-f", "-"]);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        child.stdin.take().unwrap().write_all(yaml.as_bytes()).unwrap();
        done(child.wait_with_output().unwrap())
    }

    /// Runs a shell line in a node, and gives what it wrote; whether it succeeds is its own matter.
    pub(crate) fn in_node(&self, node: &Node, line: &str) -> String {
        let output = self.cluster.command(node, "sh").args(["-c", line]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Where kubelet's volumes of ours, or what they were, are mounted in a node.
    pub(crate) fn mounted(&self, node: &Node) -> Vec<String> {
        let table = self.in_node(node, "cat /proc/self/mountinfo");
        let targets = table.lines().filter_map(|line| line.split(' ').nth(4));
        let is_ours =
            |target: &&str| target.starts_with("/var/lib/kubelet/") && target.contains("kubernetes.io~csi");
        targets.filter(is_ours).map(str::to_owned).collect()
    }

    /// Runs a program in the agent's container of a node.
    pub(crate) fn weightctl(&self, node: &Node, line: &str) -> Output {
        let pods = self.json(&format!(
            "-n weightd get pods -l app.kubernetes.io/name=weightd --field-selector spec.nodeName={}",
            node.name
        ));
        let name = pods["items"][0]["metadata"]["name"].as_str().unwrap_or("none").to_owned();
        self.try_kubectl(&format!("-n weightd exec {name} -c agent -- weightctl {line}"))
    }

    /// Lets the bucket be as it is.
    pub(crate) fn mend_origin(&self) {
        self.proxy.clear();
        self.proxy.limit(0);
    }
}

/// What it wrote, of a command that must succeed.
#[track_caller]
pub(crate) fn done(output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}{said}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap()
}

/// Asks again until there is an answer.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The same until two values are equal; says the last two when they never are.
#[track_caller]
pub(crate) fn until_equal<T: PartialEq + Debug>(what: &str, wanted: &T, mut ask: impl FnMut() -> T) {
    let started = Instant::now();
    loop {
        let found = ask();
        if found == *wanted {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}: {found:?} is not {wanted:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A namespace for one test, whose pods and volumes are gone with it. The origin is mended, too.
pub(crate) struct Scene<'a> {
    pub(crate) world: &'a World,
    pub(crate) namespace: String,
}

impl<'a> Scene<'a> {
    pub(crate) fn new(world: &'a World, namespace: &str) -> Self {
        world.kubectl(&format!("create namespace {namespace}"));
        until("pods can be made", || {
            let account = world.try_kubectl(&format!("-n {namespace} get serviceaccount default"));
            account.status.success().then_some(())
        });
        Self { world, namespace: namespace.to_owned() }
    }

    #[track_caller]
    pub(crate) fn apply(&self, yaml: &str) {
        self.world.apply(&self.namespace, yaml);
    }

    #[track_caller]
    pub(crate) fn kubectl(&self, line: &str) -> String {
        self.world.kubectl(&format!("-n {} {line}", self.namespace))
    }

    pub(crate) fn try_kubectl(&self, line: &str) -> Output {
        self.world.try_kubectl(&format!("-n {} {line}", self.namespace))
    }

    /// A pod's phase; empty when there is none.
    pub(crate) fn phase(&self, pod: &str) -> String {
        let output = self.try_kubectl(&format!("get pod {pod} -o jsonpath={{.status.phase}}"));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    pub(crate) fn until_phase(&self, pod: &str, phase: &str) {
        until(&format!("{pod} is {phase}"), || {
            let is = self.phase(pod);
            assert!(
                is != "Failed" || phase == "Failed",
                "{pod} failed: {}",
                self.kubectl(&format!("logs {pod}"))
            );
            (is == phase).then_some(())
        });
    }

    /// Waits until events of a pod say all of it in one of them.
    #[track_caller]
    pub(crate) fn until_event(&self, pod: &str, words: &[&str]) -> String {
        until(&format!("an event of {pod} says {words:?}"), || {
            let said = self.kubectl(&format!(
                "get events --field-selector involvedObject.name={pod} -o jsonpath={{.items[*].message}}"
            ));
            words.iter().all(|word| said.contains(word)).then_some(said)
        })
    }

    /// Waits until nothing is mounted any more on any node that kubelet had mounted for a pod.
    #[track_caller]
    pub(crate) fn until_nothing_is_mounted(&self) {
        for node in &self.world.nodes {
            until_equal(&format!("nothing is mounted on {}", node.name), &Vec::<String>::new(), || {
                self.world.mounted(node)
            });
        }
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        self.world.mend_origin();
        if std::thread::panicking() {
            for line in [
                format!("-n {} get events,pods -o wide", self.namespace),
                "-n weightd get pods -o wide".to_owned(),
                "-n weightd logs -l app.kubernetes.io/name=weightd --all-containers --prefix --tail=30"
                    .to_owned(),
            ] {
                let output = self.world.try_kubectl(&line);
                eprintln!("kubectl {line}\n{}", String::from_utf8_lossy(&output.stdout));
            }
        }
        let output = self.world.try_kubectl(&format!("delete namespace {} --timeout=120s", self.namespace));
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(std::thread::panicking(), "{words}");
            eprintln!("{words}");
        }
    }
}

/// A program of this build, with nothing of the surroundings that it would heed but the bucket.
pub(crate) fn weightctl(world: &World) -> Command {
    let mut command = Command::new(weightd_harness::binary("weightctl"));
    command.env_remove("WEIGHTD_SOCKET").env("STORAGE_EMULATOR_HOST", world.gcs.endpoint());
    command
}
