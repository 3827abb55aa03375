//! Goal: the house rules of CONTRIBUTING.md hold: imports run one way, files stay short, no left-overs.
//!
//! Method: reads the sources as text, blanks comments, literals and test modules, and follows every `crate::`, `self::`
//! and `super::` path. Says all violations at once, each with its file and line.

use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 300;
const COLUMNS_MAX: usize = 120;

/// Files over the limit, with the size they may not pass. The list only shrinks: split a file, take it out.
const OVERSIZED: &[(&str, usize)] =
    &[("src/broker/memory.rs", 450), ("src/runtime/consumer.rs", 400)];

/// Top-level modules that are the vocabulary: pure, and known to everybody.
const VOCABULARY: &[&str] = &[
    "message",
    "identity",
    "payload",
    "batch",
    "context",
    "effects",
    "handler",
    "backoff",
    "clock",
    "failpoint",
    "planted",
];

/// Whether code of module `from` may name `path`, which begins at the crate's root.
fn may_name(from: &str, path: &[String]) -> bool {
    let to = path.first().map_or("", String::as_str);
    let vocabulary = VOCABULARY.contains(&to);
    match from {
        // The binary and the facade name what they like, and so does the top layer.
        "main" | "lib" | "worker" => true,
        _ if to == from => true,
        _ if VOCABULARY.contains(&from) => vocabulary,
        "telemetry" => vocabulary || path == ["store", "Reason"],
        "store" | "broker" => vocabulary || to == "telemetry",
        "options" => vocabulary || ["store", "broker"].contains(&to),
        "outbox" => vocabulary || ["store", "broker", "options", "telemetry"].contains(&to),
        "runtime" => {
            vocabulary || ["store", "broker", "options", "telemetry", "outbox"].contains(&to)
        }
        // For our own tests: on top of all that is in the library.
        "simulation" => to != "worker",
        // For users' tests: on top of all but the stock worker.
        "testkit" => {
            vocabulary || ["store", "broker", "options", "runtime", "telemetry"].contains(&to)
        }
        _ => false,
    }
}

/// A client library, and the one place that names it.
const HOMES: &[(&str, &str)] = &[("lapin", "src/broker/amqp/"), ("sled", "src/store/sled.rs")];

#[test]
fn the_house_rules_hold() {
    let mut broken = Vec::new();
    for file in files(&["src"], "rs") {
        let text = read(&file);
        if !text.starts_with("//!") {
            broken.push(format!(
                "{file}:1: does not begin with a `//!` comment that says what it owns"
            ));
        }
        check_libraries(&file, &text, &mut broken);
        // A module's tests in a file of their own are test code as a whole.
        if !file.ends_with("/tests.rs") && !file.contains("/tests/") {
            check_size(&file, &text, &mut broken);
            check_paths(&file, &text, &mut broken);
        }
    }
    for file in files(&["src", "tests", "examples", "benches"], "rs") {
        check_lines(&file, &read(&file), &mut broken);
    }
    for (extension, places) in [("md", &["."][..]), ("toml", &["."]), ("", &["scripts", ".ci"])] {
        for file in files(places, extension) {
            check_left_overs(&file, &read(&file), &mut broken);
        }
    }
    assert!(broken.is_empty(), "{} violations:\n{}", broken.len(), broken.join("\n"));
}

fn check_size(file: &str, text: &str, broken: &mut Vec<String>) {
    let tests = ["mod tests {", "pub(crate) mod tests {"]
        .iter()
        .find_map(|tests| text.rfind(&format!("\n#[cfg(test)]\n{tests}")));
    let lines = text[..tests.unwrap_or(text.len())].lines().count();
    let known = OVERSIZED.iter().find(|(path, _)| *path == file);
    let max = known.map_or(FILE_LINES_MAX, |(_, max)| *max);
    if lines > max {
        broken.push(format!("{file}: {lines} lines without its tests, the limit is {max}: what is a noun of its own?"));
    } else if known.is_some() && lines <= FILE_LINES_MAX {
        broken.push(format!(
            "{file}: no longer oversized, take it out of OVERSIZED in tests/tidy.rs"
        ));
    }
}

