//! Readers of what comes from outside, as `fuzz/` calls them: each takes any
//! bytes and has to come back. The tests run them over the same corpus.

pub use crate::cage::fuzzing::requests;
pub use crate::cage::process::fuzzing::replies;
pub use crate::stdin::fuzzing::lines;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use pagemill_pipeline::fuzzing::try_mutations;

    fn corpus(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../fuzz/corpus")
            .join(name)
    }

    #[test]
    fn no_request_is_worse_for_a_worker_than_its_end() {
        try_mutations(&corpus("requests"), 2_000, super::requests);
    }

    #[test]
    fn no_reply_is_worse_for_the_parent_than_an_error() {
        try_mutations(&corpus("replies"), 5_000, super::replies);
    }

    #[test]
    fn no_line_is_worse_than_a_dead_letter() {
        try_mutations(&corpus("lines"), 10_000, super::lines);
    }
}
