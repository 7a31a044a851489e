//! Turns against an API server that is not one: it writes down what it is asked, and refuses what a test says.

use std::sync::{Arc, Mutex};

use kube::client::Body;
use serde_json::{Value, json};

use super::*;

/// Of an answer; 200 is success.
type Answer = fn(&str, &str) -> u16;

/// What was asked, as `METHOD path`, and the bodies.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<(String, Value)>>>);

impl Asked {
    fn take(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn names(&self) -> Vec<String> {
        self.take().into_iter().map(|(name, _)| name).collect()
    }
}

const UNTAINTED: &str = "PATCH /api/v1/nodes/n";
const SAID: &str = "PATCH /api/v1/nodes/n/status";
const EVENT: &str = "POST /api/v1/namespaces/weightd/events";

fn api(asked: &Asked, answer: Answer) -> Client {
    let asked = asked.clone();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let asked = asked.clone();
        async move {
            let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
            let body = request.into_body().collect_bytes().await.unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let code = answer(&method, &path);
            let reason = if code == 409 { "AlreadyExists" } else { "InternalError" };
            let refusal = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "no", "reason": reason, "code": code});
            let done = if path.ends_with("/events") { &body } else { &json!({"metadata": {"name": "n"}}) };
            let text = if code == 200 { done } else { &refusal }.to_string();
            asked.0.lock().unwrap().push((format!("{method} {path}"), body));
            let response = http::Response::builder().status(code).body(Body::from(text.into_bytes()));
            Ok::<_, std::convert::Infallible>(response.unwrap())
        }
    });
    Client::new(service, "weightd")
}

/// A part that has heard of its node, which has the startup taint, and of one ConfigMap.
fn part(asked: &Asked, answer: Answer, agent: weightd_client::Client, models: &str) -> Part {
    let options = Options {
        node: "n".to_owned(),
        namespace: "weightd".to_owned(),
        ready_needs_models: false,
        list_again_after: Duration::from_secs(3600),
    };
    let registered = watch::channel(true).1;
    let mut part = Part::new(options, api(asked, answer), agent, registered, Metrics::default());
    let node = json!({"metadata": {"name": "n"},
        "spec": {"taints": [{"key": taint::TAINT, "effect": "NoSchedule"}]}});
    let map = json!({"metadata": {"name": "models", "resourceVersion": "1"},
        "data": {crate::KEY: models}});
    for event in [
        watcher::Event::Init,
        watcher::Event::InitApply(serde_json::from_value(node).unwrap()),
        watcher::Event::InitDone,
    ] {
        part.hear_node(Ok(event));
    }
    for event in [
        watcher::Event::Init,
        watcher::Event::InitApply(serde_json::from_value(map).unwrap()),
        watcher::Event::InitDone,
    ] {
        part.hear_map(Ok(event));
    }
    part
}

fn nobody() -> weightd_client::Client {
    weightd_client::Client::lazy("/nowhere/weightd.sock".as_ref())
}

fn count(names: &[String], wanted: &str) -> usize {
    names.iter().filter(|name| *name == wanted).count()
}

#[tokio::test(start_paused = true)]
async fn an_api_that_takes_no_events_holds_up_nothing_and_is_asked_ever_more_seldom() {
    let asked = Asked::default();
    let refuse: Answer = |_, path| if path.ends_with("/events") { 500 } else { 200 };
    let mut part = part(&asked, refuse, nobody(), "models: [");
    part.turn().await;
    assert_eq!(asked.names(), [UNTAINTED, SAID, EVENT], "in the order in which they matter");
    let errors = part.metrics.api_errors.get();
    assert_eq!((errors, part.metrics.taints_removed.get()), (1, 1));
    // Ten minutes of turns.
    for _ in 0..200 {
        tokio::time::advance(TURN).await;
        part.turn().await;
    }
    let events = count(&asked.names(), EVENT);
    assert!((5..=15).contains(&events), "{events}");
    assert_eq!(part.metrics.api_errors.get(), 1 + events as u64);
}

