//! Programs in Python that stand for model servers: they import everything, and then do as they are told.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, de::DeserializeOwned};
use tempfile::NamedTempFile;

use crate::{binary, wait_until, watchdog::Watchdog};

/// How long one may take to leave.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where Debian keeps the certificates that programs trust.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The checkout.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// An interpreter, and where its packages are.
#[derive(Debug, Clone)]
pub struct Python {
    interpreter: PathBuf,
    package: PathBuf,
    packages: String,
    /// An authority that its programs are to trust, although they only know the system's.
    authority: Option<PathBuf>,
    /// Whether the peers are among them.
    pub has_peers: bool,
}

impl Python {
    /// The one that has torch, with the package `weightd` put together in a directory from what was built beside this program.
    ///
    /// # Errors
    /// When there is no torch, or the package was not built.
    pub fn find(directory: &Path) -> Result<Self> {
        let package = directory.join("packages");
        for name in ["weightd", "weightd_plugins"] {
            copy_files(&Path::new(ROOT).join("python").join(name), &package.join(name))?;
        }
        fs::copy(binary("libweightd_python.so")?, package.join("weightd/_native.abi3.so"))?;
        // By which model servers find the plugin, as when it is installed.
        let about = package.join("weightd-0.dist-info");
        fs::create_dir_all(&about)?;
        fs::write(about.join("METADATA"), "Metadata-Version: 2.1\nName: weightd\nVersion: 0\n")?;
        fs::write(
            about.join("entry_points.txt"),
            "[vllm.general_plugins]\nweightd = weightd_plugins.vllm:register\n",
        )?;
        let package = package.canonicalize()?;
        let peers = Path::new(ROOT).join(".tools/peers");
        let has_peers = peers.join("installed").exists();
        let packages = [&package, &peers].map(|place| place.display().to_string()).join(":");
        let interpreter = weightd_harness::vllm_python()?;
        Ok(Self { interpreter, package, packages, authority: None, has_peers })
    }

    /// Where the package `weightd` is.
    pub fn package(&self) -> &Path {
        &self.package
    }

    /// The same whose programs find this certificate, PEM, where the system's authorities are, for libraries that cannot be told.
    #[must_use]
    pub fn trusting(mut self, authority: &Path) -> Self {
        self.authority = Some(authority.to_owned());
        self
    }

    /// What it has, in words.
    ///
    /// # Errors
    /// When the interpreter fails.
    pub fn versions(&self) -> Result<String> {
        let code = "import importlib.metadata as packages\n\
                    names = ['torch', 'safetensors', 'transformers', 'vllm', 'runai-model-streamer', 'runai-model-streamer-gcs', 'fastsafetensors', 'instanttensor']\n\
                    there = {each.metadata['Name'] for each in packages.distributions()}\n\
                    print(', '.join(f'{name} {packages.version(name)}' for name in names if name in there))";
        let output = self.command().args(["-c", code]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// What torch calls the first CUDA device; an error says why there is none.
    ///
    /// # Errors
    /// When torch finds none; says why.
    pub fn cuda_device(&self) -> Result<String> {
        let code = "import torch\nprint(torch.cuda.get_device_name(0), 'CUDA', torch.version.cuda)";
        let output = self.command().args(["-c", code]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn command(&self) -> Command {
        let mut command = match &self.authority {
            None => Command::new(&self.interpreter),
            Some(authority) => {
                let script = format!("mount --bind \"$0\" {AUTHORITIES} && exec \"$@\"");
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", &script]).arg(authority).arg(&self.interpreter);
                command
            }
        };
        command
            .env("PYTHONPATH", &self.packages)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("HF_HUB_OFFLINE", "1");
        command
    }
}

/// Copies what lies at the top of a directory.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(from)? {
        let path = file?.path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().context("a file has a name")?))?;
        }
    }
    Ok(())
}

