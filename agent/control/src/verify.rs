//! `Verify`: what the fetch room finds, in the protocol's words.

use futures::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use weightd_fetch::{BadChunk, FetchError, VerifyEvent};
use weightd_proto::v1::{self, verify_event::Event};

use crate::{Control, failure, service::Answers};

/// Starts checking.
pub(crate) fn start(
    control: &Control,
    request: &v1::VerifyRequest,
) -> Result<Answers<v1::VerifyEvent>, FetchError> {
    let name = Some(request.snapshot.as_str()).filter(|name| !name.is_empty());
    let events = control.fetcher.verify(name, request.repair)?;
    let answers = ReceiverStream::new(events)
        .map(|event| event.map(answer).map_err(|error| failure::fetch_status(&error)))
        // An agent that stops ends the check without a summary, which must not look like success.
        .chain(futures::stream::once(async { Err(failure::stopping_status()) }));
    Ok(until_the_end(answers).boxed())
}

/// Ends the stream after the summary, or after the first error.
fn until_the_end(
    answers: impl futures::Stream<Item = Result<v1::VerifyEvent, tonic::Status>> + Send + 'static,
) -> impl futures::Stream<Item = Result<v1::VerifyEvent, tonic::Status>> + Send + 'static {
    answers.scan(false, |is_over, answer| {
        let was_over = *is_over;
        *is_over = !matches!(&answer, Ok(event) if !matches!(event.event, Some(Event::Summary(_))));
        futures::future::ready((!was_over).then_some(answer))
    })
}

fn answer(event: VerifyEvent) -> v1::VerifyEvent {
    let event = match event {
        VerifyEvent::Progress { done, total } => {
            Event::Progress(v1::VerifyProgress { done_bytes: done, total_bytes: total })
        }
        VerifyEvent::Bad(bad) => Event::Bad(bad_chunk(bad)),
        VerifyEvent::Summary(summary) => Event::Summary(v1::VerifySummary {
            checked_bytes: summary.checked_bytes,
            checked_blobs: summary.checked_blobs,
            bad_chunks: summary.bad_chunks,
            repaired_chunks: summary.repaired_chunks,
        }),
    };
    v1::VerifyEvent { event: Some(event) }
}

fn bad_chunk(bad: BadChunk) -> v1::BadChunk {
    v1::BadChunk {
        path: bad.path,
        source: bad.source.to_string(),
        blob: bad.blob.to_string(),
        offset_bytes: bad.range.start,
        length_bytes: bad.range.len(),
        repaired: bad.repaired,
        failure: bad.failure.unwrap_or_default(),
    }
}
