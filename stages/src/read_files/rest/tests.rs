use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::*;

mod chance;
mod world;

use world::{ROOT, World};

#[test]
fn old_files_are_read_at_once_and_new_ones_when_they_have_rested() {
    let mut world = World::new(&[]);
    world.put_old("old.pdf");
    world.put("new.pdf");
    world.run(0.9);
    assert_eq!(world.log(), ["read old.pdf"]);
    world.run(0.2);
    assert_eq!(world.log(), ["read new.pdf"]);
    world.run(600.0);
    assert_eq!(world.log(), [""; 0]);
}

#[test]
fn what_the_ledger_knows_is_not_read() {
    let mut world = World::new(&["a.pdf", "b.pdf"]);
    world.put_old("a.pdf");
    world.put_old("b.pdf");
    world.done = vec!["a.pdf".into()];
    world.run(120.0);
    assert_eq!(world.log(), ["read b.pdf"]);
    // The ledger is not asked again for what has not changed since.
    world.done.clear();
    world.event("a.pdf");
    world.run(120.0);
    assert_eq!(world.log(), [""; 0]);
}

#[test]
fn a_file_that_is_being_written_waits_and_keeps_no_other_waiting() {
    let mut world = World::with(&[]);
    for second in 0..10 {
        world.write("slow.pdf");
        if second == 3 {
            world.write("quick.pdf");
        }
        world.run(0.5);
    }
    assert_eq!(world.log(), ["read quick.pdf"]);
    world.run(1.1);
    assert_eq!(world.log(), ["read slow.pdf"]);
}

#[test]
fn a_writer_that_pauses_longer_is_read_again_when_it_is_done() {
    let mut world = World::with(&[]);
    world.write("a.pdf");
    world.run(5.0);
    world.write("a.pdf");
    world.run(5.0);
    assert_eq!(world.log(), ["read a.pdf", "read a.pdf"]);
}

#[test]
fn a_file_whose_times_lie_ahead_rests_by_the_clock() {
    let mut world = World::with(&[]);
    let ahead = Duration::from_secs(1_000_000);
    world.files.insert("a.pdf".into(), (1, ahead));
    world.event("a.pdf");
    world.run(1.5);
    assert_eq!(world.log(), [""; 0]);
    world.run(1.0);
    assert_eq!(world.log(), ["read a.pdf"]);
}

#[test]
fn an_event_without_a_change_reads_nothing() {
    let mut world = World::with(&["a.pdf"]);
    world.event("a.pdf");
    world.event("never-was.pdf");
    world.run(10.0);
    assert_eq!(world.log(), [""; 0]);
    assert!(world.plan.documents.len() == 1 && world.plan.waiting.is_empty());
}

#[test]
fn a_deleted_file_is_removed_once_it_has_stayed_away() {
    let mut world = World::with(&["a.pdf", "b.pdf"]);
    world.delete("a.pdf");
    world.run(1.5);
    assert_eq!(world.log(), [""; 0]);
    world.run(1.0);
    assert_eq!(world.log(), ["remove a.pdf"]);
    world.run(120.0);
    assert_eq!(world.log(), [""; 0]);
    assert_eq!(world.plan.documents.len(), 1);
}

#[test]
fn what_was_deleted_while_nobody_looked_is_removed() {
    let mut world = World::new(&["a.pdf", "b.pdf"]);
    let listing = Arc::clone(&world.plan.listing);
    // `c.pdf` belongs to another folder.
    let known = ["/watched/a.pdf", "/watched/b.pdf", "/watched-too/c.pdf"];
    let known = known.map(str::to_owned);
    world.plan = Plan::new(listing, world.plan.watching, known, false, world.now);
    world.put_old("b.pdf");
    world.done = vec!["b.pdf".into()];
    world.run(3.0);
    assert_eq!(world.log(), ["remove a.pdf"]);
}

#[test]
fn an_editor_that_replaces_a_file_removes_nothing() {
    let mut world = World::with(&["a.pdf"]);
    // It writes beside the file, moves the old one away and the new one there.
    world.write("a.pdf.new");
    world.run(0.2);
    world.delete("a.pdf");
    world.run(0.7);
    world.delete("a.pdf.new");
    world.write("a.pdf");
    world.run(10.0);
    assert_eq!(world.log(), ["read a.pdf"]);
}

#[test]
fn a_file_that_comes_and_goes_is_not_read_in_between() {
    let mut world = World::with(&[]);
    world.write("a.tmp");
    world.run(0.5);
    world.delete("a.tmp");
    world.run(10.0);
    assert_eq!(world.log(), [""; 0]);
    assert!(world.plan.documents.is_empty());
}

