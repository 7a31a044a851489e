//! What is common to all calls: they are counted, those that fail are logged, and the end of the process waits for them.

use std::{future::Future, time::Instant};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Response, Status};

use crate::{error::CallError, metrics::Metrics};

/// Calls, and the end that they are told of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls {
    pub(crate) metrics: Metrics,
    pub(crate) running: TaskTracker,
    pub(crate) stopping: CancellationToken,
}

impl Calls {
    /// Answers a call. `subject` is what it is about, for the log.
    pub(crate) async fn answer<T>(
        &self,
        method: &'static str,
        subject: &str,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<Response<T>, Status> {
        let _running = self.running.token();
        let began = Instant::now();
        let outcome = call.await;
        let (code, took) = (outcome.as_ref().map_or_else(CallError::code, |_| Code::Ok), began.elapsed());
        self.metrics.answered(method, code, took);
        match outcome {
            Ok(answer) => {
                tracing::debug!(method, subject, ?took, "answered");
                Ok(Response::new(answer))
            }
            Err(error) => {
                tracing::warn!(method, subject, ?code, %error, "not answered as asked");
                Err(error.into())
            }
        }
    }
}
