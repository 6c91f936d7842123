//! Connections: sockets, TLS and HTTP, below the meaning of requests. The receivers and the admin
//! listener are built on it.
//!
//! [`listen`] is the accept loop; `connection` bounds one connection, whose requests and answers
//! `activity` counts; [`handshake`] is TLS; [`windows`] grants HTTP/2 flow control;
//! [`descriptors`] says how many connections the process
//! may have; `preface` reads the first bytes under a deadline; `watched`, `frames` and `authority`
//! stand between the socket and h2; [`tally`] counts; [`deadline`] limits the time of one request.

mod activity;
mod authority;
mod connection;
pub(crate) mod deadline;
pub mod descriptors;
mod frames;
pub(crate) mod handshake;
pub mod listen;
mod preface;
pub(crate) mod tally;
mod watched;
pub(crate) mod windows;