fn check_lines(file: &str, text: &str, broken: &mut Vec<String>) {
    let code = blanked(text);
    for ((number, line), code) in (1..).zip(text.lines()).zip(code.lines()) {
        let columns = line.chars().count();
        // A text is easier to find whole than in pieces.
        let literal = line != code && !line.trim_start().starts_with("//");
        if columns > COLUMNS_MAX && !literal {
            broken.push(format!("{file}:{number}: {columns} columns, the limit is {COLUMNS_MAX}"));
        }
    }
    check_left_overs(file, text, broken);
}

/// Split, so that this file does not find itself.
fn check_left_overs(file: &str, text: &str, broken: &mut Vec<String>) {
    let banned = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("db", "g!("),
        concat!("to", "do!("),
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("/Use", "rs/"),
    ];
    for (number, line) in (1..).zip(text.lines()) {
        for word in banned.iter().filter(|word| line.contains(**word)) {
            // The rule itself, where the rules are written down.
            if file != "CONTRIBUTING.md" {
                broken.push(format!("{file}:{number}: has {word:?}"));
            }
        }
    }
}

fn check_paths(file: &str, text: &str, broken: &mut Vec<String>) {
    let module: Vec<&str> =
        file.trim_start_matches("src/").trim_end_matches(".rs").split('/').collect();
    let module = module.strip_suffix(&["mod"]).unwrap_or(&module);
    let from = module.first().expect("a path has a first part");
    let code = without_tests(&blanked(text));
    let place = |at: usize| format!("{file}:{}", code[..at].matches('\n').count() + 1);
    for (at, path) in crate_paths(&code, module.len()) {
        if !may_name(from, &path) {
            let path = path.join("::");
            broken.push(format!("{}: `{from}` may not name `crate::{path}`", place(at)));
        }
    }
}

/// Of tests too: whoever names a client library knows what only its home should.
fn check_libraries(file: &str, text: &str, broken: &mut Vec<String>) {
    let code = blanked(text);
    for (library, home) in HOMES.iter().filter(|(_, home)| !file.starts_with(home)) {
        for at in words(&code, library).filter(|at| names_library(&code, *at, library)) {
            let line = code[..at].matches('\n').count() + 1;
            broken.push(format!("{file}:{line}: only {home} may name {library}"));
        }
    }
}

/// Whether a path begins with the library here: `lapin::`, and `::lapin::`, but not `super::lapin::`.
fn names_library(code: &str, at: usize, library: &str) -> bool {
    let is_path = code[at..].strip_prefix(library).is_some_and(|rest| rest.starts_with("::"));
    let before = code[..at].strip_suffix("::");
    is_path
        && before.is_none_or(|before| !before.ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Every path that begins at the crate's root, spelt `crate::` or by enough `super::`, with where it is.
fn crate_paths(code: &str, depth: usize) -> Vec<(usize, Vec<String>)> {
    let mut paths = Vec::new();
    for at in words(code, "crate") {
        if let Some(rest) = code[at..].strip_prefix("crate::") {
            let mut found = Vec::new();
            tree(rest, &mut Vec::new(), &mut found);
            paths.extend(found.into_iter().map(|path| (at, path)));
        }
    }
    for at in words(code, "super").filter(|at| !code[..*at].ends_with("::")) {
        let mut rest = code[at..].trim_start_matches("self::");
        let mut climbed = 0;
        while let Some(next) = rest.strip_prefix("super::") {
            (rest, climbed) = (next, climbed + 1);
        }
        // Files only: a module in a file climbs to that file, which is within its own layer.
        if climbed >= depth {
            let mut found = Vec::new();
            tree(rest, &mut Vec::new(), &mut found);
            paths.extend(found.into_iter().map(|path| (at, path)));
        }
    }
    paths
}

/// The paths of a use tree such as `a::{b, c::D}`, and what follows them.
fn tree<'a>(text: &'a str, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches([',', ' ', '\n']);
            if rest.is_empty() || rest.starts_with('}') {
                return rest.strip_prefix('}').unwrap_or(rest);
            }
            let before = rest.len();
            rest = tree(rest, prefix, found);
            // `as` and other words that are no part of a path.
            if rest.len() == before || !rest.trim_start().starts_with([',', '}']) {
                rest = &rest[rest.find([',', '}']).unwrap_or(rest.len())..];
            }
        }
    }
    let end =
        text.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*').unwrap_or(text.len());
    if end == 0 {
        return text;
    }
    let (name, rest) = text.split_at(end);
    let own = prefix.len();
    if name != "self" {
        prefix.push(name.to_owned());
    }
    let rest = match rest.strip_prefix("::") {
        Some(deeper) => tree(deeper, prefix, found),
        None => {
            found.push(prefix.clone());
            rest
        }
    };
    prefix.truncate(own);
    rest
}

