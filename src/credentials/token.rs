//! Bearer tokens, and the only place that compares them.
//!
//! A file of the receivers holds one token a line, so that a new one can be allowed before the old
//! one is removed. Only digests are kept: they all have the same length, a sender cannot guess them
//! byte by byte, and a memory dump does not contain the tokens. A comparison checks every digest,
//! in a time that does not depend on where they differ.
//!
//! The exporter's file holds the one token for the backend. That one is kept, as a header value
//! that is marked as sensitive.

use std::{fmt, path::Path};

use base64::{Engine as _, prelude::BASE64_STANDARD as STANDARD};
use http::HeaderValue;
use subtle::{Choice, ConstantTimeEq as _};

use super::pem::{self, Fault, Faults, FileFault, Role};

const SCHEME: &str = "bearer";
const BASIC: &str = "basic";

/// A SHA-256 digest. It has no `==`, so that only [`subtle`] compares it.
#[derive(Clone)]
struct Digest([u8; 32]);

impl Digest {
    fn of(token: &[u8]) -> Self {
        Digest(pem::sha256(token))
    }

    fn ct_eq(&self, other: &Digest) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

/// The tokens of the senders that may send.
#[derive(Clone)]
pub struct Tokens(Vec<Digest>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

/// The tokens of a file, one a line, without surrounding whitespace; at least one.
fn tokens(file: &Path) -> Result<Vec<Vec<u8>>, FileFault> {
    let contents = pem::contents(Role::Token, file)?;
    let contents = contents.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&contents);
    let lines = contents.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let tokens: Vec<_> = lines.filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect();
    if tokens.is_empty() {
        return Err(FileFault::new(Role::Token, file, Fault::NoToken));
    }
    if tokens.iter().any(|token| !token.iter().all(u8::is_ascii_graphic)) {
        return Err(FileFault::new(Role::Token, file, Fault::BadToken));
    }
    Ok(tokens)
}

/// The token that the exporter sends to the backend.
#[derive(Clone)]
pub(crate) struct Bearer(HeaderValue);

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Bearer {
    pub(super) fn read(file: &Path) -> Result<Self, Faults> {
        let fault = |fault| Faults(vec![FileFault::new(Role::Token, file, fault)]);
        let tokens = tokens(file).map_err(|fault| Faults(vec![fault]))?;
        let [token] = &tokens[..] else { return Err(fault(Fault::ManyTokens)) };
        let value = [b"Bearer ", &token[..]].concat();
        let mut value = HeaderValue::try_from(value).map_err(|_| fault(Fault::BadToken))?;
        // Keeps the value out of logs and of HTTP/2's header compression table.
        value.set_sensitive(true);
        Ok(Bearer(value))
    }

    /// The value of the `authorization` header.
    pub(crate) fn header(&self) -> &HeaderValue {
        &self.0
    }
}

impl Tokens {
    pub(super) fn read(file: &Path) -> Result<Self, Faults> {
        let tokens = tokens(file).map_err(|fault| Faults(vec![fault]))?;
        Ok(Tokens(tokens.iter().map(|token| Digest::of(token)).collect()))
    }

    /// Whether the value of an `authorization` header holds one of the tokens.
    pub fn admit(&self, authorization: &[u8]) -> bool {
        let Some((scheme, token)) = authorization.split_at_checked(SCHEME.len()) else {
            return false;
        };
        if !scheme.eq_ignore_ascii_case(SCHEME.as_bytes()) || !token.starts_with(b" ") {
            return false;
        }
        self.has(token.trim_ascii())
    }

    /// Compares with every token, in a time that does not depend on which one it is.
    fn has(&self, token: &[u8]) -> bool {
        let told = Digest::of(token);
        let none = Choice::from(0);
        self.0.iter().fold(none, |any, token| any | token.ct_eq(&told)).into()
    }
}

impl Tokens {
    /// Whether the value of an `authorization` header of HTTP Basic has one of the tokens as its
    /// password, with any name.
    pub(crate) fn admit_basic(&self, authorization: &[u8]) -> bool {
        let Some((scheme, encoded)) = authorization.split_at_checked(BASIC.len()) else {
            return false;
        };
        if !scheme.eq_ignore_ascii_case(BASIC.as_bytes()) || !encoded.starts_with(b" ") {
            return false;
        }
        let Ok(told) = STANDARD.decode(encoded.trim_ascii()) else { return false };
        let password = told.iter().position(|byte| *byte == b':').map(|colon| &told[colon + 1..]);
        password.is_some_and(|password| self.has(password))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(tokens: &[&str]) -> Tokens {
        Tokens(tokens.iter().map(|token| Digest::of(token.as_bytes())).collect())
    }

    #[test]
    fn the_whole_token_counts_and_the_case_of_the_scheme_does_not() {
        let tokens = tokens(&["s3cret", "next"]);
        for (authorization, admitted) in [
            ("Bearer s3cret", true),
            ("bearer s3cret", true),
            ("BEARER   s3cret ", true),
            ("Bearer next", true),
            ("Bearer s3cre", false),
            ("Bearer s3crets", false),
            ("Bearer S3CRET", false),
            ("Bearer s3cret next", false),
            ("Bearer ", false),
            ("Bearer", false),
            ("Bearers3cret", false),
            ("Basic s3cret", false),
            ("s3cret", false),
            ("", false),
        ] {
            assert_eq!(tokens.admit(authorization.as_bytes()), admitted, "{authorization}");
        }
        assert_eq!(format!("{tokens:?}"), "2 tokens");
        let basic = |told: &str| format!("Basic {}", STANDARD.encode(told));
        for (authorization, admitted) in [
            (basic("any:s3cret"), true),
            (basic(":next"), true),
            (basic("any:s3cret").replace("Basic", "bAsIc"), true),
            (basic("any:s3cret "), false),
            (basic("any:x:s3cret"), false),
            (basic("s3cret"), false),
            (basic(""), false),
            ("Basic any:s3cret".to_owned(), false),
            ("Bearer s3cret".to_owned(), false),
            ("Basic".to_owned(), false),
        ] {
            assert_eq!(tokens.admit_basic(authorization.as_bytes()), admitted, "{authorization}");
        }
    }
}
