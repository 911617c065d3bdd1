//! Tests through the facade and the binary. One executable: it links once.

mod bad_config;
mod bad_input;
mod command_line;
mod questions;
mod support;