#[tokio::test(start_paused = true)]
async fn a_condition_and_a_taint_that_are_refused_are_written_ever_more_seldom_each_for_itself() {
    let asked = Asked::default();
    let refuse: Answer = |_, path| if path.contains("/nodes/") { 500 } else { 200 };
    let mut part = part(&asked, refuse, nobody(), "models: [");
    for _ in 0..200 {
        part.turn().await;
        tokio::time::advance(TURN).await;
    }
    let names = asked.names();
    for name in [UNTAINTED, SAID] {
        let attempts = count(&names, name);
        assert!((5..=16).contains(&attempts), "{name}: {attempts}");
    }
    assert_eq!(count(&names, EVENT), 1, "what is said need not be said again");
}

#[tokio::test(start_paused = true)]
async fn what_another_node_said_of_a_config_map_need_not_be_said_again() {
    let asked = Asked::default();
    let there: Answer = |_, path| if path.ends_with("/events") { 409 } else { 200 };
    let mut part = part(&asked, there, nobody(), "models: [");
    for _ in 0..5 {
        part.turn().await;
        tokio::time::advance(TURN).await;
    }
    let events: Vec<_> = asked.names().into_iter().filter(|name| name.contains("/events")).collect();
    assert_eq!(events, [EVENT]);
    assert_eq!(part.metrics.api_errors.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn while_a_list_was_never_read_nobody_is_ready() {
    let asked = Asked::default();
    let mut part = part(&asked, |_, _| 200, nobody(), "models: [");
    part.options.ready_needs_models = true;
    for _ in 0..20 {
        part.turn().await;
        tokio::time::advance(TURN).await;
    }
    let asked = asked.take();
    let conditions: Vec<_> = asked.iter().filter(|(name, _)| name == SAID).map(|(_, body)| body).collect();
    assert!(!conditions.is_empty());
    for condition in conditions {
        let condition = &condition["status"]["conditions"][0];
        assert_eq!(
            (&condition["status"], &condition["reason"]),
            (&json!("Unknown"), &json!("ModelsNotRead"))
        );
        assert!(condition["message"].as_str().unwrap().contains("ConfigMap models"), "{condition}");
    }
    let last = asked.iter().rfind(|(name, _)| name == SAID).unwrap();
    let message = last.1["status"]["conditions"][0]["message"].as_str().unwrap();
    assert!(message.contains("the agent on this node does not answer"), "both are wrong: {message}");
    assert!(!asked.iter().any(|(name, _)| name == UNTAINTED), "the taint stays");
    assert_eq!(part.metrics.weights_ready.get(), 0);
}

#[tokio::test]
async fn an_agent_that_refuses_is_not_called_away() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("weightd.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    // It answers, and knows no call.
    let other = tonic::transport::Server::builder()
        .add_routes(tonic::service::Routes::default())
        .serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener));
    let other = tokio::spawn(other);
    let asked = Asked::default();
    let client = weightd_client::Client::lazy(&socket);
    let mut part = part(&asked, |_, _| 200, client, "models: []");
    let reason = async |part: &mut Part| {
        part.trouble_since = Instant::now().checked_sub(AWAY);
        part.turn().await;
        let (_, body) = asked.take().into_iter().find(|(name, _)| name == SAID).unwrap();
        body["status"]["conditions"][0]["reason"].as_str().unwrap().to_owned()
    };
    assert_eq!(reason(&mut part).await, "AgentRefused");
    other.abort();
    std::fs::remove_file(&socket).unwrap();
    part.agent = nobody();
    assert_eq!(reason(&mut part).await, "AgentAway");
}

#[tokio::test(start_paused = true)]
async fn an_api_in_trouble_is_asked_for_one_event_and_not_for_each() {
    let mistakes = "models:\n- source: one\n- source: two\n- source: three\n";
    for (answer, wanted) in [
        ((|_, path| if path.ends_with("/events") { 503 } else { 200 }) as Answer, 1),
        (|_, path| if path.ends_with("/events") { 429 } else { 200 }, 1),
        (|_, path| if path.ends_with("/events") { 422 } else { 200 }, 3),
        (|_, _| 200, 3),
    ] {
        let asked = Asked::default();
        part(&asked, answer, nobody(), mistakes).turn().await;
        assert_eq!(count(&asked.names(), EVENT), wanted);
    }
}
