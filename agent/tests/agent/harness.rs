//! An agent on a temporary store, and an origin in memory.

use std::{path::Path, sync::Arc, time::Duration};

use weightd::{Agent, Config, Overrides};
use weightd_client::{Client, Error, Events};
use weightd_proto::v1::{
    Completed, FailureKind, GetRequest, PrefetchEvent, PrefetchRequest, SnapshotState, prefetch_event::Event,
};
use weightd_source::{Environment, MemoryOrigin, Origins};

/// More than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A configuration for a store in `directory`, with more settings as they stand in a file.
pub(crate) fn config(directory: &Path, more: &str) -> Config {
    let at = |name: &str| directory.join(name).display().to_string();
    let text = format!(
        "[agent]\nsocket = {:?}\nmetrics_address = \"127.0.0.1:0\"\n\
         [store]\ndirectory = {:?}\nfloor = 0.0\nbuffers = \"64MiB\"\n{more}",
        at("weightd.sock"),
        at("store")
    );
    Config::parse(&text, &Overrides::default(), &Environment::default()).unwrap()
}

/// An agent that reads `memory://m` from `origin`.
pub(crate) async fn start(config: Config, origin: &MemoryOrigin) -> Agent {
    let origins = Origins::new(config.source.clone());
    origins.register(origin.clone());
    Agent::start_on(config, Arc::new(origins)).await.unwrap()
}

/// A bucket with a model of two files, the larger of so many bytes.
pub(crate) fn model(bytes: usize) -> MemoryOrigin {
    let origin = MemoryOrigin::new("m");
    origin.put("model/config.json", "{}");
    origin.put("model/tokenizer.bin", vec![7; bytes]);
    origin
}

/// Bytes of [`model`]'s snapshot beside the larger file.
pub(crate) const SMALL_FILE: u64 = 2;

pub(crate) fn request(source: &str) -> PrefetchRequest {
    PrefetchRequest { source: source.to_owned(), ..PrefetchRequest::default() }
}

pub(crate) fn client(agent: &Agent) -> Client {
    Client::from_channel(agent.connect())
}

/// The next event, which must be there.
pub(crate) async fn next(events: &mut Events<PrefetchEvent>) -> Result<Event, Error> {
    let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("an event in time")?;
    Ok(event.and_then(|event| event.event).expect("the stream ends with a last event"))
}

/// A prefetch, to its end.
pub(crate) async fn prefetch(client: &Client, request: PrefetchRequest) -> Result<Completed, Error> {
    let mut events = client.prefetch(request).await?;
    loop {
        if let Event::Completed(completed) = next(&mut events).await? {
            assert!(events.next().await?.is_none(), "the completion comes last");
            return Ok(completed);
        }
    }
}

/// The state of the model's snapshot.
pub(crate) async fn state(client: &Client) -> Option<SnapshotState> {
    let request = GetRequest { snapshot: "memory://m/model".to_owned(), summary: true };
    match client.get(request).await {
        Ok(answer) => Some(answer.snapshot.unwrap().state()),
        Err(error) => {
            assert_eq!(error.kind(), FailureKind::NotFound, "{error}");
            None
        }
    }
}

/// Waits until the model's snapshot is in that state.
pub(crate) async fn until(client: &Client, wanted: Option<SnapshotState>) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while state(client).await != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("the snapshot never became {wanted:?}"));
}
