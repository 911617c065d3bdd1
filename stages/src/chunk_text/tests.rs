use pagemill_pipeline::Image;
use pagemill_pipeline::testing::{StageOutput, run_stage};
use text_splitter::{ChunkConfig, TextSplitter};

use super::*;
use crate::testing::{TINY_MODEL, with_tiny_model};

const TWO_PARAGRAPHS: &str = "The mill turns. The wheel is wet.\n\nWo das Mühlrad rauscht, \
     da mahlt der Müller.";

fn of_tokens(max_tokens: usize) -> ChunkTextConfig {
    ChunkTextConfig {
        max_tokens,
        ..ChunkTextConfig::default()
    }
}

fn page(text: &str) -> Item {
    Item::of_text("a.pdf", text).with_page(3)
}

fn chunk(config: &ChunkTextConfig, page: Item) -> StageOutput {
    let mut stage = ChunkText::new(config, &Resources::default()).unwrap();
    run_stage(&mut stage, [page])
}

fn texts(out: &StageOutput) -> Vec<&str> {
    out.sent.iter().filter_map(Item::text).collect()
}

fn integer(item: &Item, name: &str) -> usize {
    match item.get(name) {
        Some(Value::Integer(number)) => usize::try_from(*number).unwrap(),
        other => panic!("{name} is {other:?}"),
    }
}

/// Checks each chunk's place and length, and that nothing but white space is
/// left out.
fn check_against(text: &str, out: &StageOutput, max_bytes: usize) {
    let chars: Vec<char> = text.chars().collect();
    let mut covered = vec![false; chars.len()];
    for (index, chunk) in out.sent.iter().enumerate() {
        let range = integer(chunk, "char_start")..integer(chunk, "char_end");
        let found: String = chars[range.clone()].iter().collect();
        assert_eq!(chunk.text(), Some(found.as_str()));
        assert!(found.len() <= max_bytes && found.trim() == found);
        assert_eq!(chunk.key().part, Some(index as u32 + 1));
        covered[range].fill(true);
    }
    let lost = chars
        .iter()
        .zip(&covered)
        .filter(|(c, covered)| !c.is_whitespace() && !**covered);
    assert_eq!(lost.count(), 0);
}

#[test]
fn no_chunk_has_more_characters_than_it_may_however_many_tokens_it_may_have() {
    let text = "one two three four five six seven eight nine ten eleven".repeat(40);
    for (max_tokens, max_chars) in [(200, 20), (30, 20), (200, 199), (10, 20), (7, 20)] {
        let config = ChunkTextConfig {
            max_chars: Some(max_chars),
            overlap_tokens: max_tokens / 5,
            ..of_tokens(max_tokens)
        };
        let out = chunk(&config, page(&text));
        check_against(&text, &out, max_chars.min(4 * max_tokens));
        assert!(out.sent.len() > text.len() / max_chars, "{max_chars}");
    }
}

#[test]
fn a_page_is_split_at_its_paragraphs_and_each_chunk_knows_its_place() {
    let out = chunk(&of_tokens(15), page(TWO_PARAGRAPHS));
    assert_eq!(
        texts(&out),
        [
            "The mill turns. The wheel is wet.",
            "Wo das Mühlrad rauscht, da mahlt der Müller.",
        ]
    );
    check_against(TWO_PARAGRAPHS, &out, 60);
    assert_eq!(out.sent[1].label().to_string(), "a.pdf#3.2");
    assert_eq!(integer(&out.sent[1], "char_start"), 35);
}

#[test]
fn a_short_page_is_one_chunk_without_the_white_space_around_it() {
    let out = chunk(&ChunkTextConfig::default(), page("\n  the mill \n"));
    assert_eq!(texts(&out), ["the mill"]);
    check_against("\n  the mill \n", &out, 8);
}

#[test]
fn chunks_share_as_much_text_as_they_are_told() {
    let text = "one two three four five six seven eight nine ten ".repeat(40);
    let config = ChunkTextConfig {
        overlap_tokens: 5,
        ..of_tokens(20)
    };
    let out = chunk(&config, page(&text));
    check_against(&text, &out, 80);
    let ends = out.sent.iter().map(|chunk| integer(chunk, "char_end"));
    let starts = out
        .sent
        .iter()
        .skip(1)
        .map(|chunk| integer(chunk, "char_start"));
    for (end, start) in ends.zip(starts) {
        assert!(start < end && end - start <= 20, "{start}..{end}");
    }
}

#[test]
fn a_chunk_keeps_the_fields_of_its_page_but_not_its_pixels_and_words() {
    let page = page(TWO_PARAGRAPHS)
        .with("image", Image::new(vec![0; 3], 1, 1, None).unwrap())
        .with("words", Vec::<pagemill_pipeline::Word>::new())
        .with("title", "The Mill");
    let out = chunk(&of_tokens(15), page);
    for chunk in &out.sent {
        let mut names: Vec<&str> = chunk.fields().map(|(name, _)| name).collect();
        names.sort_unstable();
        assert_eq!(names, ["char_end", "char_start", "text", "title"]);
    }
}

