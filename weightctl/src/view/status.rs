//! Transfers and the disk.

use serde::Serialize;
use weightd_proto::v1;
use weightd_types::display_bytes;

use super::table::{columns, duration, pairs, percent, short_id};
use crate::output::View;

/// A transfer in flight.
#[derive(Debug, Serialize)]
struct TransferView {
    snapshot_id: String,
    source: String,
    done_bytes: u64,
    total_bytes: u64,
    rate_bytes: u64,
    eta_seconds: Option<f64>,
    priority: i32,
}

/// The store and its disk.
#[derive(Debug, Serialize)]
struct StoreView {
    directory: String,
    used_bytes: u64,
    quota_bytes: Option<u64>,
    disk_free_bytes: u64,
    disk_total_bytes: u64,
    floor_bytes: u64,
    engine: String,
    direct_io: bool,
}

/// What an agent is doing.
#[derive(Debug, Serialize)]
pub(crate) struct StatusView {
    agent_version: String,
    store: StoreView,
    requests_in_flight: u32,
    tiers: Vec<TierView>,
    transfers: Vec<TransferView>,
}

/// A read-only tier.
#[derive(Debug, Serialize)]
struct TierView {
    directory: String,
    snapshot_count: u32,
    rate_bytes: Option<u64>,
    writable: bool,
}

impl From<v1::Transfer> for TransferView {
    fn from(transfer: v1::Transfer) -> Self {
        Self {
            snapshot_id: transfer.snapshot_id,
            source: transfer.source,
            done_bytes: transfer.done_bytes,
            total_bytes: transfer.total_bytes,
            rate_bytes: transfer.rate_bytes,
            eta_seconds: transfer.eta_seconds,
            priority: transfer.priority,
        }
    }
}

impl From<v1::StoreStatus> for StoreView {
    fn from(store: v1::StoreStatus) -> Self {
        Self {
            directory: store.directory,
            used_bytes: store.used_bytes,
            quota_bytes: Some(store.quota_bytes).filter(|quota| *quota > 0),
            disk_free_bytes: store.disk_free_bytes,
            disk_total_bytes: store.disk_total_bytes,
            floor_bytes: store.floor_bytes,
            engine: store.engine,
            direct_io: store.direct_io,
        }
    }
}

impl From<v1::StatusResponse> for StatusView {
    fn from(response: v1::StatusResponse) -> Self {
        Self {
            agent_version: response.agent_version,
            store: response.store.unwrap_or_default().into(),
            requests_in_flight: response.requests_in_flight,
            tiers: response.tiers.into_iter().map(TierView::from).collect(),
            transfers: response.transfers.into_iter().map(TransferView::from).collect(),
        }
    }
}

impl From<v1::TierStatus> for TierView {
    fn from(tier: v1::TierStatus) -> Self {
        let rate_bytes = Some(tier.rate_bytes).filter(|rate| *rate > 0);
        let v1::TierStatus { directory, snapshot_count, writable, .. } = tier;
        Self { directory, snapshot_count, rate_bytes, writable }
    }
}

impl TierView {
    fn describe(&self) -> String {
        let rate = self.rate_bytes.map_or_else(String::new, |rate| format!(", {}/s", display_bytes(rate)));
        let writable = if self.writable { ", mounted for writing" } else { "" };
        format!("{} ({} snapshots{rate}{writable})", self.directory, self.snapshot_count)
    }
}

impl TransferView {
    fn row(&self) -> Vec<String> {
        vec![
            short_id(&self.snapshot_id),
            self.source.clone(),
            percent(self.done_bytes, self.total_bytes),
            format!("{} of {}", display_bytes(self.done_bytes), display_bytes(self.total_bytes)),
            if self.rate_bytes == 0 {
                "-".to_owned()
            } else {
                format!("{}/s", display_bytes(self.rate_bytes))
            },
            self.eta_seconds.map_or_else(|| "-".to_owned(), duration),
            self.priority.to_string(),
        ]
    }
}

impl View for StatusView {
    fn table(&self) -> String {
        let store = &self.store;
        let quota =
            store.quota_bytes.map_or_else(String::new, |quota| format!(" of {}", display_bytes(quota)));
        let direct = if store.direct_io { "direct" } else { "buffered" };
        let transfers =
            if self.transfers.is_empty() { "none".to_owned() } else { self.transfers.len().to_string() };
        let head = pairs(&[
            ("agent", self.agent_version.clone()),
            ("store", store.directory.clone()),
            ("used", display_bytes(store.used_bytes) + &quota),
            (
                "disk",
                format!(
                    "{} free of {}, {} stay free",
                    display_bytes(store.disk_free_bytes),
                    display_bytes(store.disk_total_bytes),
                    display_bytes(store.floor_bytes)
                ),
            ),
            ("engine", format!("{}, {direct}", store.engine)),
            ("transfers", transfers),
            ("requests", self.requests_in_flight.to_string()),
        ]);
        let tiers = self.tiers.iter().map(|tier| ("tier", tier.describe())).collect::<Vec<_>>();
        let head = if tiers.is_empty() { head } else { format!("{head}\n{}", pairs(&tiers)) };
        if self.transfers.is_empty() {
            return head;
        }
        let headings = [
            ("ID", false),
            ("SOURCE", false),
            ("DONE", true),
            ("BYTES", false),
            ("RATE", true),
            ("LEFT", true),
            ("PRIORITY", true),
        ];
        format!("{head}\n\n{}", columns(&headings, self.transfers.iter().map(TransferView::row)))
    }
}
