//! Names that settings give to fields: what `stdin`, `pool_vectors` and
//! `binarize` share.

use pagemill_pipeline::FieldError;

/// Names that mean something else, in an item or in a row.
const TAKEN: [&str; 17] = [
    "content_hash",
    "document",
    "document_id",
    "document_rows",
    "fingerprint",
    "image",
    "media_type",
    "page",
    "part",
    "patches",
    "pipeline",
    "source",
    "text",
    "thumbnail",
    "vector",
    "vectors",
    "words",
];

/// Whether a column can be called so: letters, digits and `_`, and no digit first.
pub(crate) fn is_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with(|c: char| is_plain(c) && !c.is_ascii_digit()) && name.chars().all(is_plain)
}

/// Whether fields of this name have a meaning and a type already.
pub(crate) fn is_taken(name: &str) -> bool {
    TAKEN.contains(&name)
}

/// Checks the name that `setting` gives to a new field.
///
/// # Errors
/// When it is no name, or is taken.
pub(crate) fn check(setting: &'static str, name: &str) -> Result<(), FieldError> {
    if !is_name(name) {
        let hint = "use letters, digits and `_`";
        return Err(FieldError::new(
            setting,
            format_args!("is no name: `{name}`"),
            hint,
        ));
    }
    if is_taken(name) {
        let problem = format_args!("is a name that means something else: `{name}`");
        let hint = format_args!("call it `own_{name}`");
        return Err(FieldError::new(setting, problem, hint));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pagemill_pipeline::Field;

    use super::*;

    #[test]
    fn a_name_is_letters_digits_and_underscores() {
        for name in ["a", "_", "pooled_3", "Z9"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "3d", "a b", "a-b", "\u{e4}", "a\n"] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn every_well_known_field_is_taken() {
        for field in [
            Field::DOCUMENT,
            Field::IMAGE,
            Field::WORDS,
            Field::TEXT,
            Field::PATCHES,
            Field::VECTOR,
            Field::VECTORS,
            Field::THUMBNAIL,
        ] {
            assert!(is_taken(&field.name), "{}", field.name);
        }
    }
}
