//! From what is written to what is meant.

use std::{path::Path, time::Duration};

use weightd_expose::{Config as ExposeConfig, HandoffConfig};
use weightd_fetch::Config as FetchConfig;
use weightd_source::Environment;
use weightd_store::{Config as StoreConfig, io::EngineChoice};
use weightd_types::CHUNK_BYTES;

use weightd_daemon::{LogConfig, LogFormat};

use crate::TierConfig;

use super::{
    Config, Mistake, access,
    raw::{Raw, RawAgent, RawFetch, RawHandoff, RawStore, RawTiers, RawVolumes, Setting},
    read::{self, Read, Reader},
    source,
};

/// Checks everything, and gives all mistakes if there is one.
pub(super) fn check(
    raw: Raw,
    unknown: Vec<Mistake>,
    environment: &Environment,
) -> Result<Config, Vec<Mistake>> {
    let mut reader = Reader { mistakes: unknown };
    let (socket, metrics_address, log) = agent(&mut reader, raw.agent);
    // The setting stands with the store, which it is about; who reads it is the room that can repair what is found.
    let scrub_rate = raw.store.scrub_rate.clone();
    let store = store(&mut reader, raw.store);
    let fetch = fetch(&mut reader, raw.fetch, scrub_rate);
    let handoff = handoff(&mut reader, raw.handoff, &socket);
    let expose = volumes(&mut reader, raw.volumes, &store.directory, handoff);
    let access = access::check(&mut reader, raw.access);
    let tiers = tiers(&mut reader, raw.tiers);
    match source::check(&mut reader, raw.source, environment) {
        Some(source) if reader.mistakes.is_empty() => {
            Ok(Config { socket, metrics_address, log, store, fetch, access, expose, source, tiers })
        }
        _ => Err(reader.mistakes),
    }
}

fn agent(
    reader: &mut Reader,
    raw: RawAgent,
) -> (std::path::PathBuf, Option<std::net::SocketAddr>, LogConfig) {
    let socket = reader.get("agent.socket", raw.socket, "/run/weightd/weightd.sock".into(), read::socket);
    let loopback = std::net::SocketAddr::from(([127, 0, 0, 1], 9464));
    let metrics_address =
        reader.get("agent.metrics_address", raw.metrics_address, Some(loopback), read::address);
    let format = reader.get("agent.log_format", raw.log_format, LogFormat::Text, read::log_format);
    let filter = reader.get("agent.log", raw.log, "info".to_owned(), read::log_filter);
    (socket, metrics_address, LogConfig { format, filter })
}

fn store(reader: &mut Reader, raw: RawStore) -> StoreConfig {
    if raw.directory.is_none() {
        reader.mistake(
            "store.directory",
            String::new(),
            "is missing: write the store's directory, or use --store",
        );
    }
    let directory = reader.get("store.directory", raw.directory, "/".into(), read::path);
    let default = StoreConfig::new(directory);
    let written = |setting: &Setting| setting.as_ref().map_or(String::new(), ToString::to_string);
    let low_written = written(&raw.low_watermark);
    let high = reader.get("store.high_watermark", raw.high_watermark, default.high_watermark, read::share);
    let low =
        reader.get("store.low_watermark", raw.low_watermark, default.low_watermark.min(high), read::share);
    if low > high {
        reader.mistake(
            "store.low_watermark",
            low_written,
            format!("must not be above the high watermark, {high}"),
        );
    }
    StoreConfig {
        quota_bytes: reader.get("store.quota", raw.quota, None, |value| read::bytes(value).map(Some)),
        high_watermark: high,
        low_watermark: low,
        floor: reader.get("store.floor", raw.floor, default.floor, floor),
        engine: reader.get("store.engine", raw.engine, default.engine, engine),
        buffer_bytes: reader.get("store.buffers", raw.buffers, default.buffer_bytes, buffers),
        partials_keep: reader.get(
            "store.partials_keep",
            raw.partials_keep,
            default.partials_keep,
            read::duration,
        ),
        checkpoint_interval: reader.get(
            "store.checkpoint_interval",
            raw.checkpoint_interval,
            default.checkpoint_interval,
            read::duration,
        ),
        ..default
    }
}

fn fetch(reader: &mut Reader, raw: RawFetch, scrub_rate: Setting) -> FetchConfig {
    let default = FetchConfig::default();
    let written = |setting: &Setting| setting.as_ref().map_or(String::new(), ToString::to_string);
    let (min_written, give_up_written) = (written(&raw.min_requests), written(&raw.give_up));
    let max = reader.get("fetch.max_requests", raw.max_requests, default.max_requests, requests);
    let min = reader.get("fetch.min_requests", raw.min_requests, default.min_requests.min(max), requests);
    if min > max {
        reader.mistake("fetch.min_requests", min_written, format!("must not be above max_requests, {max}"));
    }
    let stall = reader.get("fetch.stall", raw.stall, default.stall, read::duration);
    let give_up = reader.get("fetch.give_up", raw.give_up, default.give_up.max(stall), read::duration);
    if give_up < stall {
        reader.mistake("fetch.give_up", give_up_written, format!("must not be less than stall, {stall:?}"));
    }
    FetchConfig {
        min_requests: min,
        max_requests: max,
        stall,
        give_up,
        range_bytes: reader.get("fetch.range", raw.range, default.range_bytes, range),
        bandwidth_bytes: reader
            .get("fetch.bandwidth", raw.bandwidth, None, |value| read::rate(value).map(Some)),
        scrub_bytes: reader.get("store.scrub_rate", scrub_rate, default.scrub_bytes, read::rate_or_off),
        attempts: reader.get("fetch.attempts", raw.attempts, default.attempts, read::count(1, 100)),
        refetches: reader.get("fetch.refetches", raw.refetches, default.refetches, read::count(0, 100)),
        ..default
    }
}

