//! Answers on their way. What a request has of what is limited is given back when the last byte of its answer is sent, not when
//! the answer is made.
//!
//! ```text
//! answer --> pieces, each with what the request has --> HTTP/2's queues --> TLS --> sent: the piece is dropped
//! ```
//!
//! Rule: a peer that takes no piece for a minute is left, whatever else it says.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

/// Bytes of an answer that are sent at once: progress is seen by them.
const PIECE_BYTES: usize = 64 << 10;

/// What one connection sends, in pieces.
#[derive(Debug, Default)]
pub(crate) struct Sending {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Sending {
    /// Returns once nothing has ended for so long although something had begun.
    pub(crate) async fn stalls(&self, patience: Duration) {
        loop {
            let (begun, ended) = self.counts();
            tokio::time::sleep(patience).await;
            if begun > ended && ended == self.counts().1 {
                return;
            }
        }
    }

    /// What has ended has begun: it is looked at first.
    fn counts(&self) -> (u64, u64) {
        let ended = self.ended.load(Ordering::SeqCst);
        (self.begun.load(Ordering::SeqCst), ended)
    }
}

/// The same answer; `held` lives until its last byte is sent.
pub(crate) async fn until_sent<H: Send + Sync + 'static>(
    answer: Response,
    held: H,
    sending: &Arc<Sending>,
) -> Response {
    let (head, body) = answer.into_parts();
    // They are all in memory.
    let rest = to_bytes(body, usize::MAX).await.unwrap_or_default();
    if rest.is_empty() {
        return Response::from_parts(head, Body::empty());
    }
    let sending = Arc::clone(sending);
    sending.begun.fetch_add(1, Ordering::SeqCst);
    let held = Arc::new(Held {
        sending,
        _held: held,
    });
    Response::from_parts(head, Body::new(Pieces { rest, held }))
}

/// Of an answer, until all of its pieces are sent or dropped.
struct Held<H> {
    sending: Arc<Sending>,
    _held: H,
}

impl<H> Drop for Held<H> {
    fn drop(&mut self) {
        self.sending.ended.fetch_add(1, Ordering::SeqCst);
    }
}

/// The rest of an answer.
struct Pieces<H> {
    rest: Bytes,
    held: Arc<Held<H>>,
}

/// On its way.
struct Piece<H> {
    bytes: Bytes,
    held: Arc<Held<H>>,
}

impl<H> AsRef<[u8]> for Piece<H> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<H> Drop for Piece<H> {
    fn drop(&mut self) {
        let sending = &self.held.sending;
        // It counts as progress, and as nothing that had begun.
        sending.begun.fetch_add(1, Ordering::SeqCst);
        sending.ended.fetch_add(1, Ordering::SeqCst);
    }
}

impl<H: Send + Sync + 'static> HttpBody for Pieces<H> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let len = self.rest.len().min(PIECE_BYTES);
        let bytes = self.rest.split_to(len);
        let held = Arc::clone(&self.held);
        let piece = Bytes::from_owner(Piece { bytes, held });
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(50);

    /// A peer that took nothing of its answers, and said that it lives, held memory for as long as it liked.
    #[tokio::test]
    async fn who_takes_nothing_of_an_answer_stalls() {
        let sending = Arc::new(Sending::default());
        let held = Arc::new(());
        let answer = Response::new(Body::from(vec![7; 3 * PIECE_BYTES]));
        let answer = until_sent(answer, Arc::clone(&held), &sending).await;
        sending.stalls(PATIENCE).await;
        assert_eq!(Arc::strong_count(&held), 2);
        let bytes = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        assert!(bytes == vec![7; 3 * PIECE_BYTES]);
        assert_eq!(Arc::strong_count(&held), 1);
        let later = tokio::time::timeout(5 * PATIENCE, sending.stalls(PATIENCE));
        assert!(later.await.is_err(), "nothing is left to send");
    }

    #[tokio::test]
    async fn who_takes_a_piece_now_and_then_does_not_stall() {
        let sending = Arc::new(Sending::default());
        let answer = Response::new(Body::from(vec![7; 64 * PIECE_BYTES]));
        let mut body = until_sent(answer, (), &sending).await.into_body();
        let taken = async {
            for _ in 0..20 {
                tokio::time::sleep(PATIENCE / 5).await;
                let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context));
                assert!(frame.await.is_some());
            }
        };
        tokio::select! {
            () = taken => {}
            () = sending.stalls(PATIENCE) => panic!("it takes pieces"),
        }
    }
}
