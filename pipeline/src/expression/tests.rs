use super::*;
use crate::fields::{Field, FieldType};
use crate::value::{Image, Value, VectorData, Vectors, Word};

mod limits;
mod wrong;

fn fields() -> FieldSet {
    FieldSet::from_iter([
        Field::DOCUMENT,
        Field::IMAGE,
        Field::WORDS,
        Field::TEXT,
        Field::PATCHES,
        Field::VECTOR,
        Field::VECTORS,
        Field::THUMBNAIL,
        Field::new("language", FieldType::Text),
        Field::new("is_scan", FieldType::Bool),
        Field::new("n_columns", FieldType::Integer),
        Field::new("score", FieldType::Float),
        Field::new("layout", FieldType::Custom),
        Field::new("my-field", FieldType::Text),
    ])
}

/// Page 2 of a report in which every field but `layout` is present.
fn page() -> Item {
    let word = |text: &str| Word {
        text: text.to_owned(),
        x0: 0.0,
        y0: 0.0,
        x1: 1.0,
        y1: 1.0,
    };
    let vectors = Vectors::new(VectorData::F32(vec![0.0; 6]), 2).expect("three rows of two");
    let image = Image::new(vec![0; 18], 3, 2, None).expect("six pixels");
    Item::of_document("reports/mill.pdf", "application/pdf", vec![0; 1000])
        .with_page(2)
        .with("image", image)
        .with("words", vec![word("the"), word("mill")])
        .with("text", "Die Mühle dreht sich")
        .with("vector", Vectors::single(vec![1.0]).expect("one number"))
        .with("vectors", vectors)
        .with("thumbnail", Value::Bytes(vec![1, 2, 3, 4].into()))
        .with("language", "de")
        .with("is_scan", true)
        .with("n_columns", 2_i64)
        .with("score", 0.75)
}

fn expression(text: &str) -> Expression {
    Expression::new(text, &fields()).unwrap_or_else(|error| panic!("{text}: {error:?}"))
}

/// Why the expression fails on the item.
fn failure(text: &str, item: &Item) -> String {
    let error = expression(text).takes(item).expect_err(text);
    assert!(error.hint.is_some(), "{text}");
    error.message(&item.label())
}

#[test]
fn a_condition_takes_the_items_for_which_it_holds() {
    let of_page = [
        ("page == 2 && part == 0", true),
        ("page != 2", false),
        ("uri == 'reports/mill.pdf'", true),
        ("media_type.startsWith(\"image/\")", false),
        ("n_bytes >= 1000 && n_bytes < 1001", true),
        // Lengths: characters, not bytes; words; rows; bytes.
        ("text.len() == 20", true),
        ("size(text) == 20 && text.size() == 20", true),
        ("(text + '!').len() == 21", true),
        ("words.len() == 2 && size(words) == 2", true),
        ("vector.len() == 1 && vectors.len() == 3", true),
        ("thumbnail.len() == 4 && document.len() == 1000", true),
        ("[1, 2, 3].len() == 3", true),
        ("image.width_px == 3 && image.height_px == 2", true),
        // Text.
        ("text.contains('Mühle')", true),
        ("uri.endsWith('.pdf') && !uri.endsWith('.png')", true),
        ("text > 'A' && language < 'en'", true),
        ("language + '-' + uri == 'de-reports/mill.pdf'", true),
        ("language == r'de' || language == \"\"\"en\"\"\"", true),
        // Logic.
        ("is_scan", true),
        ("!is_scan || !!is_scan", true),
        ("is_scan == true && true > false", true),
        ("is_scan ? page == 2 : page == 3", true),
        ("(page > 5 ? 'late' : 'early') == 'early'", true),
        // Lists.
        ("language in ['de', 'en']", true),
        ("page in [1, 3]", false),
        ("n_columns in [page, page + 1]", true),
        ("page in [2.0]", true),
        ("[page] == [2] && [1, 2] != [2, 1]", true),
        // Numbers.
        ("page * 3 - 1 == 5 && -page == -2", true),
        ("n_bytes / 300 == 3 && n_bytes % 300 == 100", true),
        ("score * 2.0 + 0.5 == 2.0 && -score < 0.0", true),
        ("score < 1 && 1 > score && page == 2.0", true),
        ("double(page) / 4.0 == 0.5 && int(score) == 0", true),
        ("0x10 == 16 && 1e3 == 1000.0", true),
        // What decides a condition hides what fails beside it.
        ("page == 2 || n_bytes / part == 1", true),
        ("part != 0 && n_bytes / part == 1", false),
        // A comment, and more than one line.
        ("page == 2 // (the second\n  && has(page)", true),
    ];
    for (text, expected) in of_page {
        assert_eq!(expression(text).takes(&page()), Ok(expected), "{text}");
    }
}

