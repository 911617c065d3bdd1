//! Whatever happens to the disk, in the end the rows are those of its files.

use super::world::World;

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // Knuth's linear congruential generator; its low bits are poor.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Does something to the disk, of which the system may fail to tell.
fn meddle(world: &mut World, dice: &mut Dice) {
    let folder = ["", "x/", "x/y/"][dice.roll(3) as usize];
    let name = format!("{folder}{}.pdf", dice.roll(4));
    let is_told = dice.roll(4) > 0;
    match dice.roll(10) {
        0..=3 => world.put(&name),
        4 | 5 => {
            world.files.remove(&name);
        }
        6 => {
            // A new name changes `ctime`.
            let new = format!("{}.pdf", dice.roll(4));
            if let Some((n_bytes, _)) = world.files.remove(&name) {
                world.files.insert(new.clone(), (n_bytes, world.time()));
                world.event(&new);
            }
        }
        7 => {
            world.files.retain(|name, _| !name.starts_with("x/"));
            world.event("x");
        }
        8 => world.has_root = dice.roll(2) == 0,
        _ => {
            if world.held_back {
                world.carry_out_held();
            } else {
                world.held_back = true;
            }
        }
    }
    if is_told {
        world.event(&name);
    }
}

#[test]
fn in_the_end_there_are_rows_of_what_is_there_and_of_nothing_else() {
    for seed in 0..500 {
        let mut dice = Dice(seed);
        let mut world = World::new(&[]);
        for _ in 0..60 {
            meddle(&mut world, &mut dice);
            world.run(dice.roll(30) as f64 / 20.0);
        }
        world.has_root = true;
        world.carry_out_held();
        world.run(70.0);
        assert_eq!(world.rows, world.files, "seed {seed}");
        assert!(world.plan.busy.is_empty() && world.plan.waiting.is_empty());
        assert_eq!(world.plan.documents.len(), world.files.len());
    }
}
