//! Delivers a message to a command: body on stdin, the rest in the environment, the verdict is the exit code.
//!
//! Owns the child and its process group: when a run ends, by exit, timeout or drain, nothing of the group lives on.
//! 0 is Done, 65 (`EX_DATAERR`) and 100 (qmail's permanent failure) reject, everything else is another attempt, also a
//! command that cannot be started. Runs no shell, and does not pursue processes that leave the group (`setsid`).

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::future::{self, Either};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin};
use tracing::debug;

use super::tail::Tail;
use crate::message::escape;
use crate::{Body, Context, Handler, Result, reject};

/// Exit codes that say: no attempt will ever succeed.
const REJECT_CODES: [i32; 2] = [65, 100];

/// How long the pipes are read after the exit: what is left in them is there at once, and whoever left the group
/// with a pipe in hand is not waited for.
const PIPES_AFTER_EXIT: Duration = Duration::from_millis(500);

/// Options of the target `command`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandOptions {
    /// Never empty; one without a slash is looked up in `PATH`.
    program: String,
    arguments: Vec<String>,
    /// Most bytes kept of stdout and of stderr each, default 64 KiB: the last ones, the rest is read and dropped.
    pub(crate) output_bytes_max: usize,
}

impl CommandOptions {
    /// Most that `output_bytes_max` may be.
    pub(crate) const OUTPUT_BYTES_LIMIT: u64 = 16 << 20;

    /// Takes the program and its arguments; says what is wrong with them.
    pub(crate) fn new(argv: Vec<String>) -> Result<Self, String> {
        if argv.iter().any(|argument| argument.contains('\0')) {
            return Err("has a NUL character, which no argument can have".to_owned());
        }
        let mut argv = argv.into_iter();
        match argv.next() {
            Some(program) if !program.is_empty() => {
                Ok(Self { program, arguments: argv.collect(), output_bytes_max: 64 << 10 })
            }
            _ => Err("names no program".to_owned()),
        }
    }
}

/// The program only: arguments can be secrets.
impl fmt::Display for CommandOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program)
    }
}

/// The target `command`.
pub(crate) struct Command {
    options: CommandOptions,
    /// Variables of the worker that the command does not inherit: the worker's own options, secrets among them, and
    /// what an outer onceward said of its own message.
    hidden: Vec<OsString>,
}

impl Command {
    pub(crate) fn new(options: CommandOptions) -> Self {
        let hidden = std::env::vars_os()
            .map(|(name, _)| name)
            .filter(|name| name.as_bytes().starts_with(b"ONCEWARD_"))
            .collect();
        Self { options, hidden }
    }

    fn command(&self, cx: &Context) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.options.program);
        command
            .args(&self.options.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        for name in &self.hidden {
            command.env_remove(name);
        }
        command
            .env("ONCEWARD_ID", variable(cx.id().as_bytes()))
            .env("ONCEWARD_ATTEMPT", cx.attempt().to_string())
            .env("ONCEWARD_QUEUE", variable(cx.queue().as_bytes()))
            .env("ONCEWARD_EFFECT_KEY", cx.effect_key("command"));
        if let Some(key) = cx.key() {
            command.env("ONCEWARD_KEY", variable(key.as_bytes()));
        }
        if let Some(mime) = &cx.properties().content_type {
            command.env("ONCEWARD_CONTENT_TYPE", variable(mime.as_bytes()));
        }
        command
    }

    async fn run(&self, cx: &Context, body: Body) -> Result<Finished, CommandError> {
        let mut running = Running::start(self.command(cx)).map_err(|source| {
            let program = self.options.program.clone();
            CommandError::Start { program, source }
        })?;
        let failed = |source| {
            let program = self.options.program.clone();
            CommandError::Io { program, source }
        };
        let mut stdout = Tail::new(self.options.output_bytes_max);
        let mut stderr = Tail::new(self.options.output_bytes_max);
        let child = &mut running.child;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let errors = child.stderr.take();
        let status = {
            let pipes = pin!(async {
                let fed = feed(input, &body.0);
                tokio::join!(fed, stdout.read(output), stderr.read(errors)).0
            });
            let exited = pin!(running.exited());
            match future::select(exited, pipes).await {
                Either::Left((status, pipes)) => {
                    let rest = tokio::time::timeout(PIPES_AFTER_EXIT, pipes).await;
                    rest.unwrap_or(Ok(())).map_err(failed)?;
                    status.map_err(failed)?
                }
                Either::Right((fed, exited)) => {
                    fed.map_err(failed)?;
                    exited.await.map_err(failed)?
                }
            }
        };
        stdout.cut();
        stderr.cut();
        Ok(Finished { status, stdout, stderr })
    }
}

