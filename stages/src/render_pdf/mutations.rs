//! Damaged documents, by the hundred: the run ends, and nothing piles up.
//!
//! `PAGEMILL_MUTATIONS=2000` tries so many, and `PAGEMILL_CORPUS` names a folder
//! with PDFs to damage; without one, those of `examples/documents` are taken.

use std::path::{Path, PathBuf};

use pagemill_pipeline::testing::run_stage;
use pagemill_pipeline::{Item, Resources, StageConfig};

use super::testing::{pdfium, three_pages};
use super::{DocumentLimits, RenderPdfConfig, RenderSetup};
use crate::cage::testing::worker_command;

/// Numbers that look random and are the same in each run (`SplitMix64`).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Changes, moves, doubles or takes away some bytes.
fn damage(document: &mut Vec<u8>, numbers: &mut Numbers) {
    const WORDS: [&[u8]; 8] = [
        b"4294967295",
        b"-1",
        b" 0 R",
        b"<<",
        b"[",
        b"endobj",
        b"stream\n",
        b"1e999",
    ];
    for _ in 0..=numbers.below(8) {
        let at = numbers.below(document.len());
        let until = (at + numbers.below(64)).min(document.len());
        match numbers.below(6) {
            0 => document[at..until]
                .iter_mut()
                .for_each(|byte| *byte ^= 0x15),
            1 => drop(document.drain(at..until)),
            2 => {
                let part = document[at..until].to_vec();
                let to = numbers.below(document.len());
                drop(document.splice(to..to, part));
            }
            3 => document.truncate(at.max(1)),
            4 => {
                let word = WORDS[numbers.below(WORDS.len())];
                drop(document.splice(at..until, word.iter().copied()));
            }
            _ => document[at] = numbers.next() as u8,
        }
        if document.is_empty() {
            document.push(b'%');
        }
    }
}

fn corpus() -> Vec<PathBuf> {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/documents");
    let folder = std::env::var_os("PAGEMILL_CORPUS").map_or(samples, PathBuf::from);
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pdf"))
        .collect();
    paths.sort();
    paths
}

fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = line.unwrap().split_whitespace().next().unwrap();
    kb.parse::<u64>().unwrap() >> 10
}

#[test]
fn damaged_documents_end_as_pages_or_dead_letters_and_memory_stays() {
    let n_mutations = std::env::var("PAGEMILL_MUTATIONS").ok();
    let n_mutations: u32 = n_mutations.map_or(60, |n| n.parse().unwrap());
    let paths = corpus();
    if paths.is_empty() {
        println!("there are no PDFs to damage: nothing is tested");
        return;
    }
    let resources = Resources::default();
    let setup = RenderSetup {
        worker: worker_command(""),
        pdfium: pdfium(),
    };
    resources.insert(RenderPdfConfig::KIND, setup);
    let config = RenderPdfConfig {
        long_side_px: 200,
        first_pages: Some(5),
        limits: DocumentLimits {
            page_s: 2,
            document_s: 10,
            memory_mb: 256,
            ..DocumentLimits::default()
        },
        ..RenderPdfConfig::default()
    };
    let mut stage = config.build(&resources).unwrap();
    let mut render = |name: String, bytes| {
        let out = run_stage(
            &mut *stage,
            [Item::of_document(name, "application/pdf", bytes)],
        );
        assert!(out.error.is_none(), "{:?}", out.error);
        (out.sent.len(), out.dead.len())
    };
    assert_eq!(render("mill.pdf".into(), three_pages()), (3, 0));
    let base_mb = resident_mb();
    let mut numbers = Numbers(20_26);
    let (mut n_pages, mut n_dead) = (0, 0);
    for mutation in 0..n_mutations {
        let path = &paths[numbers.below(paths.len())];
        let mut document = std::fs::read(path).unwrap();
        damage(&mut document, &mut numbers);
        let name = format!("{mutation}-{}", path.display());
        let (sent, dead) = render(name, document);
        assert!(sent + dead > 0);
        (n_pages, n_dead) = (n_pages + sent, n_dead + dead);
        if mutation % 50 == 0 {
            let resident_mb = resident_mb();
            assert!(
                resident_mb < base_mb + 300,
                "{base_mb} MB became {resident_mb}"
            );
        }
    }
    println!("{n_mutations} documents: {n_pages} pages, {n_dead} dead letters, from {base_mb} MB");
    assert_eq!(render("mill.pdf".into(), three_pages()), (3, 0));
    assert!(resident_mb() < base_mb + 300);
}
