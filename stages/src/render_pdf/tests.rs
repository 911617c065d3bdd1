use super::testing::{
    TestPage, UPRIGHT, document, locked, numbered_pages, pdf, pdf_of, pdfium, reasons, render,
    stage, three_pages,
};
use super::*;
use crate::cage::Isolation;
use crate::cage::testing::worker_command;
use pagemill_pipeline::testing::{StageOutput, run_stage};
use pagemill_pipeline::{Resources, StageConfig};

fn with(renderer: RendererChoice) -> RenderPdfConfig {
    RenderPdfConfig {
        renderer,
        long_side_px: 595,
        budget: Some(ProcessBudget::default()),
        ..RenderPdfConfig::default()
    }
}

/// hayro, and pdfium where it is installed.
fn each_renderer() -> Vec<RendererChoice> {
    let pdfium = pdfium().map(|_| RendererChoice::Pdfium);
    std::iter::once(RendererChoice::Hayro)
        .chain(pdfium)
        .collect()
}

fn texts(output: &StageOutput) -> Vec<&str> {
    output.sent.iter().filter_map(Item::text).collect()
}

fn attribute(item: &Item, name: &str) -> String {
    format!("{:?}", item.get(name).unwrap())
}

/// Whether the image has ink somewhere in the box of its first word.
fn has_ink_in_first_word(item: &Item) -> bool {
    let (image, words) = (item.image().unwrap(), item.words().unwrap());
    let scale = image.dpi.unwrap() / 72.0;
    let px = |points: f32| (points * scale) as usize;
    let word = &words[0];
    (px(word.y0)..px(word.y1)).any(|y| {
        let row = &image.pixels[y * image.width_px as usize * 3..];
        row[px(word.x0) * 3..px(word.x1) * 3]
            .iter()
            .any(|channel| *channel < 128)
    })
}

#[test]
fn each_page_becomes_an_item_with_image_text_and_attributes() {
    for renderer in each_renderer() {
        let out = render(&with(renderer), "", &three_pages());
        assert_eq!(texts(&out), ["first page", "second page", "third page"]);
        let page = &out.sent[1];
        assert_eq!(page.label().to_string(), "mill.pdf#2");
        let image = page.image().unwrap();
        assert_eq!(
            (image.width_px, image.height_px, image.dpi),
            (420, 595, Some(72.0))
        );
        assert_eq!(page.words().unwrap().len(), 2);
        assert!(has_ink_in_first_word(page));
        assert_eq!(&image.pixels[..3], [255, 255, 255]);
        assert!(attribute(page, "title").contains("The Mill"));
        assert!(attribute(page, "author").contains("Ann Miller"));
        assert!(attribute(page, "page_count").contains('3'));
        assert!(page.document().is_none());
    }
}

#[test]
fn a_turned_and_cropped_page_is_shown_as_a_reader_would_see_it() {
    let entries = "/MediaBox [0 0 420 595] /CropBox [40 400 240 540] /Rotate 90";
    let turned = pdf(&[TestPage {
        entries,
        lines: &["turned"],
    }]);
    for renderer in each_renderer() {
        let out = render(&with(renderer), "", &turned);
        let page = &out.sent[0];
        let image = page.image().unwrap();
        assert_eq!((image.width_px, image.height_px), (417, 595));
        let word = &page.words().unwrap()[0];
        // The line ran to the right from (50, 500); now it runs downwards
        // from 10 points below the top edge, 40 left of the right edge.
        assert!((word.y0 - 10.0).abs() < 2.0, "{renderer:?} {word:?}");
        assert!(word.x0 < 100.0 && word.x1 > 100.0, "{renderer:?} {word:?}");
        assert!(
            word.y1 - word.y0 > word.x1 - word.x0,
            "{renderer:?} {word:?}"
        );
        assert!(has_ink_in_first_word(page));
    }
}

#[test]
fn a_word_that_a_line_breaks_is_whole_in_the_text() {
    if pdfium().is_none() {
        return;
    }
    let broken = pdf(&[TestPage {
        entries: UPRIGHT,
        lines: &["the mill-", "stone turns"],
    }]);
    let out = render(&with(RendererChoice::Pdfium), "", &broken);
    assert_eq!(texts(&out), ["the millstone turns"]);
    let words: Vec<_> = out.sent[0]
        .words()
        .unwrap()
        .iter()
        .map(|word| &*word.text)
        .collect();
    assert_eq!(words, ["the", "mill-", "stone", "turns"]);
}

