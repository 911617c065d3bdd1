//! For tests: a server that answers as it is told, and notes what it is asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value as Json, json};

/// One answer.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// A status, a header or none, and a body.
    Status(u16, &'static str, String),
    /// Half of the body that its header announces.
    Half(String),
    /// The end of the connection.
    Nothing,
}

impl Reply {
    /// A chat completion with this text.
    pub(crate) fn says(text: &str) -> Self {
        let body = json!({ "choices": [{
            "message": { "role": "assistant", "content": text }, "finish_reason": "stop",
        }]});
        Self::Status(200, "", body.to_string())
    }
}

/// What was asked: the first line, all headers, the body.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) head: String,
    pub(crate) body: Json,
}

pub(crate) struct Server {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Gives these answers, one a connection, then refuses.
    pub(crate) fn start(replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&asked);
        let thread = std::thread::Builder::new().name("server".into());
        let thread = thread.spawn(move || {
            for reply in replies {
                let (stream, _) = listener.accept().unwrap();
                let one = serve(stream, &reply);
                notes.lock().unwrap().push(one);
            }
        });
        let thread = thread.unwrap();
        Self {
            url,
            asked,
            thread: Some(thread),
        }
    }

    /// What it was asked, once all answers are given.
    pub(crate) fn asked(mut self) -> Vec<Asked> {
        self.thread.take().unwrap().join().unwrap();
        self.asked.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, reply: &Reply) -> Asked {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "a whole request");
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    let (status, header, body_out, n_announced) = match reply {
        Reply::Status(status, header, text) => (*status, *header, text.as_str(), text.len()),
        Reply::Half(text) => (200, "", &text[..text.len() / 2], text.len()),
        Reply::Nothing => {
            return Asked {
                head,
                body: serde_json::from_slice(&body).unwrap(),
            };
        }
    };
    let header = if header.is_empty() {
        String::new()
    } else {
        format!("{header}\r\n")
    };
    let answer = format!(
        "HTTP/1.1 {status} X\r\nconnection: close\r\n{header}content-length: {n_announced}\r\n\r\n{body_out}"
    );
    stream.write_all(answer.as_bytes()).unwrap();
    Asked {
        head,
        body: serde_json::from_slice(&body).unwrap(),
    }
}
