//! The `code` label of export attempts, a closed set for both protocols.
//!
//! Over OTLP/gRPC it is the name of the gRPC code. Over OTLP/HTTP it is the status as a number, or
//! `other` for a status without its own series. An attempt without any answer has the name of a
//! gRPC code over both protocols: `UNAVAILABLE` without a connection, `DEADLINE_EXCEEDED` after the
//! timeout, `UNKNOWN` after a panic.

use tonic::Code;

use crate::grpc::{code_name, codes};

/// The HTTP statuses with their own series, and the label of all others.
const HTTP: [(u16, &str); 13] = [
    (200, "200"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (413, "413"),
    (415, "415"),
    (429, "429"),
    (500, "500"),
    (502, "502"),
    (503, "503"),
    (504, "504"),
    (0, "other"),
];

/// How an attempt to export ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportCode {
    /// A gRPC code, which also stands for an attempt without an answer.
    Grpc(Code),
    /// The status of an HTTP answer.
    Http(u16),
}

impl ExportCode {
    /// One code for each label, in the order of `ExportCode::index`.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let http = HTTP.iter().map(|(status, _)| ExportCode::Http(*status));
        codes().map(ExportCode::Grpc).chain(http)
    }

    /// The index of its series.
    pub(super) fn index(self) -> usize {
        match self {
            ExportCode::Grpc(code) => code as usize,
            ExportCode::Http(status) => codes().count() + place(status),
        }
    }

    /// The value of the label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            ExportCode::Grpc(code) => code_name(code),
            ExportCode::Http(status) => HTTP[place(status)].1,
        }
    }
}

impl From<Code> for ExportCode {
    fn from(code: Code) -> Self {
        ExportCode::Grpc(code)
    }
}

fn place(status: u16) -> usize {
    HTTP.iter().position(|(known, _)| *known == status).unwrap_or(HTTP.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_one_series() {
        let all: Vec<_> = ExportCode::all().collect();
        assert!(all.iter().enumerate().all(|(index, code)| code.index() == index));
        let mut labels: Vec<_> = all.iter().map(|code| code.as_str()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), all.len());
        assert_eq!(ExportCode::Http(418).as_str(), "other");
        assert_eq!(ExportCode::Http(418).index(), all.len() - 1);
    }
}
