//! A random pipeline: what its nodes do, who takes what from whom, and its TOML.

use std::fmt::Write as _;

use super::work::{ALL, Does, Facts, SPLITS_INTO_MANY};

/// Raw numbers that a node is made from; smaller ones make a simpler node.
pub(super) type Raw = [u8; 12];

/// Items that a document may become on one edge, as far as can be foreseen.
const MAX_ITEMS: usize = 40;

/// The places of a stage where an item can be split.
const MAX_SPLITS: usize = 2;

/// What stages between pages and their joins do: none that waits for the
/// document, or holds its items to the end.
const ON_PAGES: [Does; 9] = [
    Does::Step,
    Does::Filter,
    Does::SetAside,
    Does::Split,
    Does::PanicBefore,
    Does::PanicAfter,
    Does::Flaky,
    Does::SplitSetAside,
    Does::Gather,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unmatched {
    DeadLetter,
    Pass,
    Drop,
}

/// What `when` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct When {
    which: u8,
}

impl When {
    const N: u8 = 6;

    pub(super) fn text(self) -> &'static str {
        match self.which {
            0 => "v % 2 == 0",
            1 => "page > 0 && part == 0",
            2 => "v % 3 != 1",
            3 => "page == 1 || v % 5 == 0",
            4 => "text.len() > 3",
            _ => "10 / (v % 3) > 6",
        }
    }

    /// Whether it takes the item; none if that cannot be computed.
    pub(super) fn takes(self, facts: &Facts<'_>, text: &str) -> Option<bool> {
        let v = facts.v;
        Some(match self.which {
            0 => v % 2 == 0,
            1 => facts.page.is_some() && facts.part.is_none(),
            2 => v % 3 != 1,
            3 => facts.page == Some(1) || v % 5 == 0,
            4 => text.len() > 3,
            _ => 10_i64.checked_div(v % 3)? > 6,
        })
    }
}

/// What the `else` of a node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Otherwise {
    Drop,
    Node(usize),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    Source {
        n_documents: u32,
    },
    Stage {
        does: Does,
        /// A gathering stage gathers pages, not documents.
        by_page: bool,
        workers: u8,
    },
    Sink {
        acks: &'static str,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) role: Role,
    /// Places of other nodes, all before this one.
    pub(super) inputs: Vec<usize>,
    pub(super) join: Option<Unmatched>,
    pub(super) when: Option<When>,
    pub(super) otherwise: Option<Otherwise>,
    pub(super) salt: u64,
    max_items: u8,
    waits: bool,
    edge: u8,
}

/// A pipeline: sources, then stages, then sinks.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) nodes: Vec<Node>,
}

impl Shape {
    pub(super) fn new(sources: &[u8], stages: &[Raw], sinks: &[Raw]) -> Self {
        let mut nodes: Vec<Node> = Vec::new();
        for (number, raw) in sources.iter().enumerate() {
            let n_documents = u32::from(raw % 6) + u32::from(number == 0);
            let role = Role::Source { n_documents };
            nodes.push(node(format!("s{number}"), role, &[0; 12]));
        }
        for (number, raw) in stages.iter().enumerate() {
            let role = Role::Stage {
                does: ALL[usize::from(raw[0]) % ALL.len()],
                by_page: raw[11] & 8 != 0,
                workers: 1 + raw[8] % 3,
            };
            let mut stage = node(format!("n{number}"), role, raw);
            stage.inputs = inputs(raw, nodes.len());
            nodes.push(stage);
        }
        let n_senders = nodes.len();
        for (number, raw) in sinks.iter().enumerate() {
            let acks = ["end", "now", "finish"][usize::from(raw[0]) % 3];
            let mut sink = node(format!("k{number}"), Role::Sink { acks }, raw);
            sink.inputs = inputs(raw, n_senders);
            nodes.push(sink);
        }
        let mut shape = Self { nodes };
        shape.leave_nothing_unread(n_senders);
        shape.stay_small();
        shape.join_what_is_unique();
        shape.give_every_item_a_way();
        shape
    }

    /// One source whose documents the first stage splits into many pages. All
    /// other nodes take from that stage or from others behind it, and each that
    /// takes from several nodes is a join.
    pub(super) fn of_joins(stages: &[Raw], sinks: &[Raw]) -> Self {
        let source = Role::Source { n_documents: 1 };
        let mut nodes = vec![node("s0".into(), source, &[0; 12])];
        let stage = |does, workers| Role::Stage {
            does,
            by_page: true,
            workers,
        };
        let mut pages = node("n0".into(), stage(Does::Split, 1), &[0; 12]);
        (pages.inputs, pages.salt) = (vec![0], SPLITS_INTO_MANY);
        nodes.push(pages);
        for (number, raw) in stages.iter().enumerate() {
            let does = ON_PAGES[usize::from(raw[0]) % ON_PAGES.len()];
            let name = format!("n{}", number + 1);
            nodes.push(node(name, stage(does, 1 + raw[8] % 2), &joining(raw)));
        }
        let n_senders = nodes.len();
        for (number, raw) in sinks.iter().enumerate() {
            let role = Role::Sink { acks: "end" };
            nodes.push(node(format!("k{number}"), role, &joining(raw)));
        }
        for (place, raw) in (2..).zip(stages.iter().chain(sinks)) {
            let n_before = place.min(n_senders) - 1;
            let inputs = inputs(raw, n_before).into_iter();
            nodes[place].inputs = inputs.map(|input| input + 1).collect();
        }
        for node in &mut nodes {
            (node.max_items, node.waits, node.edge) = (1, false, 2);
        }
        let mut shape = Self { nodes };
        shape.leave_nothing_unread(n_senders);
        shape.stay_small();
        shape.join_what_is_unique();
        shape.give_every_item_a_way();
        shape
    }

