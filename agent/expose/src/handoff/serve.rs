//! One client, from its first message to the end of its connection.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::net::UCred;
use tokio::time::timeout;
use weightd_proto::v1::{
    HandoffAnswer, HandoffOpen, HandoffOpened, HandoffRequest, handoff_answer::Answer,
    handoff_request::Request,
};

use super::{
    Inner,
    lease::Lease,
    model::{Model, Scope},
    packets::Packets,
    refusal::Refusal,
    stream::Stream,
};

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client may take to hear why its lease has ended.
const LEAVE_TAKING: Duration = Duration::from_secs(1);

/// How a lease ended.
pub(crate) enum End {
    /// Its client went away.
    Gone,
    /// The agent ended it.
    Refused(Refusal),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// Serves a client until it goes, or its lease cannot go on.
pub(crate) async fn serve(inner: Arc<Inner>, packets: Packets, who: Option<UCred>, scope: Scope) {
    let (pid, uid) = who.map_or((0, None), |who| (who.pid.as_raw_nonzero().get(), Some(who.uid.as_raw())));
    let metrics = inner.metrics.clone();
    metrics.leases.inc();
    let ended = serve_until(inner, &packets, scope, pid, uid).await;
    metrics.leases.dec();
    match ended {
        End::Gone => tracing::debug!(pid, "a lease ended"),
        End::Refused(refusal) => {
            tracing::warn!(pid, ?uid, why = refusal.message, "a lease was ended");
            // Who does not listen any more is not told.
            let answer = HandoffAnswer { answer: Some(Answer::Failed(refusal.into_message())) };
            let told = async {
                packets.send(&answer, &[]).await?;
                // What it said meanwhile and nobody reads would have the kernel throw the answer away.
                while packets.receive_any().await? > 0 {}
                io::Result::Ok(())
            };
            let _ = timeout(LEAVE_TAKING, told).await;
        }
    }
}

async fn serve_until(inner: Arc<Inner>, packets: &Packets, scope: Scope, pid: i32, uid: Option<u32>) -> End {
    let opened = async {
        let open = match timeout(PATIENCE, packets.receive::<HandoffRequest>()).await {
            Ok(Ok(Some(HandoffRequest { request: Some(Request::Open(open)) }))) => open,
            Ok(Ok(None)) => return Err(End::Gone),
            Ok(Ok(Some(_))) => return Err(Refusal::usage("a lease begins with the message `open`").into()),
            Ok(Err(error)) => return Err(Refusal::usage(format!("that is no message: {error}")).into()),
            Err(_) => return Err(Refusal::usage("nothing was asked for 10 seconds").into()),
        };
        // Whoever has gone meanwhile needs nothing any more.
        let kind = tokio::select! {
            kind = Kind::open(inner, &open, scope) => kind?,
            () = packets.hung_up() => return Err(End::Gone),
        };
        let Model { manifest, files, .. } = kind.model();
        let is_ring = matches!(kind, Kind::Stream(_));
        tracing::info!(pid, ?uid, source = %manifest.source, files = files.len(), is_ring, "tensors are leased");
        Ok(kind)
    };
    let ended = match opened.await {
        Ok(Kind::Lease(mut lease)) => lease.go_on(packets).await,
        Ok(Kind::Stream(mut stream)) => stream.go_on(packets).await,
        Err(end) => return end,
    };
    ended.err().unwrap_or(End::Gone)
}

/// Why what was begun here did not end.
pub(crate) const DEFECT: &str = "a defect of weightd; its log says more";

/// How a client gets tensors.
enum Kind {
    /// In memory that all share.
    Lease(Lease),
    /// Through a ring of its own.
    Stream(Stream),
}

impl Kind {
    async fn open(inner: Arc<Inner>, open: &HandoffOpen, scope: Scope) -> Result<Self, Refusal> {
        let model = Model::find(inner, open, scope).await?;
        Ok(match &open.ring {
            None => Self::Lease(Lease::open(model, open.wanted_only).await?),
            Some(ring) => Self::Stream(Stream::open(model, ring, open.wanted_only).await?),
        })
    }

    fn model(&self) -> &Model {
        match self {
            Self::Lease(lease) => lease.model(),
            Self::Stream(stream) => stream.model(),
        }
    }
}

/// The next thing that a client says; `None` when it has gone.
pub(crate) async fn hear(packets: &Packets) -> Result<Option<Request>, Refusal> {
    match packets.receive::<HandoffRequest>().await {
        Ok(Some(HandoffRequest { request: Some(request) })) => Ok(Some(request)),
        Ok(Some(HandoffRequest { request: None })) => {
            Err(Refusal::usage("a message of a kind that this agent does not know"))
        }
        Ok(None) => Ok(None),
        Err(error) if error.raw_os_error().is_some() => Ok(None),
        Err(error) => Err(Refusal::usage(format!("that is no message: {error}"))),
    }
}

/// Says something to a client.
pub(crate) async fn say(packets: &Packets, answer: Answer) -> io::Result<()> {
    packets.send(&HandoffAnswer { answer: Some(answer) }, &[]).await
}

/// Tells a client what there is: the first that it hears.
pub(crate) async fn introduce(
    packets: &Packets,
    model: &Model,
    table: &OwnedFd,
    table_bytes: u64,
    arenas: u32,
    complete: bool,
) -> io::Result<()> {
    let opened = HandoffOpened {
        snapshot: model.manifest.key().to_string(),
        source: model.manifest.source.to_string(),
        table_bytes,
        arenas,
        complete,
    };
    packets.send(&HandoffAnswer { answer: Some(Answer::Opened(opened)) }, &[table.as_fd()]).await
}
