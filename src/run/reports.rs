//! Prints the reports of finished runs, and chooses the exit code.

use std::error::Error;
use std::io::{self, Write as _};
use std::path::PathBuf;

use pagemill::pipeline::{
    Forecast, StopReason, printable_line, printable_text, without_code_places,
};
use pagemill::{Report, RunError};
use serde_json::{Value, json};

use crate::{DEAD_LETTERS, DONE, FAILED, progress};

/// Collects how the runs ended. Texts are printed at once, JSON at the end.
pub(crate) struct Reports {
    is_json: bool,
    /// Whether JSON is a list though there is one report.
    is_list: bool,
    values: Vec<Value>,
    n_texts: usize,
    code: u8,
    written: io::Result<()>,
}

/// How one run ended.
pub(super) struct Ended {
    pub(super) pipeline: String,
    pub(super) result: Result<Report, RunError>,
    /// Where its dead letters are.
    pub(super) letters: Option<PathBuf>,
}

impl Reports {
    pub(crate) fn new(is_json: bool, is_list: bool) -> Self {
        Self {
            is_json,
            is_list,
            values: Vec::new(),
            n_texts: 0,
            code: DONE,
            written: Ok(()),
        }
    }

    pub(super) fn add(&mut self, ended: Ended) {
        let (report, error) = match ended.result {
            Ok(report) => (Some(report), None),
            Err(error) => {
                tell_error(&error);
                let told = json!({ "error": with_causes(&error), "hint": error.error.hint() });
                (error.report.map(|report| *report), Some(told))
            }
        };
        let code = match &report {
            _ if error.is_some() => FAILED,
            Some(report) if report.stopped == StopReason::Cancelled => FAILED,
            Some(report) if n_letters(report) > 0 => DEAD_LETTERS,
            _ => DONE,
        };
        self.count(code);
        if self.is_json {
            let report = report.map(|report| serde_json::to_value(report).unwrap_or_default());
            let mut value = report.unwrap_or_else(|| json!({ "pipeline": ended.pipeline }));
            if let (Some(value), Some(Value::Object(error))) = (value.as_object_mut(), error) {
                value.extend(error);
            }
            self.values.push(value);
        } else if let Some(report) = report {
            let mut text = report.to_text();
            if let Some(letters) = ended.letters.filter(|_| n_letters(&report) > 0) {
                text += &format!(
                    "  dead letters are in {}; `pagemill dead-letters list` shows them\n",
                    letters.display()
                );
            }
            self.print(&text);
        }
    }

    /// Adds what a run would do.
    ///
    /// # Errors
    /// When it cannot be turned into JSON.
    pub(super) fn add_forecast(&mut self, forecast: &Forecast) -> serde_json::Result<()> {
        if self.is_json {
            self.values.push(serde_json::to_value(forecast)?);
        } else {
            self.print(&forecast.to_text());
        }
        Ok(())
    }

    /// Prints a text, with a line between it and the one before.
    fn print(&mut self, text: &str) {
        let gap = if self.n_texts > 0 { "\n" } else { "" };
        self.n_texts += 1;
        self.write(&format!("{gap}{}", printable_text(text)));
    }

    /// What happened beside the runs: the worst of all is the exit code.
    pub(crate) fn count(&mut self, code: u8) {
        let badness = |code| [DONE, DEAD_LETTERS, FAILED].iter().position(|c| *c == code);
        if badness(code) > badness(self.code) {
            self.code = code;
        }
    }

    /// Prints what is left to print; the exit code.
    ///
    /// # Errors
    /// When standard output could not be written.
    pub(crate) fn finish(mut self) -> anyhow::Result<u8> {
        if self.is_json {
            let is_list = self.is_list || self.values.len() != 1;
            let value = if is_list {
                Value::Array(std::mem::take(&mut self.values))
            } else {
                self.values.remove(0)
            };
            self.write(&format!("{}\n", serde_json::to_string_pretty(&value)?));
        }
        self.written?;
        Ok(self.code)
    }

    /// The runs go on though nobody reads what is written.
    fn write(&mut self, text: &str) {
        if self.written.is_ok() {
            self.written = progress::above(|| {
                let mut stdout = io::stdout().lock();
                stdout.write_all(text.as_bytes())?;
                stdout.flush()
            });
        }
    }
}

/// Letters that this run wrote, and those of documents that it passed over.
fn n_letters(report: &Report) -> u64 {
    report.totals.dead_letters + report.totals.dead_letters_before
}

/// Prints why a run stopped.
pub(crate) fn tell_error(error: &RunError) {
    let mut text = format!("error: {}", printable_line(&with_causes(error)));
    if let Some(hint) = error.error.hint() {
        text += &format!("\nhint: {}", printable_text(hint));
    }
    progress::tell(&text);
}

/// The error with those of its causes that it does not name itself.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = without_code_places(&error.to_string()).into_owned();
    let mut cause = error.source();
    while let Some(error) = cause {
        let because = error.to_string().replace('\n', " ");
        let because = without_code_places(&because);
        if !text.contains(&*because) {
            text += &format!(": {because}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagemill::pipeline::StageError;

    #[test]
    fn an_error_names_each_of_its_causes_once() {
        let full = || io::Error::other("the disk is full");
        let error = |problem: &str| RunError {
            pipeline: "p".into(),
            node: "rows".into(),
            error: StageError::caused(problem, "make room", full()),
            report: None,
        };
        let expected = "pipeline `p` stopped at `rows`: cannot write: the disk is full";
        assert_eq!(with_causes(&error("cannot write")), expected);
        assert_eq!(
            with_causes(&error("cannot write: the disk is full")),
            expected
        );
    }

    #[test]
    fn no_cause_is_shown_with_a_place_in_the_code() {
        let place = "/root/.cargo/registry/src/x/lance-14.0.2/src/dataset.rs:7:8";
        let cause = io::Error::other(format!("Not found: a.lance, {place}"));
        let error = StageError::caused("cannot open table `pages`", "", cause);
        let expected = "cannot open table `pages`: Not found: a.lance";
        assert_eq!(with_causes(&error), expected);
    }

    #[test]
    fn the_worst_of_several_runs_is_the_exit_code() {
        for (codes, worst) in [
            (vec![], DONE),
            (vec![DONE, DEAD_LETTERS, DONE], DEAD_LETTERS),
            (vec![FAILED, DEAD_LETTERS], FAILED),
        ] {
            let mut reports = Reports::new(false, false);
            for code in codes {
                reports.count(code);
            }
            assert_eq!(reports.finish().expect("nothing to write"), worst);
        }
    }
}