#[test]
fn a_file_with_a_new_name_is_read_and_its_old_name_removed() {
    let mut world = World::with(&["a.pdf"]);
    world.delete("a.pdf");
    world.write("b.pdf");
    world.run(10.0);
    assert_eq!(world.log(), ["read b.pdf", "remove a.pdf"]);
}

#[test]
fn folders_that_move_in_and_out_bring_and_take_their_files() {
    let mut world = World::with(&["in-1.pdf", "in/a.pdf", "in/deep/b.pdf", "inn.pdf"]);
    // The system tells of the folder only.
    world.files.remove("in/a.pdf");
    world.files.remove("in/deep/b.pdf");
    world.event("in");
    world.run(10.0);
    assert_eq!(world.log(), ["remove in/a.pdf", "remove in/deep/b.pdf"]);
    world.put_old("new/c.pdf");
    world.put("new/d.pdf");
    world.event("new");
    world.run(0.9);
    assert_eq!(world.log(), [""; 0]);
    world.run(1.2);
    assert_eq!(world.log(), ["read new/c.pdf", "read new/d.pdf"]);
}

#[test]
fn a_file_that_is_overwritten_while_it_is_read_is_read_again() {
    let mut world = World::with(&[]);
    world.write("a.pdf");
    world.held_back = true;
    world.run(2.0);
    world.put("a.pdf");
    world.carry_out_held();
    world.run(5.0);
    assert_eq!(world.log(), ["read a.pdf in vain", "read a.pdf"]);
}

#[test]
fn a_newer_version_waits_for_the_older_one_and_others_do_not() {
    let mut world = World::with(&[]);
    world.write("a.pdf");
    world.held_back = true;
    world.run(2.0);
    world.held_back = false;
    world.write("a.pdf");
    world.write("b.pdf");
    world.run(2.0);
    assert_eq!(world.log(), ["read b.pdf"]);
    world.carry_out_held();
    world.run(5.0);
    assert_eq!(world.log(), ["read a.pdf in vain", "read a.pdf"]);
}

#[test]
fn a_file_that_is_deleted_while_it_is_read_is_removed_afterwards() {
    let mut world = World::with(&[]);
    world.write("a.pdf");
    world.held_back = true;
    world.run(2.0);
    let file = world.files["a.pdf"];
    world.held_back = false;
    world.delete("a.pdf");
    world.run(3.0);
    assert_eq!(world.log(), [""; 0]);
    // It had been read before it was deleted.
    world.files.insert("a.pdf".into(), file);
    let job = world.held.pop().unwrap();
    world.plan.done(world.now, &job, true);
    world.files.remove("a.pdf");
    world.run(3.0);
    assert_eq!(world.log(), ["remove a.pdf"]);
}

#[test]
fn a_file_that_comes_back_while_its_rows_are_removed_is_read_again() {
    let mut world = World::with(&["a.pdf"]);
    let file = world.files["a.pdf"];
    world.delete("a.pdf");
    world.held_back = true;
    world.run(3.0);
    world.files.insert("a.pdf".into(), file);
    world.event("a.pdf");
    world.held_back = false;
    world.run(3.0);
    let job = world.held.pop().unwrap();
    world.plan.done(world.now, &job, true);
    world.run(3.0);
    assert_eq!(world.log(), ["read a.pdf"]);
}

#[test]
fn a_removal_is_given_up_when_the_file_is_back_in_time() {
    let mut world = World::with(&["a.pdf"]);
    let file = world.files["a.pdf"];
    world.delete("a.pdf");
    world.held_back = true;
    world.run(3.0);
    world.files.insert("a.pdf".into(), file);
    world.carry_out_held();
    world.run(10.0);
    assert_eq!(world.log(), ["remove a.pdf in vain"]);
}

#[test]
fn a_burst_of_a_thousand_files_is_looked_at_in_few_goes() {
    let mut world = World::with(&[]);
    for _ in 0..5 {
        for n in 0..1000 {
            world.write(&format!("{n:04}.pdf"));
        }
        world.run(0.01);
    }
    world.run(5.0);
    let log = world.log();
    assert_eq!(
        (log.len(), &*log[0], &*log[999]),
        (1000, "read 0000.pdf", "read 0999.pdf")
    );
    assert!(world.n_looks <= 4, "{}", world.n_looks);
    assert_eq!(world.n_listings, 1);
}

#[test]
fn more_paths_than_can_wait_are_listed_instead() {
    let mut world = World::with(&[]);
    for n in 0..=MAX_WAITING {
        world.event(&n.to_string());
    }
    assert_eq!(world.plan.waiting.len(), MAX_WAITING);
    world.run(2.0);
    assert_eq!(world.n_listings, 2);
}

