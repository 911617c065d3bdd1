use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::{
    DynamicImage, ExtendedColorType, GrayImage, ImageEncoder, ImageFormat, Luma, LumaA, Rgb,
    RgbImage, Rgba,
};
use pagemill_pipeline::Value;
use pagemill_pipeline::testing::{StageOutput, run_stage};

use super::*;
use crate::cage::testing::worker_command;

fn decode_with(config: &DecodeImageConfig, media_type: &str, bytes: &[u8]) -> StageOutput {
    let item = Item::of_document("a.img", media_type, bytes.to_vec());
    run_stage(&mut stage(config, ""), [item])
}

/// The stage, with a worker that commits a misdeed.
fn stage(config: &DecodeImageConfig, misdeed: &str) -> DecodeImage {
    DecodeImage::new(config, worker_command(misdeed)).unwrap()
}

fn decode(media_type: &str, bytes: &[u8]) -> StageOutput {
    decode_with(&DecodeImageConfig::default(), media_type, bytes)
}

fn encode(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    picture
        .into()
        .write_to(&mut Cursor::new(&mut bytes), format)
        .unwrap();
    bytes
}

/// Red above, blue below: 4 wide, 8 high.
fn flag() -> RgbImage {
    RgbImage::from_fn(4, 8, |_, y| {
        Rgb(if y < 4 { [255, 0, 0] } else { [0, 0, 255] })
    })
}

fn pixel(item: &Item, x: u32, y: u32) -> [u8; 3] {
    let image = item.image().unwrap();
    let at = (y * image.width_px + x) as usize * 3;
    image.pixels[at..at + 3].try_into().unwrap()
}

fn size(item: &Item) -> (u32, u32) {
    let image = item.image().unwrap();
    (image.width_px, image.height_px)
}

fn reasons(out: &StageOutput) -> Vec<&str> {
    out.dead.iter().map(|(_, reason)| reason.as_str()).collect()
}

fn near(found: [u8; 3], expected: [u8; 3]) -> bool {
    found.iter().zip(expected).all(|(a, b)| a.abs_diff(b) < 40)
}

#[test]
fn a_picture_of_each_kind_is_page_one_of_its_document() {
    for (media_type, format) in [
        ("image/png", ImageFormat::Png),
        ("image/jpeg", ImageFormat::Jpeg),
        ("image/tiff", ImageFormat::Tiff),
        ("image/webp", ImageFormat::WebP),
    ] {
        let out = decode(media_type, &encode(flag(), format));
        assert!(out.dead.is_empty(), "{:?}", reasons(&out));
        let page = &out.sent[0];
        assert_eq!(page.label().to_string(), "a.img#1");
        assert_eq!(size(page), (4, 8));
        assert!(near(pixel(page, 1, 1), [255, 0, 0]) && near(pixel(page, 1, 6), [0, 0, 255]));
        assert_eq!(page.text(), Some(""));
        assert!(page.words().unwrap().is_empty() && page.document().is_none());
        assert!(matches!(page.get("page_count"), Some(Value::Integer(1))));
        assert!(matches!(page.get("renderer"), Some(Value::Text(by)) if **by == *"image"));
    }
}

#[test]
fn what_is_transparent_shows_white_paper() {
    let half = image::RgbaImage::from_fn(2, 1, |x, _| {
        Rgba(if x == 0 { [9, 9, 9, 0] } else { [0, 0, 0, 128] })
    });
    let out = decode("image/png", &encode(half, ImageFormat::Png));
    assert_eq!(pixel(&out.sent[0], 0, 0), [255, 255, 255]);
    assert_eq!(pixel(&out.sent[0], 1, 0), [127, 127, 127]);
    let gray = image::ImageBuffer::from_pixel(1, 1, LumaA([0_u16, 0]));
    let out = decode(
        "image/png",
        &encode(DynamicImage::from(gray), ImageFormat::Png),
    );
    assert_eq!(pixel(&out.sent[0], 0, 0), [255, 255, 255]);
}

#[test]
fn gray_and_sixteen_bits_become_eight_bits_of_each_colour() {
    let gray = GrayImage::from_pixel(1, 1, Luma([77]));
    let out = decode("image/png", &encode(gray, ImageFormat::Png));
    assert_eq!(pixel(&out.sent[0], 0, 0), [77, 77, 77]);
    let deep = image::ImageBuffer::from_pixel(1, 1, Rgb([0x8000_u16, 0, 0xffff]));
    for (media_type, format) in [
        ("image/png", ImageFormat::Png),
        ("image/tiff", ImageFormat::Tiff),
    ] {
        let out = decode(
            media_type,
            &encode(DynamicImage::from(deep.clone()), format),
        );
        assert_eq!(pixel(&out.sent[0], 0, 0), [128, 0, 255]);
    }
}

