//! The key `deliver` of a queue: which target, and the keys that its options are read from.
//!
//! What a value must be is said by the target's options; here it gets the path of its key. Makes no
//! connection and starts no command; that a target is reachable is found out when it is used.

use super::read::Section;
use super::values;
use crate::worker::deliver::{
    CommandOptions, ExchangeOptions, HttpHeaders, HttpOptions, HttpUrl, TargetOptions,
};

const TYPES: &[(&str, Type)] = &[
    ("http", Type::Http),
    ("command", Type::Command),
    ("exchange", Type::Exchange),
    ("log", Type::Log),
];

#[derive(Clone, Copy)]
enum Type {
    Http,
    Command,
    Exchange,
    Log,
}

/// Reads the target of the queue whose table this is; `None` if it is missing or wrong, which is
/// noted.
pub(crate) fn read(parent: &mut Section<'_>, queue: &str) -> Option<TargetOptions> {
    if !parent.has("deliver") {
        parent.missing("deliver", r#"{ type = "log" }, or type "http", "command" or "exchange""#);
        return None;
    }
    let mut section = parent.section("deliver");
    if section.is_table() && !section.has("type") {
        section.missing("type", r#""http", "command", "exchange" or "log""#);
    }
    let target = match section.read("type", values::one_of(TYPES))? {
        Type::Http => http(&mut section).map(TargetOptions::Http),
        Type::Command => command(&mut section).map(TargetOptions::Command),
        Type::Exchange => exchange(&mut section, queue).map(TargetOptions::Exchange),
        Type::Log => Some(TargetOptions::Log),
    };
    section.finish();
    target
}

fn http(section: &mut Section<'_>) -> Option<HttpOptions> {
    let url = section.required("url", r#""http://127.0.0.1:8080/hook""#, |node| {
        HttpUrl::parse(&values::string(node)?)
    });
    let table = section.section("headers");
    let mut headers = HttpHeaders::default();
    for (name, node) in table.named_nodes() {
        let added = values::string(node).and_then(|value| headers.add(name, &value));
        if let Err(problem) = added {
            table.error(name, problem);
        }
    }
    Some(HttpOptions { url: url?, headers })
}

fn command(section: &mut Section<'_>) -> Option<CommandOptions> {
    let options = section.required("argv", r#"["/usr/local/bin/handle"]"#, |node| {
        CommandOptions::new(values::strings(node)?)
    });
    let sizes = values::size(0, CommandOptions::OUTPUT_BYTES_LIMIT);
    let output_bytes_max = section.read("max_output", sizes);
    let mut options = options?;
    if let Some(bytes) = output_bytes_max {
        options.output_bytes_max = bytes as usize;
    }
    Some(options)
}

fn exchange(section: &mut Section<'_>, queue: &str) -> Option<ExchangeOptions> {
    let exchange = section.required("exchange", r#""clean""#, values::name);
    let routing_key = section.read("routing_key", values::name);
    match ExchangeOptions::new(exchange?, routing_key, queue) {
        Ok(options) => Some(options),
        Err(problem) => {
            section.error("routing_key", problem);
            None
        }
    }
}