/// A running program. Ends when dropped.
#[derive(Debug)]
pub struct Client {
    script: String,
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    log: NamedTempFile,
}

/// What one says after it has loaded a model.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Loaded {
    /// From the first call to the last tensor.
    pub seconds: f64,
    /// Processor time of it alone, which other work on the machine does not change.
    pub cpu: f64,
    /// To the first tensor.
    pub first: f64,
    /// How many there are.
    pub tensors: usize,
    /// Seconds of it in which memory was registered with a driver, where any was.
    #[serde(default)]
    pub registering: Option<f64>,
}

#[derive(Deserialize)]
struct Ready {
    ready: bool,
}

#[derive(Deserialize)]
struct Read {
    read: usize,
}

#[derive(Deserialize)]
struct Checked {
    right: usize,
}

impl Client {
    /// Starts a script of `benches/clients`, and waits until all it needs is imported.
    ///
    /// # Errors
    /// When it ends instead.
    pub fn start(
        python: &Python,
        script: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let mut client = Self::spawn(python, script, arguments, environment)?;
        client.until_ready()?;
        Ok(client)
    }

    /// Starts a script of `benches/clients`, which imports all it needs before it does as it is told.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn spawn(
        python: &Python,
        script: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let mut command = python.command();
        command.arg(Path::new(ROOT).join("benches/clients").join(script)).args(arguments);
        command.envs(environment.iter().copied());
        let log = NamedTempFile::new()?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.reopen()?);
        let mut process = command.spawn().with_context(|| format!("starting {script}"))?;
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().context("it has an stdout")?);
        Ok(Self { script: script.to_owned(), process, input, output, log })
    }

    /// Waits until one that was spawned has imported everything. Once.
    ///
    /// # Errors
    /// When it ends instead.
    pub fn until_ready(&mut self) -> Result<()> {
        ensure!(self.hear::<Ready>()?.ready, "{} is not ready", self.script);
        Ok(())
    }

    /// Its process, for measuring.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Has it load the model, and waits for that.
    ///
    /// # Errors
    /// When it ends instead; what it wrote to stderr is in the message.
    pub fn load(&mut self) -> Result<Loaded> {
        self.begin()?;
        self.loaded()
    }

    /// Has it load the model.
    ///
    /// # Errors
    /// When it has ended.
    pub fn begin(&mut self) -> Result<()> {
        self.say("load")
    }

    /// Waits until it has.
    ///
    /// # Errors
    /// When it ends instead.
    pub fn loaded(&mut self) -> Result<Loaded> {
        self.hear()
    }

    /// Has it read every page of what it holds.
    ///
    /// # Errors
    /// When it holds nothing.
    pub fn read(&mut self) -> Result<()> {
        self.say("read")?;
        ensure!(self.hear::<Read>()?.read > 0, "{} holds nothing", self.script);
        Ok(())
    }

    /// Has it compare every byte of what it holds with the model as it was published.
    ///
    /// # Errors
    /// When a byte is wrong.
    pub fn check(&mut self) -> Result<()> {
        self.say("check")?;
        ensure!(self.hear::<Checked>()?.right > 0, "{} holds nothing", self.script);
        Ok(())
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("it has an stdin")?;
        writeln!(input, "{line}").with_context(|| format!("telling {} to {line}", self.script))
    }

    fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        let watchdog = Watchdog::of(self.process.id())?;
        self.output.read_line(&mut line)?;
        if line.is_empty() {
            let said = fs::read_to_string(self.log.path()).unwrap_or_default();
            let why = watchdog.words().map_or_else(String::new, |words| format!(", because {words}"));
            anyhow::bail!("{} ended{why}: {}", self.script, said.trim());
        }
        serde_json::from_str(&line).with_context(|| format!("{} said {line}", self.script))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.input.take());
        wait_until(PATIENCE, || !matches!(self.process.try_wait(), Ok(None)));
        // Either fails only when it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
