//! The pod's own identity decides: a real agent, a bucket that looks at tokens, and what kubelet would ask.

mod bounds;
mod identities;
mod loading;
mod metrics;
mod other_origins;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use weightd_client::{Client, Error};
use weightd_harness::{FakeGcs, Guard, Model, ModelShape, mounts, service_account_token, subject_token};
use weightd_proto::v1::{self, FailureKind};

use crate::{
    place::Place,
    program::{Running, program, until},
    volumes::SOURCE,
};

const AUDIENCE: &str = "project.svc.id.goog";
const PROVIDER: &str =
    "//iam.googleapis.com/projects/7/locations/global/workloadIdentityPools/pool/providers/cluster";
const BUCKET: &str = "models";
const READER: &str = "system:serviceaccount:team:reader";
const STRANGER: &str = "system:serviceaccount:team:stranger";
/// Who the node is to the bucket.
const NODE: &str = "node";

/// A node of a cluster, whose bucket looks at tokens.
struct Cluster {
    place: Place,
    guard: Guard,
    model: Model,
    more: String,
}

impl Cluster {
    async fn new(gcs: &FakeGcs, shape: &ModelShape, more: &str) -> Self {
        let guard = Guard::start(&gcs.endpoint()).await.unwrap();
        let place = Place::new("");
        let model = Model::write(&place.at("model"), shape).unwrap();
        gcs.create_bucket(BUCKET).await.unwrap();
        gcs.place_directory(BUCKET, "demo", &model.directory).unwrap();
        fs::create_dir(place.at("kubelet")).unwrap();
        // The node may read everything: whoever falls back to it is found out.
        guard.grant(NODE, BUCKET);
        let place = as_node(place, &guard);
        let cluster = Self { place, guard, model, more: more.to_owned() };
        cluster.configure("identity = \"pod\"");
        cluster
    }

    fn configure(&self, access: &str) {
        let text = format!(
            "log = \"debug\"\n[access]\nkubelet_directory = {:?}\nsts_endpoint = {:?}\naudience = {AUDIENCE:?}\nprovider = \
             {PROVIDER:?}\n{access}\n[source.gcs]\nendpoint = {:?}\n{}",
            self.place.at("kubelet"),
            self.guard.token_url(),
            self.guard.url(),
            self.more
        );
        // `log` stands in `[agent]`, which comes first.
        let (log, rest) = text.split_once('\n').unwrap();
        self.place.configure(&self.place.at("store"), rest);
        let file = self.place.at("weightd.toml");
        let written = fs::read_to_string(&file).unwrap();
        fs::write(&file, written.replacen("[agent]\n", &format!("[agent]\n{log}\n"), 1)).unwrap();
    }

    /// The same with other settings.
    fn with(mut self, more: &str) -> Self {
        more.clone_into(&mut self.more);
        self.configure("identity = \"pod\"");
        self
    }

    fn set_env(&mut self, name: &'static str, value: &str) {
        self.place.set_env(name, value);
    }

    async fn client(&self) -> Client {
        Client::connect(&self.place.socket()).await.unwrap()
    }

    fn target(&self, pod: &str) -> PathBuf {
        self.place.at("kubelet").join("pods").join(pod).join("mount")
    }

    /// What the driver asks for when a pod of a service account begins.
    async fn publish(&self, pod: &str, account: &str) -> Result<v1::VolumeInfo, Error> {
        self.ask(self.request(pod, account)).await
    }

    fn request(&self, pod: &str, account: &str) -> v1::PublishRequest {
        let token = v1::ServiceAccountToken {
            token: service_account_token("team", account),
            expires_at: Some((SystemTime::now() + Duration::from_secs(3600)).into()),
        };
        let pod = v1::Pod {
            name: pod.to_owned(),
            namespace: "team".to_owned(),
            uid: pod.to_owned(),
            service_account: account.to_owned(),
            tokens: [(AUDIENCE.to_owned(), token)].into(),
            secrets: [].into(),
        };
        v1::PublishRequest {
            source: SOURCE.to_owned(),
            layout: v1::Layout::Original.into(),
            target_path: self.target(&pod.name).to_str().unwrap().to_owned(),
            pod: Some(pod),
            ..v1::PublishRequest::default()
        }
    }

    async fn ask(&self, request: v1::PublishRequest) -> Result<v1::VolumeInfo, Error> {
        Ok(self.client().await.publish(request).await?.volume.unwrap())
    }

    async fn unpublish(&self, pod: &str) {
        let target = self.target(pod).to_str().unwrap().to_owned();
        assert!(self.client().await.unpublish(target).await.unwrap(), "{pod} has no volume");
    }

    async fn until_complete(&self) {
        until("the snapshot is complete", async || {
            let snapshots = self.client().await.list().await.unwrap();
            snapshots.iter().any(|found| found.state() == v1::SnapshotState::Complete).then_some(())
        })
        .await;
    }

    /// Waits until fetching says that there is nobody to ask with.
    async fn until_paused(&self) {
        until("fetching pauses", async || self.events().await.contains("is there to ask with").then_some(()))
            .await;
    }

    async fn events(&self) -> String {
        format!("{:?}", self.client().await.list_volumes().await.unwrap().events)
    }

    async fn present(&self) -> u64 {
        self.client().await.list().await.unwrap().iter().map(|found| found.present_bytes).sum()
    }

    /// Reads every byte that a pod sees.
    async fn assert_right(&self, pod: &str) {
        let (target, model) = (self.target(pod), self.model.directory.clone());
        let names = self.model.files.clone();
        let compared = tokio::task::spawn_blocking(move || {
            for name in names {
                assert!(read(&target.join(&name)) == read(&model.join(&name)), "{name}");
            }
        });
        compared.await.unwrap();
    }

    async fn keeper(&self) -> Running {
        let socket = self.place.at("keeper.sock");
        let keeper = Running::start(program("weightd-keeper").arg("--socket").arg(&socket));
        until("the keeper listens", async || socket.exists().then_some(())).await;
        keeper
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place.at("log")).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        mounts::remove_below(&self.place.at(""));
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{log}\nwho asked: {:?}", self.guard.asked());
            return;
        }
        for token in self.guard.given() {
            assert!(!log.contains(&token), "an access token is in the log");
        }
        assert!(!log.contains(".unsigned"), "a service account's token is in the log");
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Gives the node an identity of its own, as a node that is no machine of Google's has one.
fn as_node(place: Place, guard: &Guard) -> Place {
    let (token, file) = (place.at("node.jwt"), place.at("node.json"));
    fs::write(&token, subject_token(NODE)).unwrap();
    let credentials = serde_json::json!({
        "type": "external_account", "audience": PROVIDER, "universe_domain": "googleapis.com",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": guard.token_url(),
        "credential_source": {"file": token},
    });
    fs::write(&file, credentials.to_string()).unwrap();
    place.env("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())
}

/// What kind of failure it was, and its words.
#[track_caller]
fn refused(outcome: Result<v1::VolumeInfo, Error>) -> (FailureKind, String) {
    match outcome {
        Err(Error::Failed { kind, message, .. }) => (kind, message),
        other => panic!("expected a refusal, got {other:?}"),
    }
}
