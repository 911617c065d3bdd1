//! Tests the messages of failed fetches.

use super::*;

/// What is said of a hub that answers so.
fn refusal(
    token: Option<&str>,
    mut handler: impl FnMut(&Request) -> Option<Answer> + Send + 'static,
) -> (String, String) {
    let root = tempfile::tempdir().unwrap();
    let model = tiny();
    let server = Server::start(move |request| {
        handler(request).unwrap_or_else(|| model.answer(request).unwrap())
    });
    let mut places = places(root.path(), &server);
    places.hub.token = token.map(str::to_owned);
    let error = fetch_quietly(NAME, &places).unwrap_err();
    assert!(resolve(NAME, &places).is_err());
    let without_port = |text: String| text.replace(&server.endpoint, "HUB");
    (without_port(error.to_string()), without_port(error.hint()))
}

#[test]
fn every_refusal_says_what_and_what_to_do() {
    let all = |answer: Answer| move |_: &Request| Some(answer.clone());
    let file = |answer: Answer| {
        move |request: &Request| request.path.contains("/resolve/").then(|| answer.clone())
    };
    let gated = Answer::new(403, "").header("X-Error-Code", "GatedRepo");
    let html = "<html>Please log in</html>";
    let cases: [((String, String), &str, &str); 12] = [
        (
            refusal(None, all(Answer::new(404, ""))),
            "HUB has no such model",
            "check the spelling",
        ),
        (
            refusal(
                None,
                all(Answer::new(401, "").header("X-Error-Code", "RepoNotFound")),
            ),
            "it is private, or does not exist (401): HUB/owner/tiny",
            "check the spelling; if the model is private, set `HF_TOKEN`",
        ),
        (
            refusal(Some("hf_x"), all(Answer::new(401, ""))),
            "the token does not open it (401): HUB/owner/tiny",
            "check the spelling, and that the token's account",
        ),
        (
            refusal(None, file(gated.clone())),
            "its owner must grant access (403): HUB/owner/tiny",
            "ask for access at HUB/owner/tiny, then set `HF_TOKEN`",
        ),
        (
            refusal(Some("hf_x"), file(gated)),
            "its owner must grant access (403): HUB/owner/tiny",
            "ask for access at HUB/owner/tiny, with the account",
        ),
        (
            refusal(None, all(Answer::new(429, ""))),
            "asked for the list of its files, HUB answered 429",
            "the hub asks to wait",
        ),
        (
            refusal(None, all(Answer::new(200, html))),
            "asked for the list of its files, HUB gave nonsense (malformed JSON: expected value \
             at line 1 column 1)",
            "check `HF_ENDPOINT`",
        ),
        (
            refusal(
                None,
                all(Answer::new(200, r#"{"sha": "../x", "siblings": []}"#)),
            ),
            "asked for the list of its files, HUB gave nonsense (`../x` is no commit)",
            "check `HF_ENDPOINT`",
        ),
        (
            refusal(None, file(Answer::new(200, html))),
            "asked for `1_Pooling/config.json`, HUB gave nonsense (no etag)",
            "check `HF_ENDPOINT`",
        ),
        (
            refusal(None, file(Answer::new(302, ""))),
            "asked for `1_Pooling/config.json`, HUB gave nonsense (a redirect to nowhere)",
            "check `HF_ENDPOINT`",
        ),
        (
            refusal(
                None,
                file(Answer::new(302, "").header("Location", "/api/resolve/")),
            ),
            "asked for `1_Pooling/config.json`, HUB gave nonsense (redirects without end)",
            "check `HF_ENDPOINT`",
        ),
        (
            refusal(None, file(Answer::new(200, "").header("ETag", "../../x"))),
            "asked for `1_Pooling/config.json`, HUB gave nonsense (no etag)",
            "check `HF_ENDPOINT`",
        ),
    ];
    for ((message, hint), expected, expected_hint) in cases {
        assert_eq!(message, format!("cannot fetch `owner/tiny`: {expected}"));
        assert!(hint.starts_with(expected_hint), "{message}: {hint}");
    }
    let (message, _) = refusal(None, all(Answer::new(200, "{\"sha\": \"abc").cut(3)));
    assert!(message.contains("no answer from HUB"), "{message}");
}

#[test]
fn a_hub_that_is_not_there_is_said_to_be_so() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::of(vec![]);
    let mut places = places(root.path(), &server);
    // Nobody listens there any more.
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    places.hub.endpoint = format!("http://{address}");
    let error = fetch_quietly(NAME, &places).unwrap_err();
    let expected = format!("cannot fetch `owner/tiny`: no answer from http://{address} (");
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(error.hint().starts_with("check the network"));

    places.hub.endpoint = "no address".into();
    assert!(matches!(
        problem(fetch_quietly(NAME, &places)),
        FetchProblem::Unreachable { .. }
    ));
}

#[test]
fn nothing_is_asked_offline_or_for_what_is_no_name() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::of(vec![tiny()]);
    let mut places = places(root.path(), &server);
    for name in ["", "../owner/tiny", "/owner/tiny", "owner/ti ny", "a/b/c"] {
        let error = fetch_quietly(name, &places).unwrap_err();
        let expected = format!("`{name}` is no name of a model on the hub");
        assert_eq!(error.to_string(), expected);
    }
    let error = fetch(NAME, Some("../../x"), &places, &mut quiet).unwrap_err();
    assert_eq!(error.to_string(), "`../../x` is no name of a revision");
    let error = resolve_or_fetch("./tiny", &places, &mut quiet).unwrap_err();
    assert!(matches!(error, ModelError::NotFound { .. }), "{error}");
    places.hub.is_offline = true;
    let error = fetch_quietly(NAME, &places).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot fetch `owner/tiny`: `HF_HUB_OFFLINE` is set"
    );
    assert!(server.requests().is_empty());
}

#[test]
fn a_model_in_another_format_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let mut model = tiny();
    model.files[4].0 = "model.onnx";
    let server = Server::of(vec![model]);
    let error = fetch_quietly(NAME, &places(root.path(), &server)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot fetch `owner/tiny`: it has no safetensors, only `model.onnx`, \
         `pytorch_model.bin`"
    );
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_cache_that_cannot_be_written_is_said_to_be_so() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::of(vec![tiny()]);
    let places = places(root.path(), &server);
    fs::write(&places.hugging_face, "a file").unwrap();
    let error = problem(fetch_quietly(NAME, &places));
    assert!(matches!(error, FetchProblem::Write { .. }), "{error}");
}
