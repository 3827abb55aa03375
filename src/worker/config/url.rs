//! What makes a URL of a broker or of a HTTP target, and how it is shown.
//!
//! URLs carry passwords and tokens: no text made here repeats more than scheme, host, port and
//! path.

use reqwest::Url;

/// The URL of the in-process broker.
pub(crate) const MEMORY: &str = "memory:";

/// Checks the URL of a broker; `tls` says whether this binary can speak TLS.
pub(crate) fn check_broker(text: &str, tls: bool) -> Result<(), String> {
    if text == MEMORY {
        return Ok(());
    }
    const WANTED: &str = "write amqp://user:password@host:5672/%2f, with special characters as %XX";
    let url = parse(text, WANTED)?;
    match url.scheme() {
        "amqp" => Ok(()),
        "amqps" if tls => Ok(()),
        "amqps" => Err(format!("{NO_TLS}, or write amqp://")),
        _ => Err(format!("not a URL of AMQP; {WANTED}")),
    }
}

/// Checks the URL of a HTTP target; `tls` says whether this binary can speak TLS.
pub(crate) fn check_http(text: &str, tls: bool) -> Result<(), String> {
    const WANTED: &str = "write for example http://127.0.0.1:8080/hook";
    let url = parse(text, WANTED)?;
    match url.scheme() {
        "http" => Ok(()),
        "https" if tls => Ok(()),
        "https" => Err(format!("{NO_TLS}, or write http://")),
        _ => Err(format!("not a URL of HTTP; {WANTED}")),
    }
}

const NO_TLS: &str = "this binary is built without TLS; build it with --features tls";

fn parse(text: &str, wanted: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("not a URL ({error}); {wanted}"))?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(format!("a URL without a host; {wanted}"));
    }
    // A bare # in a password would cut the URL in two.
    if url.fragment().is_some() {
        return Err(format!(
            "a URL with a #, which must be written %23; {wanted}"
        ));
    }
    Ok(url)
}

/// A URL for people: without user, password, query and fragment.
pub(crate) fn shown(text: &str) -> String {
    if text == MEMORY {
        return MEMORY.to_owned();
    }
    let Ok(url) = Url::parse(text) else {
        return "(not a URL)".to_owned();
    };
    let host = url.host_str().unwrap_or_default();
    let port = url
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_brokers_and_targets_are_told_from_others() {
        for good in [
            "memory:",
            "amqp://guest:guest@127.0.0.1:5672/%2f",
            "amqp://[::1]",
        ] {
            assert_eq!(check_broker(good, false), Ok(()), "{good}");
        }
        for bad in [
            "",
            "guest",
            "http://a",
            "amqp://",
            "amqp:",
            "amqp://a:p#w@host/",
            "/%2f",
        ] {
            assert!(check_broker(bad, true).is_err(), "{bad}");
        }
        assert_eq!(check_http("http://127.0.0.1:8080/hook?a=b", false), Ok(()));
        for bad in ["127.0.0.1:8080", "ftp://a/b", "http://", "http://a/#b"] {
            assert!(check_http(bad, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn tls_needs_a_binary_that_has_it() {
        assert_eq!(check_broker("amqps://host", true), Ok(()));
        assert_eq!(check_http("https://host", true), Ok(()));
        let problem = check_http("https://host", false).unwrap_err();
        assert!(problem.contains("--features tls"), "{problem}");
        assert!(check_broker("amqps://host", false).is_err());
    }

    #[test]
    fn nothing_secret_is_shown() {
        assert_eq!(
            shown("amqp://me:pw@host:5672/%2f?x=y"),
            "amqp://host:5672/%2f"
        );
        assert_eq!(
            shown("http://me:pw@host/hook?token=t#f"),
            "http://host/hook"
        );
        assert_eq!(shown("pw"), "(not a URL)");
        let problem = check_broker("amqp://me:hunter2:x@host:port/", true).unwrap_err();
        assert!(!problem.contains("hunter2"), "{problem}");
    }
}
