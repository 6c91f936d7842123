//! The interfaces for packages, init systems and health checks.

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixDatagram},
    task::spawn_blocking,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    certificates::{Ca, server},
    cli::{BINARY, NOBODY, Process, tailwater},
    harness::{ALL, Directory, Running, config},
};

/// The exit code, standard output and standard error of `tailwater health`.
type Said = (Option<i32>, String, String);

async fn health(arguments: &[&str], address: &str) -> Said {
    let mut command = Command::new(BINARY);
    command.arg("health").args(arguments).env("TAILWATER_ADDRESS", address);
    let output = spawn_blocking(move || command.output()).await.expect("no panic");
    let output = output.expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.expect("a request"));
    }
    stream.write_all(answer.as_bytes()).await.expect("answered");
    stream.shutdown().await.expect("closed");
    String::from_utf8(request).expect("UTF-8")
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// Scenario: `health` asks a running service, with the address from the variable and from the
/// option.
/// Guarantees: exit code 0, and one line.
#[tokio::test]
async fn health_of_a_running_service() {
    let running = Running::start(config(ALL)).await;
    let address = format!("http://{}", running.service.admin_address);
    let ready = (Some(0), "ready\n".to_owned(), String::new());
    assert_eq!(health(&[], &address).await, ready);
    assert_eq!(health(&["--address", &format!("{address}/")], NOBODY).await, ready);
    running.stop().await;
}

