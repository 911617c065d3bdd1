//! Tests through the facade and the binary. One executable: it links once.

// A test that cannot read its own files has failed.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod bad_config;
mod bad_input;
mod command_line;
mod commands_letters;
mod commands_run;
mod commands_service;
mod draining;
mod dry_run;
mod examples;
mod generation;
mod identity;
mod kill_matrix;
mod kills;
mod questions;
mod refills;
mod support;
mod visual;
mod watching;