impl Handler<Body> for Command {
    async fn handle(&self, cx: &mut Context, body: Body) -> Result {
        let Finished { status, stdout, stderr } = self.run(cx, body).await?;
        debug!(
            queue = cx.queue(), id = %cx.id(), attempt = cx.attempt(), status = %status,
            stdout = %stdout, stderr = %stderr, "command ended"
        );
        if status.success() {
            return Ok(());
        }
        let error = CommandError::Exit {
            program: self.options.program.clone(),
            status,
            errors: stderr.last_lines(),
        };
        match status.code() {
            Some(code) if REJECT_CODES.contains(&code) => Err(reject(error)),
            _ => Err(error.into()),
        }
    }
}

/// A child and its process group, which ends with this value.
struct Running {
    child: Child,
    /// `None` once killed: after that the number may belong to somebody else.
    group: Option<Pid>,
}

impl Running {
    fn start(mut command: tokio::process::Command) -> io::Result<Self> {
        let child = command.spawn()?;
        let group = child.id().and_then(|id| i32::try_from(id).ok());
        Ok(Self { child, group: group.map(Pid::from_raw) })
    }

    /// Waits for the child, then kills what it left behind, so that its pipes end too.
    ///
    /// While one of the group lives its number is not given to another; so the kill that follows at once hits either
    /// ours or nobody.
    async fn exited(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await;
        self.kill_group();
        status
    }

