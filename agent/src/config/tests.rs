//! What a configuration file may say.

use weightd_daemon::LogFormat;

use super::*;

const EXAMPLE: &str = include_str!("../../../deploy/weightd.example.toml");

fn parse(text: &str, overrides: &Overrides) -> Result<Config, ConfigError> {
    Config::parse(text, overrides, &Environment::default())
}

fn mistakes(text: &str) -> Vec<String> {
    match parse(text, &Overrides::default()) {
        Err(ConfigError::Mistakes(mistakes)) => mistakes.iter().map(ToString::to_string).collect(),
        other => panic!("expected mistakes, got {other:?}"),
    }
}

fn in_store(directory: &str) -> Overrides {
    Overrides { store: Some(directory.into()), ..Overrides::default() }
}

#[test]
fn a_store_is_all_that_has_to_be_said() {
    let config = parse("", &in_store("/s")).unwrap();
    assert_eq!(config.store.directory, Path::new("/s"));
    assert_eq!(config.socket, Path::new("/run/weightd/weightd.sock"));
    assert_eq!(config.metrics_address.unwrap().to_string(), "127.0.0.1:9464");
    assert!(mistakes("")[0].starts_with("store.directory: is missing"));
}

#[test]
fn the_example_is_valid_as_it_stands_and_with_every_setting_in_use() {
    parse(EXAMPLE, &Overrides::default()).unwrap();
    // Settings are `# name = value`; words are `# Words.` or run on.
    let uncommented = |line: &str| match line.strip_prefix("# ") {
        Some(rest) if rest.split_once(" = ").is_some_and(|(name, _)| !name.contains(' ')) => rest.to_owned(),
        Some(rest) if rest.starts_with('[') => rest.to_owned(),
        _ => line.to_owned(),
    };
    let all: String = EXAMPLE.lines().map(|line| uncommented(line) + "\n").collect();
    let config = parse(&all, &Overrides::default()).unwrap();
    assert!(config.store.quota_bytes.is_some(), "the quota is a comment in the example");
    for known in [
        fields::fields::<raw::RawAgent>(),
        fields::fields::<raw::RawStore>(),
        fields::fields::<raw::RawFetch>(),
        fields::fields::<raw::RawVolumes>(),
        fields::fields::<raw::RawAccess>(),
        fields::fields::<weightd_source::GcsConfig>(),
        fields::fields::<weightd_source::S3Config>(),
        fields::fields::<weightd_source::AzureConfig>(),
        fields::fields::<weightd_source::HubConfig>(),
    ] {
        for name in known {
            assert!(all.contains(&format!("\n{name} = ")), "the example does not show {name}");
        }
    }
}

