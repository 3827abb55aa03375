//! Goal: TLS to the broker works with the right certificates, and each wrong one is named in words.
//!
//! Method: the stock binary against a RabbitMQ node of the test's own, which shows a certificate and asks for one, and
//! against a server that shows one that has expired. All certificates are made here.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

mod support;

use support::process::WorkerDir;
use support::rabbitmq::Client;

const PATIENCE: Duration = Duration::from_secs(60);

/// Certificates in a directory: NAME.pem and NAME.key.
struct Certificates {
    directory: tempfile::TempDir,
}

/// One that signs others.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate is for, and until when.
enum Leaf<'a> {
    Server(&'a str),
    Expired(&'a str),
    Client(&'a str),
}

impl Certificates {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, pem: &str, key: &KeyPair) {
        fs::write(self.path(&format!("{name}.pem")), pem).expect("room");
        let path = self.path(&format!("{name}.key"));
        fs::write(&path, key.serialize_pem()).expect("room");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    }

    fn ca(&self, name: &str) -> Ca {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        self.write(name, &pem, &key);
        Ca { issuer: Issuer::new(params, key) }
    }

    fn leaf(&self, name: &str, leaf: &Leaf<'_>, ca: &Ca) {
        let (names, common, purpose) = match leaf {
            Leaf::Server(host) | Leaf::Expired(host) => {
                (vec![(*host).to_owned()], *host, ExtendedKeyUsagePurpose::ServerAuth)
            }
            Leaf::Client(user) => (Vec::new(), *user, ExtendedKeyUsagePurpose::ClientAuth),
        };
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, common);
        params.extended_key_usages = vec![purpose];
        if matches!(leaf, Leaf::Expired(_)) {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let pem = params.signed_by(&key, &ca.issuer).expect("signed").pem();
        self.write(name, &pem, &key);
    }
}

/// A RabbitMQ node that listens for TLS too, gone with this.
struct Node {
    directory: PathBuf,
    /// The plain listener's.
    url: String,
    tls_port: String,
}

impl Node {
    fn start(certificates: &Certificates) -> Self {
        let directory = certificates.path("node");
        let output = Self::script(&directory)
            .arg("start")
            .env("ONCEWARD_RABBITMQ_TLS", certificates.directory.path())
            .stderr(Stdio::inherit())
            .output()
            .expect("bash is there");
        assert!(output.status.success(), "no RabbitMQ: `apt-get install -y rabbitmq-server`");
        let tls_port = fs::read_to_string(directory.join("tls_port")).expect("it listens for TLS");
        Self {
            url: String::from_utf8(output.stdout).expect("a url").trim().to_owned(),
            tls_port: tls_port.trim().to_owned(),
            directory,
        }
    }

    fn script(directory: &Path) -> Command {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rabbitmq"));
        command.env("ONCEWARD_RABBITMQ_DIR", directory);
        command
    }

    fn ctl(&self, arguments: &[&str]) {
        let output = Self::script(&self.directory).arg("ctl").args(arguments).output();
        let output = output.expect("bash is there");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may be gone; what is left of it is in the temporary directory.
        let _ = Self::script(&self.directory).arg("stop").output();
    }
}

/// A worker's directory, with the broker to be named on the command line.
fn worker_dir() -> WorkerDir {
    WorkerDir::new(
        "memory:",
        "[http]\nlisten = \"\"\n[queues.in]\ndeclare = \"classic\"\ndeliver = { type = \"log\" }\n",
    )
}

/// The settings of a broker with these files, empty for none.
fn broker(certificates: &Certificates, url: &str, [ca, identity]: [&str; 2]) -> Vec<String> {
    let file = |key: &str, name: &str, extension: &str| {
        let path = certificates.path(&format!("{name}.{extension}")).display().to_string();
        let path = if name.is_empty() { String::new() } else { path };
        format!("broker.{key}={path}")
    };
    let mut arguments = Vec::new();
    for set in [
        format!("broker.url={url}"),
        file("ca_file", ca, "pem"),
        file("cert_file", identity, "pem"),
        file("key_file", identity, "key"),
    ] {
        arguments.extend(["--set".to_owned(), set]);
    }
    arguments
}

/// Runs a worker until it has said something, and ends it.
fn run_until(directory: &WorkerDir, settings: &[String], said: &str) {
    let mut command = directory.command(&["run"]);
    command.args(settings);
    let worker = directory.start_as(command);
    worker.wait_for_log(said, PATIENCE);
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", directory.logged());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_consumed_over_tls_and_each_wrong_certificate_is_named() {
    let certificates = Certificates::new();
    let ca = certificates.ca("ca");
    let other = certificates.ca("other");
    certificates.leaf("server", &Leaf::Server("localhost"), &ca);
    certificates.leaf("client", &Leaf::Client("tls-client"), &ca);
    certificates.leaf("stranger", &Leaf::Client("tls-client"), &other);
    let node = Node::start(&certificates);
    node.ctl(&["add_user", "tls-client", "no-password-is-asked-for"]);
    node.ctl(&["clear_password", "tls-client"]);
    node.ctl(&["set_permissions", "tls-client", ".*", ".*", ".*"]);
    let properties = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(&node.url, properties).await;
    let client = Client { connection: connection.expect("the plain listener") };
    client.declare_classic("in").await;
    let directory = worker_dir();
    let at = |login: &str, host: &str, port: &str| format!("amqps://{login}{host}:{port}/%2f");
    let right = at("guest:guest@", "localhost", &node.tls_port);
    let external = format!("{}?auth_mechanism=external", at("", "localhost", &node.tls_port));

    for (id, url) in [("by password", &right), ("by certificate", &external)] {
        client.publish("in", [id.to_owned()]).await;
        let settings = broker(&certificates, url, ["ca", "client"]);
        run_until(&directory, &settings, &format!("\"id\":\"{id}\""));
        assert_eq!(client.depth("in").await, 0, "{id}: it is acked");

        client.publish("in", [format!("quarantined {id}")]).await;
        let mut command = directory.command(&["quarantine", "-q", "in", "--force"]);
        let output = command.args(&settings).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert_eq!(client.depth("in").await, 0, "it is taken");
    }

    let plain_port = node.url.rsplit([':', '/']).nth(1).expect("a port");
    for (url, files, said) in [
        (right.clone(), ["other", "client"], "its certificate is of no CA that is trusted here"),
        (
            at("guest:guest@", "127.0.0.1", &node.tls_port),
            ["ca", "client"],
            "its certificate is not for \\\"127.0.0.1\\\"",
        ),
        (right.clone(), ["ca", ""], "it asks for a certificate of ours"),
        (right.clone(), ["ca", "stranger"], "it does not accept our certificate"),
        (
            at("guest:guest@", "localhost", plain_port),
            ["ca", "client"],
            "it does not speak TLS on this port",
        ),
    ] {
        let settings = broker(&certificates, &url, files);
        run_until(&directory, &settings, said);
        let mut command = directory.command(&["quarantine", "-q", "in"]);
        let output = command.args(&settings).output().expect("it starts");
        let told = String::from_utf8_lossy(&output.stderr).replace('"', "\\\"");
        assert_eq!(output.status.code(), Some(69), "{told}");
        assert!(told.contains(said), "{said} is not in {told}");
    }
}

#[test]
fn a_certificate_that_has_expired_is_named() {
    let certificates = Certificates::new();
    let ca = certificates.ca("ca");
    certificates.leaf("server", &Leaf::Expired("localhost"), &ca);
    let chain =
        CertificateDer::pem_file_iter(certificates.path("server.pem")).expect("it is there");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("PEM");
    let key = PrivateKeyDer::from_pem_file(certificates.path("server.key")).expect("PEM");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("they are there")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they go together");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    // Ends with the process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), Ok(mut connection)) =
                (stream, rustls::ServerConnection::new(Arc::clone(&config)))
            else {
                continue;
            };
            // The client ends it.
            let _ = connection.complete_io(&mut stream);
        }
    });
    let url = format!("amqps://u:hunter2@localhost:{port}/%2f");
    let settings = broker(&certificates, &url, ["ca", ""]);
    run_until(&worker_dir(), &settings, "its certificate has expired");
}

