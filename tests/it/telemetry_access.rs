//! TLS and tokens on the telemetry port.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tailwater::{
    control::{GetStatusRequest, ReloadRequest, control_client::ControlClient},
    credentials::ServerTls,
};
use tonic::{Code, Request, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    certificates::Ca,
    harness::{ALL, Directory, Running, config, get, http1},
};

async fn with(running: &Running, method: &str, path: &str, authorization: &str) -> (u16, String) {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\nauthorization: \
         {authorization}\r\ncontent-length: 0\r\n\r\n"
    );
    http1(running.service.admin_address, &head, &[]).await
}

/// Scenario: requests to a port with tokens: without a token, with wrong and right ones, and from
/// browsers.
/// Guarantees: health and readiness are open; everything else needs a token; HTTP Basic is enough
/// to read, but not to reload; no answer repeats a token.
#[tokio::test]
async fn tokens() {
    let directory = Directory::new();
    let mut config = config(ALL);
    config.telemetry.bearer_token_file = Some(directory.file("token", "s3cret\nnext\n").into());
    config.telemetry.enable_lifecycle = true;
    let running = Running::start(config).await;
    let admin = running.service.admin_address;
    for path in ["/-/healthy", "/-/ready"] {
        assert_eq!(get(admin, path).await.0, 200, "{path}");
    }
    let basic = |told: &str| format!("Basic {}", BASE64_STANDARD.encode(told));
    let (right, wrong) = (basic("any:next"), basic("any:kanarienvogel"));
    for path in ["/metrics", "/-/status", "/-/decisions/1", "/nothing"] {
        assert_eq!(get(admin, path).await.0, 401, "{path}");
        for (authorization, admitted) in [
            ("Bearer s3cret", true),
            ("Bearer kanarienvogel", false),
            (&right[..], true),
            (&wrong[..], false),
        ] {
            let (code, body) = with(&running, "GET", path, authorization).await;
            assert_eq!(code != 401, admitted, "{path} {authorization}");
            assert!(!body.contains("kanarienvogel") && !body.contains("s3cret"), "{body}");
        }
    }
    assert_eq!(with(&running, "POST", "/-/reload", &right).await.0, 401, "a browser sends Basic");
    assert_ne!(with(&running, "POST", "/-/reload", "Bearer next").await.0, 401);

    let url = format!("http://{admin}");
    let channel = Channel::from_shared(url).expect("a url").connect_lazy();
    let health = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
    health.expect("open");
    let mut control = ControlClient::new(channel);
    let refused = control.get_status(GetStatusRequest {}).await.expect_err("no token");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut request = Request::new(ReloadRequest {});
    request.metadata_mut().insert("authorization", right.parse().expect("ASCII"));
    let refused = control.reload(request).await.expect_err("Basic is for browsers");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut request = Request::new(GetStatusRequest {});
    request.metadata_mut().insert("authorization", "Bearer next".parse().expect("ASCII"));
    control.get_status(request).await.expect("a token");
    // The harness reads /metrics without a token.
    running.service.shutdown().await;
    running.sink.stop().await;
}

/// Scenario: `tailwater explain` on a port with TLS and a token.
/// Guarantees: it trusts only the CA of `--ca-file`, and says what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn tls() {
    let ca = Ca::new();
    let identity = ca.sign("127.0.0.1");
    let directory = Directory::new();
    let file = |name: &str, text: &str| directory.file(name, text);
    let mut config = config(ALL);
    config.telemetry.tls = Some(ServerTls {
        cert_file: file("tls.crt", &identity.cert).into(),
        key_file: file("tls.key", &identity.key).into(),
        client_ca_file: None,
    });
    let token = file("token", "s3cret\n");
    config.telemetry.bearer_token_file = Some((&token).into());
    let ca_file = file("ca.crt", &ca.pem);
    let other = file("other.crt", &Ca::new().pem);
    let running = Running::start(config).await;
    let address = format!("https://{}", running.service.admin_address);
    let explain = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tailwater"));
        let output = command.args(["explain", "1", "--address", &address]).args(arguments).output();
        String::from_utf8_lossy(&output.expect("runs").stderr).into_owned()
    };
    let known = explain(&["--ca-file", &ca_file, "--token-file", &token]);
    assert!(known.contains("does not know this trace"), "{known}");
    let refused = explain(&["--ca-file", &ca_file]);
    assert!(refused.contains("--token-file"), "{refused}");
    let untrusted = explain(&["--ca-file", &other, "--token-file", &token]);
    assert!(untrusted.contains("cannot reach") && untrusted.contains("certificate"), "{untrusted}");
    running.service.shutdown().await;
    running.sink.stop().await;
}