    /// Every source and stage is read by some node.
    fn leave_nothing_unread(&mut self, n_senders: usize) {
        let n_sinks = self.nodes.len() - n_senders;
        for place in 0..n_senders {
            if self.readers(place).is_empty() {
                let sink = n_senders + place % n_sinks;
                self.nodes[sink].inputs.push(place);
            }
        }
    }

    /// Splits are few, and unions of many items are no unions.
    fn stay_small(&mut self) {
        let (mut n_items, mut n_splits) = (Vec::new(), Vec::new());
        for place in 0..self.nodes.len() {
            let node = &mut self.nodes[place];
            let sum: usize = node.inputs.iter().map(|input| n_items[*input]).sum();
            let most = node.inputs.iter().map(|input| n_splits[*input]).max();
            let (sum, mut most) = (sum.max(1), most.unwrap_or(0));
            let mut n_out = sum;
            if let Role::Stage { does, .. } = &mut node.role {
                if does.splits() && (most >= MAX_SPLITS || sum * 2 > MAX_ITEMS) {
                    *does = Does::Step;
                } else if does.splits() {
                    (n_out, most) = (sum * 2, most + 1);
                }
            }
            n_items.push(n_out);
            n_splits.push(most);
        }
    }

    /// Where one input sends two items of a key, which of them a join pairs is
    /// a matter of time: such a join becomes a union.
    fn join_what_is_unique(&mut self) {
        const DOCUMENT: u8 = 1;
        const PAGE: u8 = 2;
        const PART: u8 = 4;
        let (mut is_unique, mut levels): (Vec<bool>, Vec<u8>) = (Vec::new(), Vec::new());
        for node in &mut self.nodes {
            let all_are = node.inputs.iter().all(|input| is_unique[*input]);
            let level = node
                .inputs
                .iter()
                .fold(0, |sum, input| sum | levels[*input]);
            let does = match node.role {
                Role::Stage { does, by_page, .. } => Some((does, by_page)),
                Role::Source { .. } | Role::Sink { .. } => None,
            };
            let gathers = does.is_some_and(|(does, _)| does.gathers());
            if !all_are || gathers || node.inputs.len() < 2 {
                node.join = None;
            }
            let is_union = node.inputs.len() > 1 && node.join.is_none();
            let mut unique = gathers || (all_are && !is_union);
            levels.push(match does {
                None if node.inputs.is_empty() => DOCUMENT,
                Some((does, by_page)) if does.gathers() && by_page => DOCUMENT | PAGE,
                Some((does, _)) if does.gathers() => DOCUMENT,
                Some((does, _)) if does.splits() => {
                    // A part stays what it is, and a page becomes the same part.
                    unique &= level & PAGE == 0 || level & PART == 0;
                    (level << 1 | level & PART) & (PAGE | PART)
                }
                _ => level,
            });
            is_unique.push(unique);
        }
    }

    /// What no `when` takes goes to another node, or is dropped knowingly.
    fn give_every_item_a_way(&mut self) {
        for place in 0..self.nodes.len() {
            let node = &mut self.nodes[place];
            if node.join.is_some() || node.inputs.is_empty() {
                node.when = None;
            }
            if node.when.is_none() {
                node.otherwise = None;
            }
        }
        for place in 0..self.nodes.len() {
            if self.nodes[place].when.is_none() || self.nodes[place].otherwise.is_none() {
                continue;
            }
            // The node that the rest goes to takes from all inputs of this one.
            let inputs = self.nodes[place].inputs.clone();
            let other = self.nodes.iter().position(|other| {
                other.when.is_none()
                    && other.join.is_none()
                    && inputs.iter().all(|input| other.inputs.contains(input))
            });
            self.nodes[place].otherwise = Some(other.map_or(Otherwise::Drop, Otherwise::Node));
        }
        for place in 0..self.nodes.len() {
            let readers = self.readers(place);
            let reader = |reader: &usize| &self.nodes[*reader];
            let has_else = readers.iter().any(|r| reader(r).otherwise.is_some());
            let has_always = readers.iter().any(|r| reader(r).when.is_none());
            if let (Some(first), false, false) = (readers.first(), has_else, has_always) {
                self.nodes[*first].otherwise = Some(Otherwise::Drop);
            }
        }
    }