#[test]
fn a_page_without_a_box_has_the_size_of_a_letter() {
    let boxless = pdf(&[TestPage {
        entries: "",
        lines: &["boxless"],
    }]);
    let out = render(&with(RendererChoice::Auto), "", &boxless);
    assert_eq!(texts(&out), ["boxless"]);
}

#[test]
fn without_words_there_is_no_text_and_after_the_first_pages_no_page() {
    let config = RenderPdfConfig {
        words: false,
        first_pages: Some(2),
        ..with(RendererChoice::Auto)
    };
    let out = render(&config, "", &three_pages());
    assert_eq!(out.sent.len(), 2);
    assert!(
        out.sent
            .iter()
            .all(|page| page.text().is_none() && page.words().is_none())
    );
    assert!(attribute(&out.sent[0], "page_count").contains('3'));
}

#[test]
fn a_document_with_more_pages_than_the_limit_is_one_dead_letter() {
    let document = numbered_pages(12);
    for renderer in each_renderer() {
        let limited = RenderPdfConfig {
            max_pages: 10,
            ..with(renderer)
        };
        let out = render(&limited, "", &document);
        assert_eq!(out.sent.len(), 0);
        let expected = "cannot render `mill.pdf`: it has 12 pages to render, and `max_pages` is 10";
        assert_eq!(reasons(&out), [expected]);
        let raised = RenderPdfConfig {
            max_pages: 12,
            ..with(renderer)
        };
        assert_eq!(render(&raised, "", &document).sent.len(), 12);
        let cut = RenderPdfConfig {
            first_pages: Some(3),
            ..limited
        };
        assert_eq!(render(&cut, "", &document).sent.len(), 3);
    }
}

#[test]
fn the_pages_of_a_document_are_counted_as_they_would_be_rendered() {
    for renderer in each_renderer() {
        let limited = RenderPdfConfig {
            max_pages: 10,
            ..with(renderer)
        };
        let cut = RenderPdfConfig {
            first_pages: Some(4),
            ..limited.clone()
        };
        let count = |config: &RenderPdfConfig, item: &Item| {
            // `start` is not called.
            stage(config, "").count_pages(item).unwrap()
        };
        let (long, short) = (document(&numbered_pages(12)), document(&three_pages()));
        let counted = count(&limited, &short);
        assert!(matches!(counted, PageCount::Pages(3)), "{counted:?}");
        let counted = count(&cut, &long);
        assert!(matches!(counted, PageCount::Pages(4)), "{counted:?}");
        for unreadable in [&long, &document(b"%PDF-1.7 and nothing more")] {
            let counted = count(&limited, unreadable);
            assert!(matches!(counted, PageCount::Unreadable(_)), "{counted:?}");
        }
        assert!(matches!(count(&limited, &picture()), PageCount::Unknown));
    }
}

#[test]
fn a_small_file_that_repeats_one_page_is_stopped_by_the_limit() {
    // hayro reads each object of the page tree once; pdfium reads all of it.
    if pdfium().is_none() {
        return;
    }
    // Five levels of ten kids: 100,000 times the same page.
    let tree = |number: usize| {
        let kids = format!("{} 0 R ", number + 1).repeat(10);
        let count = 10_usize.pow(8 - number as u32);
        format!("<< /Type /Pages /Kids [{kids}] /Count {count} >>")
    };
    let mut objects = vec![
        "<< /Type /Catalog /Pages 3 0 R >>".to_owned(),
        "<< >>".to_owned(),
    ];
    objects.extend((3..8).map(tree));
    objects.push(format!("<< /Type /Page /Parent 7 0 R {UPRIGHT} >>"));
    let repeated = pdf_of(&objects);
    assert!(repeated.len() < 2000, "{}", repeated.len());
    let out = render(&with(RendererChoice::Auto), "", &repeated);
    assert_eq!(out.sent.len(), 0);
    let expected =
        "cannot render `mill.pdf`: it has 100000 pages to render, and `max_pages` is 20000";
    assert_eq!(reasons(&out), [expected]);
}

