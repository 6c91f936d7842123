//! The bytes of an HTTP/2 connection between the socket and h2.
//!
//! This module handles what h2 does not report: it repairs an `:authority` that h2 would refuse,
//! and counts and logs the requests that h2 refuses ([`frames`](super::frames)). It also delays the
//! end of the stream. h2 drops every request of a client that closes its sending side, so the end
//! is withheld while answers are under way, for a second at most: the limit frees the memory of a
//! client that died in the middle of a request. HTTP/1 connections pass through unchanged; hyper
//! handles a closed sending side itself.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};
use tracing::debug;

use super::{
    activity::Activity,
    frames::{Received, Sent},
    preface::PREFACE,
    tally::Tally,
};

/// The time between two checks whether answers are under way.
const END_LOOK: Duration = Duration::from_millis(20);
/// After this many checks the end is passed on in any case.
const END_LOOKS: u32 = 50;
/// The size of a read after the beginning of a frame.
const READ_BYTES: usize = 4 << 10;

/// A connection whose frames are followed, if it is HTTP/2.
pub(super) struct Watched<S> {
    stream: S,
    http2: Option<Box<Http2>>,
}

struct Http2 {
    activity: Arc<Activity>,
    tally: Option<Tally>,
    received: Received,
    /// The beginning of a frame, of which `ready` bytes can be passed on.
    held: Vec<u8>,
    ready: usize,
    end: Option<End>,
    sent: Sent,
}

/// The client has closed its sending side.
struct End {
    look: Pin<Box<Sleep>>,
    looks_left: u32,
    is_quiet: bool,
}

impl<S> Watched<S> {
    pub(super) fn new(
        stream: S,
        is_http2: bool,
        activity: &Arc<Activity>,
        tally: Option<&Tally>,
    ) -> Self {
        let http2 = is_http2.then(|| {
            Box::new(Http2 {
                activity: Arc::clone(activity),
                tally: tally.cloned(),
                received: Received::after(PREFACE.len()),
                held: Vec::new(),
                ready: 0,
                end: None,
                sent: Sent::default(),
            })
        });
        Watched { stream, http2 }
    }
}

fn mended(authority: String) {
    debug!(authority, "took a request whose :authority is not a host name");
}

impl Http2 {
    /// Reads, and passes on the bytes that can be passed on. Passes on nothing at the end.
    fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        loop {
            if self.ready > 0 {
                let length = self.ready.min(buffer.remaining());
                buffer.put_slice(&self.held[..length]);
                self.held.drain(..length);
                self.ready -= length;
                if self.held.is_empty() {
                    self.held = Vec::new();
                }
                return Poll::Ready(Ok(()));
            }
            if self.end.is_some() {
                ready!(self.poll_end(context));
                return Poll::Ready(Ok(()));
            }
            let read = if self.held.is_empty() {
                ready!(self.poll_read_through(stream, context, buffer))?
            } else {
                ready!(self.poll_read_held(stream, context))?
            };
            if read == 0 {
                let look = Box::pin(sleep(END_LOOK));
                self.end = Some(End { look, looks_left: END_LOOKS, is_quiet: false });
                // A frame that was cut off is passed on as it is, for h2 to judge.
                self.ready = self.held.len();
            } else if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Reads into the caller's buffer; bytes that cannot be passed on yet go to `held`.
    fn poll_read_through<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<usize>> {
        let before = buffer.filled().len();
        ready!(Pin::new(stream).poll_read(context, buffer))?;
        let read = &mut buffer.filled_mut()[before..];
        let (length, passed) = (read.len(), self.received.pass(read, mended));
        self.held.extend_from_slice(&read[passed..]);
        buffer.set_filled(before + passed);
        Poll::Ready(Ok(length))
    }

    /// Reads after the held bytes.
    fn poll_read_held<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let before = self.held.len();
        self.held.resize(before + READ_BYTES, 0);
        let mut buffer = ReadBuf::new(&mut self.held[before..]);
        let polled = Pin::new(stream).poll_read(context, &mut buffer);
        let read = buffer.filled().len();
        self.held.truncate(before + read);
        ready!(polled)?;
        self.ready = self.received.pass(&mut self.held, mended);
        Poll::Ready(Ok(read))
    }

    /// Ready once the end may be passed on.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(end) = &mut self.end else { return Poll::Ready(()) };
        // Two quiet checks are needed: before the first one, the last request may not have reached
        // its receiver; after it, the answer may not have been written.
        while end.looks_left > 0 {
            ready!(end.look.as_mut().poll(context));
            end.look.as_mut().reset(Instant::now() + END_LOOK);
            let was_quiet = std::mem::replace(&mut end.is_quiet, !self.activity.is_busy());
            let is_over = was_quiet && end.is_quiet;
            end.looks_left = if is_over { 0 } else { end.looks_left - 1 };
        }
        Poll::Ready(())
    }

    fn sent(&mut self, bytes: &[u8]) {
        let tally = self.tally.as_ref();
        self.sent.pass(bytes, |refused| {
            if let Some(tally) = tally {
                tally.refused(refused);
            }
        });
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Watched { stream, http2 } = &mut *self;
        match http2 {
            Some(http2) => http2.poll_read(stream, context, buffer),
            None => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        if let Some(http2) = &mut self.http2 {
            http2.sent(&bytes[..written]);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices))?;
        if let Some(http2) = &mut self.http2 {
            let mut left = written;
            for slice in slices {
                let length = left.min(slice.len());
                http2.sent(&slice[..length]);
                left -= length;
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
