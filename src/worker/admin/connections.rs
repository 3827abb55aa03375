//! The connections of the admin server, each with a limit on everything: their number, their age, the length of a
//! request's head, the time until it is there and until it is answered.
//!
//! Whoever holds connections open holds up nobody for long, and never a message. Knows nothing of routes.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Most connections at a time; others wait until one ends. A scraper or two and some probes need a handful.
const CONNECTIONS_MAX: usize = 64;

/// How long a connection may take to send the head of its next request.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// Longest head of a request, in bytes, and most of its headers.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;

/// How long one connection is kept, busy or not.
const AGE_MAX: Duration = Duration::from_secs(120);

/// How long what is under way may take when its connection is to end: nobody's message hangs on it.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// How long a listener that cannot accept is left alone: the process may be out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Errors of accepting in a row before the listener counts as gone.
const ACCEPT_ERRORS_MAX: u32 = 50;

/// Answers until `shutdown` is done, and a little longer what is under way then.
///
/// # Errors
///
/// If the listener fails for good.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let mut shutdown = pin!(shutdown);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let closing = CancellationToken::new();
    let mut connections = JoinSet::new();
    let mut errors = 0;
    let served = loop {
        // Each branch is cancel-safe: what was not accepted is accepted the next time.
        let accepted = tokio::select! {
            () = &mut shutdown => break Ok(()),
            accepted = accept(&listener, &places) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, place)) => {
                errors = 0;
                let served = serve_one(stream, router.clone(), closing.clone());
                connections.spawn(async move {
                    served.await;
                    drop(place);
                });
            }
            Err(error) if errors == ACCEPT_ERRORS_MAX => break Err(error),
            Err(_) => {
                errors += 1;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    };
    closing.cancel();
    while connections.join_next().await.is_some() {}
    served
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

async fn serve_one(stream: TcpStream, router: Router, closing: CancellationToken) {
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
    );
    // What goes wrong on one connection is its client's business.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = tokio::time::sleep(AGE_MAX) => {}
        () = closing.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(CLOSE_WAIT, connection).await;
}
