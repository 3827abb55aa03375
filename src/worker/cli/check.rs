//! `onceward check`: what a configuration would consume and what it would cost, or all that is wrong with it.
//!
//! Talks to no broker and opens no store, but reads certificates. The report is data first; text and JSON are two
//! views of it.

mod report;

use std::process::ExitCode;

use self::report::Report;
use super::run::amqp_options;
use super::{ConfigArgs, Exit, complain, print};
use crate::store::MEMORY_BYTES_PER_ID;
use crate::worker::config::ConfigErrors;
use crate::worker::config::estimate::{BytesPerId, Rate, estimate};

/// What one id costs: the index at worst, the journal as measured with 256 records of 56 bytes in a block, and of an
/// expired one six bytes of its hash.
const BYTES_PER_ID: BytesPerId =
    BytesPerId { memory: MEMORY_BYTES_PER_ID, disk: 120, expired_memory: 8, expired_disk: 8 };

/// Check the configuration, and reckon memory and disk
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CheckArgs {
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Messages per second to reckon with, for every queue, for one or for a class of retention_by: 1000, orders=1000
    /// or orders/billing=10, others by the longest retention; repeatable
    #[arg(long, value_name = "RATE")]
    pub rate: Vec<Rate>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the command: 0 if the configuration is good, 78 if not, 2 if a rate names no queue.
#[must_use]
pub fn run(args: &CheckArgs) -> ExitCode {
    let checked = args.config.load().and_then(|config| {
        config.require_queues()?;
        Ok(config)
    });
    let config = match checked {
        Ok(config) => config,
        Err(errors) => {
            if args.json {
                print(&errors_as_json(&errors));
            }
            complain(&errors);
            return Exit::Configuration.into();
        }
    };
    if !config.broker.is_memory()
        && let Err(failed) = amqp_options(&config.broker)
    {
        let errors = ConfigErrors::of_key("broker", format!("{failed:#}"));
        if args.json {
            print(&errors_as_json(&errors));
        }
        complain(&errors);
        return Exit::Configuration.into();
    }
    let report = match estimate(&config, &args.rate, BYTES_PER_ID) {
        Ok(estimate) => Report::new(&config, &estimate),
        Err(problem) => {
            complain(&format_args!("--rate: {problem}"));
            return Exit::Usage.into();
        }
    };
    if args.json {
        print(&as_json(&report));
    } else {
        print(&report);
    }
    let of_queues = report.queues.iter().flat_map(|queue| &queue.warnings);
    for warning in of_queues.chain(&report.warnings) {
        complain(&format_args!("warning: {warning}"));
    }
    ExitCode::SUCCESS
}

fn as_json(report: &Report) -> serde_json::Value {
    serde_json::to_value(report).expect("the report has string keys and finite numbers only")
}

fn errors_as_json(errors: &ConfigErrors) -> serde_json::Value {
    let errors: Vec<_> = errors
        .iter()
        .map(|error| {
            serde_json::json!({
                "origin": error.origin(),
                "path": error.path(),
                "problem": error.problem(),
            })
        })
        .collect();
    serde_json::json!({ "ok": false, "errors": errors })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Args as _;

    use super::*;
    use crate::worker::config::Config;

    #[test]
    fn the_options_fit_together() {
        CheckArgs::augment_args(clap::Command::new("check")).debug_assert();
    }

    #[test]
    fn exit_codes_are_those_that_users_script_against() {
        let code = |config: &str, rate: &str| {
            let args = CheckArgs {
                config: ConfigArgs { config: Some(config.into()), set: Vec::new() },
                rate: vec![rate.parse().unwrap()],
                json: false,
            };
            format!("{:?}", run(&args))
        };
        let expected = |code: u8| format!("{:?}", ExitCode::from(code));
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml");
        assert_eq!(code(file, "orders=5"), expected(0));
        assert_eq!(code(file, "order=5"), expected(2));
        assert_eq!(code("/nowhere/config.toml", "5"), expected(78));
    }

    fn report(rates: &[&str]) -> Report {
        let text = "[broker]\nurl = 'amqp://me:hunter2@mq:5672/%2f'\n\
            [queues.orders]\nkey = ['header:x-key']\n\
            retention_by = { header = 'x-type', values = { telemetry = '1h', billing = '7d' } }\n\
            deliver = { type = 'http', url = 'http://me:hunter2@127.0.0.1:8080/hook?t=hunter2' }\n";
        let config = Config::load(Some((Path::new("c.toml"), text)), [], &[]).unwrap();
        let rates: Vec<Rate> = rates.iter().map(|rate| rate.parse().unwrap()).collect();
        Report::new(&config, &estimate(&config, &rates, BYTES_PER_ID).unwrap())
    }

    #[test]
    fn the_report_says_what_is_consumed_and_what_it_costs_and_no_secret() {
        let expected = "\
broker  amqp://mq:5672/%2f
        not asked here: with a message TTL (x-message-ttl or a policy) the broker drops what waits too long, handled or not; set none
store   ./onceward-data, at most 10 GiB, cache 64 MiB (takes up to 3 times that)
http    127.0.0.1:9464

queues.orders
  queue        orders
  id           message-id (scope queue)
  key          header:x-key
  target       http http://127.0.0.1:8080/hook
  prefetch     500, 64 handlers at once
  retention    7d
               by x-type: billing 7d, telemetry 1h
  dead letters orders.dead
  at 1000/s    604800000 ids: 27.0 GiB of memory, 72.1 GiB of disk

total   604800000 ids: 27.0 GiB of memory, 72.1 GiB of disk";
        let report = report(&["1000"]);
        assert_eq!(report.to_string(), expected);
        let [warning] = &report.warnings[..] else { panic!("{:?}", report.warnings) };
        assert!(warning.contains("is over store.max_size = \"10 GiB\""), "{warning}");
    }

    #[test]
    fn without_a_rate_nothing_is_reckoned() {
        let report = report(&[]);
        assert!(report.to_string().ends_with("dead letters orders.dead\n"));
        assert!(report.warnings.is_empty());
    }

    #[test]
    fn json_says_the_same() {
        let json = as_json(&report(&["orders=10"]));
        assert_eq!(json["ok"], true);
        assert_eq!(json["queues"][0]["needs"]["ids"], 6_048_000);
        assert_eq!(json["queues"][0]["target"], "http http://127.0.0.1:8080/hook");
        assert_eq!(json["queues"][0]["retention_by"]["values_ms"]["telemetry"], 3_600_000);
        assert_eq!(json["total"]["disk_bytes"], 6_048_000 * 128);
        assert!(!json.to_string().contains("hunter2"));
    }

    #[test]
    fn errors_are_json_too() {
        let errors = Config::load(None, [], &["http.listne=''".to_owned()]).unwrap_err();
        let json = errors_as_json(&errors);
        assert_eq!(json["errors"][0]["origin"], "--set http.listne");
        assert_eq!(json["errors"][0]["path"], "http.listne");
    }
}
