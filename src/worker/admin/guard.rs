//! Who may ask the admin server, and how much a request may bring along.
//!
//! With a token all but `/livez` asks for it: a probe learns only that the process answers. The token is compared by
//! its hash, in constant time. Without one the listener is on this machine, where a page of another site could still
//! reach it by a name that leads here (DNS rebinding): so the request must be for an address or for `localhost`. Sets
//! no cookie, so a browser never has anything to send along by itself.

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, Version, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};

use crate::worker::config::Secret;

/// Most bytes of a body. No route reads one.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Open to everybody who can connect.
const OPEN_PATH: &str = "/livez";

/// What is asked of who asks.
#[derive(Clone)]
pub(super) struct Guard {
    /// Hash of the token. Two hashes are compared in constant time, and tell nothing of a token's length.
    token: Option<blake3::Hash>,
}

impl Guard {
    pub(super) fn new(token: Option<&Secret>) -> Self {
        Self { token: token.map(|token| blake3::hash(token.expose().as_bytes())) }
    }

    /// Why a request is not answered, if it is not.
    fn refusal(&self, request: &Request) -> Option<Response> {
        let headers = request.headers();
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        if announced.is_some_and(|length| {
            length.parse().is_ok_and(|bytes: u64| bytes > BODY_BYTES_MAX as u64)
        }) {
            return Some(refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long"));
        }
        match &self.token {
            Some(_) if request.uri().path() == OPEN_PATH => None,
            Some(token) if shown_token(headers).as_ref() == Some(token) => None,
            Some(_) => {
                let text = "show the token of [http] token_file: Authorization: Bearer TOKEN";
                let mut refused = refuse(StatusCode::UNAUTHORIZED, text);
                let scheme = HeaderValue::from_static("Bearer");
                refused.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
                Some(refused)
            }
            None if is_for_this_machine(request) => None,
            None => Some(refuse(
                StatusCode::MISDIRECTED_REQUEST,
                "ask by an address or localhost; for other names set [http] token_file",
            )),
        }
    }
}

/// The router behind the guard.
pub(super) fn guarded(router: Router, guard: Guard) -> Router {
    // Routes that are not there are behind it too.
    router.layer(DefaultBodyLimit::max(BODY_BYTES_MAX)).layer(from_fn_with_state(guard, answer))
}

async fn answer(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let mut response = match guard.refusal(&request) {
        Some(refused) => refused,
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn refuse(status: StatusCode, text: &'static str) -> Response {
    // What it would send is not read.
    (status, [(header::CONNECTION, "close")], text).into_response()
}

/// The hash of the one token that is shown.
fn shown_token(headers: &HeaderMap) -> Option<blake3::Hash> {
    let mut shown = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(only), None) = (shown.next(), shown.next()) else { return None };
    let (scheme, token) = only.as_bytes().split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| blake3::hash(token.trim_ascii()))
}

/// Whether it is for an address or for `localhost`, in the request line and in the header.
fn is_for_this_machine(request: &Request) -> bool {
    let in_line = request.uri().authority().map(|authority| is_local_name(authority.host()));
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let in_header = match (hosts.next(), hosts.next()) {
        // Asked of by HTTP/1.1; older clients are no browsers.
        (None, _) => request.version() == Version::HTTP_10,
        (Some(host), None) => {
            let host = host.to_str().ok().and_then(|host| host.parse::<Uri>().ok());
            let authority = host.as_ref().and_then(Uri::authority);
            authority.is_some_and(|authority| is_local_name(authority.host()))
        }
        (Some(_), Some(_)) => false,
    };
    in_header && in_line.unwrap_or(true)
}

fn is_local_name(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok()
}
