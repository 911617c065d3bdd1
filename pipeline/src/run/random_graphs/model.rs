//! Works out what a pipeline makes of its documents, one item after the other.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::kinds::{Row, text};
use super::shape::{Node, Otherwise, Role, Shape, Unmatched};
use super::work::{Does, Facts, changed, is_struck, n_parts};

/// Page and part.
type Place = (Option<u32>, Option<u32>);

/// What a run must come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) rows: Vec<Row>,
    /// The node and the item's label.
    pub(super) dead: Vec<(String, String)>,
    /// Items that no edge took, by node.
    pub(super) dropped: BTreeMap<String, u64>,
    pub(super) documents: Vec<Document>,
}

/// What the ledger must say of a document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Document {
    pub(super) uri: String,
    pub(super) rows: BTreeMap<String, u64>,
    pub(super) n_dead: u64,
}

#[derive(Debug, Clone)]
struct Item {
    place: Place,
    text: Option<String>,
    /// The whole numbers, `v` among them.
    numbers: BTreeMap<String, i64>,
}

impl Item {
    fn facts<'a>(&self, uri: &'a str) -> Facts<'a> {
        Facts {
            uri,
            page: self.place.0,
            part: self.place.1,
            v: self.numbers["v"],
        }
    }
}

/// Which edge takes an item.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Route {
    Always,
    When,
    Otherwise,
}

/// Works out what becomes of every document; `order` names the nodes as they
/// stand in the checked graph.
pub(super) fn expect(shape: &Shape, order: &[String]) -> Expected {
    let mut expected = Expected::default();
    for (place, node) in shape.nodes.iter().enumerate() {
        let Role::Source { n_documents } = node.role else {
            continue;
        };
        for number in 0..n_documents {
            let (uri, text, v) = text(&node.name, number);
            let item = Item {
                place: (None, None),
                text: Some(text),
                numbers: BTreeMap::from([("v".to_owned(), v)]),
            };
            let mut model = Model {
                shape,
                uri,
                moving: VecDeque::new(),
                held: vec![BTreeMap::new(); shape.nodes.len()],
                dead: HashSet::new(),
                document: Document {
                    uri: String::new(),
                    rows: BTreeMap::new(),
                    n_dead: 0,
                },
                expected: &mut expected,
            };
            model.send(place, &item);
            model.run(order);
            let document = Document {
                uri: model.uri,
                ..model.document
            };
            expected.documents.push(document);
        }
    }
    expected.rows.sort();
    expected.dead.sort();
    expected.documents.sort();
    expected
}

/// By input, what a node has of one key.
type Parts = BTreeMap<usize, Vec<Item>>;

struct Model<'a> {
    shape: &'a Shape,
    uri: String,
    /// The node that an item comes to, and by which of its inputs.
    moving: VecDeque<(usize, usize, Item)>,
    /// What each node holds.
    held: Vec<BTreeMap<Place, Parts>>,
    /// What was set aside, and the node that did.
    dead: HashSet<(Place, usize)>,
    document: Document,
    expected: &'a mut Expected,
}