/// Its own socket is beside the control socket, unless told otherwise.
fn handoff(reader: &mut Reader, raw: RawHandoff, socket: &Path) -> HandoffConfig {
    let beside = socket.parent().unwrap_or(Path::new("/")).to_owned();
    let default = HandoffConfig::new(reader.get("handoff.directory", raw.directory, beside, read::path));
    HandoffConfig {
        resident_limit: reader
            .get("handoff.resident_limit", raw.resident_limit, None, |value| read::bytes(value).map(Some)),
        linger: reader.get("handoff.linger", raw.linger, default.linger, read::duration),
        lock_limit: reader.get("handoff.lock_limit", raw.lock_limit, default.lock_limit, read::bytes),
        leases: reader.get("handoff.leases", raw.leases, default.leases, leases),
        huge_pages: reader.get("handoff.huge_pages", raw.huge_pages, default.huge_pages, read::truth),
        ..default
    }
}

fn leases(value: &toml::Value) -> Read<usize> {
    read::count(1, 65_536)(value).map(|count| count as usize)
}

fn volumes(reader: &mut Reader, raw: RawVolumes, store: &Path, handoff: HandoffConfig) -> ExposeConfig {
    let directory = reader.get("volumes.directory", raw.directory, store.join("volumes"), read::path);
    let default = ExposeConfig::new(directory);
    ExposeConfig {
        keeper: reader.get("volumes.keeper", raw.keeper, None, |value| read::socket(value).map(Some)),
        read_timeout: reader.get(
            "volumes.read_timeout",
            raw.read_timeout,
            default.read_timeout,
            read::duration,
        ),
        agent_timeout: reader.get(
            "volumes.agent_timeout",
            raw.agent_timeout,
            default.agent_timeout,
            agent_timeout,
        ),
        read_ahead_bytes: reader.get(
            "volumes.read_ahead",
            raw.read_ahead,
            default.read_ahead_bytes,
            read::bytes,
        ),
        buffer_bytes: reader.get("volumes.buffers", raw.buffers, default.buffer_bytes, buffers),
        passthrough: reader.get("volumes.passthrough", raw.passthrough, default.passthrough, read::truth),
        warm_up: reader.get("volumes.warm_up", raw.warm_up, default.warm_up, read::truth),
        warm_up_floor_bytes: reader
            .get("volumes.warm_up_floor", raw.warm_up_floor, None, |value| read::bytes(value).map(Some)),
        handoff,
        ..default
    }
}

fn tiers(reader: &mut Reader, raw: RawTiers) -> TierConfig {
    let default = TierConfig::default();
    TierConfig {
        patterns: reader.get("tiers.directories", raw.directories, default.patterns, patterns),
        ask_origin: reader.get("tiers.ask_origin", raw.ask_origin, default.ask_origin, read::truth),
    }
}

fn patterns(value: &toml::Value) -> Read<Vec<String>> {
    let list = value.as_array().ok_or("write a list: [\"/mnt/disks/weights/*\"]; [] for none")?;
    let pattern = |value: &toml::Value| TierConfig::check(value.as_str().ok_or("write each in quotes")?);
    list.iter().map(pattern).collect()
}

fn agent_timeout(value: &toml::Value) -> Read<Duration> {
    // The keeper counts whole seconds, and the agent looks once a second whether its keeper is still there.
    match read::duration(value)? {
        timeout if timeout >= Duration::from_secs(1) => Ok(timeout),
        _ => Err("leaves an agent no time to come back: write \"1s\" or more".to_owned()),
    }
}

fn requests(value: &toml::Value) -> Read<usize> {
    read::count(1, 1024)(value).map(|count| count as usize)
}

fn engine(value: &toml::Value) -> Read<EngineChoice> {
    match value.as_str() {
        Some("auto") => Ok(EngineChoice::Auto),
        Some("io_uring") => Ok(EngineChoice::Uring),
        Some("pwrite") => Ok(EngineChoice::Pwrite),
        _ => Err("write \"auto\", \"io_uring\" or \"pwrite\"".to_owned()),
    }
}

fn floor(value: &toml::Value) -> Read<f64> {
    match read::share(value)? {
        floor if floor < 0.9 => Ok(floor),
        _ => Err("would leave next to nothing for weights: write less than 0.9".to_owned()),
    }
}

fn buffers(value: &toml::Value) -> Read<u64> {
    // A chunk that is being filled and one that is being written.
    let least = 2 * CHUNK_BYTES;
    match read::bytes(value)? {
        bytes if bytes >= least => Ok(bytes),
        _ => Err("must hold two chunks: write \"16MiB\" or more".to_owned()),
    }
}

fn range(value: &toml::Value) -> Read<u64> {
    match read::bytes(value)? {
        bytes if bytes.is_multiple_of(CHUNK_BYTES) => Ok(bytes),
        _ => Err("must be a multiple of the 8 MiB chunk: write \"32MiB\" or \"64MiB\"".to_owned()),
    }
}
