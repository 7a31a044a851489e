//! The node's condition `WeightsReady`: what it says, and when that is worth a write to the API.

use std::time::Duration;

use tokio::time::Instant;
use weightd_proto::v1::WantedState;
use weightd_types::display_bytes;

use crate::wanted::Wanted;

/// The condition's type.
pub const TYPE: &str = "WeightsReady";

/// How often a message that changes while bytes move is told again. Each write goes to everyone who watches the node.
const PROGRESS: Duration = Duration::from_secs(30);
/// How often it is told although nothing changed, as kubelet does it with its own.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// Models that are named; the rest is counted.
const NAMED: usize = 5;
/// Longest part of a message that is about one model.
const LONGEST: usize = 400;

/// What is to be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    /// `True`, `False` or `Unknown`.
    pub(crate) status: &'static str,
    /// One word for programs.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
}

/// Why the agent did not say how the models stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It is not there, or silent.
    Away(String),
    /// It is there and will not, or cannot.
    Refused(String),
}

impl Trouble {
    pub(crate) fn why(&self) -> &str {
        match self {
            Self::Away(why) | Self::Refused(why) => why,
        }
    }
}

impl Condition {
    /// What the agent's answer comes to. The states are in the order of what is wanted.
    pub(crate) fn of(wanted: &[Wanted], states: &[WantedState]) -> Self {
        let required: Vec<_> =
            wanted.iter().zip(states).filter(|(one, _)| one.required).map(|(_, state)| state).collect();
        let missing: Vec<_> = required.iter().copied().filter(|state| !state.complete).collect();
        if required.is_empty() {
            let message = "no model is required on this node".to_owned();
            return Self { status: "True", reason: "NothingRequired", message };
        }
        if missing.is_empty() {
            let message = format!("{} required models are here and verified", required.len());
            return Self { status: "True", reason: "Complete", message };
        }
        let is_failing = missing.iter().any(|state| state.failure.is_some());
        let reason = if is_failing { "Failing" } else { "Loading" };
        let mut parts: Vec<_> = missing.iter().take(NAMED).map(|state| how_far(state)).collect();
        if missing.len() > NAMED {
            parts.push(format!("and {} more", missing.len() - NAMED));
        }
        Self { status: "False", reason, message: parts.join("; ") }
    }

    /// When nobody says how the models stand.
    pub(crate) fn of_trouble(trouble: &Trouble) -> Self {
        let (reason, what, why) = match trouble {
            Trouble::Away(why) => ("AgentAway", "does not answer", why),
            Trouble::Refused(why) => ("AgentRefused", "does not take the list of models", why),
        };
        let message = format!("the agent on this node {what}: {}", cut(why, LONGEST));
        Self { status: "Unknown", reason, message }
    }

    /// When nobody knows what is required: ConfigMaps, each with what is wrong with it.
    pub(crate) fn unread(lists: &[(&str, &str)]) -> Self {
        let mut parts: Vec<_> = lists
            .iter()
            .take(NAMED)
            .map(|(name, why)| format!("ConfigMap {name} cannot be read: {}", cut(why, LONGEST)))
            .collect();
        if lists.len() > NAMED {
            parts.push(format!("and {} more", lists.len() - NAMED));
        }
        Self { status: "Unknown", reason: "ModelsNotRead", message: parts.join("; ") }
    }

    /// The same, and what else is wrong.
    pub(crate) fn and(mut self, other: &Self) -> Self {
        self.message = format!("{}; {}", self.message, other.message);
        self
    }

    /// Whether to say it, when `said` is what was said last, and when.
    pub(crate) fn is_due(&self, said: Option<&(Condition, Instant)>, now: Instant) -> bool {
        let Some((before, at)) = said else { return true };
        let since = now.saturating_duration_since(*at);
        (self.status, self.reason) != (before.status, before.reason)
            || (self.message != before.message && since >= PROGRESS)
            || since >= HEARTBEAT
    }
}

fn how_far(state: &WantedState) -> String {
    let failure = match state.failure_message.as_str() {
        "" => String::new(),
        message => format!(" ({})", cut(message, LONGEST)),
    };
    match state.total_bytes {
        0 if failure.is_empty() => format!("{}: being listed", state.source),
        0 => format!("{}: nothing yet{failure}", state.source),
        total => {
            let (here, total) = (display_bytes(state.present_bytes), display_bytes(total));
            format!("{}: {here} of {total}{failure}", state.source)
        }
    }
}

