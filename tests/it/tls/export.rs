//! TLS towards the backend: which CAs it trusts, its certificate, and certificates that change.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustls::{ServerConfig, pki_types::ServerName};
use tailwater::{config::Config, credentials::ClientTls};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    certificates::{Ca, Identity, server},
    cli::Process,
    harness::{ALL, Answer, Directory, Metrics, Running, config, sink, span},
    web::{Web, over_http, reply},
};

/// TLS in front of a sink, with a certificate that can be changed; connections are then cut on
/// request.
pub struct Terminator {
    pub address: SocketAddr,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    /// The certificate of the last client.
    shown: Arc<Mutex<Vec<u8>>>,
    cut: watch::Sender<()>,
}

impl Terminator {
    pub async fn start(sink: SocketAddr, first: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port 0");
        let address = listener.local_addr().expect("bound");
        let config = Arc::new(Mutex::new(first));
        let (cut, mut is_cut) = watch::channel(());
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let (current, seen) = (Arc::clone(&config), Arc::clone(&shown));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = TlsAcceptor::from(Arc::clone(&current.lock().expect("no panic")));
                is_cut.mark_unchanged();
                let (mut is_cut, seen) = (is_cut.clone(), Arc::clone(&seen));
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(stream).await?;
                    if let Some(chain) = stream.get_ref().1.peer_certificates() {
                        *seen.lock().expect("no panic") = chain[0].to_vec();
                    }
                    let mut sink = TcpStream::connect(sink).await?;
                    tokio::select! {
                        biased;
                        _ = is_cut.changed() => {}
                        _ = tokio::io::copy_bidirectional(&mut stream, &mut sink) => {}
                    }
                    std::io::Result::Ok(())
                });
            }
        });
        Terminator { address, config, shown, cut }
    }

    /// Uses this configuration for new connections; open ones are cut.
    fn serve(&self, config: Arc<ServerConfig>) {
        *self.config.lock().expect("no panic") = config;
        self.cut.send_replace(());
    }
}

/// A service that exports over TLS to a sink behind a TLS server.
struct Exporting {
    running: Running,
    backend: Terminator,
    directory: Directory,
}

impl Exporting {
    async fn start(
        host: &str,
        server: Arc<ServerConfig>,
        trusted: &Ca,
        identity: Option<&Identity>,
        server_name: Option<&str>,
    ) -> Self {
        let answer: Answer = Box::new(|_| Ok(bytes::Bytes::new()));
        let (sink, received) = sink("127.0.0.1:0", answer).await;
        let backend = Terminator::start(sink.address, server).await;
        let directory = Directory::new();
        let tls = ClientTls {
            ca_file: Some(directory.file("ca.crt", &trusted.pem).into()),
            identity: identity.map(|identity| {
                let cert = directory.file("tls.crt", &identity.cert);
                (cert.into(), directory.file("tls.key", &identity.key).into())
            }),
            server_name: server_name
                .map(|name| ServerName::try_from(name.to_owned()).expect("a name")),
        };
        let mut config = Config { ..config(ALL) };
        config.exporter.endpoint = format!("https://{host}:{}", backend.address.port());
        config.exporter.tls = Some(tls);
        config.exporter.retry.max_interval = Duration::from_millis(100);
        let running = Running::over(&config, sink, received).await;
        Exporting { running, backend, directory }
    }
}

fn retried(metrics: &Metrics) -> f64 {
    metrics.get("exporter_retries_total{code=\"UNAVAILABLE\"}")
}

/// Scenario: backends whose certificate matches the host of the endpoint, its address, or
/// `server_name`; one of them asks for a certificate.
/// Guarantees: everything is delivered at the first attempt.
#[tokio::test]
async fn kept_spans_leave_over_tls() {
    let ca = Ca::new();
    let identity = ca.sign("tailwater");
    for (host, name, server_name, identity) in [
        ("localhost", "localhost", None, None),
        ("127.0.0.1", "127.0.0.1", None, None),
        ("127.0.0.1", "tempo.example", Some("tempo.example"), Some(&identity)),
    ] {
        let clients = identity.map(|_| [&ca]);
        let clients = clients.as_ref().map(|clients| &clients[..]);
        let server = server(&ca.sign(name), clients);
        let exporting = Exporting::start(host, server, &ca, identity, server_name).await;
        exporting.running.accept(vec![span(1, 1, None)]).await;
        let metrics = exporting.running.at_rest().await;
        assert_eq!(metrics.sum("exporter_sent_spans_total"), 1.0, "{name}");
        assert_eq!(metrics.sum("exporter_retries_total"), 0.0, "{name}");
        assert_eq!(exporting.running.spans().len(), 1);
        exporting.running.stop().await;
    }
}

