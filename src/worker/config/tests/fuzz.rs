//! Goal: whatever stands in a file, a variable or a `--set`, reading it ends in a configuration or in errors that say
//! where.

use super::*;
use crate::fuzz::fuzz;

/// In values that are secret, and never to be seen in an error.
const CANARY: &str = "hunter2";

#[test]
fn any_text_is_a_configuration_or_errors_with_their_place() {
    fuzz("config", 2_000, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let one = text.lines().next().unwrap_or_default();
        let variable = (format!("{VARIABLE_PREFIX}QUEUES__ORDERS"), one.to_owned());
        let set = [one.to_owned()];
        let file = Some((Path::new("c.toml"), &*text));
        for loaded in [
            Config::load(file, [], &[]),
            Config::load(file, [variable], &[]),
            Config::load(file, [], &set),
        ] {
            match loaded {
                Ok(mut config) => {
                    let read = |_: &Path| Ok(contents(&text, 0o600));
                    // Files of secrets may hold anything too.
                    let _ = config.resolve_secrets(read);
                }
                Err(errors) => {
                    assert!(errors.iter().next().is_some(), "errors without an error");
                    for error in errors.iter() {
                        assert!(!error.problem().is_empty(), "{error:?}");
                    }
                }
            }
        }
    });
}

#[test]
fn no_error_repeats_what_a_secret_key_holds() {
    fuzz("config", 2_000, |bytes| {
        let text = String::from_utf8_lossy(bytes).replace(['\'', '\n', '\r'], "");
        let file = format!(
            "broker.url = 'amqp://u:{CANARY}{text}'\n[queues.q]\n\
             deliver = {{ type = 'http', url = 'http://u:{CANARY}@{text}/', headers = {{ a = '{CANARY}{text}' }} }}\n"
        );
        let Err(errors) = load(&file) else { return };
        // What no TOML has in a string is the parser's to show, and it shows no line.
        assert!(!errors.to_string().contains(CANARY), "{errors}");
    });
}