/// The beginning of a text that may be long.
pub(crate) fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use weightd_proto::v1::{Failure, FailureKind};
    use weightd_types::Layout;

    use super::*;

    fn wanted(required: &[bool]) -> Vec<Wanted> {
        let one = |(at, required): (usize, &bool)| Wanted {
            source: format!("gs://m/{at}").parse().unwrap(),
            layout: Layout::Aligned,
            priority: 0,
            required: *required,
        };
        required.iter().enumerate().map(one).collect()
    }

    fn state(at: usize, present: u64, total: u64) -> WantedState {
        WantedState {
            source: format!("gs://m/{at}"),
            complete: total > 0 && present == total,
            present_bytes: present,
            total_bytes: total,
            ..WantedState::default()
        }
    }

    #[test]
    fn only_what_is_required_holds_it_back_and_it_says_how_far() {
        let states = [state(0, 0, 0), state(1, 3 << 30, 4 << 30), state(2, 5, 5)];
        let told = Condition::of(&wanted(&[false, false, true]), &states);
        assert_eq!((told.status, told.reason), ("True", "Complete"));
        let told = Condition::of(&wanted(&[false, false, false]), &states);
        assert_eq!((told.status, told.reason), ("True", "NothingRequired"));
        let told = Condition::of(&wanted(&[true, true, true]), &states);
        assert_eq!((told.status, told.reason), ("False", "Loading"));
        assert_eq!(told.message, "gs://m/0: being listed; gs://m/1: 3.00 GiB of 4.00 GiB");
    }

    #[test]
    fn a_failure_is_told_with_its_cause_and_a_long_list_is_cut() {
        let failed = WantedState {
            failure_message: "gs://m/0: 403; grant roles/storage.objectViewer".to_owned(),
            failure: Some(Failure::new(FailureKind::NotPermitted, "")),
            ..state(0, 0, 0)
        };
        let told = Condition::of(&wanted(&[true]), &[failed]);
        assert_eq!((told.status, told.reason), ("False", "Failing"));
        assert!(told.message.contains("grant roles/storage.objectViewer"), "{}", told.message);
        let many: Vec<_> = (0..40).map(|at| state(at, 0, 10)).collect();
        let told = Condition::of(&wanted(&[true; 40]), &many);
        assert!(told.message.ends_with("; and 35 more") && told.message.len() < 3000, "{}", told.message);
    }

    #[test]
    fn a_change_is_told_at_once_progress_seldom_and_nothing_more_seldom_still() {
        let (wanted, now) = (wanted(&[true]), Instant::now());
        let told = |present| Condition::of(&wanted, &[state(0, present, 10 << 20)]);
        let loading = told(1 << 20);
        assert!(loading.is_due(None, now));
        let said = Some((loading.clone(), now));
        let after = |condition: &Condition, seconds| {
            condition.is_due(said.as_ref(), now + Duration::from_secs(seconds))
        };
        assert!(!after(&loading, 299) && after(&loading, 300));
        assert!(!after(&told(2 << 20), 29) && after(&told(2 << 20), 30));
        assert!(after(&told(10 << 20), 0) && after(&Condition::of_trouble(&Trouble::Away("gone".into())), 0));
    }

    #[test]
    fn what_is_not_known_names_its_cause_and_each_cause_has_its_reason() {
        let why = "the disk is full".to_owned();
        let told = Condition::of_trouble(&Trouble::Away(why.clone()));
        assert_eq!((told.status, told.reason), ("Unknown", "AgentAway"));
        let told = Condition::of_trouble(&Trouble::Refused(why));
        assert_eq!((told.status, told.reason), ("Unknown", "AgentRefused"));
        assert!(told.message.ends_with("does not take the list of models: the disk is full"), "{told:?}");
        let told = Condition::unread(&[("models", "no YAML"); 7]);
        assert_eq!((told.status, told.reason), ("Unknown", "ModelsNotRead"));
        assert!(told.message.starts_with("ConfigMap models cannot be read: no YAML; "), "{told:?}");
        assert!(told.message.ends_with("; and 2 more"), "{told:?}");
    }
}