#[test]
fn a_page_without_text_is_kept_or_dropped_as_the_user_says() {
    for text in ["", " \n\t "] {
        let out = chunk(&ChunkTextConfig::default(), page(text));
        assert_eq!(texts(&out), [""]);
        assert_eq!(out.sent[0].key().part, Some(1));
        assert_eq!(integer(&out.sent[0], "char_end"), 0);
        let config = ChunkTextConfig {
            keep_empty: false,
            ..ChunkTextConfig::default()
        };
        let out = chunk(&config, page(text));
        assert!(out.sent.is_empty() && out.dead.is_empty());
    }
}

#[test]
fn a_page_that_never_had_text_is_set_aside_and_the_others_go_on() {
    let mut stage = ChunkText::new(&of_tokens(9), &Resources::default()).unwrap();
    let bare = page("").child();
    let out = run_stage(&mut stage, [bare, page("the mill")]);
    assert_eq!(texts(&out), ["the mill"]);
    assert_eq!(out.dead[0].1, "cannot split `a.pdf#3`: it has no `text`");
}

#[test]
fn a_long_text_is_split_as_if_it_were_seen_whole() {
    let sentence = "The mill turns while the water runs, and the miller sleeps. ";
    let paragraph = sentence.repeat(7) + "\n\n";
    let text = paragraph.repeat(60);
    for overlap_tokens in [0, 20] {
        let config = ChunkTextConfig {
            overlap_tokens,
            ..of_tokens(50)
        };
        let stage = ChunkText::new(&config, &Resources::default()).unwrap();
        let sizer = Sizer {
            limits: stage.limits,
            tokenizer: None,
        };
        let whole = ChunkConfig::new(50)
            .with_sizer(&sizer)
            .with_overlap(overlap_tokens)
            .unwrap();
        let whole = TextSplitter::new(whole);
        let out = chunk(&config, page(&text));
        assert_eq!(texts(&out), whole.chunks(&text).collect::<Vec<_>>());
        check_against(&text, &out, 200);
    }
}

#[test]
fn a_megabyte_of_anything_is_split_without_loss() {
    let n = 1 << 20;
    for text in [
        "mill ".repeat(n / 5),           // No sentence ends.
        "mahlwerk".repeat(n / 8),        // No word ends.
        "m\n".repeat(n / 2),             // Nothing but lines.
        "\u{a0}\n \t".repeat(n / 5),     // Nothing at all.
        "水車が回る。".repeat(n / 18),   // No spaces.
        "e\u{301}\u{327}".repeat(n / 5), // Characters of several code points.
    ] {
        let config = ChunkTextConfig {
            keep_empty: false,
            ..ChunkTextConfig::default()
        };
        let out = chunk(&config, page(&text));
        check_against(&text, &out, 800);
    }
}

#[test]
fn a_model_counts_with_its_special_tokens_and_the_characters_are_bounded() {
    let root = tempfile::tempdir().unwrap();
    let resources = with_tiny_model(root.path());
    let config = ChunkTextConfig {
        model: Some(TINY_MODEL.into()),
        ..of_tokens(5)
    };
    let mut stage = ChunkText::new(&config, &resources).unwrap();
    let out = run_stage(&mut stage, [page("the mill turns the mill turns")]);
    assert_eq!(texts(&out), ["the mill turns", "the mill turns"]);
    // To this model it is one unknown word.
    let out = run_stage(&mut stage, [page(&"x".repeat(200))]);
    assert_eq!(
        texts(&out)
            .iter()
            .map(|text| text.len())
            .collect::<Vec<_>>(),
        [80, 80, 40]
    );
}

#[test]
fn settings_that_cannot_be_used_are_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let resources = with_tiny_model(root.path());
    let complaint = |config: &ChunkTextConfig| {
        let error = ChunkText::new(config, &resources).err().unwrap();
        error.to_string()
    };
    assert_eq!(complaint(&of_tokens(0)), "`max_tokens` must be at least 1");
    let config = ChunkTextConfig {
        overlap_tokens: 9,
        ..of_tokens(9)
    };
    assert_eq!(
        complaint(&config),
        "`overlap_tokens` must be less than `max_tokens`, which is 9"
    );
    let config = ChunkTextConfig {
        max_chars: Some(0),
        ..of_tokens(9)
    };
    assert_eq!(complaint(&config), "`max_chars` must be at least 1");
    let config = ChunkTextConfig {
        model: Some(TINY_MODEL.into()),
        ..of_tokens(17)
    };
    assert_eq!(
        complaint(&config),
        "`max_tokens` is 17, and the model reads 16 tokens"
    );
    let config = ChunkTextConfig {
        model: Some("./nowhere".into()),
        ..of_tokens(9)
    };
    assert_eq!(
        complaint(&config),
        "`model` names no model: `./nowhere` is not in `./nowhere`"
    );
}