#[test]
fn an_absent_field_is_empty_zero_or_false() {
    let document = Item::of_document("a.pdf", "application/pdf", vec![0; 9]).child();
    for text in [
        "!has(text) && !has(image) && !has(layout) && !has(page) && !has(part)",
        "text == '' && text.len() == 0 && !text.contains('a')",
        "n_columns == 0 && score == 0.0 && !is_scan",
        "words.len() == 0 && vectors.len() == 0 && thumbnail.len() == 0",
        "image.width_px == 0 && image.height_px == 0",
        "page == 0 && part == 0 && n_bytes == 9",
    ] {
        assert_eq!(expression(text).takes(&document), Ok(true), "{text}");
    }
    let present = "has(text) && has(image) && has(score) && has(page)";
    assert_eq!(expression(present).takes(&page()), Ok(true));
}

#[test]
fn it_names_each_field_that_it_looks_at_once() {
    let text = "has(text) && text.len() > 1 && page == 1 && image.width_px > 2 && \
                image.height_px > 2 && words.len() in [1, 2] && has(layout)";
    let expression = expression(text);
    let fields: Vec<&str> = expression.fields().collect();
    assert_eq!(fields, ["text", "image", "words", "layout"]);
    assert_eq!(expression.clone().text(), text);
}

#[test]
fn a_field_named_like_what_every_item_has_is_refused_where_it_is_used() {
    let fields = FieldSet::from_iter([Field::new("page", FieldType::Text), Field::TEXT]);
    let error = Expression::new("text != '' && has(page)", &fields).expect_err("it is unclear");
    assert_eq!(
        error,
        ExpressionError::new(
            18..22,
            "`page` is a field, and every item has a `page` too",
            "rename the field in the node that adds it"
        )
    );
    assert!(Expression::new("text != ''", &fields).is_ok());
}

#[test]
fn an_item_whose_numbers_fail_is_an_error_of_that_item() {
    let nan = page().with("score", f64::NAN);
    let other = page().with("score", "high");
    let table = [
        (
            "n_bytes / part == 1",
            page(),
            "`n_bytes / part == 1` divides by zero",
        ),
        (
            "n_bytes % part == 1",
            page(),
            "`n_bytes % part == 1` divides by zero",
        ),
        (
            "page + 9223372036854775807 > 0",
            page(),
            "a number in `page + 9223372036854775807 > 0` goes beyond 64 bits",
        ),
        (
            "int(score * 1e300) > 0",
            page(),
            "`int(score * 1e300) > 0` cannot be computed: integer overflow",
        ),
        (
            "score > 0.5",
            nan,
            "a number in `score > 0.5` is NaN, which has no order",
        ),
        (
            "score > 0.5",
            other,
            "its `score` is not of the type that `score > 0.5` was checked for",
        ),
    ];
    for (text, item, reason) in table {
        let expected = format!("cannot route `mill.pdf#2`: {reason}");
        assert_eq!(failure(text, &item), expected, "{text}");
    }
}
