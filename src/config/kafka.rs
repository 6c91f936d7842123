//! `[receiver.kafka]`. It is checked in every build; in one without the feature it is an error.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Secret,
    credentials::{client_files, password},
    diagnostics::{Problem, quote},
    section::{Read, Section},
};
use crate::credentials::ClientTls;

/// The topic and the group, where the file does not name them.
const TOPIC: &str = "otlp_spans";
const GROUP: &str = "tailwater";

/// `[receiver.kafka]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Kafka {
    /// `brokers`, each as host:port.
    pub brokers: Vec<String>,
    /// `topic`, default otlp_spans.
    pub topic: String,
    /// `group_id`, default tailwater.
    pub group_id: String,
    /// `group_instance_id`, by default the value of the environment variable HOSTNAME.
    pub group_instance_id: Option<String>,
    /// `encoding`, default otlp_proto.
    pub encoding: KafkaEncoding,
    /// `initial_offset`: "latest" is true, "earliest" (the default) false.
    pub starts_at_end: bool,
    /// `replay_margin`, default 2.5 times `decision_wait`.
    pub replay_margin: Duration,
    /// `session_timeout`, default 10 s.
    pub session_timeout: Duration,
    /// `leave_on_shutdown`, default false.
    pub leave_on_shutdown: bool,
    /// `[receiver.kafka.tls]`; `None` for plaintext, which is the default.
    pub tls: Option<ClientTls>,
    /// `[receiver.kafka.sasl]`.
    pub sasl: Option<KafkaSasl>,
}

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KafkaEncoding {
    /// `"otlp_proto"`.
    Protobuf,
    /// `"otlp_json"`.
    Json,
}

/// `[receiver.kafka.sasl]`.
#[derive(Clone, Debug, PartialEq)]
pub struct KafkaSasl {
    /// `mechanism`, as Kafka names it.
    pub mechanism: &'static str,
    /// `username`.
    pub username: Secret,
    /// `password_file`.
    pub password_file: PathBuf,
}

/// Reads the section, if it is there; [`replay_margin`] computes the margin from it.
pub(super) fn read(
    mut section: Section<'_, '_>,
    directory: &Path,
) -> (Option<Kafka>, Read<Duration>) {
    let (is_there, header) = (section.is_there(), section.span());
    let brokers = brokers(&mut section);
    let starts_at_end = section.word("initial_offset", [false, true]);
    let named = section.text("group_instance_id", |text| named("group_instance_id", text));
    let group_instance_id = match named {
        Read::Unset => section.environment("HOSTNAME").filter(|name| !name.is_empty()),
        named => named.good(),
    };
    let mut config = Kafka {
        brokers,
        topic: section.text("topic", topic).or(TOPIC.to_owned()),
        group_id: section.text("group_id", |text| self::named("group_id", text)).or(GROUP.into()),
        group_instance_id,
        encoding: section.word("encoding", [KafkaEncoding::Protobuf, KafkaEncoding::Json]),
        starts_at_end,
        replay_margin: Duration::ZERO,
        session_timeout: section.duration_or_default("session_timeout"),
        leave_on_shutdown: section.boolean_or_default("leave_on_shutdown"),
        tls: None,
        sasl: None,
    };
    config.tls = tls(section.section("tls"), directory);
    config.sasl = sasl(section.section("sasl"), directory, config.tls.is_some());
    if is_there && !cfg!(feature = "kafka") {
        let problem = Problem::new("this build of Tailwater has no Kafka receiver");
        section.error(header, problem.hint("build it with `--features kafka`"));
    }
    let margin = section.duration("replay_margin");
    section.finish();
    (is_there.then_some(config), margin)
}

fn brokers(section: &mut Section<'_, '_>) -> Vec<String> {
    let read = section.texts("brokers");
    if let Read::Set(brokers, span) = &read
        && brokers.is_empty()
    {
        section.error(span.clone(), Problem::new("`brokers` is empty"));
    }
    let mut good = Vec::new();
    for (broker, span) in read.or(Vec::new()) {
        let is_sound = !broker.is_empty() && !broker.contains([' ', ',', '/']);
        if is_sound {
            good.push(broker);
        } else {
            let problem = Problem::new(format!("{} is not a `host:port`", quote(&broker)));
            section.error(span, problem.hint("leave out schemes, and write one broker a string"));
        }
    }
    good
}

/// A name that is not empty.
fn named(key: &str, text: &str) -> Result<String, Problem> {
    if text.is_empty() {
        return Err(Problem::new(format!("`{key}` is empty")));
    }
    Ok(text.to_owned())
}

/// The rules of Kafka. One that begins with `^` would be taken for an expression.
fn topic(text: &str) -> Result<String, Problem> {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_sound = (1..250).contains(&text.len()) && text.chars().all(is_legal);
    if !is_sound || [".", ".."].contains(&text) {
        let problem = Problem::new(format!("{} is not the name of a topic", quote(text)));
        return Err(problem.hint("names have up to 249 letters, digits, `.`, `_` and `-`"));
    }
    Ok(text.to_owned())
}

/// The margin. Warns where it is too short to see traces whole that straddle the commit.
pub(super) fn replay_margin(
    root: &mut Section<'_, '_>,
    read: Read<Duration>,
    decision_wait: Duration,
) -> Duration {
    if let Read::Set(margin, span) = &read
        && *margin < 2 * decision_wait
    {
        let [margin, least] = [*margin, 2 * decision_wait].map(humantime::format_duration);
        let message = format!(
            "`replay_margin`, {margin}, is less than twice `decision_wait`, {least}: a new owner \
             of a partition may see the later part of a trace without the earlier one, and decide \
             differently about it"
        );
        let hint = "leave it out for 2.5 times `decision_wait`";
        root.warn(span.clone(), Problem::new(message).hint(hint));
    }
    read.or(decision_wait.mul_f64(2.5))
}

fn tls(mut section: Section<'_, '_>, directory: &Path) -> Option<ClientTls> {
    let is_there = section.is_there();
    let tls = client_files(&mut section, directory);
    section.finish();
    is_there.then_some(tls)
}

fn sasl(mut section: Section<'_, '_>, directory: &Path, has_tls: bool) -> Option<KafkaSasl> {
    let (is_there, header) = (section.is_there(), section.span());
    let mechanism = section.word("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]);
    let username = section.text("username", |text| named("username", text));
    let password = password(&mut section, directory);
    if is_there && !has_tls && mechanism == "PLAIN" {
        let message = "[receiver.kafka.sasl] sends the password in the clear: there is no \
                       [receiver.kafka.tls]";
        let hint = "add [receiver.kafka.tls], or use a SCRAM mechanism";
        section.warn(header, Problem::new(message).hint(hint));
    }
    section.finish();
    let (username, password_file) = (Secret::from(username.good()?), password?);
    is_there.then_some(KafkaSasl { mechanism, username, password_file })
}
