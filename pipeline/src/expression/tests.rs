use proptest::prelude::*;

use super::*;
use crate::fields::{Field, FieldType};
use crate::value::{Image, Value, VectorData, Vectors, Word};

fn fields() -> FieldSet {
    FieldSet::from_iter([
        Field::DOCUMENT,
        Field::IMAGE,
        Field::WORDS,
        Field::TEXT,
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

/// An expression, the part of it that is wrong, the problem, and the hint.
const WRONG: [(&str, &str, &str, &str); 84] = [
    (
        "pag == 1",
        "pag",
        "`pag` is no field here",
        "did you mean `page`?",
    ),
    (
        "zzz == 1",
        "zzz",
        "`zzz` is no field here",
        "fields: `page`, `part`, `uri`, `media_type`, `n_bytes`, `document`, `image`, `is_scan`, `language`, `layout`, `n_columns`, `score`, `text`, `thumbnail`, `vector`, `vectors`, `words`",
    ),
    (
        "my - 1 == 0",
        "my",
        "`my` is no field here",
        "rename the field `my-field`: a condition has names of letters, digits and `_`",
    ),
    (
        ".text == 'a'",
        "text",
        "`.text` is no field here",
        "did you mean `text`?",
    ),
    (
        "has(nothing)",
        "nothing",
        "`nothing` is no field here",
        "fields: `page`, `part`, `uri`, `media_type`, `n_bytes`, `document`, `image`, `is_scan`, `language`, `layout`, `n_columns`, `score`, `text`, `thumbnail`, `vector`, `vectors`, `words`",
    ),
    (
        "text == 'é' && pag == 1",
        "pag",
        "`pag` is no field here",
        "did you mean `page`?",
    ),
    (
        "text < 3",
        "text < 3",
        "`<` cannot compare text (`text`) with an integer (`3`)",
        "compare its length: `text.len() < 3`",
    ),
    (
        "page == \"1\"",
        "page == \"1\"",
        "`==` cannot compare an integer (`page`) with text (`\"1\"`)",
        "write `\"1\"` without quotes",
    ),
    (
        "uri == 3",
        "uri == 3",
        "`==` cannot compare text (`uri`) with an integer (`3`)",
        "put it in quotes: `\"3\"`",
    ),
    (
        "-1 == 'a'",
        "-1 == 'a'",
        "`==` cannot compare an integer (`-1`) with text (`'a'`)",
        "put it in quotes: `\"-1\"`",
    ),
    (
        "is_scan == 1",
        "is_scan == 1",
        "`==` cannot compare a bool (`is_scan`) with an integer (`1`)",
        "compare values of one type",
    ),
    (
        "image == image",
        "image == image",
        "`==` cannot compare an image (`image`) with an image (`image`)",
        "ask for `image.width_px`, `image.height_px` or `has(image)`",
    ),
    (
        "words > 3",
        "words > 3",
        "`>` cannot compare words (`words`) with an integer (`3`)",
        "ask for `words.len()` or `has(words)`",
    ),
    (
        "[1] < [2]",
        "[1] < [2]",
        "`<` cannot compare a list (`[1]`) with a list (`[2]`)",
        "test whether a value is in a list: `page in [1, 2]`",
    ),
    (
        "(uri + 'a').len() == 'b'",
        "(uri + 'a').len() == 'b'",
        "`==` cannot compare an integer (`(uri + 'a').len()`) with text (`'b'`)",
        "compare values of one type",
    ),
    (
        "text && true",
        "text",
        "`&&` takes a bool, and `text` is text",
        "compare it: `text != \"\"`",
    ),
    (
        "true && page",
        "page",
        "`&&` takes a bool, and `page` is an integer",
        "compare it: `page > 0`",
    ),
    (
        "!page",
        "page",
        "`!` takes a bool, and `page` is an integer",
        "compare it: `page > 0`",
    ),
    (
        "-text < 1",
        "text",
        "`-` takes a number, and `text` is text",
        "take its length: `text.len()`",
    ),
    (
        "text.len()",
        "text.len()",
        "`text.len()` is an integer, not true or false",
        "compare it: `text.len() > 0`",
    ),
    (
        "text",
        "text",
        "`text` is text, not true or false",
        "compare it: `text != \"\"`",
    ),
    (
        "image",
        "image",
        "`image` is an image, not true or false",
        "ask for `image.width_px`, `image.height_px` or `has(image)`",
    ),
    (
        "layout",
        "layout",
        "`layout` is a value of a user's own type, not true or false",
        "ask for `has(layout)`",
    ),
    (
        "[1]",
        "[1]",
        "`[1]` is a list, not true or false",
        "test whether a value is in it: `page in [1, 2]`",
    ),
    (
        "is_scan ? 1 : 2",
        "is_scan ? 1 : 2",
        "`is_scan ? 1 : 2` is an integer, not true or false",
        "compare it: `(is_scan ? 1 : 2) > 0`",
    ),
    (
        "page ? true : false",
        "page",
        "`? :` takes a bool, and `page` is an integer",
        "compare it: `page > 0`",
    ),
    (
        "is_scan ? 'a' : 1",
        "'a' : 1",
        "`? :` cannot choose between text (`'a'`) and an integer (`1`)",
        "write two values of one type",
    ),
    (
        "is_scan ? page : 1.0",
        "page : 1.0",
        "`? :` cannot choose between an integer (`page`) and a float (`1.0`)",
        "write `double(page)`",
    ),
    (
        "is_scan ? words : words",
        "words : words",
        "`? :` cannot choose between words (`words`) and words (`words`)",
        "ask for `words.len()` or `has(words)`",
    ),
    (
        "page + 1.5 > 2.0",
        "page + 1.5",
        "`+` cannot take an integer (`page`) and a float (`1.5`)",
        "write `double(page)`",
    ),
    (
        "text + 1 == 'a'",
        "text + 1",
        "`+` cannot take text (`text`) and an integer (`1`)",
        "take its length: `text.len()`",
    ),
    (
        "score % 2.0 == 0.0",
        "score % 2.0",
        "`%` cannot take a float (`score`) and a float (`2.0`)",
        "`%` takes two integers; make one of a float with `int(...)`",
    ),
    (
        "'3' * 2 == 6",
        "'3' * 2",
        "`*` cannot take text (`'3'`) and an integer (`2`)",
        "write `'3'` without quotes",
    ),
    (
        "is_scan + 1 == 2",
        "is_scan + 1",
        "`+` cannot take a bool (`is_scan`) and an integer (`1`)",
        "choose a number by it: `(is_scan ? 1 : 0)`",
    ),
    (
        "(page + 1) * 'a' == 1",
        "(page + 1) * 'a'",
        "`*` cannot take an integer (`page + 1`) and text (`'a'`)",
        "write a number",
    ),
    (
        "page / 0 == 1",
        "page / 0",
        "this divides by zero",
        "write another divisor",
    ),
    (
        "page in 3",
        "3",
        "`in` takes a list, and `3` is an integer",
        "write the values in brackets: `page in [...]`",
    ),
    (
        "'a' in text",
        "text",
        "`in` takes a list, and `text` is text",
        "write `text.contains('a')`",
    ),
    (
        "page in []",
        "[]",
        "the list is empty",
        "write what it holds: `[1, 2]`",
    ),
    (
        "uri in [1, 2]",
        "uri in [1, 2]",
        "`uri` is text, and the list holds an integer",
        "write its values in quotes",
    ),
    (
        "page in [1, 'a']",
        "'a'",
        "the list holds an integer (`1`) and text (`'a'`)",
        "write all its elements as one type",
    ),
    (
        "page in [[1]]",
        "[1]",
        "a list cannot hold a list",
        "it holds text, numbers or bools",
    ),
    (
        "text[0] == 'a'",
        "[0]",
        "a condition cannot take single elements",
        "test whether a value is in the list: `page in [1, 2]`",
    ),
    (
        "{'a': 1} == 1",
        "{'a': 1}",
        "a condition has no maps and no structures",
        "write a list: `[\"a\", \"b\"]`",
    ),
    (
        "1u == 1",
        "1u",
        "`1u` has a suffix",
        "write the number without its `u`",
    ),
    (
        "b'a' == text",
        "b'a'",
        "`b'a'` is bytes, not text",
        "write the text without its `b`",
    ),
    (
        "text == null",
        "null",
        "no field is ever `null`",
        "an absent field is `\"\"`, `0` or `false`; ask for it with `has(text)`",
    ),
    (
        "len(text) < 4",
        "len(text)",
        "there is no function `len`",
        "write it after the value: `text.len(...)`",
    ),
    (
        "text.len < 40",
        "text.len",
        "`len` is a function",
        "call it: `text.len()`",
    ),
    (
        "text.length() < 4",
        "text.length()",
        "there is no function `length` of text",
        "did you mean `len`?",
    ),
    (
        "text.has()",
        "text.has()",
        "there is no function `has` of text",
        "write `has(text)`",
    ),
    (
        "has()",
        "has()",
        "`has` takes one argument, not 0",
        "write the name of a field: `has(text)`",
    ),
    (
        "has(image.width_px)",
        "has(image.width_px)",
        "`has` takes the name of a field",
        "write the name of a field: `has(text)`",
    ),
    (
        "has(uri)",
        "has(uri)",
        "every item has a `uri`",
        "leave the test out, or compare the value",
    ),
    (
        "text.contains('a', 'b')",
        "contains('a', 'b')",
        "`contains` takes one argument, not 2",
        "write one text in its brackets: `text.contains(\"draft\")`",
    ),
    (
        "text.contains(1)",
        "1",
        "`contains` looks for text, and `1` is an integer",
        "put it in quotes: `\"1\"`",
    ),
    (
        "page.contains('1')",
        "page",
        "`contains` looks into text, and `page` is an integer",
        "compare it with `==` or `<`",
    ),
    (
        "text.matches('a.*')",
        "text.matches('a.*')",
        "there is no function `matches` of text",
        "there are no patterns here: use `contains`, `startsWith` or `endsWith`",
    ),
    (
        "[1, 2].all(x, x > 0)",
        "[1, 2].all(x, x > 0)",
        "there is no function `all` of a list",
        "functions: `len`, `size`, `contains`, `startsWith`, `endsWith`",
    ),
    (
        "image.width > 3",
        "image.width",
        "`image` has no `width`",
        "did you mean `width_px`?",
    ),
    (
        "image.width_px() > 3",
        "image.width_px()",
        "there is no function `width_px` of an image",
        "write `image.width_px`",
    ),
    (
        "image.len() > 3",
        "image.len()",
        "`image` is an image and has no `len`",
        "ask for `image.width_px`, `image.height_px` or `has(image)`",
    ),
    (
        "page.len() > 1",
        "page.len()",
        "`page` is an integer and has no `len`",
        "text, lists, words, vectors and bytes have a length",
    ),
    (
        "words.width_px > 1",
        "words.width_px",
        "`words` has no `width_px`",
        "ask for `words.len()` or `has(words)`",
    ),
    (
        "double('1') > 1.0",
        "'1'",
        "`double` takes a number, and `'1'` is text",
        "write `'1'` without quotes",
    ),
    (
        "string(page) == '1'",
        "string(page)",
        "there is no function `string`",
        "functions: `has`, `size`, `int`, `double`",
    ),
    (
        "  ",
        "  ",
        "the expression is empty",
        "write a condition such as `text.len() < 40 && page == 1`",
    ),
    (
        "text <",
        "",
        "the expression ends too early",
        "write what it goes on with, or take the last operator away",
    ),
    (
        "page = 1",
        "=",
        "`=` cannot stand here",
        "compare with `==`",
    ),
    (
        "is_scan & has(text)",
        "&",
        "`&` cannot stand here",
        "write `&&`",
    ),
    (
        "is_scan OR has(text)",
        "OR",
        "`OR` cannot stand here",
        "write `||`",
    ),
    ("not is_scan", "not", "`not` cannot stand here", "write `!`"),
    ("page <> 1", "<>", "`<>` cannot stand here", "write `!=`"),
    (
        "page == 1 page",
        "page",
        "`page` cannot stand here",
        "write a condition such as `text.len() < 40 && page == 1`",
    ),
    (
        "page\n== 1\n  && = 2",
        "=",
        "`=` cannot stand here",
        "compare with `==`",
    ),
    ("(page == 1", "(", "`(` is never closed", "add a `)`"),
    (
        "(page == 1]",
        "]",
        "nothing is open that `]` closes",
        "take it away, or put the bracket that it closes before it",
    ),
    (
        "text == 'a",
        "'",
        "the text after `'` never ends",
        "close it with `'`",
    ),
    (
        "text == '\\q'",
        "'\\q'",
        "this text cannot be read",
        "escapes are `\\\\`, `\\\"`, `\\'`, `\\n` and `\\t`; `r\"...\"` has none",
    ),
    (
        "for == 1",
        "for",
        "`for` is a reserved word",
        "give the field another name in the node that adds it",
    ),
    (
        "99999999999999999999 > page",
        "99999999999999999999",
        "`99999999999999999999` is no integer of 64 bits",
        "write one from -9223372036854775808 to 9223372036854775807",
    ),
    (
        "1e999 > score",
        "1e999",
        "`1e999` is no float of 64 bits",
        "write a number below 1.8e308",
    ),
    (
        "é == 1",
        "é",
        "`é` cannot stand here",
        "write a condition such as `text.len() < 40 && page == 1`",
    ),
    (
        "`page` == 1",
        "`",
        "a backtick cannot stand here",
        "write the bare name of a field",
    ),
];

#[test]
fn what_is_wrong_is_said_with_its_place_and_its_remedy() {
    for (text, place, problem, hint) in WRONG {
        let error = Expression::new(text, &fields()).expect_err(text);
        let at = error.at.clone().map_or(text, |at| &text[at]);
        let given = (at, error.problem.as_str(), error.hint.as_str());
        assert_eq!(given, (place, problem, hint), "{text}");
    }
}

#[test]
fn long_and_deep_expressions_are_refused_before_they_fill_the_stack() {
    let nested = |n: usize| format!("{}true{}", "(".repeat(n), ")".repeat(n));
    let chained = |n: usize| format!("0 < 1{}", " + 1".repeat(n - 1));
    let problem = |text: &str| {
        let error = Expression::new(text, &fields()).expect_err("it is beyond the limit");
        error.problem
    };
    assert_eq!(expression(&nested(24)).takes(&page()), Ok(true));
    let too_deep = "the expression is nested more than 24 deep";
    for text in [
        nested(25),
        "[".repeat(2000),
        "!(".repeat(1000),
        "has(".repeat(1000),
    ] {
        assert_eq!(problem(&text), too_deep);
    }
    assert_eq!(expression(&chained(128)).takes(&page()), Ok(true));
    let too_many = "the expression has more than 128 operators";
    let chains = [
        chained(129),
        format!("text{}", ".len".repeat(900)),
        format!("text{}", "[0]".repeat(900)),
        format!("1{}", " in 1".repeat(800)),
        format!("{}true", "true ? true : ".repeat(250)),
        format!("{}true", "! -".repeat(1000)),
    ];
    for text in chains {
        assert_eq!(problem(&text), too_many);
    }
    let choices = "true ? true : ".repeat(30);
    let deepest = format!(
        "{}{choices}{}{}",
        "(".repeat(24),
        chained(60),
        ")".repeat(24)
    );
    assert_eq!(expression(&deepest).takes(&page()), Ok(true));
    let too_long = format!("text == '{}'", "a".repeat(4096));
    assert_eq!(
        problem(&too_long),
        "the expression is longer than 4096 bytes"
    );
    // Not an operator: the elements of a list, and signs in a row.
    let list = format!("page in [{}2]", "1, ".repeat(1000));
    assert_eq!(expression(&list).takes(&page()), Ok(true));
    assert_eq!(
        expression(&format!("{}is_scan", "!".repeat(4000))).takes(&page()),
        Ok(true)
    );
}

/// Pieces of expressions, whole and broken.
const PIECES: [&str; 58] = [
    "text",
    "page",
    "words",
    "image",
    "score",
    "is_scan",
    ".len()",
    ".width_px",
    ".contains(",
    "has(",
    "size(",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    "\"a\"",
    "'é'",
    "'",
    "\"",
    "'''",
    "b'",
    "r'",
    "1",
    "0",
    "1.5",
    "1u",
    "9999999999999999999",
    "-",
    "+",
    "*",
    "/",
    "%",
    "<",
    ">=",
    "==",
    "!=",
    "=",
    "&&",
    "||",
    "!",
    "?",
    ":",
    " in ",
    "true",
    "null",
    "for",
    ".",
    ";",
    "\\",
    "`",
    "\n",
    "//",
    "é",
    "\u{1f600}",
    "\0",
];

/// Whatever the text, it is refused or works on an item.
fn survives(text: &str) {
    match Expression::new(text, &fields()) {
        Ok(expression) => drop(expression.takes(&page())),
        Err(error) => {
            assert!(error.at.is_none_or(|at| text.get(at).is_some()), "{text}");
            assert!(
                !error.problem.is_empty() && !error.hint.is_empty(),
                "{text}"
            );
        }
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,80}") {
        survives(&text);
    }

    #[test]
    fn no_broken_expression_makes_it_panic(
        pieces in proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..24)
    ) {
        survives(&pieces.concat());
        survives(&pieces.join(" "));
    }
}
