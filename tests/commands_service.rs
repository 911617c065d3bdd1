//! A run that goes on: metrics, signals, systemd, a configuration that changes.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::{Mill, page_of, signal, stderr};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// Follows `input/`.
const FOLLOWING: &str = r#"
[p.source.files]
kind = "read_files"
path = "input"
watch = true
rest_ms = 10
[p.stage.pages]
kind = "render_pdf"
input = "files"
long_side_px = 40
[p.stage.chunks]
kind = "chunk_text"
input = "pages"
[p.sink.rows]
kind = "jsonl"
input = "chunks"
path = "rows.jsonl"
durability = "process"
"#;

/// A `pagemill run` that goes on until it is told.
struct Service {
    child: Child,
    metrics: SocketAddr,
    /// What it said so far on standard error.
    said: Arc<Mutex<String>>,
    listener: Option<JoinHandle<()>>,
}

impl Service {
    fn start(mill: &Mill, configure: impl FnOnce(&mut Command)) -> Self {
        let mut command = mill.binary(&["run", "--metrics", "127.0.0.1:0"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        configure(&mut command);
        let mut child = command.spawn().expect("the binary starts");
        let mut errors = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        errors.read_line(&mut line).unwrap();
        let address = line.strip_prefix("metrics: http://");
        let address = address.and_then(|rest| rest.strip_suffix("/metrics\n"));
        let metrics = address.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let listener = listen(errors, Arc::clone(&said));
        Self {
            child,
            metrics,
            said,
            listener: Some(listener),
        }
    }

    /// Head and body of an answer.
    fn get(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    fn wait_until(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}: {}", self.said());
            // Asks anew; nothing depends on how soon.
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn wait_for_documents(&self, n: u64) {
        let line = format!("pagemill_documents_total{{pipeline=\"p\",outcome=\"done\"}} {n}\n");
        self.wait_until(&line, || self.get("/metrics").1.contains(&line));
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    fn wait_for_words(&self, words: &str) {
        self.wait_until(words, || self.said().contains(words));
    }

    fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Waits for the end: its code and what it printed.
    fn end(mut self) -> (Option<i32>, String) {
        let mut printed = String::new();
        let mut stdout = self.child.stdout.take().expect("piped");
        stdout.read_to_string(&mut printed).unwrap();
        let code = self.child.wait().unwrap().code();
        if let Some(listener) = self.listener.take() {
            listener.join().unwrap();
        }
        (code, printed)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

fn listen(errors: BufReader<ChildStderr>, said: Arc<Mutex<String>>) -> JoinHandle<()> {
    let note = move || {
        for line in errors.lines().map_while(Result::ok) {
            let mut said = said.lock().unwrap();
            said.push_str(&line);
            said.push('\n');
        }
    };
    let thread = std::thread::Builder::new().name("standard error".into());
    thread.spawn(note).unwrap()
}

fn texts(mill: &Mill) -> Vec<String> {
    let rows = mill.rows();
    let mut texts: Vec<String> = rows
        .iter()
        .map(|row| row["text"].as_str().unwrap().to_owned())
        .collect();
    texts.sort();
    texts
}

#[test]
fn metrics_are_served_while_documents_come_in_and_a_signal_drains() {
    let mill = Mill::with(FOLLOWING);
    mill.add("a.pdf", page_of("first"));
    let service = Service::start(&mill, |_| {});
    service.wait_for_documents(1);
    mill.add("b.pdf", page_of("second"));
    service.wait_for_documents(2);
    let (head, body) = service.get("/metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("application/openmetrics-text"), "{head}");
    for line in [
        "# TYPE pagemill_node_busy_seconds counter",
        "pagemill_node_items_in_total{pipeline=\"p\",node=\"chunks\",role=\"stage\"} 2",
        "pagemill_items_stored_total{pipeline=\"p\"} 2",
        "pagemill_run_active{pipeline=\"p\"} 1",
        "# TYPE pagemill_node_commit_seconds histogram",
    ] {
        assert!(body.contains(line), "{line}\n{body}");
    }
    assert!(body.ends_with("# EOF\n"));
    assert_eq!(service.get("/healthz").1, "ok\n");
    service.signal("TERM");
    let (code, printed) = service.end();
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("(stopped early, "), "{printed}");
    assert_eq!(texts(&mill), ["first", "second"]);
}

#[test]
fn an_address_that_is_taken_is_a_wrong_usage() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mill = Mill::new();
    let address = taken.local_addr().unwrap().to_string();
    for address in [address.as_str(), "nonsense"] {
        let output = mill.command(&["run", "--metrics", address]);
        assert_eq!(output.status.code(), Some(2));
        let text = stderr(&output);
        assert!(
            text.starts_with("error: cannot serve metrics at `"),
            "{text}"
        );
        assert!(text.contains("hint: give a free address"), "{text}");
    }
}

#[test]
fn a_configuration_that_changes_is_taken_over_by_a_new_run() {
    let mill = Mill::with(FOLLOWING);
    mill.add("a.pdf", page_of("first"));
    fs::create_dir(mill.path("second")).unwrap();
    fs::write(mill.path("second/b.pdf"), page_of("second")).unwrap();
    let service = Service::start(&mill, |_| {});
    service.wait_for_documents(1);
    let changed = FOLLOWING.replace("path = \"input\"", "path = \"second\"");
    fs::write(mill.path("pipelines.toml"), changed).unwrap();
    service.signal("HUP");
    service.wait_for_words("`pipelines.toml` has changed: `p` is run anew");
    let sources = "pagemill_node_items_out_total{pipeline=\"p\",node=\"files\",role=\"source\"} 1";
    service.wait_until("the second folder", || {
        texts(&mill) == ["first", "second"] && service.get("/metrics").1.contains(sources)
    });
    service.signal("INT");
    let (code, printed) = service.end();
    assert_eq!(code, Some(0), "{printed}");
    let n_reports = printed.matches("p: 1 documents done").count();
    assert_eq!(n_reports, 2, "{printed}");
}

#[test]
fn a_configuration_that_changes_is_noticed_and_a_wrong_one_is_not_taken_over() {
    let mill = Mill::with(FOLLOWING);
    let service = Service::start(&mill, |_| {});
    let wrong = FOLLOWING.replace("chunk_text", "chunk_txt");
    // As editors do it: a new file takes the place of the old one.
    fs::write(mill.path("new.toml"), wrong).unwrap();
    fs::rename(mill.path("new.toml"), mill.path("pipelines.toml")).unwrap();
    service.wait_for_words("error: the changed configuration is not taken over");
    assert!(
        service.said().contains("hint: did you mean `chunk_text`?"),
        "{}",
        service.said()
    );
    // The run goes on as it was.
    mill.add("a.pdf", page_of("first"));
    service.wait_for_documents(1);
    // A comment makes no other pipeline.
    fs::write(mill.path("pipelines.toml"), format!("# same\n{FOLLOWING}")).unwrap();
    service.signal("HUP");
    service.signal("TERM");
    let (code, printed) = service.end();
    assert_eq!(code, Some(0), "{printed}");
    assert_eq!(printed.matches("p: ").count(), 1, "{printed}");
}

#[test]
fn systemd_is_told_of_readiness_reloading_and_stopping() {
    let mill = Mill::with(FOLLOWING);
    let path = mill.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let receive = |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let n_bytes = socket.recv(&mut buffer).expect(wanted);
            let message = String::from_utf8_lossy(&buffer[..n_bytes]).into_owned();
            if message.contains(wanted) {
                return message;
            }
            assert!(
                message.starts_with("WATCHDOG=1") || message.starts_with("STATUS="),
                "{message}"
            );
        }
    };
    let service = Service::start(&mill, |command| {
        command.env("NOTIFY_SOCKET", &path);
        command.env("WATCHDOG_USEC", "100000");
    });
    receive("READY=1");
    receive("WATCHDOG=1");
    service.signal("HUP");
    assert!(receive("RELOADING=1").contains("MONOTONIC_USEC="));
    receive("READY=1");
    service.signal("TERM");
    receive("STOPPING=1");
    assert_eq!(service.end().0, Some(0));
}
