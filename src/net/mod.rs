//! Connections: sockets, TLS and HTTP, before anybody asks what a request means.
//!
//! [`listen`] is the accept loop and what bounds a connection; [`handshake`] is TLS; [`windows`]
//! grants HTTP/2 flow control; [`descriptors`] says how many connections the process may have;
//! `preface` reads the first bytes under a deadline; [`deadline`] bounds one request. The receivers
//! and the admin listener stand on it.

pub mod deadline;
pub mod descriptors;
pub mod handshake;
pub mod listen;
mod preface;
pub mod windows;
