//! Sources and stages: from files to pages, words, chunks and vectors.