#[test]
fn what_is_no_pdf_passes_and_starts_nothing() {
    let config = RenderPdfConfig::default();
    let mut stage = RenderPdfConfig::build(&config, &Resources::default()).unwrap();
    let out = run_stage(&mut Unstarted(&mut *stage), [picture()]);
    assert_eq!(out.sent[0].document().unwrap().len(), 3);
    assert!(out.dead.is_empty() && out.error.is_none());
}

fn picture() -> Item {
    Item::of_document("a.png", "image/png", vec![1, 2, 3])
}

/// A stage whose `start` is never called.
struct Unstarted<'a>(&'a mut dyn Stage);

impl Stage for Unstarted<'_> {
    fn process(&mut self, batch: Vec<Item>, outlet: &mut Outlet<'_>) -> Result<(), StageError> {
        self.0.process(batch, outlet)
    }
}

#[test]
fn a_document_that_cannot_be_read_is_one_dead_letter() {
    let empty = pdf(&[]);
    let config = with(RendererChoice::Hayro);
    for (document, reason) in [
        (
            &b"%PDF-1.7 and nothing more"[..],
            "hayro says that it is damaged or no PDF at all",
        ),
        (&b""[..], "hayro says that it is damaged or no PDF at all"),
        (&empty[..], "it has no pages"),
    ] {
        let out = render(&config, "", document);
        assert_eq!(
            reasons(&out),
            [format!("cannot render `mill.pdf`: {reason}")]
        );
        assert!(out.sent.is_empty() && out.error.is_none());
    }
}

#[test]
fn a_locked_document_needs_the_right_password() {
    let document = locked(&three_pages(), "millstone");
    for renderer in each_renderer() {
        let out = render(&with(renderer), "", &document);
        assert_eq!(
            reasons(&out),
            ["cannot render `mill.pdf`: it needs a password"]
        );
        let passwords = vec!["wheel".to_owned(), "millstone".to_owned()];
        let config = RenderPdfConfig {
            passwords,
            ..with(renderer)
        };
        let out = render(&config, "", &document);
        assert_eq!(texts(&out).len(), 3);
        assert!(attribute(&out.sent[0], "title").contains("The Mill"));
        let config = RenderPdfConfig {
            passwords: vec!["wheel".to_owned()],
            ..with(renderer)
        };
        let out = render(&config, "", &document);
        let reason = "it needs a password, and the one in `passwords` is wrong";
        assert_eq!(
            reasons(&out),
            [format!("cannot render `mill.pdf`: {reason}")]
        );
    }
}

#[test]
fn a_page_that_brings_pdfium_down_is_rendered_by_hayro_and_the_next_by_pdfium() {
    if pdfium().is_none() {
        return;
    }
    let out = render(
        &with(RendererChoice::Auto),
        "abort pdfium 1",
        &three_pages(),
    );
    assert_eq!(texts(&out), ["first page", "second page", "third page"]);
    let renderers: Vec<_> = out
        .sent
        .iter()
        .map(|page| attribute(page, "renderer"))
        .collect();
    assert!(renderers[1].contains("hayro"));
    assert!(renderers[0].contains("pdfium") && renderers[2].contains("pdfium"));
}

#[test]
fn a_page_that_brings_every_renderer_down_costs_itself_alone() {
    let out = render(&with(RendererChoice::Auto), "abort any 1", &three_pages());
    assert_eq!(texts(&out), ["first page", "third page"]);
    let hayro = "hayro was killed by signal 6 (abort)";
    let reason = match pdfium() {
        Some(_) => format!("pdfium was killed by signal 6 (abort), and {hayro}"),
        None => hayro.to_owned(),
    };
    assert_eq!(
        reasons(&out),
        [format!("cannot render `mill.pdf#2`: {reason}")]
    );
}

#[test]
fn a_page_that_takes_too_long_costs_itself_alone() {
    let limits = DocumentLimits {
        page_s: 1,
        ..DocumentLimits::default()
    };
    let config = RenderPdfConfig {
        limits,
        ..with(RendererChoice::Hayro)
    };
    let out = render(&config, "hang any 0", &three_pages());
    assert_eq!(texts(&out), ["second page", "third page"]);
    assert_eq!(
        reasons(&out),
        ["cannot render `mill.pdf#1`: hayro took longer than 1 s"]
    );
}

