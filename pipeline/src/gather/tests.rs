//! Tests of joins and of groups on items made by hand.

use super::*;
use crate::document::{Event, Tracker};

fn join(unmatched: Unmatched) -> Gather {
    let inputs = vec![Arc::from("left"), Arc::from("right")];
    let upstream = Upstream {
        names: inputs.iter().cloned().collect(),
        ..Upstream::default()
    };
    Gather::new(0, Rule::Join { inputs, unmatched }, 1, upstream)
}

fn page(tracker: &Tracker, root: &Item, page: u32) -> Item {
    let mut item = root.child().with_page(page);
    item.token = tracker.token_for(root.key().document);
    item
}

fn document(tracker: &Tracker) -> Item {
    let mut root = Item::of_text("a.pdf", "");
    root.token = Some(tracker.begin(root.origin()));
    root
}

#[test]
fn a_join_lets_an_item_go_when_each_input_has_sent_its_key() {
    let (tracker, gather) = (Tracker::default(), join(Unmatched::default()));
    let root = document(&tracker);
    let left = page(&tracker, &root, 1)
        .with("text", "old")
        .with("a", 1_u32);
    assert!(gather.accept(0, left).is_none());
    assert!(gather.accept(1, page(&tracker, &root, 2)).is_none());
    let right = page(&tracker, &root, 1).with("text", "new");
    let Some(LetGo::Item(merged)) = gather.accept(1, right) else {
        panic!("both have come");
    };
    assert_eq!(merged.text(), Some("new"));
    assert!(merged.get("a").is_some());
    assert!(!gather.lock().is_empty());
}

#[test]
fn items_of_one_key_are_paired_in_order() {
    let (tracker, gather) = (Tracker::default(), join(Unmatched::default()));
    let root = document(&tracker);
    for text in ["one", "two"] {
        let item = page(&tracker, &root, 1).with("text", text);
        assert!(gather.accept(0, item).is_none());
    }
    for text in ["one", "two"] {
        let Some(LetGo::Item(merged)) = gather.accept(1, page(&tracker, &root, 1)) else {
            panic!("its partner waits");
        };
        assert_eq!(merged.text(), Some(text));
    }
    assert!(gather.lock().is_empty());
}

#[test]
fn a_document_stalls_when_all_that_moves_is_held() {
    let (tracker, gather) = (Tracker::default(), join(Unmatched::default()));
    let stalls: Arc<Mutex<Vec<Option<usize>>>> = Arc::default();
    let seen = Arc::clone(&stalls);
    tracker.observe(move |event| {
        if let Event::Stalled(document) = event {
            let mut seen = seen.lock().expect("no thread panicked");
            seen.push(document.first_holder());
        }
    });
    let root = document(&tracker);
    let known = Arc::clone(root.token.as_ref().expect("set").document());
    assert!(gather.accept(0, page(&tracker, &root, 1)).is_none());
    assert!(stalls.lock().expect("no panic").is_empty());
    drop(root);
    assert_eq!(*stalls.lock().expect("no panic"), [Some(0)]);
    let let_go = gather.flush(&known);
    assert!(matches!(
        &let_go[..],
        [LetGo::SetAside(item, error)]
            if error.message(&item.label()) == "cannot join `a.pdf#1`: `right` sent nothing for it"
    ));
    assert!(gather.lock().is_empty());
}

#[test]
fn an_unmatched_item_passes_or_is_dropped_as_the_file_says() {
    for (unmatched, n_left) in [(Unmatched::Pass, 1), (Unmatched::Drop, 0)] {
        let (tracker, gather) = (Tracker::default(), join(unmatched));
        let root = document(&tracker);
        let known = Arc::clone(root.token.as_ref().expect("set").document());
        assert!(gather.accept(1, page(&tracker, &root, 1)).is_none());
        assert_eq!(gather.flush(&known).len(), n_left);
    }
}

#[test]
fn many_to_one_gathers_a_document_or_each_of_its_pages_in_order_of_key() {
    for (rule, expected) in [
        (Rule::Document, vec![vec![1, 1, 2]]),
        (Rule::Page, vec![vec![1, 1], vec![2]]),
    ] {
        let tracker = Tracker::default();
        let gather = Gather::new(0, rule, 1, Upstream::default());
        let root = document(&tracker);
        let known = Arc::clone(root.token.as_ref().expect("set").document());
        for (number, part) in [(2, 1), (1, 2), (1, 1)] {
            let item = page(&tracker, &root, number).with_part(part);
            assert!(gather.accept(0, item).is_none());
        }
        let groups: Vec<Vec<u32>> = gather
            .flush(&known)
            .into_iter()
            .map(|let_go| match let_go {
                LetGo::Group(items) => items.iter().filter_map(|item| item.key().page).collect(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(groups, expected);
    }
}
