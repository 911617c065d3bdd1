//! Tests that each mistake is reported with its place and its remedy.

use super::*;

/// An expression, the part of it that is wrong, the problem, and the hint.
const WRONG: [(&str, &str, &str, &str); 66] = [
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
        "fields: `page`, `part`, `uri`, `media_type`, `n_bytes`, `document`, `image`, `is_scan`, `language`, `layout`, `n_columns`, `patches`, `score`, `text`, `thumbnail`, `vector`, `vectors`, `words`",
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
        "fields: `page`, `part`, `uri`, `media_type`, `n_bytes`, `document`, `image`, `is_scan`, `language`, `layout`, `n_columns`, `patches`, `score`, `text`, `thumbnail`, `vector`, `vectors`, `words`",
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
        "`layout` is a value that only stages understand, not true or false",
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
];

/// Each is refused in the words that stand beside it.
pub(super) fn assert_refused(table: &[(&str, &str, &str, &str)]) {
    for (text, place, problem, hint) in table {
        let error = Expression::new(text, &fields()).expect_err(text);
        let at = error.at.clone().map_or(*text, |at| &text[at]);
        let given = (at, error.problem.as_str(), error.hint.as_str());
        assert_eq!(given, (*place, *problem, *hint), "{text}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place_and_its_remedy() {
    assert_refused(&WRONG);
}
