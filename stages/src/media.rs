//! Finds a file's media type by its first bytes, never by its name.

/// Media type of the documents that `render_pdf` reads.
pub(crate) const PDF: &str = "application/pdf";
/// What all media types of pictures begin with.
pub(crate) const PICTURE: &str = "image/";

/// Readers accept a PDF whose header stands this far into the file: mail
/// gateways and printers put lines of their own before it.
const PDF_HEADER_BYTES: usize = 1024;

/// What a file's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// The media type of something that a stage reads.
    Supported(&'static str),
    /// The media type of something that none reads.
    Other(&'static str),
    /// Nothing known.
    Unknown,
}

/// Looks at a file's bytes, of which the first kilobytes suffice.
pub(crate) fn content(bytes: &[u8]) -> Content {
    if let Some(picture) = picture(bytes) {
        return Content::Supported(picture);
    }
    let head = &bytes[..bytes.len().min(PDF_HEADER_BYTES)];
    if head.windows(5).any(|window| window == b"%PDF-") {
        return Content::Supported(PDF);
    }
    if let Some(known) = infer::get(bytes) {
        return Content::Other(known.mime_type());
    }
    if is_text(bytes) {
        return Content::Other("text/plain");
    }
    Content::Unknown
}

/// The media type of a picture that `decode_image` reads.
fn picture(bytes: &[u8]) -> Option<&'static str> {
    // Not `infer`: it takes a TIFF whose first pixels read `CR` for a camera's
    // raw file, and does not know `BigTIFF`.
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some("image/tiff"),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Some("image/webp"),
        _ => None,
    }
}

/// Whether the first kilobytes are text without control characters.
fn is_text(bytes: &[u8]) -> bool {
    const LOOKED_AT_BYTES: usize = 4096;
    let head = &bytes[..bytes.len().min(LOOKED_AT_BYTES)];
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The cut may have gone through a character.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    let is_odd = |c: char| c.is_control() && !c.is_whitespace();
    !text.is_empty() && !text.contains(is_odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pdf_may_have_lines_before_its_header() {
        assert_eq!(content(b"%PDF-1.7\n"), Content::Supported(PDF));
        let mut late = b"Received: by mail\r\n".repeat(50);
        late.extend(b"%PDF-1.4\n");
        assert_eq!(content(&late), Content::Supported(PDF));
        let mut too_late = vec![b' '; 1024];
        too_late.extend(b"%PDF-1.4\n");
        assert_eq!(content(&too_late), Content::Other("text/plain"));
    }

    #[test]
    fn pictures_are_told_by_their_first_bytes() {
        for (bytes, media_type) in [
            (&b"\x89PNG\r\n\x1a\n"[..], "image/png"),
            (b"\xff\xd8\xff\xe0", "image/jpeg"),
            (b"II*\0\x08\0\0\0CR", "image/tiff"),
            (b"MM\0*", "image/tiff"),
            (b"MM\0+\0\x08", "image/tiff"),
            (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
        ] {
            assert_eq!(content(bytes), Content::Supported(media_type));
        }
    }

    #[test]
    fn other_content_is_named_where_it_is_known() {
        assert_eq!(content(b"GIF89a"), Content::Other("image/gif"));
        assert_eq!(content(b"PK\x03\x04zip"), Content::Other("application/zip"));
        assert_eq!(content("mühle\n".as_bytes()), Content::Other("text/plain"));
        let cut = "ü".repeat(3000);
        assert_eq!(content(&cut.as_bytes()[1..]), Content::Unknown);
        assert_eq!(content(cut.as_bytes()), Content::Other("text/plain"));
        assert_eq!(content(&[0, 1, 2, 3, 4, 5]), Content::Unknown);
        assert_eq!(content(b""), Content::Unknown);
    }
}
