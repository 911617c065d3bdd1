use std::os::fd::AsFd;

use super::*;
use crate::cage::shared::{PageBuffer, map_page_buffer};

fn reply() -> PageReply {
    PageReply {
        width_px: 10,
        height_px: 20,
        width_pt: 36.0,
        height_pt: 72.0,
        text: PageText::default(),
    }
}

#[test]
fn a_message_arrives_with_its_descriptor() {
    let (mut here, mut there) = UnixStream::pair().unwrap();
    let buffer = PageBuffer::new(16).unwrap();
    let request = Request::Open(Reader::Pdf {
        renderer: Renderer::Hayro,
        passwords: vec!["corn".into()],
    });
    send(&mut here, &request, Some(buffer.as_fd())).unwrap();
    let (request, carried) = receive::<Request>(&mut there, None).unwrap();
    assert!(matches!(
        request,
        Request::Open(Reader::Pdf { passwords, .. }) if passwords == ["corn"]
    ));
    assert_eq!(map_page_buffer(&carried.unwrap()).unwrap().len(), 16);
}

#[test]
fn a_frame_longer_than_the_cap_is_refused_before_it_is_read() {
    let (mut here, mut there) = UnixStream::pair().unwrap();
    here.write_all(&u32::MAX.to_le_bytes()).unwrap();
    let error = receive::<Reply>(&mut there, None).unwrap_err();
    assert_eq!(error.to_string(), "a message that is too long");
}

#[test]
fn garbage_and_silence_and_the_end_are_told_apart() {
    let (mut here, mut there) = UnixStream::pair().unwrap();
    here.write_all(&[1, 0, 0, 0, 0xff]).unwrap();
    assert!(matches!(
        receive::<Reply>(&mut there, None),
        Err(ChannelError::Garbled(_))
    ));
    let soon = Some(Instant::now() + Duration::from_millis(5));
    assert!(matches!(
        receive::<Reply>(&mut there, soon),
        Err(ChannelError::TimedOut)
    ));
    drop(here);
    let soon = Some(Instant::now() + Duration::from_secs(5));
    assert!(matches!(
        receive::<Reply>(&mut there, soon),
        Err(ChannelError::Closed)
    ));
}

#[test]
fn a_reply_that_lies_about_its_size_is_found_out() {
    let sides = |long_side_px| PageLimits {
        long_side_px,
        pixels: u64::MAX,
    };
    assert_eq!(reply().check(sides(20), 600), Ok(()));
    assert!((reply().dpi() - 20.0).abs() < 1e-3);
    assert!(reply().check(sides(19), 600).is_err());
    assert!(reply().check(sides(20), 599).is_err());
    let few_pixels = PageLimits {
        pixels: 199,
        ..sides(20)
    };
    assert!(reply().check(few_pixels, 600).is_err());
    let huge = PageReply {
        width_px: u32::MAX,
        height_px: u32::MAX,
        ..reply()
    };
    assert!(huge.check(sides(u32::MAX), usize::MAX).is_err());
    assert!(
        PageReply {
            width_px: 0,
            ..reply()
        }
        .check(sides(20), 600)
        .is_err()
    );
    assert!(
        PageReply {
            width_pt: f32::NAN,
            ..reply()
        }
        .check(sides(20), 600)
        .is_err()
    );
    let word = WordBox {
        text: "a".into(),
        x0: f32::INFINITY,
        y0: 0.0,
        x1: 1.0,
        y1: 1.0,
    };
    let text = PageText {
        plain: String::new(),
        words: vec![word],
    };
    assert!(PageReply { text, ..reply() }.check(sides(20), 600).is_err());
}
