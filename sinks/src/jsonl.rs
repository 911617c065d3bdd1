//! `kind = "jsonl"`: one JSON object an item, in one file.