    fn kill_group(&mut self) {
        if let Some(group) = self.group.take() {
            // Fails if none is left, which is what we want.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Kills before the child is dropped and, by tokio, reaped: until then the number is the child's.
impl Drop for Running {
    fn drop(&mut self) {
        self.kill_group();
    }
}

struct Finished {
    status: ExitStatus,
    stdout: Tail,
    stderr: Tail,
}

/// Writes the body and closes the pipe; a command need not read it.
async fn feed(input: Option<ChildStdin>, body: &[u8]) -> io::Result<()> {
    let Some(mut input) = input else {
        return Ok(());
    };
    match input.write_all(body).await {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// The value of a variable: the bytes as they are, or escaped if there is a NUL, which the system cannot pass on.
fn variable(bytes: &[u8]) -> OsString {
    if bytes.contains(&0) { escape(bytes).into() } else { OsStr::from_bytes(bytes).to_owned() }
}

#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("command {program:?} cannot be started")]
    Start { program: String, source: io::Error },
    #[error("command {program:?} cannot be fed or waited for")]
    Io { program: String, source: io::Error },
    #[error("command {program:?} ended with {status}{}{errors}", if errors.is_empty() { "" } else { ": " })]
    Exit { program: String, status: ExitStatus, errors: String },
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::Verdict;
    use super::*;
    use crate::message::{Key, Message, MessageId, Properties};

    fn target(script: &str, arguments: &[&Path]) -> Command {
        let mut argv = ["/bin/sh", "-c", script, "sh"].map(str::to_owned).to_vec();
        argv.extend(arguments.iter().map(|path| path.display().to_string()));
        Command::new(CommandOptions::new(argv).expect("a program"))
    }

    fn context() -> Context {
        Context::for_tests(Message {
            properties: Properties {
                message_id: Some("m-1".to_owned()),
                content_type: Some("text/csv".to_owned()),
                ..Properties::default()
            },
            ..Message::default()
        })
    }

    async fn run(script: &str, body: impl Into<bytes::Bytes>) -> Verdict {
        let target = target(script, &[]);
        target.handle(&mut context(), Body(body.into())).await.into()
    }

    fn is_gone(pid: i32) -> bool {
        // A killed orphan stays a zombie where nobody reaps, as process 1 of many containers.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        nix::sys::signal::kill(Pid::from_raw(pid), None).is_err() || stat.contains(") Z ")
    }

    /// Every wait in this file is for something that comes, in 10 seconds at the most.
    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..1_000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} within 10 s");
    }

    fn pid_in(file: &Path) -> Option<i32> {
        let text = fs::read_to_string(file).ok()?;
        text.strip_suffix('\n')?.parse().ok()
    }

    #[tokio::test]
    async fn the_exit_code_decides() {
        assert_eq!(run("exit 0", "").await, Verdict::Done);
        for code in [65, 100] {
            let verdict = run(&format!("exit {code}"), "").await;
            let text = format!("command \"/bin/sh\" ended with exit status: {code}");
            assert_eq!(verdict, Verdict::Reject(text));
        }
        for code in [1, 2, 64, 75, 99, 101, 255] {
            let verdict = run(&format!("exit {code}"), "").await;
            assert!(matches!(verdict, Verdict::Retry(_, None)), "{verdict:?}");
        }
        let verdict = run("kill -TERM $$", "").await;
        let text = "command \"/bin/sh\" ended with signal: 15 (SIGTERM)".to_owned();
        assert_eq!(verdict, Verdict::Retry(text, None));
    }

    #[tokio::test]
    async fn the_last_lines_of_stderr_are_in_the_error_escaped() {
        let script = r"printf 'one\ntwo\n\nthree\n\033[31mfour\n\n' >&2; exit 3";
        let text = r#"command "/bin/sh" ended with exit status: 3: two; three; \u{1b}[31mfour"#;
        assert_eq!(run(script, "").await, Verdict::Retry(text.to_owned(), None));
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_is_tried_again() {
        let options = CommandOptions::new(vec!["/nowhere/handle".to_owned()]);
        let target = Command::new(options.expect("a program"));
        let verdict: Verdict = target.handle(&mut context(), Body("".into())).await.into();
        let text = "command \"/nowhere/handle\" cannot be started: \
                    No such file or directory (os error 2)";
        assert_eq!(verdict, Verdict::Retry(text.to_owned(), None));
    }

    #[tokio::test]
    async fn the_command_gets_the_body_and_the_environment() {
        let dir = tempfile::tempdir().expect("a directory");
        let seen = dir.path().join("seen");
        let script = r#"{ cat; printf '|%s' "$ONCEWARD_ID" "${ONCEWARD_KEY-none}" "$ONCEWARD_ATTEMPT" \
            "$ONCEWARD_QUEUE" "$ONCEWARD_EFFECT_KEY" "$ONCEWARD_CONTENT_TYPE"; } > "$1""#;
        let target = target(script, &[&seen]);
        let mut cx = context();
        cx.attempt = 3;
        let effect_key = cx.effect_key("command");
        assert!(target.handle(&mut cx, Body("b\0dy".into())).await.is_ok());
        let expected = format!("b\0dy|m-1|none|3|orders|{effect_key}|text/csv");
        assert_eq!(fs::read(&seen).expect("written"), expected.as_bytes());
        cx.id = MessageId::new(&b"\xff\n"[..]);
        cx.key = Some(Key::new(b"a\0b"));
        assert!(target.handle(&mut cx, Body("".into())).await.is_ok());
        let seen = fs::read(&seen).expect("written");
        assert!(seen.starts_with(b"|\xff\n|a\\u{0}b|3|"), "{}", escape(&seen));
    }

    #[tokio::test]
    async fn a_body_that_nobody_reads_and_output_that_nobody_wants_do_not_block() {
        let body = vec![b'x'; 4 << 20];
        assert_eq!(run("exit 0", body.clone()).await, Verdict::Done);
        assert_eq!(run("exec <&-; sleep 0.1", body.clone()).await, Verdict::Done);
        assert_eq!(run("cat; cat /dev/zero | head -c 3000000 >&2", body).await, Verdict::Done);
    }

    #[tokio::test]
    async fn a_dropped_run_kills_the_grandchildren() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("pid");
        let target = target("sleep 300 & echo $! > \"$1\"; wait", &[&file]);
        let mut cx = context();
        tokio::select! {
            ended = target.handle(&mut cx, Body("".into())) => panic!("{ended:?}"),
            () = until("a pid is written", || pid_in(&file).is_some()) => {}
        }
        let pid = pid_in(&file).expect("just seen");
        until("the grandchild is gone", || is_gone(pid)).await;
    }

    #[tokio::test]
    async fn what_a_command_leaves_behind_is_killed_and_does_not_hold_up_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("pid");
        let target = target("sleep 300 & echo $! > \"$1\"; echo last >&2; exit 1", &[&file]);
        let mut cx = context();
        let handled = target.handle(&mut cx, Body("".into()));
        let ended = tokio::time::timeout(Duration::from_secs(10), handled).await;
        let verdict: Verdict = ended.expect("not held up").into();
        let text = "command \"/bin/sh\" ended with exit status: 1: last".to_owned();
        assert_eq!(verdict, Verdict::Retry(text, None));
        let pid = pid_in(&file).expect("written before the exit");
        until("the grandchild is gone", || is_gone(pid)).await;
    }

    #[tokio::test]
    async fn a_process_that_left_the_group_with_a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("pid");
        let script = r#"setsid sh -c 'echo $$ > "$1"; exec sleep 300' sh "$1" &
            until [ -s "$1" ]; do sleep 0.01; done; echo last >&2; exit 1"#;
        let target = target(script, &[&file]);
        let mut cx = context();
        let handled = target.handle(&mut cx, Body("".into()));
        let ended = tokio::time::timeout(Duration::from_secs(10), handled).await;
        let pid = pid_in(&file).expect("written before the exit");
        killpg(Pid::from_raw(pid), Signal::SIGKILL).expect("it is ours, and lives");
        let verdict: Verdict = ended.expect("not waited for").into();
        let text = "command \"/bin/sh\" ended with exit status: 1: last".to_owned();
        assert_eq!(verdict, Verdict::Retry(text, None));
    }

    #[test]
    fn options_without_a_program_are_refused() {
        for argv in [vec![], vec![String::new()], vec!["a\0".to_owned()]] {
            assert!(CommandOptions::new(argv).is_err());
        }
    }
}
