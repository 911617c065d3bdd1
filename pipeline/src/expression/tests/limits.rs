//! Long, deep and broken text: it is refused, and nothing panics.

use proptest::prelude::*;

use super::wrong::assert_refused;
use super::*;

/// Text that is no expression, the part of it that is wrong, the problem, and the hint.
const UNREADABLE: [(&str, &str, &str, &str); 18] = [
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
fn text_that_is_no_expression_is_refused_with_its_place_and_its_remedy() {
    assert_refused(&UNREADABLE);
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
