//! Answers: status, headers, and a body of nothing, XML, or an object's bytes.

use crate::backend::{Content, Failure};
use crate::body::BodyError;
use crate::error::{Code, S3Error, S3Result};
use crate::versions::{DELETE_MARKER, VERSION_ID};
use crate::xml::Xml;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};

/// The body of an answer.
pub type ResponseBody = UnsyncBoxBody<Bytes, BodyError>;
pub(crate) type Answer = Response<ResponseBody>;

/// How long a client that was told to slow down should wait, in seconds.
const RETRY_AFTER: &str = "1";

/// A status without a body.
pub(crate) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

/// A document.
pub(crate) fn xml(status: StatusCode, text: String) -> Answer {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = status;
    set(&mut answer, "content-type", "application/xml");
    answer
}

/// A document of success.
pub(crate) fn document(root: &str, fill: impl FnOnce(&mut Xml)) -> Answer {
    xml(StatusCode::OK, Xml::document(root, fill))
}

/// An object's bytes.
pub(crate) fn content(status: StatusCode, content: Content) -> Answer {
    let frames = content.map(|bytes| {
        // the status has gone out: all that is left is to cut the connection
        bytes.map(Frame::data).map_err(|failure| Box::new(failure) as BodyError)
    });
    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

/// Sets a header. What cannot be a header's value (metadata of long ago, say) is left out.
pub(crate) fn set(answer: &mut Answer, name: &str, value: impl AsRef<[u8]>) {
    let name = HeaderName::try_from(name);
    let value = HeaderValue::from_bytes(value.as_ref());
    if let (Ok(name), Ok(value)) = (name, value) {
        answer.headers_mut().insert(name, value);
    }
}

/// The answer to a refused request.
pub(crate) fn refused(
    error: &S3Error,
    resource: &str,
    request_id: &str,
    host_id: &str,
    has_body: bool,
) -> Answer {
    let status = error.code.status();
    let mut answer = if has_body && status != StatusCode::NOT_MODIFIED {
        let text = Xml::plain("Error", |xml| {
            xml.text("Code", error.code.as_str());
            xml.text("Message", &error.message);
            error.facts.iter().for_each(|(name, value)| xml.text(name, value));
            xml.text("Resource", resource);
            xml.text("RequestId", request_id);
            xml.text("HostId", host_id);
        });
        xml(status, text)
    } else {
        empty(status)
    };
    for (name, value) in &error.headers {
        set(&mut answer, name, value);
    }
    answer
}

/// A backend's failure as S3 says it.
pub(crate) fn refusal(failure: &Failure) -> S3Error {
    let code = match failure {
        Failure::Body(error) => return error.clone(),
        Failure::NoSuchBucket => Code::NoSuchBucket,
        Failure::NoSuchKey => Code::NoSuchKey,
        Failure::NoSuchVersion => Code::NoSuchVersion,
        Failure::DeleteMarker { version, .. } => {
            return S3Error::from(Code::NoSuchKey)
                .header(DELETE_MARKER, "true")
                .header(VERSION_ID, version.to_string());
        }
        Failure::NoSuchUpload => Code::NoSuchUpload,
        Failure::BucketExists => Code::BucketAlreadyOwnedByYou,
        Failure::BucketNotEmpty => Code::BucketNotEmpty,
        Failure::BucketBusy | Failure::Changed => Code::OperationAborted,
        Failure::ConditionFailed => Code::PreconditionFailed,
        Failure::NoSuchPart => Code::InvalidPartNumber,
        Failure::NoSpace => Code::InsufficientStorage,
        Failure::SpanOutside { size } => {
            return S3Error::from(Code::InvalidRange)
                .fact("ActualObjectSize", size.to_string())
                .header("content-range", format!("bytes */{size}"));
        }
        Failure::Overloaded => {
            return S3Error::from(Code::SlowDown).header("retry-after", RETRY_AFTER);
        }
        Failure::Unavailable(why) => {
            tracing::warn!(why, "unavailable");
            return S3Error::from(Code::ServiceUnavailable).header("retry-after", RETRY_AFTER);
        }
        Failure::Unknown(why) => {
            tracing::warn!(why, "outcome unknown");
            let message = "the outcome of this write is not known: it happened once or not at all";
            return S3Error::new(Code::InternalError, message)
                .header("x-ashlar-outcome", "unknown");
        }
        Failure::Internal(why) => {
            tracing::error!(why, "internal error");
            Code::InternalError
        }
    };
    code.into()
}

/// A backend's answer, or its failure as S3 says it.
pub(crate) fn done<T>(result: Result<T, Failure>) -> S3Result<T> {
    result.map_err(|failure| refusal(&failure))
}
