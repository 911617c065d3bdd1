use super::*;

fn token() -> Secrets {
    let mut secrets = Secrets::default();
    secrets.add("tk-5b/1f+9e", "${API_TOKEN}");
    secrets
}

#[test]
fn a_value_is_found_in_each_way_to_write_it() {
    let mut secrets = token();
    secrets.add("say \"a\nlong word\"\n", "${LONG_SECRET}");
    for (text, expected) in [
        ("it is tk-5b/1f+9e.", "it is ${API_TOKEN}."),
        ("tk-5b/1f+9etk-5b/1f+9e", "${API_TOKEN}${API_TOKEN}"),
        ("q=tk-5b%2F1f%2B9e", "q=${API_TOKEN}"),
        ("unknown `tk-5…`", "unknown `${API_TOKEN}…`"),
        ("unknown `tk-5b/1f...`", "unknown `${API_TOKEN}...`"),
        ("tk-5b is another", "tk-5b is another"),
        ("tk-…", "tk-…"),
        ("{\"say \\\"a\\nlong word\\\"\\n\"}", "{\"${LONG_SECRET}\"}"),
        ("in the line `long word\"`", "in the line `${LONG_SECRET}`"),
    ] {
        assert_eq!(secrets.redact(text), expected, "{text}");
        assert_eq!(secrets.redact(expected), expected, "twice is once");
    }
}

#[test]
fn one_secret_may_be_a_part_of_another() {
    let mut secrets = Secrets::default();
    secrets.add("abcd", "${SHORT_KEY}");
    secrets.add("abcdefgh", "${LONG_KEY}");
    secrets.add("fghij", "${OTHER_KEY}");
    secrets.add("abc", "${TOO_SHORT_KEY}");
    assert_eq!(
        secrets.redact("abcdefgh abcd abc"),
        "${LONG_KEY} ${SHORT_KEY} abc"
    );
    assert_eq!(secrets.redact("abcdefghij"), "${LONG_KEY}");
}

#[test]
fn urls_lose_users_passwords_and_what_is_called_like_a_secret() {
    let secrets = Secrets::default();
    for (text, expected) in [
        ("s3://key:se/cr+et@bucket/a", "s3://***@bucket/a"),
        ("(https://me@host)", "(https://***@host)"),
        ("http://h/a?token=x&top=3", "http://h/a?token=***&top=3"),
        (
            "`http://h/?X-Amz-Signature=x#a`",
            "`http://h/?X-Amz-Signature=***#a`",
        ),
        ("az://c/b?sv=1&sig=a%2Fb", "az://c/b?sv=1&sig=***"),
        (
            "http://h/?apiKey=x http://me:x@h",
            "http://h/?apiKey=*** http://***@h",
        ),
        (
            "http://me:${TOKEN}@h/?key=${KEY}",
            "http://me:${TOKEN}@h/?key=${KEY}",
        ),
        ("http://h:80/a@b and a@b", "http://h:80/a@b and a@b"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("file:///a/b@c?page=3", "file:///a/b@c?page=3"),
        ("://", "://"),
    ] {
        assert_eq!(secrets.redact(text), expected, "{text}");
        assert_eq!(secrets.redact(expected), expected, "twice is once");
    }
}

#[test]
fn names_tell_secrets_from_the_rest() {
    for name in [
        "HF_TOKEN",
        "GITHUBTOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "apiKey",
        "KEY",
        "DB_PASSWORD",
    ] {
        assert!(is_secret_variable(name), "{name}");
    }
    for name in [
        "HOME",
        "TOKENIZER_DIR",
        "MAX_TOKENS",
        "MONKEY",
        "KEYS_PER_PAGE_DIR_",
        "",
    ] {
        let is_keys = name.starts_with("KEYS");
        assert_eq!(is_secret_variable(name), is_keys, "{name}");
    }
    for name in [
        "passwords",
        "api_key",
        "secret_access_key",
        "hub-token",
        "authorization",
    ] {
        assert!(is_secret_setting(name), "{name}");
    }
    for name in [
        "key",
        "primary_key",
        "max_tokens",
        "tokenizer",
        "model",
        "keys",
    ] {
        assert!(!is_secret_setting(name), "{name}");
    }
}

#[test]
fn a_masked_text_keeps_its_places() {
    let text = "uri = \"s3://a:b@c\"\npasswords = [\"öffne\", 'x']\ntoken = \"${TOKEN}\"\n\
                p.stage.a.api_key=raw\nkey = \"id\" # tk-5b/1f+9e\n";
    let masked = token().mask(text);
    assert_eq!(masked.len(), text.len());
    let lines: Vec<&str> = masked.lines().collect();
    assert_eq!(lines[0], "uri = \"s3://***@c\"");
    assert!(
        lines[1].starts_with("passwords = [\"***") && !lines[1].contains("ffne"),
        "{}",
        lines[1]
    );
    assert_eq!(
        lines[2..],
        [
            "token = \"${TOKEN}\"",
            "p.stage.a.api_key=***",
            "key = \"id\" # ***********"
        ]
    );
}

#[test]
fn causes_are_told_without_secrets_and_kept_where_there_are_none() {
    let secrets = token();
    let cause = std::io::Error::other("refused: tk-5b/1f+9e");
    let error = StageError::caused("no tk-5b/1f+9e", "see tk-5b/1f+9e", cause);
    let error = secrets.redact_error(error);
    assert_eq!(error.to_string(), "no ${API_TOKEN}");
    assert_eq!(error.hint(), Some("see ${API_TOKEN}"));
    let source = std::error::Error::source(&error).map(ToString::to_string);
    assert_eq!(source.as_deref(), Some("refused: ${API_TOKEN}"));
    let error = StageError::caused("no", "see", std::io::Error::other("refused"));
    let error = secrets.redact_error(error);
    let source = std::error::Error::source(&error);
    assert!(source.is_some_and(<dyn std::error::Error>::is::<std::io::Error>));
    assert!(!format!("{secrets:?}").contains("5b"));
}