/// Scenario: nobody listens; the instance is starting or draining; the server is not HTTP; no
/// address at all.
/// Guarantees: exit code 1 and one line that names the address and the reason; bad usage is 2.
#[tokio::test]
async fn health_of_what_is_not_ready() {
    let (code, out, error) = health(&[], NOBODY).await;
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(error.starts_with(&format!("not ready: {NOBODY}/: cannot connect: ")), "{error}");
    for (answer, reason) in [
        ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 10\r\n\r\nnot ready\n", "not ready"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nnot\nfound", "404 Not Found: not\n"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP/1.1"),
        ("", "does not speak HTTP/1.1"),
    ] {
        let (listener, address) = listener().await;
        let asked =
            tokio::spawn(
                async move { serve(listener.accept().await.expect("asked").0, answer).await },
            );
        let (code, out, error) = health(&[], &format!("http://{address}/base")).await;
        assert_eq!((code, out.as_str(), error.lines().count()), (Some(1), "", 1), "{error}");
        assert!(error.contains(reason), "{error}");
        let asked = asked.await.expect("no panic");
        assert!(asked.starts_with("GET /base/-/ready HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains(&format!("host: {address}\r\n")), "{asked}");
    }
    let no_scheme = NOBODY.trim_start_matches("http://");
    for address in ["", no_scheme, "/-/ready", "ftp://localhost"] {
        let (code, _, error) = health(&[], address).await;
        assert!(matches!(code, Some(1 | 2)) && !error.is_empty(), "{address}: {error}");
    }
}

/// Scenario: `health` over TLS, with the CA of the instance and with another one.
/// Guarantees: it trusts the CA that it is given and no other.
#[tokio::test]
async fn health_over_tls() {
    let (ca, other) = (Ca::new(), Ca::new());
    let directory = Directory::new();
    for (trusted, is_ready) in [(&ca, true), (&other, false)] {
        let ca_file = directory.file("ca.pem", &trusted.pem);
        let (listener, address) = listener().await;
        let mut tls = (*server(&ca.sign("localhost"), None)).clone();
        tls.alpn_protocols = vec![b"http/1.1".into()];
        let acceptor = TlsAcceptor::from(std::sync::Arc::new(tls));
        let served = tokio::spawn(async move {
            let stream = acceptor.accept(listener.accept().await.expect("asked").0).await;
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n";
            if let Ok(stream) = stream {
                serve(stream, answer).await;
            }
        });
        let address = format!("https://localhost:{}", address.port());
        let (code, _, error) = health(&["--ca-file", &ca_file], &address).await;
        assert_eq!(code, Some(i32::from(!is_ready)), "{error}");
        assert_eq!(error.contains("TLS: invalid peer certificate"), !is_ready, "{error}");
        served.await.expect("no panic");
    }
}

/// Scenario: the version of a build from a checkout.
/// Guarantees: it has version, commit and date.
#[test]
fn the_version_has_commit_and_date() {
    let version = String::from_utf8(tailwater(&["--version"]).stdout).expect("UTF-8");
    let form = concat!(
        "^tailwater ",
        env!("CARGO_PKG_VERSION"),
        r" \(([0-9a-f]{12}|unknown commit) \d{4}-\d\d-\d\d\)\n$"
    );
    assert!(regex::Regex::new(form).expect("an expression").is_match(&version), "{version}");
}

/// Scenario: completions of each shell, and manual pages.
/// Guarantees: each contains the commands; a missing directory is an error.
#[test]
fn completions_and_manual_pages() {
    for (shell, start) in [("bash", "_tailwater()"), ("zsh", "#compdef"), ("fish", "# Print an")] {
        let output = tailwater(&["completions", shell]);
        let script = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(output.status.code(), Some(0));
        assert!(script.starts_with(start) && script.contains("health"), "{shell}: {script}");
    }
    assert_eq!(tailwater(&["completions", "sh"]).status.code(), Some(2));
    let directory = Directory::new();
    let path = directory.0.to_str().expect("UTF-8");
    assert_eq!(tailwater(&["man", path]).status.code(), Some(0));
    let page = fs::read_to_string(directory.0.join("tailwater-run.1")).expect("a page");
    assert!(page.contains("\\-\\-config"), "{page}");
    assert!(directory.0.join("tailwater.1").exists());
    let failed = tailwater(&["man", "/nonexistent"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("/nonexistent"));
}

/// The next message to systemd that is not about the watchdog, and the number of watchdog messages
/// before it.
async fn told(socket: &UnixDatagram) -> (Vec<String>, usize) {
    let mut fed = 0;
    let mut buffer = [0; 1024];
    loop {
        let received = timeout(Duration::from_secs(30), socket.recv(&mut buffer)).await;
        let length = received.expect("told within 30 s").expect("received");
        let text = std::str::from_utf8(&buffer[..length]).expect("UTF-8");
        match text.trim_end() {
            "WATCHDOG=1" => fed += 1,
            text => return (text.lines().map(str::to_owned).collect(), fed),
        }
    }
}

/// Scenario: a process with a socket like systemd's, and its watchdog; it becomes ready, runs for a
/// while, reloads and is stopped. Another process runs without a watchdog.
/// Guarantees: systemd gets READY, WATCHDOG again and again, RELOADING with the time and READY, and
/// STOPPING with the time that the shutdown may take; without a watchdog there is no WATCHDOG.
#[tokio::test]
async fn systemd_is_told() {
    for watchdog in [true, false] {
        let directory = Directory::new();
        let path = directory.0.join("notify");
        let socket = UnixDatagram::bind(&path).expect("bound");
        let mut command = Command::new(BINARY);
        command.env("NOTIFY_SOCKET", &path);
        if watchdog {
            command.env("WATCHDOG_USEC", "400000");
        }
        let zero = "endpoint = \"127.0.0.1:0\"\n";
        let config = format!(
            "shutdown_timeout = \"2s\"\n[receiver.grpc]\n{zero}[receiver.http]\n{zero}\
             [telemetry]\n{zero}{ALL}"
        );
        let mut process = Process::start_on(command, directory, &config);
        assert_eq!(told(&socket).await, (vec!["READY=1".to_owned()], 0));
        if watchdog {
            for _ in 0..5 {
                let mut buffer = [0; 1024];
                let fed = timeout(Duration::from_secs(30), socket.recv(&mut buffer)).await;
                assert_eq!(fed.expect("fed within 30 s").expect("received"), "WATCHDOG=1\n".len());
            }
        }
        process.signal("HUP");
        let (reloading, fed) = told(&socket).await;
        assert_eq!(reloading[0], "RELOADING=1");
        let since_boot = reloading[1].strip_prefix("MONOTONIC_USEC=").expect("the time");
        assert!(since_boot.parse::<u64>().is_ok(), "{since_boot}");
        assert_eq!(told(&socket).await.0, ["READY=1"]);
        process.signal("TERM");
        let (stopping, fed_later) = told(&socket).await;
        assert_eq!(stopping, ["STOPPING=1", "EXTEND_TIMEOUT_USEC=7000000"]);
        assert!(watchdog || fed + fed_later == 0);
        assert!(process.exit().await.success());
    }
}
