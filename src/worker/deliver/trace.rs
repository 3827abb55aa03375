//! The producer's trace, handed on to the receiver of an HTTP delivery (W3C Trace Context).
//!
//! Copies `traceparent` and `tracestate` as they are, or not at all; starts no trace and adds no span.

use reqwest::header::{HeaderMap, HeaderValue};

use crate::Headers;

/// Hands the producer's trace on, if it is one: what is malformed breaks the receiver's tracing, not ours.
pub(super) fn copy(inbound: &Headers, headers: &mut HeaderMap) {
    let text = |name| inbound.get(name)?.as_str();
    let Some(parent) = text("traceparent").filter(|text| is_traceparent(text)) else {
        return;
    };
    for (name, text) in [("traceparent", Some(parent)), ("tracestate", text("tracestate"))] {
        if let Some(value) = text.and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(name, value);
        }
    }
}

/// W3C Trace Context, section 3.2: version, trace id, parent id and flags, longer only in versions to come.
fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, digits| {
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        part.len() == digits && part.bytes().all(is_hex)
    };
    let id = |part: &str, digits| hex(part, digits) && part.bytes().any(|byte| byte != b'0');
    let mut parts = text.splitn(5, '-');
    let mut part = || parts.next().unwrap_or_default();
    let version = part();
    let is_known = hex(version, 2) && id(part(), 32) && id(part(), 16) && hex(part(), 2);
    is_known && version != "ff" && (version != "00" || text.len() == 55)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_traceparent_is_handed_on() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(is_traceparent(good));
        assert!(is_traceparent(&format!("01{}-what-comes", &good[2..])));
        for bad in [
            "",
            "00",
            &good[..54],
            &format!("{good}-more"),
            &format!("{good}0"),
            &format!("ff{}", &good[2..]),
            &good.to_uppercase(),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }

    #[test]
    fn the_state_goes_with_its_parent_only() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let copied = |parent: &str| {
            let inbound = [("traceparent", parent), ("tracestate", "a=1")];
            let inbound = inbound.map(|(name, value)| (name.to_owned(), value.into()));
            let mut headers = HeaderMap::new();
            copy(&inbound.into(), &mut headers);
            headers
        };
        assert_eq!(copied(parent)["traceparent"], parent);
        assert_eq!(copied(parent)["tracestate"], "a=1");
        assert!(copied("nonsense").is_empty());
    }
}
