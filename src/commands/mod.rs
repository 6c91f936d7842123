//! The commands that a person runs, one file or folder each.

pub mod convert;
