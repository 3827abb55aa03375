//! What makes a URL of a broker or of a HTTP target, and how it is shown.
//!
//! URLs carry passwords and tokens: no text made here repeats more than scheme, host, port and
//! path.

use reqwest::Url;

/// The URL of the in-process broker.
pub(crate) const MEMORY: &str = "memory:";

/// What URLs of one protocol look like.
struct Protocol {
    name: &'static str,
    scheme: &'static str,
    tls_scheme: &'static str,
    wanted: &'static str,
}

const AMQP: Protocol = Protocol {
    name: "AMQP",
    scheme: "amqp",
    tls_scheme: "amqps",
    wanted: "write amqp://user:password@host:5672/%2f, with special characters as %XX",
};

const HTTP: Protocol = Protocol {
    name: "HTTP",
    scheme: "http",
    tls_scheme: "https",
    wanted: "write for example http://127.0.0.1:8080/hook",
};

/// Checks the URL of a broker; `tls` says whether this binary can speak TLS.
pub(crate) fn check_broker(text: &str, tls: bool) -> Result<(), String> {
    if text == MEMORY {
        return Ok(());
    }
    parse(text, &AMQP, tls).map(|_| ())
}

/// Reads the URL of a HTTP target; `tls` says whether this binary can speak TLS.
pub(crate) fn parse_http(text: &str, tls: bool) -> Result<Url, String> {
    parse(text, &HTTP, tls)
}

fn parse(text: &str, protocol: &Protocol, tls: bool) -> Result<Url, String> {
    let Protocol { name, scheme, tls_scheme, wanted } = protocol;
    let url = Url::parse(text).map_err(|error| format!("not a URL ({error}); {wanted}"))?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(format!("a URL without a host; {wanted}"));
    }
    // A bare # in a password would cut the URL in two.
    if url.fragment().is_some() {
        return Err(format!("a URL with a #, which must be written %23; {wanted}"));
    }
    if url.scheme() == *tls_scheme && !tls {
        return Err(format!(
            "this binary is built without TLS; build it with --features tls, or write {scheme}://"
        ));
    }
    if ![*scheme, *tls_scheme].contains(&url.scheme()) {
        return Err(format!("not a URL of {name}; {wanted}"));
    }
    Ok(url)
}

/// Whether this is a broker on another machine that is spoken to without TLS.
pub(crate) fn is_plain_to_elsewhere(text: &str) -> bool {
    // The parser knows the hosts of web schemes only, IP addresses among them.
    let Some(rest) = text.strip_prefix(AMQP.scheme).and_then(|rest| rest.strip_prefix("://"))
    else {
        return false;
    };
    let Ok(url) = Url::parse(&format!("http://{rest}")) else { return true };
    let host = url.host_str().unwrap_or_default();
    let address: Option<std::net::IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    let is_local = address.map_or(host == "localhost", |address| address.is_loopback());
    !is_local
}

/// A URL for people: without user, password, query and fragment.
pub(crate) fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

/// The same for the text of a broker's URL.
pub(crate) fn shown_broker(text: &str) -> String {
    if text == MEMORY {
        return MEMORY.to_owned();
    }
    Url::parse(text).map_or_else(|_| "(not a URL)".to_owned(), |url| shown(&url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_brokers_and_targets_are_told_from_others() {
        for good in ["memory:", "amqp://guest:guest@127.0.0.1:5672/%2f", "amqp://[::1]"] {
            assert_eq!(check_broker(good, false), Ok(()), "{good}");
        }
        for bad in ["", "guest", "http://a", "amqp://", "amqp:", "amqp://a:p#w@host/", "/%2f"] {
            assert!(check_broker(bad, true).is_err(), "{bad}");
        }
        assert!(parse_http("http://127.0.0.1:8080/hook?a=b", false).is_ok());
        for bad in ["127.0.0.1:8080", "ftp://a/b", "http://", "http://a/#b"] {
            assert!(parse_http(bad, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn tls_needs_a_binary_that_has_it() {
        assert_eq!(check_broker("amqps://host", true), Ok(()));
        assert!(parse_http("https://host", true).is_ok());
        let problem = parse_http("https://host", false).unwrap_err();
        assert!(problem.contains("--features tls"), "{problem}");
        assert!(check_broker("amqps://host", false).is_err());
    }

    #[test]
    fn a_broker_elsewhere_without_tls_is_known() {
        for plain in ["amqp://h", "amqp://u:p@10.0.0.1:5672/%2f", "amqp://[2001:db8::1]"] {
            assert!(is_plain_to_elsewhere(plain), "{plain}");
        }
        for fine in [
            "memory:",
            "amqps://h",
            "amqp://u:p@localhost/%2f",
            "amqp://127.0.0.9",
            "amqp://[::1]:1",
        ] {
            assert!(!is_plain_to_elsewhere(fine), "{fine}");
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        assert_eq!(shown_broker("amqp://me:pw@host:5672/%2f?x=y"), "amqp://host:5672/%2f");
        assert_eq!(
            shown(&Url::parse("http://me:pw@host/hook?token=t#f").unwrap()),
            "http://host/hook"
        );
        assert_eq!(shown_broker("memory:"), "memory:");
        assert_eq!(shown_broker("pw"), "(not a URL)");
        let problem = check_broker("amqp://me:hunter2:x@host:port/", true).unwrap_err();
        assert!(!problem.contains("hunter2"), "{problem}");
    }
}
