//! Sinks: LanceDB and JSON lines.
