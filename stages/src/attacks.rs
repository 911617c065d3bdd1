//! Documents that are made to harm, for tests: each is small and built here.
//!
//! Not part of the interface: they come and go with what is known.

mod deflate;
mod file;
mod pdfs;
mod pictures;

/// A document that is made to harm.
pub struct Attack {
    /// What it does.
    pub name: &'static str,
    /// As a source would give it.
    pub media_type: &'static str,
    /// The document.
    pub bytes: Vec<u8>,
}

/// All of them, PDFs and pictures.
pub fn documents() -> Vec<Attack> {
    let mut attacks = pdfs::all();
    attacks.extend(pictures::all());
    attacks
}

#[cfg(test)]
mod tests;
