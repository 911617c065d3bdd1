//! Limits what a document may use.

use pagemill_pipeline::FieldError;
use serde::Deserialize;

/// Least memory of a worker: libraries and fonts take some of it.
const MIN_MEMORY_MB: u32 = 64;

/// What one document may use; a page that takes more is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DocumentLimits {
    /// Seconds for one page.
    pub page_s: u32,
    /// Seconds for one document.
    pub document_s: u32,
    /// Memory of the worker, beyond what the program itself takes.
    pub memory_mb: u32,
    /// Pixels of one page. A page of a PDF is made smaller; a picture with
    /// more is set aside without being decoded.
    pub pixels: u64,
}

impl Default for DocumentLimits {
    fn default() -> Self {
        Self {
            page_s: 20,
            document_s: 600,
            memory_mb: 1024,
            // What Pillow calls a decompression bomb: 512 MB as RGB.
            pixels: 178_956_970,
        }
    }
}

impl DocumentLimits {
    /// Whether anything can be done within these limits.
    ///
    /// # Errors
    /// About the setting `limits`.
    pub(crate) fn check(&self) -> Result<(), FieldError> {
        let least = u64::from(self.page_s.min(self.document_s)).min(self.pixels);
        if least == 0 || self.memory_mb < MIN_MEMORY_MB {
            return Err(FieldError::new(
                "limits",
                format_args!(
                    "leaves no room: seconds and `pixels` must be at least 1, `memory_mb` at \
                     least {MIN_MEMORY_MB}"
                ),
                "leave it out for 20 s a page, 600 s a document, 1024 MB and 178,956,970 pixels",
            ));
        }
        Ok(())
    }

    /// Processor time of a worker's whole life. It gets no further document
    /// once it has worked for `document_s`, so that it never comes to this
    /// unless its parent lost hold of it.
    pub(crate) fn cpu_s(&self) -> u32 {
        const SLACK_S: u32 = 30;
        let document_s = self.document_s.saturating_mul(2);
        document_s
            .saturating_add(self.page_s)
            .saturating_add(SLACK_S)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_leave_no_room_are_refused() {
        let default = DocumentLimits::default;
        default().check().unwrap();
        let cases = [
            DocumentLimits {
                page_s: 0,
                ..default()
            },
            DocumentLimits {
                document_s: 0,
                ..default()
            },
            DocumentLimits {
                memory_mb: 63,
                ..default()
            },
            DocumentLimits {
                pixels: 0,
                ..default()
            },
        ];
        for limits in cases {
            let error = limits.check().unwrap_err().to_string();
            assert!(error.starts_with("`limits` leaves no room"), "{error}");
        }
        assert_eq!(default().cpu_s(), 1250);
    }
}
