//! A body that must go on coming (S5): a request holds memory until its last byte is here.

use ashlar_host::{Clock, Pace, PaceLimits, TooSlow, count_too_slow};
use ashlar_s3::{BodyError, Code, S3Error};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// See the module. The clock runs only while the gateway waits for the client.
pub(crate) struct PacedBody<B> {
    body: B,
    pace: Pace,
    port: &'static str,
}

impl<B> PacedBody<B> {
    pub(crate) fn new(
        body: B,
        clock: Arc<dyn Clock>,
        limits: PaceLimits,
        port: &'static str,
    ) -> Self {
        Self { body, pace: Pace::new(clock, limits), port }
    }

    fn refuse(&self, why: TooSlow) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        count_too_slow(self.port, "body", why);
        Poll::Ready(Some(Err(S3Error::from(Code::RequestTimeout).into())))
    }
}

impl<B> Body for PacedBody<B>
where
    B: Body<Data = Bytes, Error: Into<BodyError>> + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                match this.pace.moved(bytes) {
                    Ok(()) => Poll::Ready(Some(Ok(frame))),
                    Err(why) => this.refuse(why),
                }
            }
            Poll::Ready(other) => Poll::Ready(other.map(|frame| frame.map_err(Into::into))),
            Poll::Pending => match this.pace.poll_wait(cx) {
                Poll::Ready(why) => this.refuse(why),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
