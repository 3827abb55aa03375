//! Delivers a message to the log: one line that says what came, for trying a queue out.
//!
//! Writes one `info` line a message and always succeeds. Never writes the body or a header: they may hold what no
//! log should.

use tracing::info;

use crate::message::escape;
use crate::{Body, Context, Handler, Result};

/// The target `log`.
pub(crate) struct Log;

impl Handler<Body> for Log {
    async fn handle(&self, cx: &mut Context, body: Body) -> Result {
        let content_type = cx.properties().content_type.as_deref();
        info!(
            queue = cx.queue(),
            id = %cx.id(),
            key = cx.key().map(tracing::field::display),
            attempt = cx.attempt(),
            redelivered = cx.redelivered(),
            content_type = content_type.map(|mime| escape(mime.as_bytes())),
            body_bytes = body.0.len(),
            "message"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::message::{Key, Message, Properties};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn one_line_tells_everything_but_the_body() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
        let guard = tracing::subscriber::set_default(subscriber);
        let mut cx = Context::for_tests(Message {
            properties: Properties {
                message_id: Some("m\u{1b}1".to_owned()),
                content_type: Some("text/plain".to_owned()),
                ..Properties::default()
            },
            ..Message::default()
        });
        cx.key = Some(Key::new(b"k"));
        assert!(Log.handle(&mut cx, Body("secret".into())).await.is_ok());
        drop(guard);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains("secret"));
        let line: serde_json::Value = serde_json::from_str(&text).expect("one line of JSON");
        let expected = serde_json::json!({
            "message": "message", "queue": "orders", "id": "m\\u{1b}1", "key": "k", "attempt": 1,
            "redelivered": false, "content_type": "text/plain", "body_bytes": 6,
        });
        assert_eq!(line["fields"], expected);
        assert_eq!(line["level"], "INFO");
    }
}