#[test]
fn a_photograph_is_turned_upright_as_its_camera_says() {
    // EXIF in TIFF form: one entry, orientation 6, "turn clockwise to show".
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let mut photograph = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut photograph, 100);
    encoder.set_exif_metadata(exif.to_vec()).unwrap();
    encoder
        .write_image(&flag(), 4, 8, ExtendedColorType::Rgb8)
        .unwrap();
    for long_side_px in [2048, 4] {
        let config = DecodeImageConfig {
            long_side_px,
            ..DecodeImageConfig::default()
        };
        let out = decode_with(&config, "image/jpeg", &photograph);
        let page = &out.sent[0];
        let (width_px, height_px) = size(page);
        assert_eq!(width_px, 2 * height_px);
        // What was above is now at the right.
        assert!(near(pixel(page, 0, 0), [0, 0, 255]));
        assert!(near(pixel(page, width_px - 1, 0), [255, 0, 0]));
    }
}

#[test]
fn a_large_picture_is_shrunk_as_soon_as_it_is_decoded() {
    let config = DecodeImageConfig {
        long_side_px: 100,
        ..DecodeImageConfig::default()
    };
    let wide = RgbImage::from_pixel(300, 150, Rgb([1, 2, 3]));
    let out = decode_with(&config, "image/png", &encode(wide, ImageFormat::Png));
    assert_eq!(size(&out.sent[0]), (100, 50));
    assert_eq!(pixel(&out.sent[0], 50, 25), [1, 2, 3]);
}

/// A classic TIFF of gray pages, each of one pixel of this value. Its pages
/// stand in `order`; a `None` makes a directory that is no picture.
fn tiff_of(pages: &[Option<u8>]) -> Vec<u8> {
    let mut file = b"II*\0\x08\0\0\0".to_vec();
    for (index, page) in pages.iter().enumerate() {
        let width = u32::from(page.is_some());
        let place = file.len() as u32;
        let entries = [
            (256_u16, width),
            (257, 1),
            (258, 8),                      // Bits of a sample.
            (259, 1),                      // No compression.
            (262, 1),                      // Zero is black.
            (273, place + 2 + 8 * 12 + 4), // Where the pixel stands.
            (278, 1),
            (279, 1),
        ];
        file.extend((entries.len() as u16).to_le_bytes());
        for (tag, value) in entries {
            file.extend(tag.to_le_bytes());
            file.extend(4_u16.to_le_bytes());
            file.extend(1_u32.to_le_bytes());
            file.extend(value.to_le_bytes());
        }
        let next = if index + 1 < pages.len() {
            place + 2 + 8 * 12 + 4 + 2
        } else {
            0
        };
        file.extend(next.to_le_bytes());
        file.extend([page.unwrap_or(0), 0]);
    }
    file
}

#[test]
fn each_page_of_a_tiff_is_a_page_and_a_bad_one_costs_itself_alone() {
    let out = decode("image/tiff", &tiff_of(&[Some(10), None, Some(30)]));
    let pages: Vec<_> = out.sent.iter().map(|page| page.key().page).collect();
    assert_eq!(pages, [Some(1), Some(3)]);
    assert_eq!(pixel(&out.sent[0], 0, 0), [10; 3]);
    assert_eq!(pixel(&out.sent[1], 0, 0), [30; 3]);
    assert!(matches!(
        out.sent[1].get("page_count"),
        Some(Value::Integer(3))
    ));
    assert_eq!(out.dead.len(), 1);
    assert!(reasons(&out)[0].starts_with("cannot decode `a.img#2`: it is damaged"));
}

#[test]
fn a_tiff_with_more_pages_than_the_limit_is_one_dead_letter() {
    let file = tiff_of(&[Some(10), Some(20), Some(30)]);
    let limited = |max_pages| DecodeImageConfig {
        max_pages,
        ..DecodeImageConfig::default()
    };
    let out = decode_with(&limited(2), "image/tiff", &file);
    assert_eq!(out.sent.len(), 0);
    let expected = "cannot decode `a.img`: it has 3 pages, and `max_pages` is 2";
    assert_eq!(reasons(&out), [expected]);
    let out = decode_with(&limited(3), "image/tiff", &file);
    assert_eq!((out.sent.len(), out.dead.len()), (3, 0));
}

