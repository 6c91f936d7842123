//! Certificates, keys and tokens: the diagnostics for every mistake in their files.

use std::{fs, path::PathBuf};

use rcgen::{CertificateParams, CertifiedKey, KeyPair, date_time_ymd};

use super::{POLICY, config, problems};

/// A directory with files of all kinds, removed when this is dropped.
struct Files(PathBuf);

impl Files {
    fn new() -> Self {
        let name = format!("tailwater-config-{}-{:x}", std::process::id(), fastrand::u64(..));
        let files = Files(std::env::temp_dir().join(name));
        fs::create_dir(&files.0).unwrap();
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        files.write("cert", &cert.pem());
        files.write("key", &signing_key.serialize_pem());
        files.write("other-key", &KeyPair::generate().unwrap().serialize_pem());
        let dated = |from, to| {
            let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
            (params.not_before, params.not_after) =
                (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
            params.self_signed(&signing_key).unwrap().pem()
        };
        files.write("expired", &dated(2001, 2002));
        files.write("early", &dated(2500, 2501));
        files.write("damaged", &cert.pem().replace("\nM", "\nN"));
        let encrypted =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        files.write("encrypted", encrypted);
        files.write("nonsense", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
        files.write("empty", " \n");
        files.write("large", &"x".repeat((1 << 20) + 1));
        files.write("tokens", "\n one \r\ntwo\n");
        files.write("two words", "one two\n");
        files
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.0.join(name), content).unwrap();
    }

    /// A configuration in which `@name` stands for the path of a file.
    fn text(&self, text: &str) -> String {
        format!("{}\n{POLICY}", text.replace('@', &format!("{}/", self.0.display())))
    }

    fn problems(&self, text: &str) -> Vec<String> {
        problems(&self.text(text))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn files_that_can_be_used() {
    let files = Files::new();
    let of = |text: &str| config(&files.text(text));
    let server =
        of("[receiver.tls]\ncert_file = '@cert'\nkey_file = '@key'\nclient_ca_file = '@cert'");
    let tls = server.tls.clone().unwrap();
    assert_eq!(tls.files().len(), 3);
    assert!(tls.read().unwrap().certificate.not_after > Some(1 << 31));
    let auth = of("receiver.auth = { bearer_token_file = '@tokens' }");
    let tokens = crate::credentials::read_tokens(&auth.bearer_token_file.clone().unwrap()).unwrap();
    assert!(
        tokens.admit(b"Bearer one") && tokens.admit(b"Bearer two") && !tokens.admit(b"Bearer o")
    );
    let client = of(
        "[exporter.otlp]\nendpoint = 'https://tempo:4317'\n[exporter.otlp.tls]\nca_file = '@cert'\n\
         cert_file = '@cert'\nkey_file = '@key'\nserver_name = 'tempo.example'",
    );
    let tls = client.exporter.tls.clone().unwrap();
    assert_eq!((tls.files().len(), tls.identity.is_some()), (3, true));
    assert_eq!(tls.server_name.unwrap().to_str(), "tempo.example");
    let plain = of("exporter.otlp.endpoint = 'https://tempo:4317'");
    assert_eq!(plain.exporter.tls, Some(crate::credentials::ClientTls::default()));
    let parts = ["[receiver.tls]", "[receiver.auth]", "[exporter.otlp]"];
    let plain = config(POLICY);
    for (changed, part) in [server, auth, client].iter().zip(parts) {
        assert_eq!(changed.differences(&plain), [part]);
    }
}

#[test]
fn files_that_cannot_be_used() {
    let files = Files::new();
    let pem = " | such a file begins with `-----BEGIN CERTIFICATE-----`";
    let relative = " | a relative path starts at the directory of this file";
    let unreadable = "No such file or directory (os error 2)";
    let cert_file = |fault: &str| format!("2:13: error: `cert_file` cannot be used: {fault}");
    let key_file = |fault: &str| format!("3:12: error: `key_file` cannot be used: {fault}");
    let missing = format!("{unreadable}{relative}");
    let passphrase = "its private key is protected by a passphrase \
                      | `openssl pkey -in FILE -out NEW` writes it without the passphrase";
    let other = "its private key does not match the certificate \
                 | the first certificate of `cert_file` must be the one that this key was made for";
    for (cert, key, expected) in [
        ("missing", "key", vec![cert_file(&missing)]),
        ("key", "key", vec![cert_file(&format!("it holds no certificate in PEM form{pem}"))]),
        ("damaged", "key", vec![cert_file(&format!("a certificate in it cannot be read{pem}"))]),
        ("large", "key", vec![cert_file("it is larger than 1 MiB")]),
        (
            "cert",
            "cert",
            vec![key_file(
                "it holds no private key in PEM form \
                 | such a file begins with `-----BEGIN PRIVATE KEY-----`",
            )],
        ),
        ("cert", "encrypted", vec![key_file(passphrase)]),
        (
            "cert",
            "nonsense",
            vec![key_file(
                "its private key cannot be used \
                 | RSA from 2048 bits, ECDSA P-256, P-384 and Ed25519 work",
            )],
        ),
        ("cert", "other-key", vec![key_file(other)]),
        (
            "expired",
            "key",
            vec!["2:13: warning: the certificate has expired: 2002-01-01T00:00:00Z".to_owned()],
        ),
        ("early", "key", vec!["2:13: warning: the certificate is not valid yet".to_owned()]),
        ("missing", "missing", vec![cert_file(&missing), key_file(&missing)]),
    ] {
        let text = format!("[receiver.tls]\ncert_file = '@{cert}'\nkey_file = '@{key}'");
        assert_eq!(files.problems(&text), expected, "{cert} {key}");
    }
    for (token, expected) in [
        ("missing", format!("{unreadable}{relative}")),
        ("empty", "it holds no token | write one token a line".to_owned()),
        (
            "two words",
            "a line in it is not a token: it has spaces or characters other than visible ASCII"
                .to_owned(),
        ),
    ] {
        let text = format!("[receiver.auth]\nbearer_token_file = '@{token}'");
        let expected = format!("2:21: error: `bearer_token_file` cannot be used: {expected}");
        assert_eq!(files.problems(&text), std::slice::from_ref(&expected), "{token}");
        let text = format!("[exporter.otlp]\nbearer_token_file = '@{token}'");
        assert_eq!(files.problems(&text), [expected], "{token}");
    }
}

#[test]
fn the_token_of_the_exporter() {
    let files = Files::new();
    files.write("one", "\u{feff}  s3cret-token\r\n\n");
    let config = config(&files.text("exporter.otlp.bearer_token_file = '@one'"));
    let file = config.exporter.bearer_token_file.clone().unwrap();
    let bearer = crate::credentials::read_bearer(&file).unwrap();
    assert_eq!(bearer.header(), "Bearer s3cret-token");
    let shown = format!("{bearer:?}{:?}{config:?}", bearer.header());
    assert!(bearer.header().is_sensitive() && !shown.contains("s3cret"), "{shown}");
    assert_eq!(
        files.problems("exporter.otlp.bearer_token_file = '@tokens'"),
        ["1:35: error: `bearer_token_file` cannot be used: it holds more than one token \
          | keep only the token that the backend expects"]
    );
    let both = "[exporter.otlp]\nbearer_token_file = '@one'\nheaders = { Authorization = 'x' }";
    assert_eq!(
        files.problems(both),
        ["2:21: error: `bearer_token_file` and the header `authorization` are both set, and \
          only one of them can be sent | remove one of them"]
    );
}

#[test]
fn sections_that_are_half_there() {
    let files = Files::new();
    let https = "exporter.otlp.endpoint = 'https://tempo:4317'\n";
    for (text, expected) in [
        ("[receiver.tls]\ncert_file = '@cert'", "1:1: error: [receiver.tls] has no `key_file`"),
        ("[receiver.auth]", "1:1: error: [receiver.auth] has no `bearer_token_file`"),
        ("receiver.auth.bearer_token_file = ''", "1:35: error: `bearer_token_file` is empty"),
        (
            "[exporter.otlp.tls]\nca_file = '@cert'",
            "1:1: error: [exporter.otlp.tls] is set, but `endpoint` is http:// \
             | write https://, or remove the section",
        ),
        (
            &format!("{https}[exporter.otlp.tls]\nkey_file = '@key'"),
            "2:1: error: [exporter.otlp.tls] has `key_file` and no `cert_file`",
        ),
        (
            &format!("{https}exporter.otlp.tls.server_name = 'https://tempo'"),
            "2:33: error: `server_name` must be a host name, found `https://tempo` \
             | leave out scheme and port",
        ),
        (
            &format!("{https}exporter.otlp.tls.ca_file = '@key'"),
            "2:29: error: `ca_file` cannot be used: it holds no certificate in PEM form \
             | such a file begins with `-----BEGIN CERTIFICATE-----`",
        ),
        (
            "[receiver.tls]\ncert_file = '@cert'\nkey_fil = '@key'",
            "3:1: error: unknown key `key_fil` in [receiver.tls] | did you mean `key_file`?",
        ),
    ] {
        assert_eq!(files.problems(text), [expected], "{text}");
    }
}

#[test]
fn no_line_with_the_value_of_a_header_is_shown() {
    for text in [
        "exporter.otlp.headers = { a = 's3cret', 'b b' = 's3cret' }",
        "[exporter.otlp]\nheaders = {\n a = 's3cret', b = 1 }",
        "[exporter.otlp.headers]\na = 's3cret é'\n",
        "[exporter.otlp.headers]\na = 's3cret",
        "[exporter]\notlp = { 'headers' = { a = 's3cret } }",
        "[sampling]\ndecision_wait = '${env:SECRET}'\n",
        "[exporter.otlp]\nendpoint = 'http://${env:SECRET}'\n",
    ] {
        let (loaded, _) = super::parse(&format!("{text}\n{POLICY}"));
        let shown = format!("{}{:?}", loaded.diagnostics, loaded.diagnostics);
        assert!(loaded.diagnostics.has_errors() && !shown.contains("s3cret"), "{text}\n{shown}");
    }
}
