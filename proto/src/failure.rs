//! How a [`Failure`] travels with a [`Status`].
//!
//! The details of a status are an encoded `google.rpc.Status`, as every gRPC library expects, so that clients in
//! other languages can read a `weightd.v1.Failure` with their usual helpers.

use prost::Message;
use prost_types::Any;
use tonic::{Code, Status};

use crate::v1::{Failure, FailureKind};

/// What a client must be ready to take in one message: a snapshot of 100,000 objects with long names.
pub const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// Longest text of a status. It travels in HTTP/2 headers, twice and escaped, and clients refuse headers beyond
/// 16 KiB: a text that is too long would turn every error into "transport error".
pub const MAX_STATUS_TEXT_BYTES: usize = 2_000;

const FAILURE_TYPE: &str = "type.googleapis.com/weightd.v1.Failure";

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

impl FailureKind {
    /// The gRPC code that says most nearly the same.
    pub fn code(self) -> Code {
        match self {
            Self::Unspecified => Code::Internal,
            Self::Usage => Code::InvalidArgument,
            Self::Corrupt => Code::DataLoss,
            Self::NotFound => Code::NotFound,
            Self::Unavailable => Code::Unavailable,
            Self::Disk | Self::Memory => Code::ResourceExhausted,
            Self::TryAgain => Code::Aborted,
            Self::NotPermitted => Code::PermissionDenied,
        }
    }
}

impl Failure {
    /// A failure of that kind; an empty `remedy` means that the message says enough.
    pub fn new(kind: FailureKind, remedy: impl Into<String>) -> Self {
        Self { kind: kind.into(), remedy: remedy.into() }
    }

    /// The status to answer a call with. A long message is [`shortened`].
    pub fn into_status(self, message: &str) -> Status {
        let code = self.kind().code();
        let message = shortened(message, MAX_STATUS_TEXT_BYTES);
        let failure = Any { type_url: FAILURE_TYPE.to_owned(), value: self.encode_to_vec() };
        let details = RpcStatus { code: code.into(), message: message.clone(), details: vec![failure] };
        Status::with_details(code, message, details.encode_to_vec().into())
    }

    /// The failure that came with a status, if one did.
    pub fn of(status: &Status) -> Option<Self> {
        let details = RpcStatus::decode(status.details()).ok()?;
        let failure = details.details.iter().find(|any| any.type_url == FAILURE_TYPE)?;
        Self::decode(failure.value.as_slice()).ok()
    }
}

/// A text of no more than `most` bytes (12 at least). A longer one loses its middle: it begins with what is concerned and
/// ends with what to do.
pub fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let boundary = |at: &usize| text.is_char_boundary(*at);
    let head = (0..=most / 2).rev().find(boundary).unwrap_or(0);
    let tail = (text.len() - most / 3..).find(boundary).unwrap_or(text.len());
    format!("{} … {}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_comes_back_out_of_a_status() {
        let failure = Failure::new(FailureKind::Disk, "free some space");
        let status = failure.clone().into_status("the disk is full");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "the disk is full");
        assert_eq!(Failure::of(&status), Some(failure));
        assert_eq!(Failure::of(&Status::internal("no details")), None);
        assert_eq!(Failure::of(&Status::with_details(Code::Internal, "", vec![1, 2, 3].into())), None);
    }

    #[test]
    fn a_long_text_keeps_its_ends_and_fits_a_header() {
        let text = format!("gs://b/{}: delete it", "ü".repeat(3_000));
        let status = Failure::new(FailureKind::Usage, "").into_status(&text);
        assert!(status.message().len() <= MAX_STATUS_TEXT_BYTES);
        assert!(status.message().starts_with("gs://b/ü") && status.message().ends_with("ü: delete it"));
    }
}
