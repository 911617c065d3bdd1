//! From tokens to text that may be shown: whole characters, and nothing that a stop string may
//! still take back.

/// The text of one answer as it grows.
#[derive(Debug, Clone, Default)]
pub(super) struct TextStream {
    text: String,
    /// The beginning of a character whose other bytes are to come.
    rest: Vec<u8>,
    /// Bytes of `text` that have been shown.
    shown: usize,
    stop: Vec<String>,
}

impl TextStream {
    /// `stop`: where the text ends. An empty one stops nothing.
    pub(super) fn new(stop: &[String]) -> Self {
        let stop = stop.iter().filter(|stop| !stop.is_empty()).cloned();
        Self {
            stop: stop.collect(),
            ..Self::default()
        }
    }

    /// Adds a token's bytes; `true` if a stop string ends the text.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        let before = self.text.len();
        self.rest.extend_from_slice(bytes);
        let keep = self.take_characters();
        self.rest.drain(..keep);
        // Only what a new byte can have completed.
        let longest = self.stop.iter().map(String::len).max().unwrap_or(0);
        let mut from = (before + 1).saturating_sub(longest);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        let found = self.stop.iter();
        let found = found.filter_map(|stop| self.text[from..].find(stop.as_str()));
        match found.min() {
            Some(place) => {
                self.text.truncate(from + place);
                self.rest.clear();
                true
            }
            None => false,
        }
    }

    /// Moves whole characters to the text, bytes that belong to none as U+FFFD; says how many
    /// bytes that took.
    fn take_characters(&mut self) -> usize {
        let mut taken = 0;
        loop {
            match std::str::from_utf8(&self.rest[taken..]) {
                Ok(text) => {
                    self.text.push_str(text);
                    return self.rest.len();
                }
                Err(error) => {
                    let valid = taken + error.valid_up_to();
                    let text = String::from_utf8_lossy(&self.rest[taken..valid]);
                    self.text.push_str(&text);
                    let Some(broken) = error.error_len() else {
                        return valid;
                    };
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    taken = valid + broken;
                }
            }
        }
    }

    /// What may be shown and has not been.
    pub(super) fn delta(&mut self) -> String {
        let held = self.held();
        let end = self.text.len() - held;
        let delta = self.text[self.shown.min(end)..end].to_owned();
        self.shown = self.shown.max(end);
        delta
    }

    /// Bytes at the text's end that begin a stop string.
    fn held(&self) -> usize {
        let begins = |stop: &String| {
            let most = (stop.len() - 1).min(self.text.len());
            (1..=most)
                .rev()
                .find(|n| self.text.as_bytes().ends_with(&stop.as_bytes()[..*n]))
        };
        self.stop.iter().filter_map(begins).max().unwrap_or(0)
    }

    /// Ends the text: what has not been shown, and the whole.
    pub(super) fn finish(mut self) -> (String, String) {
        if !self.rest.is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        let delta = self.text[self.shown.min(self.text.len())..].to_owned();
        (delta, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The deltas of a text that comes in these pieces, and the whole of it.
    fn stream(stop: &[&str], pieces: &[&[u8]]) -> (Vec<String>, String, bool) {
        let stop: Vec<String> = stop.iter().map(|stop| (*stop).to_owned()).collect();
        let mut stream = TextStream::new(&stop);
        let mut deltas = Vec::new();
        let mut stopped = false;
        for piece in pieces {
            stopped = stream.push(piece);
            deltas.push(stream.delta());
            if stopped {
                break;
            }
        }
        let (last, text) = stream.finish();
        deltas.push(last);
        assert_eq!(deltas.concat(), text);
        (deltas, text, stopped)
    }

    #[test]
    fn characters_stay_whole_wherever_tokens_are_cut() {
        let bytes = "a€ü𝄞z".as_bytes();
        for size in 1..bytes.len() {
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            let (deltas, text, _) = stream(&[], &pieces);
            assert_eq!(text, "a€ü𝄞z");
            assert!(deltas.iter().all(|delta| !delta.contains('\u{fffd}')));
        }
    }

    #[test]
    fn broken_bytes_become_one_mark_each_and_hold_nothing_up() {
        let (_, text, _) = stream(&[], &[b"a\xff", b"b\xe2\x82", b"c", b"\xf0\x9d"]);
        assert_eq!(text, String::from_utf8_lossy(b"a\xffb\xe2\x82c\xf0\x9d"));
    }

    #[test]
    fn a_stop_string_ends_the_text_before_itself_across_tokens() {
        let (deltas, text, stopped) = stream(&["\n\nEnd"], &[b"one\n", b"\nE", b"nd of it"]);
        assert_eq!((text.as_str(), stopped), ("one", true));
        assert_eq!(deltas, ["one", "", "", ""]);
        let (_, text, _) = stream(&["END", "N"], &[b"xE", b"ND"]);
        assert_eq!(text, "x", "the one that begins first");
    }

    #[test]
    fn what_only_looked_like_a_stop_string_is_shown_later() {
        let (deltas, text, stopped) = stream(&["###"], &[b"a#", b"#", b"b", b"##"]);
        assert_eq!((text.as_str(), stopped), ("a##b##", false));
        assert_eq!(deltas, ["a", "", "##b", "", "##"]);
        let (deltas, _, stopped) = stream(&[""], &[b"a"]);
        assert!(!stopped && deltas[0] == "a");
    }

    #[test]
    fn stop_strings_of_wide_characters_do_not_cut_one() {
        let (_, text, stopped) =
            stream(&["ü€"], &["aü".as_bytes(), "ü".as_bytes(), "€".as_bytes()]);
        assert_eq!((text.as_str(), stopped), ("aü", true));
    }
}
