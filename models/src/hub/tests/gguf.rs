//! Models of which the hub has several GGUF files.

use super::*;

const Q4: &str = "owner/tiny/tiny-Q4_K_M.gguf";

fn several() -> FakeModel {
    FakeModel::new(
        NAME,
        &[
            ("README.md", "hello"),
            ("mmproj-tiny-F16.gguf", "vision"),
            ("mmproj-tiny-F32.gguf", "wide vision"),
            ("tiny-Q4_K_M.gguf", "four"),
            ("tiny-Q8_0.gguf", "eight"),
        ],
    )
}

#[test]
fn one_file_comes_with_its_vision_part_and_is_found_by_its_name() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::of(vec![several()]);
    let places = places(root.path(), &server);
    let path = fetch_quietly(Q4, &places).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "four");
    let mut here: Vec<_> = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    here.sort();
    assert_eq!(here, ["mmproj-tiny-F16.gguf", "tiny-Q4_K_M.gguf"]);
    assert_eq!(resolve(Q4, &places).unwrap(), path);
    assert_eq!(resolve(&format!("{Q4}@{COMMIT}"), &places).unwrap(), path);
    assert!(resolve("owner/tiny/tiny-Q8_0.gguf", &places).is_err());
    assert_eq!(crate::gguf::files(&path).len(), 2);

    // Another one comes beside it.
    let other = fetch_quietly("owner/tiny/tiny-Q8_0.gguf", &places).unwrap();
    assert_eq!(other.parent(), path.parent());
    assert_eq!(resolve(Q4, &places).unwrap(), path);
}

#[test]
fn which_one_must_be_said_and_what_is_not_there_is_told() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::of(vec![several()]);
    let places = places(root.path(), &server);
    for (name, told) in [
        (NAME, "tiny-Q8_0.gguf"),
        ("owner/tiny/tiny-Q5_0.gguf", "it has no `tiny-Q5_0.gguf`"),
    ] {
        let problem = problem(fetch_quietly(name, &places));
        assert!(problem.to_string().contains(told), "{problem}");
        assert!(
            problem.hint().contains("`owner/model/file.gguf`"),
            "{}",
            problem.hint()
        );
    }
}
