//! For tests: a hub on this machine. It answers as the real one does, or as the test wants.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

/// The commit of every model here.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One request. Its text is what the server writes down: the path, and the range if there is
/// one, as in `/a/b/resolve/main/config.json bytes=0-0`.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) path: String,
    /// First byte wanted, and whether it is the only one.
    pub(super) range: Option<(usize, bool)>,
    pub(super) token: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    /// Closes the connection after so many bytes of the body.
    pub(super) cut: Option<usize>,
}

impl Answer {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut: None,
        }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn cut(mut self, n_bytes: usize) -> Self {
        self.cut = Some(n_bytes);
        self
    }

    /// The part of the body that the range asks for.
    fn ranged(mut self, range: Option<(usize, bool)>) -> Self {
        let Some((start, is_one)) = range else {
            return self;
        };
        let total = self.body.len();
        if start >= total {
            return Self::new(416, "");
        }
        let end = if is_one { start + 1 } else { total };
        self.body = self.body[start..end].to_vec();
        self.status = 206;
        self.header(
            "Content-Range",
            format!("bytes {start}-{}/{total}", end - 1),
        )
    }
}

/// A model on the server. Safetensors lie in storage, as on the real hub.
#[derive(Debug, Clone)]
pub(super) struct FakeModel {
    pub(super) name: &'static str,
    pub(super) commit: String,
    pub(super) files: Vec<(&'static str, Vec<u8>)>,
}

impl FakeModel {
    pub(super) fn new(name: &'static str, files: &[(&'static str, &str)]) -> Self {
        let file = |(name, text): &(&'static str, &str)| (*name, text.as_bytes().to_vec());
        Self {
            name,
            commit: COMMIT.into(),
            files: files.iter().map(file).collect(),
        }
    }

    /// What the hub says; `None` if it is asked for something else.
    pub(super) fn answer(&self, request: &Request) -> Option<Answer> {
        let (name, commit) = (self.name, &self.commit);
        let about = format!("/api/models/{name}/revision/");
        if let Some(revision) = request.path.strip_prefix(&about) {
            let revision = revision.strip_suffix("?blobs=true")?;
            if ![commit, "main", "refs%2Fpr%2F1"].contains(&revision) {
                let answer = Answer::new(404, r#"{"error": "Invalid rev id"}"#);
                return Some(answer.header("X-Error-Code", "RevisionNotFound"));
            }
            let files: Vec<_> = self
                .files
                .iter()
                .map(|(name, bytes)| {
                    serde_json::json!({"rfilename": name, "size": bytes.len(), "blobId": "b"})
                })
                .collect();
            let listing = serde_json::json!({"id": name, "sha": commit, "siblings": files});
            return Some(Answer::new(200, listing.to_string()));
        }
        let find = |name: &str| self.files.iter().find(|(file, _)| *file == name);
        if let Some(file) = request.path.strip_prefix(&format!("/storage/{name}/")) {
            let (_, bytes) = find(file)?;
            return Some(Answer::new(200, bytes.clone()).ranged(request.range));
        }
        // The hub sends on from one of its addresses to another, then gives or sends to storage.
        let moved = format!("/api/resolve-cache/{name}/{commit}/");
        if let Some(file) = request.path.strip_prefix(&moved) {
            let (_, bytes) = find(file)?;
            let etag = format!("\"{}\"", etag(bytes));
            let answer = Answer::new(200, bytes.clone()).ranged(request.range);
            let answer = answer.header("X-Repo-Commit", commit);
            return Some(answer.header("ETag", etag));
        }
        let file = request
            .path
            .strip_prefix(&format!("/{name}/resolve/{commit}/"))?;
        let (_, bytes) = find(file)?;
        let answer = Answer::new(302, "moved").header("X-Repo-Commit", commit);
        if !file.ends_with(".safetensors") {
            return Some(answer.header("Location", format!("{moved}{file}")));
        }
        let etag = format!("\"{}\"", etag(bytes));
        let answer = answer.header("X-Linked-Size", bytes.len().to_string());
        let answer = answer
            .header("X-Linked-ETag", etag)
            .header("ETag", "\"other\"");
        Some(answer.header("Location", format!("http://HOST/storage/{name}/{file}")))
    }
}

/// A name for content.
pub(super) fn etag(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

type Handler = dyn FnMut(&Request) -> Answer + Send;

/// Answers until it is dropped.
pub(super) struct Server {
    pub(super) endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves what `handler` says.
    pub(super) fn start(mut handler: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
        let host = listener.local_addr().expect("it is bound").to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let endpoint = format!("http://{host}");
        let (seen, over) = (Arc::clone(&requests), Arc::clone(&is_over));
        let serve = move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away has what it wants.
                let _ = stream.and_then(|stream| serve_one(&stream, &host, &mut handler, &seen));
            }
        };
        let thread = Builder::new().name("fake-hub".into()).spawn(serve);
        let thread = thread.expect("there is room for a thread");
        Self {
            endpoint,
            requests,
            is_over,
            thread: Some(thread),
        }
    }

    /// Serves these models, and 404 for the rest.
    pub(super) fn of(models: Vec<FakeModel>) -> Self {
        Self::start(move |request| {
            let answer = models.iter().find_map(|model| model.answer(request));
            answer.unwrap_or_else(|| Answer::new(404, "not here"))
        })
    }

    /// What was asked for since the last call.
    pub(super) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock().expect("no handler panicked"))
    }

    /// As paths, with the first byte wanted.
    pub(super) fn downloads(&self) -> Vec<(String, usize)> {
        let requests = self.requests().into_iter();
        let downloads = requests.filter_map(|request| match request.range {
            Some((start, false)) if !request.path.contains("/resolve/") => {
                Some((request.path.rsplit('/').next()?.to_owned(), start))
            }
            _ => None,
        });
        downloads.collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes the thread, which waits for the next connection.
        let _ = TcpStream::connect(self.endpoint.trim_start_matches("http://"));
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no handler panicked");
        }
    }
}

fn serve_one(
    stream: &TcpStream,
    host: &str,
    handler: &mut Handler,
    seen: &Mutex<Vec<Request>>,
) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request {
        path,
        range: None,
        token: None,
    };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let range = value.trim_start_matches("bytes=").split_once('-');
                let (start, end) = range.expect("the client asks for a range of bytes");
                let start = start.parse().expect("a range begins with a number");
                request.range = Some((start, !end.is_empty()));
            }
            "authorization" => request.token = Some(value.trim_start_matches("Bearer ").to_owned()),
            _ => {}
        }
    }
    seen.lock()
        .expect("no handler panicked")
        .push(request.clone());
    let answer = handler(&request);
    let mut text = format!("HTTP/1.1 {} Answer\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        text += &format!("{name}: {}\r\n", value.replace("HOST", host));
    }
    text += &format!("Content-Length: {}\r\n\r\n", answer.body.len());
    let mut stream = stream;
    stream.write_all(text.as_bytes())?;
    let end = answer.cut.unwrap_or(usize::MAX).min(answer.body.len());
    stream.write_all(&answer.body[..end])?;
    stream.flush()
}
