//! Any bytes as lines of standard input.

use std::collections::BTreeMap;

use super::lines::Lines;
use super::records::Records;
use super::{AttributeType, LineFormat, StdinConfig, default_max_file_bytes};

/// The first byte chooses the settings, the rest are lines.
///
/// # Panics
/// The reader panics, or keeps more of a line than it may.
pub fn lines(bytes: &[u8]) {
    const MAX_LINE_BYTES: usize = 200;
    let Some((settings, input)) = bytes.split_first() else {
        return;
    };
    let declared = ["lang", "year", "score", "new"].map(str::to_owned);
    let types = [
        AttributeType::Text,
        AttributeType::Integer,
        AttributeType::Float,
        AttributeType::Bool,
    ];
    let fields = declared.into_iter().zip(types);
    let config = StdinConfig {
        format: match settings >> 2 & 3 {
            1 => LineFormat::Json,
            2 => LineFormat::Paths,
            _ => LineFormat::Auto,
        },
        fields: fields
            .filter(|_| settings & 1 > 0)
            .collect::<BTreeMap<_, _>>(),
        max_line_bytes: MAX_LINE_BYTES,
        max_file_bytes: default_max_file_bytes(),
        text: settings & 2 > 0,
    };
    let records = Records::new(&config).expect("the names are free");
    let mut lines = Lines::new(input, MAX_LINE_BYTES);
    let mut n_lines = 0;
    while let Some(line) = lines.next_line().expect("memory can be read") {
        n_lines += 1;
        let Ok(text) = line.line else { continue };
        assert!(text.len() <= MAX_LINE_BYTES);
        let Ok(record) = records.parse(&text) else {
            continue;
        };
        assert!(!record.uri.is_empty());
        for (name, _) in record.attributes.into_values() {
            assert!(config.fields.contains_key(&name), "{name}");
        }
    }
    assert!(n_lines <= input.len());
}