impl Model<'_> {
    fn run(&mut self, order: &[String]) {
        loop {
            while let Some((node, port, item)) = self.moving.pop_front() {
                self.arrive(node, port, item);
            }
            let place_of = |name: &String| {
                let place = self.shape.nodes.iter().position(|node| node.name == *name);
                place.expect("the graph has the nodes of the shape")
            };
            let mut places = order.iter().map(place_of);
            let Some(holder) = places.find(|place| !self.held[*place].is_empty()) else {
                return;
            };
            self.flush(holder);
        }
    }

    fn node(&self, place: usize) -> &Node {
        &self.shape.nodes[place]
    }

    fn arrive(&mut self, place: usize, port: usize, item: Item) {
        let node = self.node(place);
        let gathers = matches!(node.role, Role::Stage { does, .. } if does.gathers());
        let (n_inputs, is_join) = (node.inputs.len(), node.join.is_some());
        if !gathers && !is_join {
            self.work(place, item);
            return;
        }
        let key = item.place;
        let parts = self.held[place].entry(key).or_default();
        parts.entry(port).or_default().push(item);
        if is_join && parts.len() == n_inputs {
            let parts = self.held[place].remove(&key).unwrap_or_default();
            self.work(place, merged(parts));
        }
    }

    fn flush(&mut self, place: usize) {
        let held = std::mem::take(&mut self.held[place]);
        let Some(unmatched) = self.node(place).join else {
            self.flush_groups(place, held);
            return;
        };
        let before = self.before(place);
        let is_dead = |(page, part)| {
            let keys = [(page, part), (page, None), (None, None)];
            let mut dead = self.dead.iter();
            dead.any(|(key, node)| keys.contains(key) && before.contains(node))
        };
        let held: Vec<(bool, Item)> = held
            .into_iter()
            .map(|(key, parts)| (is_dead(key), merged(parts)))
            .collect();
        for (is_dead, item) in held {
            match unmatched {
                Unmatched::Pass => self.work(place, item),
                Unmatched::DeadLetter if !is_dead => self.set_aside(place, item.place),
                Unmatched::DeadLetter | Unmatched::Drop => {}
            }
        }
    }

    /// The nodes from which items come to the one at `place`.
    fn before(&self, place: usize) -> HashSet<usize> {
        let inputs = &self.node(place).inputs;
        let mut before: HashSet<usize> = inputs.iter().copied().collect();
        for input in inputs {
            before.extend(self.before(*input));
        }
        before
    }

    fn flush_groups(&mut self, place: usize, held: BTreeMap<Place, Parts>) {
        let Role::Stage { by_page, .. } = self.node(place).role else {
            unreachable!("only stages gather");
        };
        let mut groups: BTreeMap<Option<u32>, Vec<Item>> = BTreeMap::new();
        for item in held.into_values().flat_map(BTreeMap::into_values).flatten() {
            let page = item.place.0.filter(|_| by_page);
            groups.entry(page).or_default().push(item);
        }
        for (page, group) in groups {
            self.gather(place, page, group);
        }
    }

    fn gather(&mut self, place: usize, page: Option<u32>, mut group: Vec<Item>) {
        let (does, salt) = self.stage(place);
        if does == Does::GatherSetAside {
            let struck = |item: &Item| is_struck(salt, &item.facts(&self.uri), 4);
            let (dead, rest): (Vec<Item>, Vec<Item>) = group.into_iter().partition(struck);
            for item in dead {
                self.set_aside(place, item.place);
            }
            group = rest;
        }
        if group.is_empty() {
            return;
        }
        let v = group.iter().map(|item| item.numbers["v"]).sum();
        let whole = Item {
            place: (page, None),
            text: None,
            numbers: BTreeMap::from([("v".to_owned(), v)]),
        };
        if does == Does::GatherPanic && is_struck(salt, &whole.facts(&self.uri), 3) {
            self.set_aside(place, whole.place);
        } else {
            self.send(place, &self.change(place, whole, 0));
        }
    }

    fn stage(&self, place: usize) -> (Does, u64) {
        match self.node(place) {
            Node {
                role: Role::Stage { does, .. },
                salt,
                ..
            } => (*does, *salt),
            node => unreachable!("`{}` is no stage", node.name),
        }
    }

    fn change(&self, place: usize, mut item: Item, by: u64) -> Item {
        let node = self.node(place);
        let v = changed(item.numbers["v"], node.salt + by);
        item.numbers.insert("v".to_owned(), v);
        item.numbers.insert(format!("m_{}", node.name), v);
        item
    }

    fn work(&mut self, place: usize, item: Item) {
        if let Role::Sink { .. } = self.node(place).role {
            self.store(place, item);
            return;
        }
        let (does, salt) = self.stage(place);
        if does.splits() {
            self.split(place, &item);
            return;
        }
        let is_struck = |one_in| is_struck(salt, &item.facts(&self.uri), one_in);
        match does {
            Does::Filter if is_struck(3) => {}
            Does::SetAside if is_struck(3) => self.set_aside(place, item.place),
            Does::PanicBefore if is_struck(4) => self.set_aside(place, item.place),
            Does::Flaky if is_struck(8) => self.set_aside(place, item.place),
            _ => self.send(place, &self.change(place, item, 0)),
        }
    }

    fn split(&mut self, place: usize, item: &Item) {
        let (does, salt) = self.stage(place);
        if item.place.1.is_some() {
            self.send(place, &self.change(place, item.clone(), 0));
            return;
        }
        let panics = does == Does::SplitPanic && is_struck(salt, &item.facts(&self.uri), 4);
        for number in 1..=n_parts(salt, item.numbers["v"]) {
            let mut part = self.change(place, item.clone(), number.into());
            part.place = match item.place.0 {
                None => (Some(number), None),
                page => (page, Some(number)),
            };
            let is_odd = is_struck(salt, &part.facts(&self.uri), 4);
            if does == Does::SplitSetAside && is_odd {
                self.set_aside(place, part.place);
                continue;
            }
            self.send(place, &part);
            if panics {
                self.set_aside(place, item.place);
                return;
            }
        }
    }

    fn send(&mut self, place: usize, item: &Item) {
        let facts = item.facts(&self.uri);
        let text = item.text.clone().unwrap_or_default();
        let (mut takers, mut others, mut is_chosen) = (Vec::new(), Vec::new(), false);
        for (reader, node) in self.shape.nodes.iter().enumerate() {
            let Some(port) = node.inputs.iter().position(|input| *input == place) else {
                continue;
            };
            match (self.route(reader, place), node.when) {
                (Route::When, Some(when)) => match when.takes(&facts, &text) {
                    None => {
                        self.set_aside(place, item.place);
                        return;
                    }
                    Some(true) => {
                        is_chosen = true;
                        takers.push((reader, port));
                    }
                    Some(false) => {}
                },
                (Route::Otherwise, _) => others.push((reader, port)),
                _ => takers.push((reader, port)),
            }
        }
        if !is_chosen {
            takers.append(&mut others);
        }
        if takers.is_empty() {
            let name = self.node(place).name.clone();
            *self.expected.dropped.entry(name).or_default() += 1;
        }
        let moving = takers
            .into_iter()
            .map(|(reader, port)| (reader, port, item.clone()));
        self.moving.extend(moving);
    }

    fn route(&self, reader: usize, from: usize) -> Route {
        let is_other = |node: &Node| {
            node.otherwise == Some(Otherwise::Node(reader)) && node.inputs.contains(&from)
        };
        if self.node(reader).when.is_some() {
            Route::When
        } else if self.shape.nodes.iter().any(is_other) {
            Route::Otherwise
        } else {
            Route::Always
        }
    }

    fn store(&mut self, place: usize, item: Item) {
        let name = self.node(place).name.clone();
        *self.document.rows.entry(name.clone()).or_default() += 1;
        let label = self.label(item.place);
        let numbers = item.numbers.into_iter();
        let mut fields: BTreeMap<String, String> = numbers
            .map(|(name, number)| (name, number.to_string()))
            .collect();
        fields.extend(item.text.map(|text| ("text".to_owned(), text)));
        self.expected.rows.push((name, label, fields));
    }

    fn set_aside(&mut self, place: usize, item: Place) {
        let name = self.node(place).name.clone();
        self.expected.dead.push((name, self.label(item)));
        self.document.n_dead += 1;
        self.dead.insert((item, place));
    }

    fn label(&self, (page, part): Place) -> String {
        let place = |number: Option<u32>, mark| {
            number.map_or_else(String::new, |number| format!("{mark}{number}"))
        };
        format!("{}{}{}", self.uri, place(page, '#'), place(part, '.'))
    }
}

/// One item of the parts: the later input's fields are kept.
fn merged(parts: Parts) -> Item {
    let mut parts = parts.into_values().flatten();
    let mut merged = parts.next().expect("some input has sent it");
    for part in parts {
        merged.text = part.text.or(merged.text);
        merged.numbers.extend(part.numbers);
    }
    merged
}
