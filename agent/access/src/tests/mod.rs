//! An origin that notes who asked, and answers those it does not welcome as it is told to.

mod admission;
mod gate;
mod holders;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use weightd_source::{ByteStream, Credential, Listed, MemoryOrigin, Opener, Secret, Source, SourceError};
use weightd_types::{ByteRange, Layout, Object, Selection, SnapshotKey, SourceUri};

use crate::{Access, AccessError, Admission, Pod, gate::Gate, holders::Holders, identity::Principal};

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Who is not welcome is refused.
    Refuses,
    /// To who is not welcome nothing is there.
    Hides,
    /// Nobody is answered.
    Away,
}

#[derive(Debug)]
struct Notes {
    origin: MemoryOrigin,
    manner: Mutex<Manner>,
    welcome: Mutex<Vec<Credential>>,
    asked: Mutex<Vec<Credential>>,
}

#[derive(Debug)]
struct Noted {
    notes: Arc<Notes>,
    source: Arc<dyn Source>,
    credential: Credential,
}

/// Every source is the same there, whatever its scheme.
#[derive(Debug)]
struct Origin(Arc<Notes>);

#[async_trait]
impl Opener for Origin {
    async fn open(&self, _: &SourceUri) -> Result<Arc<dyn Source>, SourceError> {
        panic!("nothing is opened as nobody in particular")
    }

    async fn open_as(&self, _: &SourceUri, credential: &Credential) -> Result<Arc<dyn Source>, SourceError> {
        let source = self.0.origin.open(&uri("memory://m/x")).await?;
        Ok(Arc::new(Noted { notes: Arc::clone(&self.0), source, credential: credential.clone() }))
    }
}

impl Notes {
    fn new(welcome: &[Credential]) -> Arc<Self> {
        let origin = MemoryOrigin::new("m");
        origin.put("x/a", "bytes");
        let (manner, welcome) = (Mutex::new(Manner::Refuses), Mutex::new(welcome.to_vec()));
        Arc::new(Self { origin, manner, welcome, asked: Mutex::default() })
    }

    fn answer(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    fn welcome(&self, welcome: &[Credential]) {
        *self.welcome.lock().unwrap() = welcome.to_vec();
    }

    /// Who asked since it was last looked at.
    fn asked(&self) -> Vec<Credential> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Noted {
    fn check(&self) -> Result<(), SourceError> {
        self.notes.asked.lock().unwrap().push(self.credential.clone());
        let (what, remedy) = ("the source".to_owned(), "ask".to_owned());
        let manner = *self.notes.manner.lock().unwrap();
        if manner == Manner::Away {
            return Err(SourceError::Unavailable { what, cause: "away".into(), retry_after: None });
        }
        if self.notes.welcome.lock().unwrap().contains(&self.credential) {
            return Ok(());
        }
        Err(match manner {
            Manner::Hides => SourceError::NotFound { what, remedy },
            _ => SourceError::Denied { what, detail: "no".to_owned(), remedy },
        })
    }
}

#[async_trait]
impl Source for Noted {
    async fn list(&self) -> Result<Vec<Listed>, SourceError> {
        self.check()?;
        self.source.list().await
    }

    async fn read(&self, object: &Object, range: ByteRange) -> Result<ByteStream, SourceError> {
        self.check()?;
        self.source.read(object, range).await
    }
}

fn token(text: &str) -> Credential {
    Credential::Google(Secret::new(text))
}

fn hub(text: &str) -> Credential {
    Credential::Hub(Secret::new(text))
}

fn uri(text: &str) -> SourceUri {
    text.parse().unwrap()
}

fn account(name: &str) -> Principal {
    Principal::ServiceAccount { subject: name.to_owned(), provider: "pool".to_owned() }
}

fn key() -> SnapshotKey {
    SnapshotKey { id: "0".repeat(64).parse().unwrap(), layout: Layout::Original }
}

/// A pod with a token of the hub's.
fn with_hub_token(text: &str) -> Pod {
    let secrets = [("HF_TOKEN".to_owned(), Secret::new(text))].into();
    Pod { name: text.to_owned(), secrets, ..Pod::default() }
}

fn gate(welcome: &[Credential]) -> (Gate, Arc<Notes>) {
    let notes = Notes::new(welcome);
    let origins = Arc::new(Origin(Arc::clone(&notes)));
    (
        Gate {
            origins,
            holders: Holders::default(),
            grants: Arc::default(),
            web: Arc::default(),
            files: Arc::default(),
        },
        notes,
    )
}

async fn admit(access: &Access, pod: &Pod, source: &str) -> Result<Admission, AccessError> {
    access.admit(pod, &uri(source), &Selection::default()).await
}