/// Scenario: OTLP/HTTP backends that speak HTTP/2, HTTP/1.1, both, or do not say; with and without
/// mutual TLS.
/// Guarantees: the version is the one agreed on by TLS; everything is delivered at the first
/// attempt.
#[tokio::test]
async fn kept_spans_leave_over_tls_by_otlp_http() {
    let ca = Ca::new();
    let identity = ca.sign("tailwater");
    for (offered, version) in [
        (&["h2"][..], http::Version::HTTP_2),
        (&["http/1.1"], http::Version::HTTP_11),
        (&["h2", "http/1.1"], http::Version::HTTP_2),
        (&[], http::Version::HTTP_11),
    ] {
        for is_mutual in [false, true] {
            let web = Web::start(|_| reply(200)).await;
            let trusted = [&ca];
            let server = server(&ca.sign("localhost"), is_mutual.then_some(&trusted[..]));
            let mut server = ServerConfig::clone(&server);
            server.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
            let backend = Terminator::start(web.address, Arc::new(server)).await;
            let directory = Directory::new();
            let file = |name: &str, content: &str| directory.file(name, content).into();
            let tls = ClientTls {
                ca_file: Some(file("ca.crt", &ca.pem)),
                identity: is_mutual
                    .then(|| (file("tls.crt", &identity.cert), file("tls.key", &identity.key))),
                server_name: None,
            };
            let base = format!("https://localhost:{}/otlp", backend.address.port());
            let mut config = over_http(config(ALL), &base);
            config.exporter.tls = Some(tls);
            let running = Running::start_to(config).await;
            for trace in 1..=3 {
                running.accept(vec![span(trace, 1, None)]).await;
                running.at_rest().await;
            }
            let metrics = running.at_rest().await;
            assert_eq!(metrics.sum("exporter_sent_spans_total"), 3.0, "{offered:?}");
            assert_eq!(metrics.sum("exporter_retries_total"), 0.0, "{offered:?}");
            for seen in web.seen.lock().expect("no panic").iter() {
                assert_eq!((seen.version, &seen.path[..]), (version, "/otlp/v1/traces"));
            }
            let shown = backend.shown.lock().expect("no panic").clone();
            assert_eq!(is_mutual, shown == *identity.der());
            running.stop().await;
        }
    }
}

/// Scenario: backends whose certificate is of another CA, for another name or expired, and one that
/// refuses the client's certificate; then each is repaired.
/// Guarantees: nothing is sent before; the exporter retries, nothing is lost, and everything is
/// delivered afterwards.
#[tokio::test]
async fn wrong_certificates_delay_spans_and_lose_none() {
    let (ca, other) = (Ca::new(), Ca::new());
    let shown = ca.sign("tailwater");
    let wrong = [
        server(&other.sign("localhost"), None),
        server(&ca.sign("tempo.example"), None),
        server(&ca.sign_expired("localhost"), None),
        server(&ca.sign("localhost"), Some(&[&other])),
    ];
    for wrong in wrong {
        let exporting = Exporting::start("localhost", wrong, &ca, Some(&shown), None).await;
        exporting.running.accept(vec![span(1, 1, None)]).await;
        let retries = |metrics: &Metrics| retried(metrics) >= 3.0;
        let metrics = exporting.running.until("three retries", retries).await;
        assert_eq!(metrics.get("exporter_queue_spans"), 1.0);
        assert!(exporting.running.spans().is_empty());
        exporting.backend.serve(server(&ca.sign("localhost"), Some(&[&ca])));
        let metrics = exporting.running.at_rest().await;
        assert_eq!(metrics.sum("exporter_sent_spans_total"), 1.0);
        assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
        exporting.running.stop().await;
    }
}

/// Scenario: under load, the service's certificate, its key and the trusted CA are replaced in
/// place, one file after the other; the backend then only accepts the new ones, and connections are
/// cut.
/// Guarantees: no export fails; within ten seconds, new connections use the new files.
#[tokio::test]
async fn certificates_are_replaced_under_load() {
    let (old, new) = (Ca::new(), Ca::new());
    let backend = server(&old.sign("localhost"), Some(&[&old]));
    let identity = old.sign("tailwater");
    let exporting = Exporting::start("localhost", backend, &old, Some(&identity), None).await;
    exporting.running.accept(vec![span(1, 1, None)]).await;
    exporting.running.at_rest().await;
    let next = new.sign("tailwater");
    exporting.directory.file("ca.crt", &format!("{}{}", old.pem, new.pem));
    exporting.directory.file("tls.crt", &next.cert);
    exporting.directory.file("tls.key", &next.key);
    let either = server(&old.sign("localhost"), Some(&[&old, &new]));
    let began = Instant::now();
    let mut sent = 1;
    while *exporting.backend.shown.lock().expect("no panic") != *next.der() {
        assert!(began.elapsed() < Duration::from_secs(10));
        exporting.backend.serve(Arc::clone(&either));
        for _ in 0..10 {
            sent += 1;
            exporting.running.accept(vec![span(sent, 1, None)]).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    exporting.backend.serve(server(&new.sign("localhost"), Some(&[&new])));
    sent += 1;
    exporting.running.accept(vec![span(sent, 1, None)]).await;
    let metrics = exporting.running.at_rest().await;
    assert_eq!(metrics.sum("exporter_sent_spans_total"), sent as f64);
    assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
    assert_eq!(metrics.get("credentials_last_reload_successful"), 1.0);
    exporting.running.stop().await;
}

/// Scenario: the binary exports to a backend whose certificate is for another name.
/// Guarantees: the log says so once, as a warning, with both names.
#[tokio::test]
async fn the_log_says_what_is_wrong_with_a_backend() {
    let ca = Ca::new();
    let answer: Answer = Box::new(|_| Ok(bytes::Bytes::new()));
    let (sink, _) = sink("127.0.0.1:0", answer).await;
    let server = server(&ca.sign("tempo.example"), None);
    let backend = Terminator::start(sink.address, server).await;
    let directory = Directory::new();
    let more =
        format!("[exporter.otlp.tls]\nca_file = \"{}\"\n", directory.file("ca.crt", &ca.pem));
    let url = format!("https://localhost:{}", backend.address.port());
    let process = Process::start(&format!("shutdown_timeout = \"1s\"\n{more}"), &url);
    process.export(1).await;
    process.signal("TERM");
    let line = process.line("cannot connect to the backend").await;
    let message = line["fields"]["message"].as_str().expect("a message");
    assert_eq!(line["level"], "WARN");
    for part in [&url[..], "not valid for name \"localhost\"", "tempo.example"] {
        assert!(message.contains(part), "{message}");
    }
    sink.stop().await;
}