    fn readers(&self, place: usize) -> Vec<usize> {
        let nodes = self.nodes.iter().enumerate();
        let readers = nodes.filter(|(_, node)| node.inputs.contains(&place));
        readers.map(|(reader, _)| reader).collect()
    }

    /// The same with edges of one item and one byte.
    pub(super) fn with_smallest_edges(mut self) -> Self {
        self.nodes.iter_mut().for_each(|node| node.edge = 1);
        self
    }

    pub(super) fn toml(&self, folder: &str) -> String {
        let mut toml = format!("[p]\ndead_letters = '{folder}'\nledger = '{folder}/ledger'\n");
        for node in &self.nodes {
            let table = match node.role {
                Role::Source { .. } => "source",
                Role::Stage { .. } => "stage",
                Role::Sink { .. } => "sink",
            };
            let _ = writeln!(toml, "\n[p.{table}.{}]", node.name);
            self.write_node(node, &mut toml);
        }
        toml
    }

    fn write_node(&self, node: &Node, toml: &mut String) {
        let mut line = |line: String| toml.extend([line.as_str(), "\n"]);
        let quoted = |place: &usize| format!("'{}'", self.nodes[*place].name);
        let inputs: Vec<String> = node.inputs.iter().map(quoted).collect();
        let inputs = inputs.join(", ");
        match node.join {
            None if inputs.is_empty() => {}
            None => line(format!("input = [{inputs}]")),
            Some(unmatched) => {
                let unmatched = match unmatched {
                    Unmatched::DeadLetter => "dead_letter",
                    Unmatched::Pass => "pass",
                    Unmatched::Drop => "drop",
                };
                line(format!("join = [{inputs}]\nunmatched = '{unmatched}'"));
            }
        }
        if let Some(when) = node.when {
            line(format!("when = '{}'", when.text()));
        }
        match &node.otherwise {
            None => {}
            Some(Otherwise::Drop) => line("else = 'drop'".into()),
            Some(Otherwise::Node(place)) => line(format!("else = {}", quoted(place))),
        }
        match &node.role {
            Role::Source { n_documents } => {
                line(format!(
                    "kind = 'texts'\nprefix = '{}'\nn = {n_documents}",
                    node.name
                ));
                return;
            }
            Role::Stage {
                does,
                by_page,
                workers,
            } => {
                line(format!(
                    "kind = 'work'\ndoes = '{does:?}'\nby_page = {by_page}"
                ));
                line(format!(
                    "tag = '{}'\nsalt = {}\nworkers = {workers}",
                    node.name, node.salt
                ));
                let attempts = match does {
                    Does::Flaky => 2,
                    Does::GatherBreaking => 3,
                    Does::Breaking => 50,
                    _ => 0,
                };
                if attempts > 0 {
                    line(format!("retry = {{ attempts = {attempts}, base_ms = 0 }}"));
                }
            }
            Role::Sink { acks } => line(format!("kind = 'keep'\nacks = '{acks}'")),
        }
        let wait = u8::from(node.waits);
        line(format!(
            "batch = {{ max_items = {}, max_wait_ms = {wait} }}",
            node.max_items
        ));
        match node.edge {
            0 => {}
            1 => line("edge = { max_items = 1, max_bytes = 1 }".into()),
            items => line(format!("edge = {{ max_items = {items} }}")),
        }
    }
}

/// The numbers of a node that joins if it has several inputs.
fn joining(raw: &Raw) -> Raw {
    let mut raw = *raw;
    raw[1] |= 4;
    raw
}

fn node(name: String, role: Role, raw: &Raw) -> Node {
    let when = (raw[5] % 3 == 1).then_some(When {
        which: raw[5] / 3 % When::N,
    });
    let join = [Unmatched::DeadLetter, Unmatched::Pass, Unmatched::Drop];
    Node {
        name,
        role,
        inputs: Vec::new(),
        join: (raw[1] & 4 != 0).then_some(join[usize::from(raw[11]) % 3]),
        when,
        otherwise: (raw[6] % 2 == 1).then_some(Otherwise::Drop),
        salt: raw[10].into(),
        max_items: 1 + raw[7] % 8,
        waits: raw[11] & 0x70 == 0x70,
        edge: raw[9] % 4,
    }
}

/// Up to three of the nodes before; zeros make a chain.
fn inputs(raw: &Raw, n_before: usize) -> Vec<usize> {
    let n_inputs = 1 + usize::from(raw[1] % 4 % 3);
    let mut inputs = Vec::new();
    for raw in &raw[2..2 + n_inputs] {
        let input = n_before - 1 - usize::from(*raw) % n_before;
        if !inputs.contains(&input) {
            inputs.push(input);
        }
    }
    inputs
}
