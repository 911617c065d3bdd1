//! Documents and places that are wrong: nothing crashes, nothing is lost silently.

use std::fs;
use std::process::{Command, Output};

use crate::support::{Mill, page_of, pdf_of, pdf_of_pages, stderr, stdout, table_rows};

/// Runs over one bad document beside a good one; the letter of the bad one.
fn letter_for(name: &str, bytes: &[u8]) -> (String, String) {
    let mill = Mill::new();
    mill.add("good.pdf", page_of("good")).add(name, bytes);
    let (code, report) = mill.run();
    assert_eq!(code, 3, "{report:#}");
    assert_eq!(report["documents_done"], 1, "{report:#}");
    assert_eq!(mill.rows()[0]["text"], "good");
    let mut letters = mill.dead_letters();
    assert_eq!(letters.len(), 1, "{letters:?}");
    let (error, hint) = letters.remove(0);
    assert!(error.contains(&format!("`{name}")), "{error}");
    assert!(!hint.is_empty(), "{error} has no hint");
    (error, hint)
}

#[test]
fn an_empty_file() {
    let (error, _) = letter_for("empty.pdf", b"");
    assert!(error.contains("empty"), "{error}");
}

#[test]
fn a_file_of_another_kind() {
    let (error, hint) = letter_for("notes.pdf", b"just some text, whatever its name says\n");
    assert!(error.starts_with("cannot read `notes.pdf`: "), "{error}");
    assert!(hint.contains("`include`"), "{hint}");
}

#[test]
fn a_truncated_file() {
    let mut pdf = page_of("half");
    pdf.truncate(40);
    letter_for("half.pdf", &pdf);
}

#[test]
fn a_pdf_without_pages() {
    let pdf = pdf_of(&[
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [] /Count 0 >>",
    ]);
    let (error, _) = letter_for("nothing.pdf", &pdf);
    assert!(error.contains("no pages"), "{error}");
}

#[test]
fn a_page_without_size() {
    let pdf = pdf_of(&[
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 0 0] >>",
    ]);
    let mill = Mill::new();
    mill.add("flat.pdf", &pdf);
    let (code, report) = mill.run();
    // Readers take such a page for a sheet of paper, or refuse it; either is told.
    let (n_rows, n_letters) = (mill.rows().len(), mill.dead_letters().len());
    assert_eq!(n_rows + n_letters, 1, "{report:#}");
    assert_eq!(code, if n_letters == 1 { 3 } else { 0 });
}

