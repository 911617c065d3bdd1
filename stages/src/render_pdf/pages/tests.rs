use super::*;
use crate::cage::process::ProcessSettings;
use crate::cage::testing::settings;
use crate::render_pdf::budget::{BudgetShare, ProcessBudget};
use crate::render_pdf::testing::{numbered_pages, pdf_of, pdfium, three_pages};
use rustix::process::{Pid, Signal, kill_process};

const N_PAGES: usize = 40;

/// An instance whose workers commit a misdeed.
fn instance(budget: &ProcessBudget, misdeed: &str, page_s: u32) -> DocumentRenderer {
    let mut settings = ProcessSettings {
        pdfium: pdfium(),
        ..settings(misdeed)
    };
    settings.limits.page_s = page_s;
    let limit = Duration::from_mins(1);
    let share = budget.join();
    DocumentRenderer::new(settings, RendererChoice::Auto, Vec::new(), limit, share)
}

/// Two instances, of which the second has nothing to do yet.
fn two(misdeed: &str, page_s: u32) -> (ProcessBudget, DocumentRenderer, BudgetShare) {
    let budget = ProcessBudget::default();
    let first = instance(&budget, misdeed, page_s);
    let second = budget.join();
    (budget, first, second)
}

impl DocumentPages<'_> {
    /// Ids of the processes that render pages, the own one's and a borrowed one's.
    fn ids(&self) -> [Option<u32>; 2] {
        [true, false].map(|is_own| {
            let mut pages = self.under_way.iter();
            let page = pages.find(|page| page.loan.is_none() == is_own)?;
            page.process.as_ref().ok().map(BusyProcess::id)
        })
    }

    /// The text of the next page, and who rendered it.
    fn text(&mut self) -> Result<(String, Renderer), String> {
        match self.render(|n_bytes| vec![0; n_bytes]) {
            Ok(page) => Ok((page.page.text.plain, page.renderer)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn texts(&mut self) -> Vec<Result<(String, Renderer), String>> {
        std::iter::from_fn(|| self.next_page().map(|_| self.text())).collect()
    }
}

fn first_renderer() -> Renderer {
    pdfium().map_or(Renderer::Hayro, |_| Renderer::Pdfium)
}

/// What [`DocumentPages::texts`] answers for pages `from` and on of [`numbered_pages`].
fn sound(from: usize) -> Vec<Result<(String, Renderer), String>> {
    (from..N_PAGES)
        .map(|page| Ok((format!("page {page}"), first_renderer())))
        .collect()
}

fn exists(id: u32) -> bool {
    std::path::Path::new(&format!("/proc/{id}")).exists()
}

#[test]
fn the_pages_of_a_large_document_come_in_order_from_two_processes() {
    let (budget, mut first, _second) = two("", 20);
    for _ in 0..2 {
        let mut document = first
            .open(&numbered_pages(N_PAGES).into(), u32::MAX)
            .unwrap();
        assert_eq!(document.text(), sound(0)[0]);
        let [Some(own), Some(borrowed)] = document.ids() else {
            panic!("two processes work");
        };
        assert!(own != borrowed && budget.n_lent() == 1);
        assert_eq!(document.texts(), sound(1));
        // It was given back with its last page; the own one stays.
        assert_eq!((exists(own), exists(borrowed)), (true, false));
        assert_eq!(budget.n_lent(), 0);
    }
}

#[test]
fn images_are_the_same_whoever_renders_them() {
    let pixels = |mut instance: DocumentRenderer| -> Vec<Vec<u8>> {
        let mut document = instance
            .open(&numbered_pages(N_PAGES).into(), u32::MAX)
            .unwrap();
        let mut next = || {
            document
                .next_page()
                .map(|_| document.render(|n| vec![0; n]))
        };
        std::iter::from_fn(|| next().map(|page| page.unwrap().pixels)).collect()
    };
    let (_budget, shared, _second) = two("", 20);
    let alone = instance(&ProcessBudget::default(), "", 20);
    assert!(pixels(shared) == pixels(alone));
}

#[test]
fn no_process_is_borrowed_for_a_few_pages_or_while_all_instances_work() {
    let (budget, mut first, second) = two("", 20);
    let mut small = first.open(&three_pages().into(), u32::MAX).unwrap();
    small.text().unwrap();
    assert!(matches!(small.ids(), [Some(_), None]));
    drop(small);
    let mut first_pages = first.open(&numbered_pages(N_PAGES).into(), 3).unwrap();
    assert_eq!(first_pages.texts().len(), 3);
    let _work = second.begin_work();
    let mut large = first
        .open(&numbered_pages(N_PAGES).into(), u32::MAX)
        .unwrap();
    large.text().unwrap();
    assert!(matches!(large.ids(), [Some(_), None]) && budget.n_lent() == 0);
}

#[test]
fn a_process_is_given_back_when_another_instance_gets_a_document() {
    let (budget, mut first, second) = two("", 20);
    let mut document = first
        .open(&numbered_pages(N_PAGES).into(), u32::MAX)
        .unwrap();
    let mut texts = vec![document.text(), document.text()];
    let borrowed = document.ids()[1].unwrap();
    let work = second.begin_work();
    // Its page, and the one before it.
    texts.extend([document.text(), document.text()]);
    assert!(matches!(document.ids(), [Some(_), None]));
    assert!(!exists(borrowed) && budget.n_lent() == 0);
    texts.push(document.text());
    drop(work);
    texts.push(document.text());
    assert!(document.ids()[1].is_some());
    texts.extend(document.texts());
    assert_eq!(texts, sound(0));
}

#[test]
fn a_page_that_brings_a_borrowed_process_down_is_handled_like_any_other() {
    // Page 5 is a borrowed process's, as all odd ones are to that point.
    for (misdeed, what) in [
        ("abort any 5", "was killed by signal 6 (abort)"),
        ("hang any 5", "took longer than 1 s"),
    ] {
        let (budget, mut first, _second) = two(misdeed, 1);
        let mut document = first
            .open(&numbered_pages(N_PAGES).into(), u32::MAX)
            .unwrap();
        let mut texts: Vec<_> = (0..5).map(|_| document.text()).collect();
        let [own, Some(borrowed)] = document.ids() else {
            panic!("two processes work");
        };
        assert!(document.under_way[0].loan.is_some());
        texts.push(document.text());
        assert!(!exists(borrowed) && budget.n_lent() == 0);
        texts.push(document.text());
        assert!(document.ids()[0] == own && document.ids()[1].is_some());
        texts.extend(document.texts());
        let mut expected = sound(0);
        let hayro = format!("hayro {what}");
        expected[5] = Err(match first_renderer() {
            Renderer::Pdfium => format!("pdfium {what}, and {hayro}"),
            Renderer::Hayro => hayro,
        });
        assert_eq!(texts, expected);
    }
}

#[test]
fn a_process_that_somebody_kills_loses_no_page() {
    for who in [0, 1] {
        let (_budget, mut first, _second) = two("", 20);
        let mut document = first
            .open(&numbered_pages(N_PAGES).into(), u32::MAX)
            .unwrap();
        let mut texts: Vec<_> = (0..3).map(|_| document.text()).collect();
        let id = document.ids()[who].unwrap();
        kill_process(Pid::from_raw(id as i32).unwrap(), Signal::KILL).unwrap();
        texts.extend(document.texts());
        assert_eq!(texts, sound(0));
    }
}

/// `PAGEMILL_KILLED_PAGES=10000` renders so many; the default is quick.
#[test]
fn pages_come_once_and_in_order_though_a_process_is_killed_every_fifty() {
    let n_pages = std::env::var("PAGEMILL_KILLED_PAGES").ok();
    let n_pages = n_pages.map_or(1000, |n| n.parse().unwrap());
    let (budget, mut first, _second) = two("", 20);
    first.document_limit = Duration::from_hours(1);
    let mut document = first
        .open(&numbered_pages(n_pages).into(), u32::MAX)
        .unwrap();
    let mut n_killed = 0;
    for page in 0..n_pages {
        if page % 50 == 25 {
            // The own one and the borrowed one by turns.
            let ids = document.ids();
            let id = ids[page / 50 % 2].or(ids[0]).or(ids[1]);
            let pid = id.and_then(|id| Pid::from_raw(id as i32)).unwrap();
            kill_process(pid, Signal::KILL).unwrap();
            n_killed += 1;
        }
        let expected = (format!("page {page}"), first_renderer());
        assert_eq!(document.text(), Ok(expected));
    }
    assert!(document.next_page().is_none() && n_killed == n_pages / 50);
    drop(document);
    assert_eq!(budget.n_lent(), 0);
}

#[test]
fn a_document_that_is_dropped_leaves_no_busy_process() {
    let (budget, mut first, _second) = two("hang any 5", 20);
    let mut document = first
        .open(&numbered_pages(N_PAGES).into(), u32::MAX)
        .unwrap();
    for _ in 0..5 {
        document.text().unwrap();
    }
    let ids = document.ids();
    drop(document);
    assert!(ids.iter().all(|id| !exists(id.unwrap())));
    assert_eq!(budget.n_lent(), 0);
    let mut document = first.open(&three_pages().into(), u32::MAX).unwrap();
    assert_eq!(document.texts().len(), 3);
}

#[test]
fn a_page_that_was_ready_in_time_is_fetched_however_late() {
    // Page 0 hangs in the own process and wherever else it is tried; the
    // time of page 1, in the borrowed one, is long over by then.
    let (_budget, mut first, _second) = two("hang any 0", 1);
    let mut document = first
        .open(&numbered_pages(N_PAGES).into(), u32::MAX)
        .unwrap();
    assert!(document.text().is_err());
    assert_eq!(document.texts(), sound(1));
}

#[test]
fn a_document_that_used_up_its_time_is_left_alone() {
    let mut renderer = instance(&ProcessBudget::default(), "", 20);
    renderer.document_limit = Duration::ZERO;
    let mut document = renderer.open(&three_pages().into(), u32::MAX).unwrap();
    document.text().unwrap();
    assert_eq!(
        document.check_patience().unwrap_err().to_string(),
        "it took longer than 0 s, so pages 2 to 3 are missing"
    );
}

#[test]
fn a_document_whose_pages_fail_one_after_the_other_is_given_up() {
    // One page, and the claim to have nine hundred million. hayro counts
    // for itself; pdfium believes it.
    let claim = pdf_of(&[
        "<< /Type /Catalog /Pages 3 0 R >>".to_owned(),
        "<< >>".to_owned(),
        "<< /Type /Pages /Kids [4 0 R] /Count 900000000 >>".to_owned(),
        "<< /Type /Page /Parent 3 0 R /MediaBox [0 0 9 9] >>".to_owned(),
    ]);
    let (_budget, shared, _second) = two("", 20);
    for mut instance in [shared, instance(&ProcessBudget::default(), "", 20)] {
        let mut document = instance.open(&claim.clone().into(), u32::MAX).unwrap();
        let mut n_tried = 0;
        while document.next_page().is_some() && document.check_patience().is_ok() {
            let _ = document.text();
            n_tried += 1;
        }
        let is_believed = document.n_pages() > 1;
        assert_eq!(
            n_tried,
            if is_believed {
                MAX_FAILURES_IN_A_ROW + 1
            } else {
                1
            }
        );
    }
}