/// Where `word` stands as a whole word.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        !code[..*at].ends_with(part) && !code[at + word.len()..].starts_with(part)
    })
}

/// The same text with comments, strings and character literals blanked, line by line where it was.
fn blanked(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(first) = rest.chars().next() {
        let literal = literal_end(rest);
        // A whole word at a time: an r or b at its end begins no literal.
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        let plain = word.unwrap_or(rest.len()).max(first.len_utf8());
        let (taken, left) = rest.split_at(literal.unwrap_or(plain));
        let blank = |c| {
            if literal.is_some() && c != '\n' { ' ' } else { c }
        };
        out.extend(taken.chars().map(blank));
        rest = left;
    }
    out
}

/// The length of the comment or literal at the start of the text.
fn literal_end(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        return text.find("*/").map(|at| at + 2);
    }
    let bare = text.strip_prefix('b').unwrap_or(text);
    let offset = text.len() - bare.len();
    if let Some(raw) = bare.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let body = raw[hashes..].strip_prefix('"')?;
        let close = format!("\"{}", "#".repeat(hashes));
        return body.find(&close).map(|at| offset + 1 + hashes + 1 + at + close.len());
    }
    if let Some(body) = bare.strip_prefix('"') {
        let mut escaped = false;
        let close = body.find(|c| {
            let plain = !escaped;
            escaped = plain && c == '\\';
            plain && c == '"'
        });
        return close.map(|at| offset + at + 2);
    }
    // A lifetime has no closing quote right behind its first character.
    let body = bare.strip_prefix('\'')?;
    let close = if body.starts_with('\\') {
        1 + body[2..].find('\'')? + 1
    } else {
        body.chars().next()?.len_utf8()
    };
    body[close..].starts_with('\'').then_some(offset + close + 2)
}

/// Blanked code without the items under `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(at) = out.find("#[cfg(test)]") {
        let mut depth = 0;
        let end = out[at + 12..].find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0 && (c == '}' || c == ';')
        });
        let end = end.map_or(out.len(), |end| at + 12 + end + 1);
        let gap: String = out[at..end].chars().filter(|c| *c == '\n').collect();
        out.replace_range(at..end, &gap);
    }
    out
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file))
        .unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Files with this extension, relative to the repository; of "." its own files only.
fn files(directories: &[&str], extension: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = directories.iter().map(|name| root.join(name)).collect();
    while let Some(directory) = open.pop() {
        // A directory that is not there has no files.
        for entry in fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() && directories != ["."] {
                open.push(path);
            } else if path.is_file() && path.extension().unwrap_or_default() == extension {
                let name = path.strip_prefix(root).expect("under the root");
                found.push(name.to_string_lossy().trim_start_matches("./").to_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_scanner_sees_paths_in_code_and_nothing_else() {
    for (code, named) in [
        ("sled::open()", true),
        ("drop(::sled::open())", true),
        ("super::sled::open()", false),
        ("use self::sled as engine;", false),
    ] {
        let at = code.find("sled").expect("it is there");
        assert_eq!(names_library(code, at, "sled"), named, "{code}");
    }
    let text = r##"
//! crate::comment
use crate::{store::{self, Reason as R}, broker::memory::*};
/* crate::block */ const A: (&str, char, &str) = ("crate::string \" {", '"', r#"crate::raw""#);
fn f<'a>(x: &'a u8) { crate::clock::now(x); super::super::options::get() }
#[cfg(test)]
mod tests { use crate::worker; fn g() { "}"; } }
use super::sibling;
"##;
    let code = without_tests(&blanked(text));
    let paths: Vec<String> =
        crate_paths(&code, 2).into_iter().map(|(_, path)| path.join("::")).collect();
    assert_eq!(
        paths,
        ["store", "store::Reason", "broker::memory::*", "clock::now", "options::get"]
    );
}
