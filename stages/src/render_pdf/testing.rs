//! For tests: small PDFs, and the stage over them.

use std::fmt::Write as _;
use std::path::PathBuf;

use pagemill_pipeline::testing::{StageOutput, run_stage};
use pagemill_pipeline::{Item, Resources, Stage, StageConfig};

use super::config::{RenderPdfConfig, RenderSetup, find_pdfium};
use crate::cage::testing::worker_command;

/// libpdfium, where the setup script puts it. Tests that need it pass without
/// it, and say that they did nothing.
pub fn pdfium() -> Option<PathBuf> {
    let home = std::env::home_dir().unwrap_or_default();
    let found = find_pdfium([home.join(".cache/pagemill/pdfium/libpdfium.so")]);
    if found.is_none() {
        println!("libpdfium is not installed: hayro alone is tested");
    }
    found
}

/// Runs the stage over one PDF, with workers that commit `misdeed`.
pub fn render(config: &RenderPdfConfig, misdeed: &str, pdf: &[u8]) -> StageOutput {
    run_stage(&mut *stage(config, misdeed), [document(pdf)])
}

/// A PDF as the source sends it.
pub fn document(pdf: &[u8]) -> Item {
    Item::of_document("mill.pdf", "application/pdf", pdf.to_vec())
}

/// The stage, with workers that commit `misdeed`.
pub fn stage(config: &RenderPdfConfig, misdeed: &str) -> Box<dyn Stage> {
    let resources = Resources::default();
    let setup = RenderSetup {
        worker: worker_command(misdeed),
        pdfium: pdfium(),
    };
    resources.insert(RenderPdfConfig::KIND, setup);
    config.build(&resources).unwrap()
}

/// The sentences of the dead letters.
pub fn reasons(output: &StageOutput) -> Vec<&str> {
    output
        .dead
        .iter()
        .map(|(_, reason)| reason.as_str())
        .collect()
}

/// A PDF of these objects, numbered from 1; the first is the catalog, the
/// second may be the document information.
pub fn pdf_of(objects: &[String]) -> Vec<u8> {
    let mut pdf = String::from("%PDF-1.7\n");
    let mut table = format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
    for (index, object) in objects.iter().enumerate() {
        writeln!(table, "{:010} 00000 n ", pdf.len()).unwrap();
        writeln!(pdf, "{} 0 obj\n{object}\nendobj", index + 1).unwrap();
    }
    let place = pdf.len();
    let n_objects = objects.len() + 1;
    write!(
        pdf,
        "{table}trailer\n<< /Size {n_objects} /Root 1 0 R /Info 2 0 R >>\n"
    )
    .unwrap();
    write!(pdf, "startxref\n{place}\n%%EOF\n").unwrap();
    pdf.into_bytes()
}

/// A page of a test document.
pub struct TestPage<'a> {
    /// Entries of the page besides those that every page has.
    pub entries: &'a str,
    /// Lines of text from the top, 12 points high, 20 points apart.
    pub lines: &'a [&'a str],
}

/// Half of A4, upright.
pub const UPRIGHT: &str = "/MediaBox [0 0 420 595]";

/// A PDF with these pages, called `The Mill` by `Ann Miller`.
pub fn pdf(pages: &[TestPage<'_>]) -> Vec<u8> {
    let mut objects = vec![
        "<< /Type /Catalog /Pages 3 0 R >>".to_owned(),
        "<< /Title (The Mill) /Author (Ann Miller) >>".to_owned(),
        String::new(),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_owned(),
    ];
    let mut kids = String::new();
    for page in pages {
        let mut content = "BT /F 12 Tf 20 TL 50 500 Td".to_owned();
        for line in page.lines {
            write!(content, " ({line}) Tj T*").unwrap();
        }
        content.push_str(" ET");
        let number = objects.len() + 1;
        write!(kids, "{number} 0 R ").unwrap();
        objects.push(format!(
            "<< /Type /Page /Parent 3 0 R /Resources << /Font << /F 4 0 R >> >> \
             /Contents {} 0 R {} >>",
            number + 1,
            page.entries
        ));
        objects.push(format!(
            "<< /Length {} >>\nstream\n{content}\nendstream",
            content.len()
        ));
    }
    objects[2] = format!("<< /Type /Pages /Kids [{kids}] /Count {} >>", pages.len());
    pdf_of(&objects)
}

/// Three pages: `first page`, `second page`, `third page`.
pub fn three_pages() -> Vec<u8> {
    let lines = [["first page"], ["second page"], ["third page"]];
    let pages = lines.each_ref().map(|lines| TestPage {
        entries: UPRIGHT,
        lines,
    });
    pdf(&pages)
}

/// Pages with the text `page 0`, `page 1`, and so on.
pub fn numbered_pages(n_pages: usize) -> Vec<u8> {
    let texts: Vec<String> = (0..n_pages).map(|page| format!("page {page}")).collect();
    let lines: Vec<[&str; 1]> = texts.iter().map(|text| [text.as_str()]).collect();
    let pages = lines.iter().map(|lines| TestPage {
        entries: UPRIGHT,
        lines,
    });
    pdf(&pages.collect::<Vec<_>>())
}

/// The same document, locked with a user password.
pub fn locked(pdf: &[u8], password: &str) -> Vec<u8> {
    use lopdf::{Document, EncryptionState, EncryptionVersion, Object, Permissions};
    let mut document = Document::load_mem(pdf).unwrap();
    let id = || Object::string_literal(&b"0123456789abcdef"[..]);
    document.trailer.set("ID", Object::Array(vec![id(), id()]));
    let version = EncryptionVersion::V2 {
        document: &document,
        owner_password: "miller",
        user_password: password,
        key_length: 128,
        permissions: Permissions::all(),
    };
    let state = EncryptionState::try_from(version).unwrap();
    document.encrypt(&state).unwrap();
    let mut locked = Vec::new();
    document.save_to(&mut locked).unwrap();
    locked
}
