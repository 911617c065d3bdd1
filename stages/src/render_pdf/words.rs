//! From characters with boxes to words and lines.

use crate::cage::protocol::{MAX_TEXT_BYTES, MAX_WORDS, PageText, WordBox};

/// Where a character is: points, origin at the top left of the page as displayed, y down.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CharBox {
    /// Left edge.
    pub x0: f32,
    /// Top edge.
    pub y0: f32,
    /// Right edge.
    pub x1: f32,
    /// Bottom edge.
    pub y1: f32,
}

impl CharBox {
    /// The box around two corners, if it is one.
    pub fn around(a: (f32, f32), b: (f32, f32)) -> Option<Self> {
        // Looked at first: `min` and `max` pass over NaN.
        let is_place = [a.0, a.1, b.0, b.1].iter().all(|edge| edge.is_finite());
        is_place.then(|| Self {
            x0: a.0.min(b.0),
            y0: a.1.min(b.1),
            x1: a.0.max(b.0),
            y1: a.1.max(b.1),
        })
    }

    fn extend(&mut self, other: Self) {
        self.x0 = self.x0.min(other.x0);
        self.y0 = self.y0.min(other.y0);
        self.x1 = self.x1.max(other.x1);
        self.y1 = self.y1.max(other.y1);
    }
}

/// What stands between two characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Gap {
    Nothing,
    Space,
    Line,
}

/// Puts characters together as they come.
///
/// A word ends at whitespace. Languages written without spaces give one "word"
/// a line. A word that is hyphenated at the end of a line is joined in the
/// plain text, and stays two words with two boxes: one box around both halves
/// would cover half the page.
#[derive(Debug)]
pub struct TextCollector {
    text: PageText,
    word: String,
    bounds: Option<CharBox>,
    gap: Gap,
    /// A soft hyphen came last: a line break after it is none.
    hyphenated: bool,
}

impl TextCollector {
    /// Starts a page.
    pub fn new() -> Self {
        Self {
            text: PageText::default(),
            word: String::new(),
            bounds: None,
            gap: Gap::Nothing,
            hyphenated: false,
        }
    }

    /// Whether the page has as much text as a page may have.
    pub fn is_full(&self) -> bool {
        self.text.plain.len() + self.word.len() >= MAX_TEXT_BYTES - 8
            || self.text.words.len() >= MAX_WORDS
    }

    /// Adds the next character.
    pub fn push(&mut self, character: char, bounds: Option<CharBox>) {
        match character {
            '\n' | '\r' | '\u{2028}' | '\u{2029}' | '\u{b}' | '\u{c}' => self.line_break(),
            '\u{ad}' => self.hyphenated = true,
            _ if character.is_whitespace() => self.space(),
            // Byte-order marks, zero-width spaces, unmapped glyphs.
            _ if character.is_control() || matches!(character, '\u{200b}' | '\u{feff}') => {}
            _ => self.visible(character, bounds),
        }
    }

    /// Adds a hyphen that only the line's end called for: the word goes on.
    pub fn push_line_hyphen(&mut self, bounds: Option<CharBox>) {
        self.join_gap();
        if self.word.is_empty() {
            return;
        }
        if let Some(bounds) = bounds {
            self.extend(bounds);
        }
        self.text.plain.push_str(&self.word);
        self.word.push('-');
        self.end_box();
        self.hyphenated = true;
    }

    /// Ends the word.
    pub fn space(&mut self) {
        self.gap = self.gap.max(Gap::Space);
    }

    /// Ends the line.
    pub fn line_break(&mut self) {
        self.gap = self.gap.max(Gap::Line);
    }

    /// The page's text.
    pub fn finish(mut self) -> PageText {
        self.end_word();
        self.text
    }

    fn visible(&mut self, character: char, bounds: Option<CharBox>) {
        self.join_gap();
        self.word.push(character);
        if let Some(bounds) = bounds {
            self.extend(bounds);
        }
    }

    /// Writes down what stood before the character that comes now.
    fn join_gap(&mut self) {
        let gap = std::mem::replace(&mut self.gap, Gap::Nothing);
        let joined = std::mem::take(&mut self.hyphenated) && gap != Gap::Space;
        if gap == Gap::Nothing {
            return;
        }
        self.end_word();
        if !joined && !self.text.plain.is_empty() {
            self.text
                .plain
                .push(if gap == Gap::Line { '\n' } else { ' ' });
        }
    }

    fn end_word(&mut self) {
        self.text.plain.push_str(&self.word);
        self.end_box();
    }

    fn end_box(&mut self) {
        let text = std::mem::take(&mut self.word);
        // Without a box (text that pdfium made up) it is in the plain text alone.
        if let Some(CharBox { x0, y0, x1, y1 }) = self.bounds.take()
            && !text.is_empty()
        {
            self.text.words.push(WordBox {
                text,
                x0,
                y0,
                x1,
                y1,
            });
        }
    }

    fn extend(&mut self, bounds: CharBox) {
        match &mut self.bounds {
            Some(known) => known.extend(bounds),
            None => self.bounds = Some(bounds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Characters one point wide on lines ten points apart.
    fn collect(text: &str) -> PageText {
        let mut collector = TextCollector::new();
        let (mut x, mut y) = (0.0, 0.0);
        for character in text.chars() {
            let bounds = CharBox::around((x, y), (x + 1.0, y + 9.0));
            match character {
                '~' => collector.push_line_hyphen(bounds),
                _ => collector.push(character, bounds),
            }
            x += 1.0;
            if matches!(character, '\n' | '~') {
                (x, y) = (0.0, y + 10.0);
            }
        }
        collector.finish()
    }

    fn words(text: &PageText) -> Vec<&str> {
        text.words.iter().map(|word| word.text.as_str()).collect()
    }

    #[test]
    fn words_end_at_spaces_and_lines_and_have_the_box_of_their_letters() {
        let text = collect("ab  c\r\nd\n");
        assert_eq!(text.plain, "ab c\nd");
        assert_eq!(words(&text), ["ab", "c", "d"]);
        let word = &text.words[0];
        assert_eq!((word.x0, word.y0, word.x1, word.y1), (0.0, 0.0, 2.0, 9.0));
    }

    #[test]
    fn a_word_hyphenated_at_the_end_of_a_line_is_joined_in_the_text_only() {
        let text = collect("mill~stone");
        assert_eq!(text.plain, "millstone");
        assert_eq!(words(&text), ["mill-", "stone"]);
        assert!(text.words[0].y1 < text.words[1].y0);
        assert_eq!(collect("mill\u{ad}\nstone wheel").plain, "millstone wheel");
        assert_eq!(collect("a\u{ad}b").plain, "ab");
    }

    #[test]
    fn a_hard_hyphen_at_the_end_of_a_line_stays() {
        assert_eq!(collect("well-\nknown").plain, "well-\nknown");
    }

    #[test]
    fn what_cannot_be_seen_is_left_out() {
        assert_eq!(collect("\n\u{feff}a\u{0}b\u{200b}c \n").plain, "abc");
    }

    #[test]
    fn a_box_that_is_nowhere_is_none() {
        assert_eq!(CharBox::around((0.0, f32::NAN), (1.0, 1.0)), None);
    }
}