#[test]
fn files_that_are_no_certificates_are_refused_before_anything_is_connected() {
    let certificates = Certificates::new();
    let ca = certificates.ca("ca");
    certificates.leaf("client", &Leaf::Client("c"), &ca);
    fs::write(certificates.path("text.pem"), "canary").expect("room");
    fs::copy(certificates.path("client.key"), certificates.path("keyonly.pem")).expect("room");
    fs::copy(certificates.path("client.pem"), certificates.path("mixed.pem")).expect("room");
    fs::copy(certificates.path("ca.key"), certificates.path("mixed.key")).expect("room");
    fs::copy(certificates.path("client.pem"), certificates.path("open.pem")).expect("room");
    fs::copy(certificates.path("client.key"), certificates.path("open.key")).expect("room");
    let open = fs::Permissions::from_mode(0o644);
    fs::set_permissions(certificates.path("open.key"), open).expect("it is ours");
    let directory = worker_dir();
    for (files, said) in [
        (["missing", ""], "missing.pem: cannot be read: No such file"),
        (["text", ""], "text.pem: no certificate in PEM is in it"),
        (["keyonly", ""], "keyonly.pem: no certificate in PEM is in it"),
        (["ca", "mixed"], "do not go together"),
        (["ca", "open"], "run `chmod 600 "),
    ] {
        for command in ["check", "run"] {
            let settings = broker(&certificates, "amqps://u:p@localhost:1/%2f", files);
            let output = directory.command(&[command]).args(settings).output().expect("it starts");
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(78), "{command} {files:?}: {told}");
            assert!(told.contains(said), "{command}: {said} is not in {told}");
            assert!(!told.contains("canary") && !told.contains("BEGIN"), "{told}");
        }
    }
}
