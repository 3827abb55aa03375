//! The command line of onceward.

use std::process::ExitCode;

use clap::Parser;
use onceward::worker::cli::demo::{self, DemoArgs};

#[derive(Debug, Parser)]
enum Command {
    Demo(DemoArgs),
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Demo(args) => demo::run(&args),
    }
}
