//! Goal: the repository's config.toml is true: every key is there, with its default, and what is commented out works.

use super::*;

const REPOSITORY_FILE: &str = include_str!("../../../../config.toml");

#[test]
fn the_file_of_the_repository_says_the_defaults() {
    let written = load(REPOSITORY_FILE).unwrap();
    let unwritten = load(&format!("{QUEUE}declare = 'classic'")).unwrap();
    let without_origin = |mut config: Config| {
        config.secrets = Secrets::default();
        format!("{config:?} {} {:?}", config.broker.url.expose(), config.broker.address())
    };
    assert_eq!(without_origin(written), without_origin(unwritten));
}

#[test]
fn the_file_of_the_repository_has_every_key_and_a_comment_above_it() {
    let tables = [
        ("broker", "broker.zzzzzzzzzzzz"),
        ("store", "store.zzzzzzzzzzzz"),
        ("defaults", "defaults.zzzzzzzzzzzz"),
        ("defaults.retry", "defaults.retry.zzzzzzzzzzzz"),
        ("defaults.retention_by", "defaults.retention_by.zzzzzzzzzzzz"),
        ("queues.orders", "queues.orders.zzzzzzzzzzzz"),
        ("http", "http.zzzzzzzzzzzz"),
        ("shutdown", "shutdown.zzzzzzzzzzzz"),
        ("log", "log.zzzzzzzzzzzz"),
    ];
    for (table, unknown) in tables {
        let set = format!("{unknown}=1");
        let found = load_with(REPOSITORY_FILE, &[], &[&set]).unwrap_err().to_string();
        let (_, known) = found.split_once("known here: ").unwrap();
        for key in known.split(", ") {
            let pattern = format!("{key} = ");
            assert!(REPOSITORY_FILE.contains(&pattern), "{table}.{key} is not in config.toml");
        }
    }
    let lines: Vec<&str> = REPOSITORY_FILE.lines().collect();
    for pair in lines.windows(2) {
        let is_key = pair[1].starts_with(|c: char| c.is_ascii_lowercase());
        assert!(!is_key || pair[0].starts_with('#'), "no comment above {:?}", pair[1]);
    }
}

#[test]
fn the_commented_targets_of_the_repository_s_file_work() {
    let targets: Vec<&str> =
        REPOSITORY_FILE.lines().filter_map(|line| line.strip_prefix("# deliver = ")).collect();
    assert_eq!(targets.len(), 3);
    for target in targets {
        let set = format!("queues.orders.deliver={target}");
        if !target.contains("\"exchange\"") {
            load_with(REPOSITORY_FILE, &[], &[&set]).unwrap();
            continue;
        }
        let config = load_with(REPOSITORY_FILE, &[], &[&set]).unwrap();
        assert_eq!(
            config.queues[0].deliver.to_string(),
            r#"exchange "clean", routing key "orders""#
        );
    }
}

#[test]
fn the_commented_command_says_the_default_of_its_output() {
    let argv = "deliver = { type = 'command', argv = ['x'] }";
    let config = load(&format!("[queues.orders]\n{argv}")).unwrap();
    let TargetOptions::Command(command) = &config.queues[0].deliver else {
        panic!("{config:?}");
    };
    let written =
        format!("max_output = \"{}\"", units::format_size(command.output_bytes_max as u64));
    assert!(REPOSITORY_FILE.contains(&written), "{written}");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reading_panic(
        file in "([\\[\\]{}=.,\"'#\\n a-c0-9é]|queues|deliver|type|retry|http|listen){0,40}",
        name in "(?i:onceward__)[A-Za-z_]{0,20}",
        set in "[\\[\\]{}=.,\"'# a-c0-9]{0,20}",
    ) {
        let _ = load_with(&file, &[(&name, &set)], &[&set]);
    }
}
