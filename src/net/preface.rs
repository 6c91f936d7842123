//! The first bytes of a connection, read under a deadline before HTTP gets them.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// The first bytes of an HTTP/2 connection.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose first bytes have been read already.
pub(super) struct Begun<S> {
    first: BytesMut,
    stream: S,
}

/// Waits until a client has sent a whole HTTP/2 preface, or the whole head of its first HTTP/1
/// request of at most `head_bytes_max`, or something that is neither and that HTTP refuses.
pub(super) async fn begun<S: AsyncRead + Unpin>(
    Begun { mut first, mut stream }: Begun<S>,
    head_bytes_max: Option<usize>,
) -> io::Result<Begun<S>> {
    let mut searched = 0;
    while is_half(&first, head_bytes_max, searched) {
        // The end of a head may have been cut by the last read.
        searched = first.len().saturating_sub(3);
        if first.len() == first.capacity() {
            first.reserve(first.len().max(1 << 10));
        }
        if stream.read_buf(&mut first).await? == 0 {
            break;
        }
    }
    Ok(Begun { first, stream })
}

/// Waits until the client has sent anything. `None` if it hangs up first.
pub(super) async fn spoken<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<Option<Begun<S>>> {
    // A small buffer, so that silent connections cost almost nothing.
    let mut first = BytesMut::with_capacity(PREFACE.len());
    let read = stream.read_buf(&mut first).await?;
    Ok((read > 0).then_some(Begun { first, stream }))
}

/// Whether more bytes are needed. The end of a head is known not to be before `searched`.
fn is_half(first: &[u8], head_bytes_max: Option<usize>, searched: usize) -> bool {
    match (first, head_bytes_max) {
        (first, _) if PREFACE.starts_with(first) => first.len() < PREFACE.len(),
        ([b'A'..=b'Z', ..], Some(most)) => {
            first.len() < most && !first[searched..].windows(4).any(|four| four == b"\r\n\r\n")
        }
        _ => false,
    }
}

impl<S> Begun<S> {
    /// Whether the client speaks HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.first.starts_with(PREFACE)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..length]);
        self.first.advance(length);
        if self.first.is_empty() {
            // The memory is released: a connection may live for days.
            self.first = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
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