#[test]
fn the_pages_of_a_picture_are_counted_as_they_would_be_decoded() {
    let config = DecodeImageConfig {
        max_pages: 3,
        ..DecodeImageConfig::default()
    };
    let mut stage = stage(&config, "");
    let mut count = |media_type: &str, bytes: &[u8]| {
        let item = Item::of_document("a.img", media_type, bytes.to_vec());
        stage.count_pages(&item).unwrap()
    };
    let png = encode(flag(), ImageFormat::Png);
    assert!(matches!(count("image/png", &png), PageCount::Pages(1)));
    let tiff = tiff_of(&[Some(10), Some(20), Some(30)]);
    assert!(matches!(count("image/tiff", &tiff), PageCount::Pages(3)));
    let long = tiff_of(&[Some(1), Some(2), Some(3), Some(4)]);
    for (media_type, bytes) in [("image/tiff", &long[..]), ("image/x-odd", &png)] {
        let counted = count(media_type, bytes);
        assert!(matches!(counted, PageCount::Unreadable(_)), "{counted:?}");
    }
    let pdf = count("application/pdf", b"%PDF-1.7");
    assert!(matches!(pdf, PageCount::Unknown));
}

#[test]
fn a_tiff_whose_pages_run_in_a_circle_ends_where_it_began() {
    let mut file = tiff_of(&[Some(1), Some(2)]);
    let last = file.len() - 6;
    file[last..last + 4].copy_from_slice(&8_u32.to_le_bytes());
    assert_eq!(decode("image/tiff", &file).sent.len(), 2);
    // One that leads out of the file leads to a page that is not there.
    file[last..last + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let out = decode("image/tiff", &file);
    assert_eq!(out.sent.len(), 2);
    assert_eq!(
        reasons(&out),
        ["cannot decode `a.img#3`: it ends before the picture does"]
    );
}

#[test]
fn a_tiff_without_a_page_is_one_dead_letter() {
    for (file, reason) in [
        (&b"II*\0\0\0\0\0"[..], "it is damaged (it has no page)"),
        (b"II*\0", "it is damaged (it has no page)"),
        (b"II", "it is damaged (its header is no TIFF header)"),
    ] {
        let out = decode("image/tiff", file);
        assert_eq!(reasons(&out), [format!("cannot decode `a.img`: {reason}")]);
    }
}

/// A PNG of a few bytes that claims to have this size.
fn claiming_png(width_px: u32, height_px: u32) -> Vec<u8> {
    let mut bytes = encode(GrayImage::new(1, 1), ImageFormat::Png);
    bytes[16..20].copy_from_slice(&width_px.to_be_bytes());
    bytes[20..24].copy_from_slice(&height_px.to_be_bytes());
    let check = crc(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&check.to_be_bytes());
    bytes
}

fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[test]
fn a_picture_that_claims_to_be_huge_is_set_aside_without_being_decoded() {
    let out = decode("image/png", &claiming_png(100_000, 100_000));
    assert_eq!(
        reasons(&out),
        ["cannot decode `a.img#1`: it has 100000 x 100000 px, and `limits.pixels` is 178956970"]
    );
    let mut file = tiff_of(&[Some(1)]);
    file[18..22].copy_from_slice(&u32::MAX.to_le_bytes()); // Width.
    let out = decode("image/tiff", &file);
    assert_eq!(
        reasons(&out),
        ["cannot decode `a.img#1`: it has 4294967295 x 1 px, and `limits.pixels` is 178956970"]
    );
    let config = DecodeImageConfig {
        limits: DocumentLimits {
            memory_mb: 100,
            ..DocumentLimits::default()
        },
        ..DecodeImageConfig::default()
    };
    let out = decode_with(&config, "image/png", &claiming_png(10_000, 10_000));
    assert_eq!(
        reasons(&out),
        ["cannot decode `a.img#1`: decoding it takes 382 MB, and `limits.memory_mb` is 100"]
    );
}

#[test]
fn a_damaged_picture_is_a_dead_letter_whatever_its_kind() {
    for (media_type, format) in [
        ("image/png", ImageFormat::Png),
        ("image/jpeg", ImageFormat::Jpeg),
        ("image/tiff", ImageFormat::Tiff),
        ("image/webp", ImageFormat::WebP),
    ] {
        let whole = encode(flag(), format);
        let mut stage = stage(&DecodeImageConfig::default(), "");
        let mut decode = |bytes: &[u8]| {
            let item = Item::of_document("a.img", media_type, bytes.to_vec());
            run_stage(&mut stage, [item])
        };
        for n_bytes in [0, 1, 7, 12, 20] {
            let out = decode(&whole[..n_bytes]);
            assert_eq!(
                (out.sent.len(), out.dead.len()),
                (0, 1),
                "{media_type} {n_bytes}"
            );
            assert!(reasons(&out)[0].starts_with("cannot decode `a.img"));
        }
        // However it is cut, it gives a page or a dead letter and no panic.
        for n_bytes in 0..whole.len() {
            let out = decode(&whole[..n_bytes]);
            assert_eq!(out.sent.len() + out.dead.len(), 1, "{media_type} {n_bytes}");
        }
    }
}

#[test]
fn a_photograph_that_was_not_copied_whole_is_no_page() {
    let whole = encode(
        RgbImage::from_fn(64, 64, |x, y| Rgb([x as u8 * 4, y as u8 * 4, 0])),
        ImageFormat::Jpeg,
    );
    let out = decode("image/jpeg", &whole[..whole.len() - 2]);
    assert_eq!(
        reasons(&out),
        ["cannot decode `a.img#1`: it ends before the picture does"]
    );
    // What a camera appends does no harm.
    let longer = [&whole[..], b"appended"].concat();
    assert_eq!(decode("image/jpeg", &longer).sent.len(), 1);
}

#[test]
fn what_is_no_picture_or_has_an_image_passes_unchanged() {
    let pdf = Item::of_document("a.pdf", "application/pdf", vec![1]);
    let done = Item::of_document("a.png", "image/png", vec![1])
        .with("image", Image::new(vec![1, 2, 3], 1, 1, None).unwrap());
    let mut stage = stage(&DecodeImageConfig::default(), "");
    let out = run_stage(&mut stage, [pdf, done]);
    assert!(out.dead.is_empty());
    assert_eq!(out.sent[0].document().unwrap().len(), 1);
    assert_eq!(pixel(&out.sent[1], 0, 0), [1, 2, 3]);
    assert_eq!(out.sent[1].key().page, None);
}

#[test]
fn a_picture_without_its_bytes_or_of_another_kind_is_set_aside() {
    let bare = Item::of_document("a.png", "image/png", vec![1]).child();
    let other = Item::of_document("a.gif", "image/gif", vec![1]);
    let mut stage = stage(&DecodeImageConfig::default(), "");
    let out = run_stage(&mut stage, [bare, other]);
    assert_eq!(
        reasons(&out),
        [
            "cannot decode `a.png`: it has no `document`",
            "cannot decode `a.gif`: `image/gif` is no kind of picture it reads",
        ]
    );
}

#[test]
fn settings_that_leave_no_room_are_refused() {
    let default = DecodeImageConfig::default;
    let refusal = |config: &DecodeImageConfig| {
        let refused = DecodeImage::new(config, worker_command(""));
        refused.err().unwrap().to_string()
    };
    let config = DecodeImageConfig {
        long_side_px: 0,
        ..default()
    };
    assert_eq!(refusal(&config), "`long_side_px` must be from 1 to 65535");
    let limits = DocumentLimits {
        pixels: 0,
        ..DocumentLimits::default()
    };
    let config = DecodeImageConfig {
        limits,
        ..default()
    };
    assert!(refusal(&config).starts_with("`limits` leaves no room"));
}

#[test]
fn a_page_that_its_decoder_does_not_survive_costs_itself_alone() {
    for (misdeed, page_s, what) in [
        ("abort picture 1", 20, "was killed by signal 6 (abort)"),
        ("hang picture 1", 1, "took longer than 1 s"),
        ("eat picture 1", 20, "used more than 200 MB"),
        (
            "socket picture 1",
            20,
            "was killed by signal 31 (forbidden system call)",
        ),
    ] {
        let limits = DocumentLimits {
            page_s,
            memory_mb: 200,
            ..DocumentLimits::default()
        };
        let config = DecodeImageConfig {
            limits,
            ..DecodeImageConfig::default()
        };
        let file = tiff_of(&[Some(1), Some(2), Some(3)]);
        let item = Item::of_document("a.img", "image/tiff", file);
        let out = run_stage(&mut stage(&config, misdeed), [item]);
        let pages: Vec<_> = out.sent.iter().map(|page| page.key().page).collect();
        assert_eq!(pages, [Some(1), Some(3)]);
        assert_eq!(
            reasons(&out),
            [format!("cannot decode `a.img#2`: its decoder {what}")]
        );
    }
}

#[test]
fn wherever_a_picture_is_decoded_its_pixels_are_the_same() {
    let picture = encode(flag(), ImageFormat::Png);
    for isolation in [Isolation::Cage, Isolation::Process, Isolation::None] {
        let config = DecodeImageConfig {
            isolation,
            ..DecodeImageConfig::default()
        };
        let out = decode_with(&config, "image/png", &picture);
        assert_eq!(size(&out.sent[0]), (4, 8), "{isolation:?}");
        assert_eq!(pixel(&out.sent[0], 1, 1), [255, 0, 0]);
    }
}
