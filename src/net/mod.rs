//! Connections: sockets, TLS and HTTP, before anybody asks what a request means.
//!
//! [`listen`] is the accept loop; `connection` is what bounds one connection; [`handshake`] is TLS;
//! [`windows`] grants HTTP/2 flow control; [`descriptors`] says how many connections the process
//! may have; `preface` reads the first bytes under a deadline; `watched`, `frames` and `authority`
//! are between the socket and h2; [`tally`] counts; [`deadline`] bounds one request. The receivers
//! and the admin listener stand on it.

mod authority;
mod connection;
pub mod deadline;
pub mod descriptors;
mod frames;
pub mod handshake;
pub mod listen;
mod preface;
pub mod tally;
mod watched;
pub mod windows;
