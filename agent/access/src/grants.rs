//! What origins answered, and until when that counts.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;
use weightd_source::Credential;
use weightd_types::{Scheme, Selection, SnapshotId, SourceUri};

use crate::{
    holders::{Holder, covers},
    identity::{Claim, Principal},
};

/// Answers that are kept.
const KEPT: usize = 4096;

/// Who was answered, about what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    who: Who,
    source: SourceUri,
    selection: Selection,
}

/// A service account is the same with each of its tokens; whoever brings keys is whoever has those keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    Principal(Principal),
    Credential(Credential),
}

/// That someone may read a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    ends: Instant,
    /// What the source was then.
    pub(crate) snapshot: SnapshotId,
}

/// What origins granted.
#[derive(Debug, Default)]
pub(crate) struct Grants(Mutex<HashMap<Asked, Grant>>);

impl Asked {
    pub(crate) fn new(claim: &Claim, source: &SourceUri, selection: &Selection) -> Self {
        let who = match claim {
            Claim::Ready(_, credential) => Who::Credential(credential.clone()),
            Claim::Token(token) => Who::Principal(token.principal.clone()),
        };
        Self { who, source: source.clone(), selection: selection.clone() }
    }

    pub(crate) fn scheme(&self) -> Scheme {
        self.source.scheme()
    }
}

impl Who {
    fn is(&self, holder: &Holder) -> bool {
        match self {
            Self::Principal(principal) => *principal == holder.principal,
            Self::Credential(credential) => *credential == holder.credential,
        }
    }
}

impl Grants {
    fn lock(&self) -> MutexGuard<'_, HashMap<Asked, Grant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A grant that counts now.
    pub(crate) fn get(&self, asked: &Asked) -> Option<Grant> {
        self.lock().get(asked).copied().filter(|grant| grant.ends > Instant::now())
    }

    pub(crate) fn put(&self, asked: Asked, snapshot: SnapshotId, ends: Instant) {
        let (mut all, now) = (self.lock(), Instant::now());
        if all.len() >= KEPT {
            all.retain(|_, grant| grant.ends > now);
        }
        if all.len() >= KEPT {
            all.clear();
        }
        all.insert(asked, Grant { ends, snapshot });
    }

    pub(crate) fn remove(&self, asked: &Asked) {
        self.lock().remove(asked);
    }

    /// Ends what someone was granted of sources that an object belongs to, which the origin refuses them now.
    pub(crate) fn end(&self, holder: &Holder, url: &str) {
        self.lock().retain(|asked, _| !(asked.who.is(holder) && covers(&asked.source.root(), url)));
    }
}
