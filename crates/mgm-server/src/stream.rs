//! A TCP stream that does not wait forever for a client that has stopped reading, and closes without cutting off its own last words.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// Longest time that a closing connection is listened to.
const LINGER_TIME: Duration = Duration::from_secs(2);
/// Most bytes that a closing connection swallows.
const LINGER_BYTES: usize = 64 << 20;

/// A TCP stream with a write timeout and a lingering close.
pub(crate) struct PatientStream {
    stream: TcpStream,
    write_timeout: Duration,
    /// Runs while the client accepts nothing.
    write_deadline: Option<Pin<Box<Sleep>>>,
    /// Runs while the connection is closing.
    linger: Option<Linger>,
}

struct Linger {
    deadline: Pin<Box<Sleep>>,
    swallowed: usize,
}

impl PatientStream {
    pub(crate) fn new(stream: TcpStream, write_timeout: Duration) -> Self {
        Self {
            stream,
            write_timeout,
            write_deadline: None,
            linger: None,
        }
    }

    /// Passes progress on; while there is none, the clock runs.
    fn within_time<T>(
        &mut self,
        context: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.write_deadline = None;
            return progress;
        }
        let timeout = self.write_timeout;
        let deadline = self
            .write_deadline
            .get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for PatientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for PatientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.within_time(context, progress)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.within_time(context, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    /// Says that nothing more comes, then swallows what the client is still sending. Closing at once would answer that with a reset, which
    /// destroys the answer on its way to the client: an upload that is refused would look like a broken connection.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        }
        let linger = this.linger.get_or_insert_with(|| Linger {
            deadline: Box::pin(sleep(LINGER_TIME)),
            swallowed: 0,
        });
        let mut scratch = [0; 16 << 10];
        while linger.swallowed < LINGER_BYTES && linger.deadline.as_mut().poll(context).is_pending()
        {
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => linger.swallowed += buffer.filled().len(),
                // The client has closed too, or is gone.
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends of a connection.
    async fn pair(write_timeout: Duration) -> (PatientStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (PatientStream::new(server, write_timeout), client)
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test);
    }

    #[test]
    fn a_client_that_reads_nothing_is_given_up() {
        run(async {
            let (mut server, client) = pair(Duration::from_millis(100)).await;
            let more_than_buffers_hold = vec![0; 64 << 20];
            let error = server.write_all(&more_than_buffers_hold).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            drop(client);
        });
    }

    #[test]
    fn last_words_reach_a_client_that_is_still_sending() {
        run(async {
            let (mut server, mut client) = pair(Duration::from_secs(5)).await;
            let talking = tokio::spawn(async move {
                // The server hears nothing of this.
                client.write_all(&vec![1; 8 << 20]).await.unwrap();
                let mut heard = String::new();
                client.read_to_string(&mut heard).await.unwrap();
                heard
            });
            server.write_all(b"too large").await.unwrap();
            server.shutdown().await.unwrap();
            drop(server);
            assert_eq!(talking.await.unwrap(), "too large");
        });
    }
}
