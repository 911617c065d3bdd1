//! A folder that is watched: after each change the table is the folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use crate::support::{Mill, page_of, table_rows};

const WATCHED: &str = r#"
[p.source.files]
kind = "read_files"
path = "input"
watch = true
rest_ms = 20
rescan_s = 5
[p.stage.pages]
kind = "render_pdf"
input = "files"
long_side_px = 64
workers = 2
[p.sink.table]
kind = "lancedb"
input = "pages"
uri = "table"
durability = "process"
"#;

/// Nothing that the run does takes so long.
const PATIENCE: Duration = Duration::from_mins(1);

struct Run {
    child: Child,
    /// What it says; each line is a chance that the table has changed.
    said: Receiver<String>,
}

impl Run {
    fn start(mill: &Mill) -> Self {
        let mut command = mill.binary(&["run", "--json"]);
        let mut child = command
            .env("PAGEMILL_LOG", "pagemill=trace")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (says, said) = sync_channel(1024);
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let listener = std::thread::Builder::new().name("listener".into());
        let listens = listener.spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if says.send(line).is_err() {
                    break;
                }
            }
        });
        listens.expect("a thread");
        Self { child, said }
    }

    /// Waits until the table holds what the folder holds.
    fn settle(&self, mill: &Mill, after: &str) {
        let expected = folder(mill);
        loop {
            let line = self.said.recv_timeout(PATIENCE);
            let Ok(line) = line else {
                panic!("after {after}: {:?}\nand not {expected:?}", table(mill));
            };
            if line.contains("documents go into the ledger") && table(mill) == expected {
                return;
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// What each file says, by path.
type Said = BTreeMap<String, String>;

fn table(mill: &Mill) -> Said {
    if !mill.path("table/p.lance").exists() {
        return Said::new();
    }
    let rows = table_rows(&mill.path("table"), "p");
    rows.into_iter()
        .map(|((uri, _, _), text)| (uri, text))
        .collect()
}

fn folder(mill: &Mill) -> Said {
    let entries = fs::read_dir(mill.path("input")).unwrap();
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let begin = text.find("Td (").expect("it says something") + 4;
            let end = begin + text[begin..].find(')').expect("it is closed");
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (mill.uri(&name), text[begin..end].to_owned())
        })
        .collect()
}

#[test]
fn the_table_follows_the_folder() {
    let mill = Mill::with(WATCHED);
    mill.add("a.pdf", page_of("first"))
        .add("b.pdf", page_of("second"));
    let input = |name: &str| mill.path("input").join(name);
    let mut run = Run::start(&mill);
    run.settle(&mill, "the start");

    mill.add("c.pdf", page_of("third"));
    run.settle(&mill, "a new file");

    let bytes = page_of("written slowly");
    let mut slow = File::create(input("slow.pdf")).unwrap();
    for part in bytes.chunks(bytes.len() / 5) {
        slow.write_all(part).unwrap();
        slow.sync_all().unwrap();
    }
    drop(slow);
    run.settle(&mill, "a slow write");

    fs::rename(input("a.pdf"), input("renamed.pdf")).unwrap();
    run.settle(&mill, "a rename");

    mill.add("b.pdf", page_of("second, again"));
    run.settle(&mill, "an overwrite");

    // As editors save: beside, then over it.
    fs::write(mill.path("beside"), page_of("third, saved")).unwrap();
    fs::rename(mill.path("beside"), input("c.pdf")).unwrap();
    run.settle(&mill, "a rename over a file");

    fs::remove_file(input("b.pdf")).unwrap();
    run.settle(&mill, "a deletion");

    for number in 0..1000 {
        mill.add(
            &format!("burst-{number:04}.pdf"),
            page_of(&format!("burst {number}")),
        );
    }
    run.settle(&mill, "a burst of a thousand files");

    // While nobody watches.
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    fs::remove_file(input("burst-0007.pdf")).unwrap();
    mill.add("burst-0008.pdf", page_of("changed meanwhile"));
    mill.add("new.pdf", page_of("new meanwhile"));
    let run = Run::start(&mill);
    run.settle(&mill, "the time in which it was down");
}
