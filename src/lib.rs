//! pagemill.
