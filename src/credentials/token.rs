//! Bearer tokens, and the one place where they are compared.
//!
//! A file holds one token a line, so that a new one can be let in before the old one is taken away.
//! Only digests are kept: they have one length, nobody can choose them byte by byte, and no dump of
//! memory holds a token that was read. Each of them is compared, in a time that does not depend on
//! where they differ.

use std::{fmt, path::Path};

use subtle::{Choice, ConstantTimeEq as _};

use super::pem::{self, Fault, Faults, FileFault, Role};

const SCHEME: &str = "bearer";

/// A SHA-256 digest. It has no `==`, so that nothing but [`subtle`] compares it.
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

/// Who may send.
#[derive(Clone)]
pub struct Tokens(Vec<Digest>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl Tokens {
    pub(super) fn read(file: &Path) -> Result<Self, Faults> {
        let fault = |fault| Faults(vec![FileFault::new(Role::Token, file, fault)]);
        let contents = pem::contents(Role::Token, file).map_err(|fault| Faults(vec![fault]))?;
        let contents = contents.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&contents);
        let lines = contents.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let tokens: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
        if tokens.is_empty() {
            return Err(fault(Fault::NoToken));
        }
        if tokens.iter().any(|token| !token.iter().all(u8::is_ascii_graphic)) {
            return Err(fault(Fault::BadToken));
        }
        Ok(Tokens(tokens.into_iter().map(Digest::of).collect()))
    }

    /// Whether the value of an `authorization` header has one of them.
    pub fn admit(&self, authorization: &[u8]) -> bool {
        let Some((scheme, token)) = authorization.split_at_checked(SCHEME.len()) else {
            return false;
        };
        if !scheme.eq_ignore_ascii_case(SCHEME.as_bytes()) || !token.starts_with(b" ") {
            return false;
        }
        let told = Digest::of(token.trim_ascii());
        let none = Choice::from(0);
        self.0.iter().fold(none, |any, token| any | token.ct_eq(&told)).into()
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
    }
}