#[test]
fn every_mistake_is_reported_at_once_with_key_value_and_remedy() {
    let said = mistakes(
        r#"
        colour = "blue"
        [agent]
        socket = 3
        log = "!!"
        metrics_address = "localhost"
        [store]
        directory = "/s"
        qouta = "1GiB"
        quota = "five"
        floor = 2
        high_watermark = 0.5
        low_watermark = 0.6
        engine = "fast"
        partials_keep = "a while"
        buffers = "1MiB"
        scrub_rate = "8MiB"
        [fetch]
        range = "9MiB"
        bandwidth = "2GB"
        attempts = -1
        min_requests = 9
        max_requests = 8
        stall = "10s"
        give_up = "5s"
        [volumes]
        keeper = "here"
        passthrough = "yes"
        warm_up = 1
        warm_up_floor = "10%"
        read_timeout = 5
        agent_timeout = "500ms"
        [handoff]
        resident_limit = 0
        linger = 5
        leases = 0
        huge_pages = "on"
        [access]
        identity = "root"
        audience = "p.svc.id.goog"
        files = ["/models/*", "/models/../etc"]
        sts_endpoint = "sts"
        pods_may_pin = "yes"
        alow = 1
        [tiers]
        directories = ["mnt/*"]
        ask_origin = "no"
        [source]
        connect_timeout_seconds = 0
        gs = "x"
        [source.gcs]
        anonymus = true
        anonymous = "yes"
        endpoint = "nowhere"
        "#,
    );
    for expected in [
        "colour: is not known; the file has agent, store, fetch, volumes, handoff, access, tiers, source",
        "agent.socket = 3: write an absolute path",
        "agent.log = \"!!\": write error,",
        "agent.metrics_address = \"localhost\": write an address and a port",
        "store.qouta: is not known; [store] has directory, quota,",
        "store.quota = \"five\": write a size such as \"500GiB\"",
        "store.floor = 2: write a share",
        "store.low_watermark = 0.6: must not be above the high watermark, 0.5",
        "store.engine = \"fast\": write \"auto\"",
        "store.partials_keep = \"a while\": write a time",
        "store.buffers = \"1MiB\": must hold two chunks",
        "store.scrub_rate = \"8MiB\": write bytes a second such as \"2GB/s\", or \"off\"",
        "fetch.range = \"9MiB\": must be a multiple",
        "fetch.bandwidth = \"2GB\": write bytes a second",
        "fetch.attempts = -1: write a whole number from 1 to 100",
        "fetch.min_requests = 9: must not be above max_requests, 8",
        "fetch.give_up = \"5s\": must not be less than stall, 10s",
        "volumes.keeper = \"here\": write an absolute path",
        "volumes.passthrough = \"yes\": write true or false",
        "volumes.warm_up = 1: write true or false",
        "volumes.warm_up_floor = \"10%\": write a size",
        "volumes.read_timeout = 5: write a time",
        "volumes.agent_timeout = \"500ms\": leaves an agent no time to come back: write \"1s\" or more",
        "handoff.resident_limit = 0: must be more than nothing",
        "handoff.linger = 5: write a time",
        "handoff.leases = 0: write a whole number from 1 to 65536",
        "handoff.huge_pages = \"on\": write true or false",
        "access.identity = \"root\": write \"pod\", or \"node\"",
        "access.audience = \"p.svc.id.goog\": means nothing without provider",
        "access.files = [\"/models/*\", \"/models/../etc\"]: write a list of absolute paths",
        "access.sts_endpoint = \"sts\": write http",
        "access.pods_may_pin = \"yes\": write true or false",
        "access.alow: is not known; [access] has identity,",
        "tiers.directories = [\"mnt/*\"]: write absolute paths",
        "tiers.ask_origin = \"no\": write true or false",
        "source.gs: is not known; [source] has connect_timeout_seconds, gcs, s3, azure, hub",
        "source.gcs.anonymus: is not known; [source.gcs] has endpoint, anonymous, user_project",
        "source.gcs.anonymous = \"yes\": ",
        "source.gcs.endpoint: is \"nowhere\"; write http",
        "source.connect_timeout_seconds: is 0; write 1 to 600",
    ] {
        assert!(said.iter().any(|line| line.starts_with(expected)), "no line {expected:?} in {said:#?}");
    }
    assert_eq!(said.len(), 40, "{said:#?}");
}

#[test]
fn the_scrub_is_slow_unless_it_is_told_otherwise_and_can_be_off() {
    let rate = |text: &str| parse(text, &in_store("/s")).unwrap().fetch.scrub_bytes;
    assert_eq!(rate(""), Some(8 << 20));
    assert_eq!(rate("[store]\nscrub_rate = \"1GiB/s\""), Some(1 << 30));
    assert_eq!(rate("[store]\nscrub_rate = \"off\""), None);
}

#[test]
fn pods_pin_only_where_the_operator_says_so() {
    let may = |text: &str| parse(text, &in_store("/s")).unwrap().access.pods_may_pin;
    assert!(!may(""));
    assert!(may("[access]\npods_may_pin = true"));
}

#[test]
fn flags_go_before_the_file() {
    let overrides = Overrides {
        socket: Some("/flag.sock".into()),
        metrics_address: Some("off".to_owned()),
        log_format: Some("json".to_owned()),
        log: Some("debug".to_owned()),
        ..in_store("/flag")
    };
    let text = "[agent]\nsocket = \"/file.sock\"\nlog = \"warn\"\n[store]\ndirectory = \"/file\"";
    let config = parse(text, &overrides).unwrap();
    assert_eq!(config.store.directory, Path::new("/flag"));
    assert_eq!(config.socket, Path::new("/flag.sock"));
    assert_eq!(config.metrics_address, None);
    assert_eq!(config.log, LogConfig { format: LogFormat::Json, filter: "debug".to_owned() });
}

#[test]
fn text_that_is_no_toml_is_refused_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("weightd.toml");
    for (text, place) in
        [("[agent]\n[store\n", "line 2, column 7"), ("agent = {}\n\nstore = 3\n", "line 3, column 9")]
    {
        std::fs::write(&file, text).unwrap();
        let error = Config::load(Some(&file), &in_store("/s")).unwrap_err();
        assert!(matches!(error, ConfigError::Syntax { .. }), "{error:?}");
        let expected = format!("the configuration {} is not valid TOML: {place}", file.display());
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
    let error = Config::load(Some(Path::new("/does/not/exist")), &Overrides::default()).unwrap_err();
    assert!(error.to_string().contains("/does/not/exist"), "{error}");
}

#[test]
fn any_text_is_read_or_refused_without_a_panic() {
    bolero::check!().for_each(|bytes: &[u8]| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            let _ = parse(text, &Overrides::default());
        }
    });
}