#[test]
fn what_the_system_did_not_tell_is_found_by_listing() {
    let mut world = World::with(&["a.pdf", "b.pdf"]);
    world.put("a.pdf");
    world.files.remove("b.pdf");
    world.run(50.0);
    assert_eq!(world.log(), [""; 0]);
    world.run(15.0);
    assert_eq!(world.log(), ["read a.pdf", "remove b.pdf"]);
    // The system may say itself that it has lost something.
    world.put("c.pdf");
    world.plan.list_soon(world.now);
    world.run(3.0);
    assert_eq!(world.log(), ["read c.pdf"]);
}

#[test]
fn listing_a_large_folder_leaves_time_for_other_work() {
    let mut world = World::with(&[]);
    world.listing_takes = Duration::from_secs(30);
    let n_before = world.n_listings;
    for _ in 0..600 {
        world.plan.list_soon(world.now);
        world.run(1.0);
    }
    let n_listings = world.n_listings - n_before;
    assert!((3..=6).contains(&n_listings), "{n_listings}");
}

#[test]
fn a_root_that_is_gone_takes_no_rows_with_it() {
    let mut world = World::with(&["a.pdf", "b.pdf"]);
    world.has_root = false;
    world.event("a.pdf");
    world.event("");
    world.run(600.0);
    assert_eq!(world.log(), ["the root is Lost"]);
    world.has_root = true;
    world.files.remove("a.pdf");
    world.put("b.pdf");
    world.run(10.0);
    assert_eq!(
        world.log(),
        ["the root is There", "read b.pdf", "remove a.pdf"]
    );
}

#[test]
fn an_empty_folder_in_the_place_of_a_root_that_went_takes_no_rows_with_it() {
    let mut world = World::with(&["a.pdf", "b.pdf"]);
    world.has_root = false;
    world.run(600.0);
    assert_eq!(world.log(), ["the root is Lost"]);
    // Where a disk is unmounted, the folder that it hung in is there.
    world.has_root = true;
    world.files.clear();
    world.run(600.0);
    assert_eq!(world.log(), ["the root is Empty"]);
    world.put("b.pdf");
    world.run(600.0);
    assert_eq!(
        world.log(),
        ["the root is There", "read b.pdf", "remove a.pdf"]
    );
}

#[test]
fn a_root_that_goes_while_files_seem_deleted_takes_no_rows_with_it() {
    let mut world = World::with(&["a.pdf"]);
    world.delete("a.pdf");
    world.held_back = true;
    world.run(3.0);
    world.has_root = false;
    world.carry_out_held();
    world.run(20.0);
    assert_eq!(world.log(), ["remove a.pdf in vain", "the root is Lost"]);
}

#[test]
fn a_place_that_cannot_be_read_is_set_aside_once_and_keeps_its_rows() {
    let mut world = World::with(&["locked/a.pdf", "b.pdf"]);
    world.locked.push("locked".into());
    world.event("locked");
    world.run(600.0);
    assert_eq!(world.log(), ["set aside locked"]);
    world.locked.clear();
    world.event("locked");
    world.run(600.0);
    // Its letter goes, and what is in it is as it was.
    assert_eq!(world.log(), ["remove locked"]);
}

#[test]
fn a_name_that_is_not_utf8_is_followed_by_listing() {
    let mut world = World::with(&["a.pdf"]);
    let odd = Path::new(ROOT).join(OsStr::from_bytes(b"m\xfchle.pdf"));
    world.plan.event(world.now, &odd);
    world.run(5.0);
    assert_eq!((world.n_listings, world.n_looks), (2, 0));
}

#[test]
fn an_empty_root_removes_nothing_until_a_file_appears() {
    let mut world = World::new(&["a.pdf", "in/b.pdf"]);
    world.run(10.0);
    assert_eq!(world.log(), ["the root is Empty"]);
    // Nor do events about what is not there, or places that cannot be read.
    for name in ["a.pdf", "in", ""] {
        world.event(name);
    }
    world.locked = vec!["locked".into()];
    world.run(600.0);
    assert_eq!(world.log(), ["set aside locked"]);
    // The disk is there at last, without a file that is gone.
    world.put_old("in/b.pdf");
    world.event("in");
    world.run(10.0);
    assert_eq!(
        world.log(),
        ["the root is There", "read in/b.pdf", "remove a.pdf"]
    );
    world.delete("in/b.pdf");
    world.run(10.0);
    assert_eq!(world.log(), ["remove in/b.pdf"]);
}

#[test]
fn an_empty_root_is_believed_where_that_is_asked_for_or_nothing_was_known() {
    let mut world = World::new(&[]);
    world.run(10.0);
    assert_eq!(world.log(), [""; 0]);
    let listing = Arc::clone(&world.plan.listing);
    let known = [format!("{ROOT}/a.pdf")];
    world.plan = Plan::new(listing, world.plan.watching, known, true, world.now);
    world.run(10.0);
    assert_eq!(world.log(), ["remove a.pdf"]);
}