#[test]
fn a_page_that_takes_too_much_memory_costs_itself_alone() {
    let limits = DocumentLimits {
        memory_mb: 512,
        ..DocumentLimits::default()
    };
    let config = RenderPdfConfig {
        limits,
        ..with(RendererChoice::Hayro)
    };
    let out = render(&config, "eat any 2", &three_pages());
    assert_eq!(texts(&out), ["first page", "second page"]);
    let reason = "hayro used more than 512 MB";
    assert_eq!(
        reasons(&out),
        [format!("cannot render `mill.pdf#3`: {reason}")]
    );
}

#[test]
fn a_document_larger_than_the_memory_limit_is_not_even_sent() {
    let limits = DocumentLimits {
        memory_mb: 64,
        ..DocumentLimits::default()
    };
    let config = RenderPdfConfig {
        limits,
        ..with(RendererChoice::Hayro)
    };
    let out = render(&config, "", &vec![0; 65 << 20]);
    let reason = "it has 65 MB, and a worker process may use 64 MB";
    assert_eq!(
        reasons(&out),
        [format!("cannot render `mill.pdf`: {reason}")]
    );
}

#[test]
fn wherever_a_page_is_rendered_it_is_the_same() {
    for renderer in each_renderer() {
        let pages = [Isolation::Cage, Isolation::Process, Isolation::None].map(|isolation| {
            let config = RenderPdfConfig {
                isolation,
                ..with(renderer)
            };
            let broken = render(&config, "", b"%PDF-1.7 and nothing more");
            assert_eq!((broken.sent.len(), broken.dead.len()), (0, 1));
            let out = render(&config, "", &three_pages());
            assert!(out.dead.is_empty() && out.error.is_none(), "{isolation:?}");
            let image = |page: &Item| page.image().unwrap().pixels.to_vec();
            out.sent.iter().map(image).collect::<Vec<_>>()
        });
        assert!(pages[0].len() == 3 && pages[0] == pages[1] && pages[1] == pages[2]);
    }
}

#[test]
fn several_instances_render_in_the_program_itself_if_they_must() {
    let config = RenderPdfConfig {
        isolation: Isolation::None,
        ..with(RendererChoice::Auto)
    };
    std::thread::scope(|scope| {
        let render = || texts(&render(&config, "", &numbered_pages(20))).len();
        let threads = [(); 3].map(|()| scope.spawn(render));
        assert!(
            threads
                .into_iter()
                .all(|thread| thread.join().unwrap() == 20)
        );
    });
}

#[test]
fn pages_come_once_and_in_order_while_another_instance_is_idle() {
    let config = with(RendererChoice::Auto);
    let idle = config.build(&Resources::default()).unwrap();
    let out = render(&config, "", &numbered_pages(40));
    let expected: Vec<_> = (0..40).map(|page| format!("page {page}")).collect();
    assert_eq!(texts(&out), expected);
    assert!(out.dead.is_empty() && out.error.is_none());
    assert_eq!(config.budget.unwrap().n_lent(), 0);
    drop(idle);
}

#[test]
fn an_instance_that_has_finished_leaves_its_process_to_the_others() {
    let config = with(RendererChoice::Auto);
    let share = config.budget.clone().unwrap().join();
    let _work = share.begin_work();
    drop(config.build(&Resources::default()).unwrap());
    assert!(share.borrow().is_none());
    render(&config, "", &three_pages());
    assert!(share.borrow().is_some());
}

#[test]
fn a_program_that_is_no_worker_stops_the_run() {
    let resources = Resources::default();
    let worker = WorkerCommand {
        program: "/bin/true".into(),
        ..worker_command("")
    };
    resources.insert(
        RenderPdfConfig::KIND,
        RenderSetup {
            worker,
            pdfium: None,
        },
    );
    let mut stage = with(RendererChoice::Auto).build(&resources).unwrap();
    let error = run_stage(&mut *stage, []).error.unwrap();
    assert_eq!(
        error.hint(),
        Some("call `run_worker_if_asked` first thing in `main`")
    );
}
