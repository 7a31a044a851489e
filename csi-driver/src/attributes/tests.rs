use super::*;

fn given(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn with(key: &str, value: &str) -> HashMap<String, String> {
    given(&[("source", "gs://models/x"), (key, value)])
}

fn refused(attributes: &HashMap<String, String>) -> String {
    Attributes::parse(attributes).unwrap_err().to_string()
}

#[test]
fn a_source_is_enough() {
    let attributes = Attributes::parse(&given(&[("source", "hf://org/name@refs/pr/1")])).unwrap();
    let layout = v1::Layout::Aligned;
    let source = "hf://org/name@refs/pr/1".to_owned();
    let (pin, warm_up, resident) = (false, false, false);
    assert_eq!(attributes, Attributes { source, layout, wait: Wait::Started, pin, warm_up, resident });
}

#[test]
fn every_attribute_is_heard() {
    let all = [
        ("source", "gs://models/x"),
        ("layout", "original"),
        ("wait", "ready"),
        ("pin", "true"),
        ("warmUp", "true"),
        ("resident", "true"),
        ("csi.storage.k8s.io/pod.name", "p"),
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("storage.kubernetes.io/csiProvisionerIdentity", "1-2-csi.weightd.io"),
    ];
    let attributes = Attributes::parse(&given(&all)).unwrap();
    let layout = v1::Layout::Original;
    let source = "gs://models/x".to_owned();
    let (pin, warm_up, resident) = (true, true, true);
    assert_eq!(attributes, Attributes { source, layout, wait: Wait::Ready, pin, warm_up, resident });
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    assert_eq!(
        refused(&with("sorce", "x")),
        "the volume attribute \"sorce\" is not known: known are source, layout, wait, pin, warmUp and resident"
    );
    // Keys that an agent might one day heed, or that look like kubelet's.
    for key in ["identity", "mode", "expectedSnapshot", "csi.storage.k8s.io", "Source", "", "a\nb"] {
        assert!(refused(&with(key, "x")).contains("is not known"), "{key:?}");
    }
    let long = refused(&with(&"k".repeat(100_000), "x"));
    assert!(long.len() < 400 && !long.contains('\n'), "{long}");
}

#[test]
fn bad_values_are_refused_with_what_may_be_written() {
    for (key, value, choices) in [
        ("layout", "packed", "aligned or original"),
        ("layout", "", "aligned or original"),
        ("wait", "forever", "started or ready"),
        ("pin", "yes", "\"true\" or \"false\""),
        ("pin", "True", "\"true\" or \"false\""),
        ("warmUp", "1", "\"true\" or \"false\""),
        ("resident", "yes", "\"true\" or \"false\""),
    ] {
        let message = refused(&with(key, value));
        assert!(message.contains(choices) && message.contains(key), "{message}");
    }
}

#[test]
fn only_whole_uris_are_sources() {
    assert!(refused(&given(&[])).contains("\"source\" is missing"));
    let id = "0123456789abcdef".repeat(4);
    for (source, why) in [
        (id.as_str(), "must be a URI"),
        ("012345", "must be a URI"),
        ("", "must be a URI"),
        ("/var/lib/weightd", "must be a URI"),
        ("gs:/models/x", "must be a URI"),
        ("://x", "scheme"),
        ("G S://x", "scheme"),
        ("gs://models/../other", ".. in it"),
        ("gs://models/x/..", ".. in it"),
        ("gs://models/%2e%2E/other", ".. in it"),
        ("file:///srv/%2E./etc", ".. in it"),
        ("file:///srv/..%2fetc", ".. in it"),
        ("file:///srv\\..\\etc", ".. in it"),
        ("gs://models/x\n", "control character"),
        ("gs://models/\u{1b}[2J", "control character"),
        ("gs://models/x\0", "control character"),
    ] {
        let message = refused(&given(&[("source", source)]));
        assert!(message.contains(why), "{source:?}: {message}");
        assert!(!message.chars().any(char::is_control), "{message:?}");
    }
    let long = format!("gs://models/{}", "x".repeat(3000));
    let message = refused(&given(&[("source", &long)]));
    assert!(message.contains("longer than 2048") && message.len() < 600, "{message}");
}

#[test]
fn dots_within_names_are_names() {
    for source in ["gs://models/llama-3.1..70b", "gs://models/...", "https://host.example/a..b/c"] {
        Attributes::parse(&given(&[("source", source)])).unwrap();
    }
}

#[test]
fn credentials_in_a_source_are_refused_and_not_repeated() {
    let message = refused(&given(&[("source", "https://me:hunter2@host.example/model")]));
    assert!(message.contains("nodePublishSecretRef") && !message.contains("hunter2"), "{message}");
    // Whatever else is wrong with it.
    let message = refused(&given(&[("source", "https://me:hunter2@host.example/\n")]));
    assert!(!message.contains("hunter2"), "{message}");
}

#[test]
fn no_text_panics() {
    bolero::check!().with_type::<Vec<(String, String)>>().for_each(|pairs: &Vec<(String, String)>| {
        if let Err(error) = Attributes::parse(&pairs.iter().cloned().collect()) {
            assert!(error.to_string().len() < 4 * MAX_SHOWN * 6);
        }
    });
}