/// A PNG that claims `side` x `side` pixels and holds hardly any.
fn png_claiming(side: u32) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |name: &[u8; 4], data: &[u8]| {
        png.extend((data.len() as u32).to_be_bytes());
        let start = png.len();
        png.extend(name);
        png.extend(data);
        let crc = crc32(&png[start..]);
        png.extend(crc.to_be_bytes());
    };
    let mut header = Vec::new();
    header.extend(side.to_be_bytes());
    header.extend(side.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    chunk(b"IHDR", &header);
    chunk(b"IDAT", &[0x78, 0x9c, 0x03, 0, 0, 0, 0, 1]);
    chunk(b"IEND", &[]);
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0xedb8_8320
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

#[test]
fn an_image_that_claims_a_hundred_thousand_pixels_a_side() {
    let (error, _) = letter_for("vast.png", &png_claiming(100_000));
    assert!(
        error.contains("100000") || error.contains("100,000"),
        "{error}"
    );
}

#[test]
fn a_broken_image() {
    let (error, _) = letter_for("broken.png", &png_claiming(50));
    assert!(error.starts_with("cannot decode `broken.png"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_link_to_nowhere_and_a_pipe() {
    let mill = Mill::new();
    mill.add("good.pdf", page_of("good"));
    std::os::unix::fs::symlink("nowhere", mill.path("input/link.pdf")).unwrap();
    let made = Command::new("mkfifo")
        .arg(mill.path("input/pipe.pdf"))
        .status();
    let n_bad = if made.is_ok_and(|status| status.success()) {
        2
    } else {
        1
    };
    let (code, report) = mill.run();
    assert_eq!(
        (code, report["documents_done"].as_u64()),
        (3, Some(1)),
        "{report:#}"
    );
    assert_eq!(mill.dead_letters().len(), n_bad);
}

#[test]
fn a_missing_folder_is_a_mistake_in_the_configuration() {
    let mill = Mill::new();
    fs::remove_dir(mill.path("input")).unwrap();
    let output = mill.command(&["run"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(
        text.contains(" --> pipelines.toml:4:8") && text.contains("hint: "),
        "{text}"
    );
}

#[test]
fn an_output_that_cannot_be_written_stops_the_run_and_says_so() {
    let mill = Mill::new();
    mill.add("good.pdf", page_of("good"));
    // A file where a folder should be; permissions do not stop everybody.
    fs::write(mill.path("occupied"), "").unwrap();
    for path in ["occupied/rows.jsonl", "occupied"] {
        let set = format!("p.sink.rows.path={path}");
        let output = mill.command(&["run", "--set", &set]);
        assert_eq!(output.status.code(), Some(1), "{path}");
        let text = stderr(&output);
        assert!(
            text.contains("stopped at `rows`") && text.contains("hint: "),
            "{text}"
        );
    }
    let output = mill.command(&["run", "--set", "p.dead_letters=occupied"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("cannot write dead letters"),
        "{}",
        stderr(&output)
    );
}

/// The binary where no file may be written: as on a disk that is full.
#[cfg(target_os = "linux")]
fn on_a_full_disk(mill: &Mill, arguments: &str) -> Output {
    let binary = env!("CARGO_BIN_EXE_pagemill");
    let script = format!("trap '' XFSZ; ulimit -f 0; exec '{binary}' {arguments}");
    let mut command = Command::new("bash");
    command.current_dir(&mill.folder).args(["-c", &script]);
    command.output().expect("the shell starts")
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_called_so_with_a_remedy_wherever_something_is_written() {
    // No stage: the limit holds for the memory files of worker processes too.
    let mill = Mill::with(
        "[p.source.files]\nkind = 'read_files'\npath = 'input'\n\
         [p.sink.table]\nkind = 'lancedb'\ninput = 'files'\nuri = 'table'\n",
    );
    mill.add("large.pdf", page_of("good"));
    let refuse = "run --set p.ledger=false --set p.source.files.max_file_bytes=1";
    let output = on_a_full_disk(&mill, refuse);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let letters = "cannot write dead letters to `data/dead-letters/p`: the disk is full";
    assert!(text.contains(letters), "{text}");
    assert!(text.contains("\nhint: make room"), "{text}");
    let left = fs::read_dir(mill.path("data/dead-letters/p")).unwrap();
    assert_eq!(left.count(), 0, "half a letter is left");

    for arguments in ["graph --format svg --out graph.svg", "check >/dev/full"] {
        let output = on_a_full_disk(&mill, arguments);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("the disk is full"), "{text}");
        assert!(text.contains("\nhint: "), "{text}");
    }
}

#[test]
fn an_error_of_the_table_names_no_place_in_the_code() {
    let mill = Mill::with(TO_LANCEDB);
    mill.add("good.pdf", page_of("good"));
    assert_eq!(mill.run().0, 0);
    let data = mill.path("db/p.lance/data");
    fs::remove_dir_all(&data).expect("the table has data");
    let output = mill.command(&["search", "good"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{}{text}", stdout(&output));
    for place in [".rs:", ".cargo", "/rustc/"] {
        assert!(!text.contains(place), "{text}");
    }
}

const TO_LANCEDB: &str = r#"
[p.source.files]
kind = "read_files"
path = "input"
[p.stage.pages]
kind = "render_pdf"
input = "files"
long_side_px = 200
[p.stage.thumbnails]
kind = "thumbnail"
input = "pages"
[p.sink.table]
kind = "lancedb"
input = "thumbnails"
uri = "db"
"#;

#[test]
fn a_table_whose_schema_does_not_fit_is_left_alone_and_the_difference_is_named() {
    let mill = Mill::with(TO_LANCEDB);
    mill.add("good.pdf", page_of("good"));
    let (code, report) = mill.run();
    assert_eq!(code, 0, "{report:#}");
    let without = TO_LANCEDB
        .replace(
            "[p.stage.thumbnails]\nkind = \"thumbnail\"\ninput = \"pages\"\n",
            "",
        )
        .replace("input = \"thumbnails\"", "input = \"pages\"");
    let with_chunks = without.replace(
        "[p.sink.table]\nkind = \"lancedb\"\ninput = \"pages\"",
        "[p.stage.chunks]\nkind = \"chunk_text\"\ninput = \"pages\"\n[p.sink.table]\nkind = \"lancedb\"\ninput = \"chunks\"",
    );
    fs::write(mill.path("pipelines.toml"), with_chunks).unwrap();
    let output = mill.command(&["run"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains("char_start") && text.contains("hint: "),
        "{text}"
    );
}

#[test]
fn a_rerun_replaces_rows_and_takes_back_letters_that_no_longer_hold() {
    let mill = Mill::with(TO_LANCEDB);
    mill.add("good.pdf", page_of("good")).add("late.pdf", b"");
    assert_eq!(mill.run().0, 3);
    mill.add("late.pdf", page_of("mended"));
    for _ in 0..2 {
        let (code, report) = mill.run();
        assert_eq!(code, 0, "{report:#}");
        assert!(mill.dead_letters().is_empty());
    }
    let output = mill.command(&["search", "mended good", "--top", "9", "--json"]);
    assert_eq!(
        crate::support::json(&output)["hits"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

/// Pages go to one table by what they say; to the other one all but the second.
const TWO_BRANCHES: &str = r#"
[p.source.files]
kind = "read_files"
path = "input"
[p.stage.pages]
kind = "render_pdf"
input = "files"
long_side_px = 48
[p.sink.secrets]
kind = "lancedb"
input = "pages"
when = 'text.contains("secret")'
else = "drop"
uri = "table"
table = "secrets"
[p.stage.small]
kind = "thumbnail"
input = "pages"
[p.sink.others]
kind = "lancedb"
input = "small"
when = '10 / (page - 2) > -100'
else = "drop"
uri = "table"
table = "others"
"#;

#[test]
fn a_letter_of_one_branch_keeps_no_old_rows_in_the_table_of_another() {
    let mill = Mill::with(TWO_BRANCHES);
    mill.add("a.pdf", pdf_of_pages(&["a secret"]));
    assert_eq!(mill.run().0, 0);
    assert_eq!(table_rows(&mill.path("table"), "secrets").len(), 1);
    mill.add("a.pdf", pdf_of_pages(&["known", "well known"]));
    assert_eq!(mill.run().0, 3);
    assert_eq!(mill.dead_letters().len(), 1);
    assert!(table_rows(&mill.path("table"), "secrets").is_empty());
    assert_eq!(table_rows(&mill.path("table"), "others").len(), 1);
}

#[cfg(unix)]
#[test]
fn two_sinks_in_one_table_are_refused_however_it_is_spelled() {
    let toml = "[p.source.files]\nkind = \"read_files\"\npath = \"input\"\n\
                [p.stage.pages]\nkind = \"render_pdf\"\ninput = \"files\"\n";
    let sink = |name: &str, uri: &str| {
        format!(
            "[p.sink.{name}]\nkind = \"lancedb\"\ninput = \"pages\"\nuri = \"{uri}\"\ntable = \"t\"\n"
        )
    };
    let mill = Mill::with("");
    fs::create_dir(mill.path("real")).unwrap();
    std::os::unix::fs::symlink("real", mill.path("link")).unwrap();
    let absolute = mill.path("real").display().to_string();
    for (one, other) in [
        ("real", "link"),
        ("real", "./x/../real/"),
        ("real/new", "link/new"),
        ("real", &format!("file://{absolute}")),
        ("link", &format!("FILE://{absolute}/")),
    ] {
        let both = format!("{toml}{}{}", sink("k", one), sink("l", other));
        fs::write(mill.path("pipelines.toml"), both).unwrap();
        let output = mill.command(&["check"]);
        assert_eq!(output.status.code(), Some(2), "{other}");
        assert!(stderr(&output).contains("sink `l`") || stderr(&output).contains("`l`"));
    }
}
