//! The payment ledger beside the workers: a small HTTP server that charges once per `Idempotency-Key`.
//!
//! The first answer to every third charge is lost: the charge is made, and the connection closed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What was charged under one key.
#[derive(Clone, Debug)]
pub(crate) struct Charge {
    pub(crate) transfer: u64,
    pub(crate) receipt: String,
    pub(crate) calls: usize,
}

/// A running ledger; ends when dropped.
pub(crate) struct Ledger {
    url: String,
    books: Arc<Mutex<Books>>,
    _server: JoinSet<()>,
}

/// Is told of each call: key and number of what is charged.
pub(crate) type OnCall = Box<dyn Fn(&str, u64) + Send>;

struct Books {
    charges: BTreeMap<String, Charge>,
    calls: usize,
    /// What no caller may do.
    wrong: Vec<String>,
    on_call: OnCall,
}

impl Ledger {
    pub(crate) async fn start(on_call: OnCall) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/charges", listener.local_addr().expect("an address"));
        let books = Books { charges: BTreeMap::new(), calls: 0, wrong: Vec::new(), on_call };
        let books = Arc::new(Mutex::new(books));
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::clone(&books)));
        Self { url, books, _server: server }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// All charges by their keys, and the number of calls.
    pub(crate) fn charges(&self) -> (BTreeMap<String, Charge>, usize) {
        let books = self.books.lock().expect("nothing panics under it");
        assert_eq!(books.wrong, Vec::<String>::new(), "wrong calls of the ledger");
        (books.charges.clone(), books.calls)
    }
}

async fn serve(listener: TcpListener, books: Arc<Mutex<Books>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.expect("a connection");
                let books = Arc::clone(&books);
                // A caller that is killed in the middle leaves half a request.
                connections.spawn(async move { drop(answer(stream, &books).await) });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers one request after the other, until an answer is lost or the caller is gone.
async fn answer(stream: TcpStream, books: &Mutex<Books>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut key, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            match line.split_once(": ") {
                Some(("idempotency-key", value)) => key = Some(value.to_owned()),
                Some(("content-length", value)) => length = value.parse().expect("a length"),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let Some(receipt) = charge(books, key, &body) else {
            return Ok(());
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", receipt.len());
        stream.write_all(format!("{head}{receipt}").as_bytes()).await?;
        stream.flush().await?;
    }
}

/// Makes the charge, if there is none under this key, and gives its receipt, unless that is lost.
fn charge(books: &Mutex<Books>, key: Option<String>, body: &[u8]) -> Option<String> {
    let mut books = books.lock().expect("nothing panics under it");
    let transfer = std::str::from_utf8(body).ok().and_then(|body| body.parse().ok());
    let (Some(key), Some(transfer)) = (key, transfer) else {
        books.wrong.push(format!("no charge: {:?}", String::from_utf8_lossy(body)));
        return None;
    };
    books.calls += 1;
    (books.on_call)(&key, transfer);
    let is_lost = !books.charges.contains_key(&key) && (books.charges.len() + 1).is_multiple_of(3);
    let receipt = format!("receipt-{}", books.charges.len() + 1);
    let charge = books.charges.entry(key.clone()).or_insert(Charge { transfer, receipt, calls: 0 });
    charge.calls += 1;
    let charge = charge.clone();
    if charge.transfer != transfer {
        books.wrong.push(format!("{key} charges {} and {transfer}", charge.transfer));
    }
    (!is_lost).then_some(charge.receipt)
}
