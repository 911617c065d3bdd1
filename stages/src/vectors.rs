//! Vectors of items: what `pool_vectors` and `binarize` share.

use std::sync::Arc;

use pagemill_pipeline::{Field, FieldType, Item, ItemError, Value, VectorData, Vectors};

/// Where the patches of a page lie among its `vectors`: rows and columns of the
/// grid, and the row of the matrix at which it begins. True of the vectors as
/// the encoder gives them.
pub(crate) const PATCH_GRID: [Field; 3] = [
    Field::new("patch_rows", FieldType::Integer),
    Field::new("patch_cols", FieldType::Integer),
    Field::new("patch_start", FieldType::Integer),
];

/// The vectors in the field `name`.
///
/// # Errors
/// When there are none, or one of them has a number that is not finite: it
/// would spoil whatever is computed of it.
pub(crate) fn finite<'a>(
    action: &'static str,
    item: &'a Item,
    name: &str,
) -> Result<&'a Arc<Vectors>, ItemError> {
    let Some(Value::Vectors(vectors)) = item.get(name) else {
        return Err(ItemError::missing(action, name));
    };
    let bad = match vectors.data() {
        VectorData::F32(numbers) => numbers.iter().position(|number| !number.is_finite()),
        VectorData::F16(numbers) => numbers.iter().position(|number| !number.is_finite()),
    };
    let Some(place) = bad else {
        return Ok(vectors);
    };
    let (row, n) = (place / vectors.dim() + 1, vectors.n());
    let reason = format!("row {row} of {n} in its `{name}` is not finite");
    let hint = "look at the stage that made it: a model computing in 16 bits may overflow";
    Err(ItemError::new(action, reason).hint(hint))
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn a_row_that_is_not_finite_is_named() {
        let vectors = |data| Vectors::new(data, 2).unwrap();
        let page = |vectors: Vectors| Item::of_text("a.pdf", "").with("vectors", vectors);
        let reason = |page: &Item| finite("pool", page, "vectors").unwrap_err().reason;
        let page_of_nan = page(vectors(VectorData::F32(vec![0.0, 1.0, 2.0, f32::NAN])));
        assert_eq!(
            reason(&page_of_nan),
            "row 2 of 2 in its `vectors` is not finite"
        );
        let data = VectorData::F16(vec![f16::INFINITY, f16::ONE]);
        assert_eq!(
            reason(&page(vectors(data))),
            "row 1 of 1 in its `vectors` is not finite"
        );
        let text = Item::of_text("a.pdf", "").with("vectors", "none");
        assert_eq!(reason(&text), "it has no `vectors`");
        assert!(
            finite(
                "pool",
                &page(vectors(VectorData::F32(vec![0.0; 4]))),
                "vectors"
            )
            .is_ok()
        );
    }
}
