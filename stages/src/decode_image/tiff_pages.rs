//! The pages of a TIFF, each as a document of its own.
//!
//! `image` decodes the first page only. So the chain of page directories is
//! followed here, and the header of a copy is pointed at one page after the
//! other: colours, compression and orientation stay the library's work.

use std::borrow::Cow;
use std::collections::HashSet;

use super::picture::PictureError;

/// A chain of more directories than this is an attack or an accident.
const MAX_PAGES: usize = 100_000;

/// A TIFF whose header can point at any of its pages.
pub(super) struct TiffPages<'a> {
    document: Cow<'a, [u8]>,
    layout: Layout,
    /// Where each page's directory stands.
    places: Vec<u64>,
    is_cut_off: bool,
}

/// How numbers are written in this file.
#[derive(Clone, Copy)]
struct Layout {
    little_endian: bool,
    /// `BigTIFF`: places take eight bytes.
    big: bool,
}

impl<'a> TiffPages<'a> {
    /// Follows the chain of directories.
    ///
    /// A chain that runs in a circle or out of the file ends there, unless
    /// that is before the first page.
    pub(super) fn find(document: &'a [u8]) -> Result<Self, PictureError> {
        let damaged = |what: &str| PictureError::Damaged(what.to_owned());
        let layout = Layout::of(document).ok_or_else(|| damaged("its header is no TIFF header"))?;
        let header = layout.header_place();
        let mut next = layout.read_place(document, header);
        let (mut places, mut seen) = (Vec::new(), HashSet::new());
        let mut is_cut_off = false;
        while let Some(place) = next.filter(|place| *place != 0 && seen.insert(*place)) {
            let Some(after) = layout.after_directory(document, place) else {
                is_cut_off = true;
                break;
            };
            places.push(place);
            if places.len() > MAX_PAGES {
                return Err(damaged("it claims more than 100,000 pages"));
            }
            // Some writers leave out the mark that ends the chain.
            next = layout.read_place(document, after);
        }
        if places.is_empty() {
            return Err(damaged("it has no page"));
        }
        Ok(Self {
            document: Cow::Borrowed(document),
            layout,
            places,
            is_cut_off,
        })
    }

    /// Whether the last page names another one that the file does not hold.
    pub(super) fn is_cut_off(&self) -> bool {
        self.is_cut_off
    }

    pub(super) fn n_pages(&self) -> usize {
        self.places.len()
    }

    /// The document as if page `index` (from 0) were its first.
    pub(super) fn only(&mut self, index: usize) -> &[u8] {
        if index > 0 {
            // Copied once, when a second page is wanted.
            let document = self.document.to_mut();
            self.layout.write_first_place(document, self.places[index]);
        }
        &self.document
    }
}

impl Layout {
    fn of(document: &[u8]) -> Option<Self> {
        let (little_endian, version) = match document {
            [b'I', b'I', version, 0, ..] => (true, *version),
            [b'M', b'M', 0, version, ..] => (false, *version),
            _ => return None,
        };
        let big = match version {
            42 => false,
            43 => true,
            _ => return None,
        };
        Some(Self { little_endian, big })
    }

    /// Where the header names the first directory.
    fn header_place(self) -> usize {
        if self.big { 8 } else { 4 }
    }

    fn place_len(self) -> usize {
        if self.big { 8 } else { 4 }
    }

    /// Where a directory names the next one.
    fn after_directory(self, document: &[u8], place: u64) -> Option<usize> {
        let place = usize::try_from(place).ok()?;
        // A count of entries, then the entries.
        let (count_len, entry_len) = if self.big { (8, 20) } else { (2, 12) };
        let n_entries = usize::try_from(self.read(document, place, count_len)?).ok()?;
        n_entries
            .checked_mul(entry_len)?
            .checked_add(place)?
            .checked_add(count_len)
            .filter(|after| *after <= document.len())
    }

    fn read_place(self, document: &[u8], at: usize) -> Option<u64> {
        self.read(document, at, self.place_len())
    }

    fn read(self, document: &[u8], at: usize, len: usize) -> Option<u64> {
        let bytes = document.get(at..at.checked_add(len)?)?;
        let join = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if self.little_endian {
            bytes.iter().rev().fold(0, join)
        } else {
            bytes.iter().fold(0, join)
        })
    }

    fn write_first_place(self, document: &mut [u8], place: u64) {
        let (at, len) = (self.header_place(), self.place_len());
        let bytes = if self.little_endian {
            place.to_le_bytes()[..len].to_vec()
        } else {
            place.to_be_bytes()[8 - len..].to_vec()
        };
        document[at..at + len].copy_from_slice(&bytes);
    }
}
