//! Pictures of a pipeline's graph: Mermaid, DOT and SVG.

use std::fmt::Write as _;

use pagemill::Graph;
use pagemill::pipeline::{GraphNode, Role};

/// A Mermaid flow chart.
pub(crate) fn mermaid(graph: &Graph) -> String {
    let mut text = String::from("flowchart LR\n");
    for (index, node) in graph.nodes().iter().enumerate() {
        let subtitle = for_mermaid(&subtitle(node));
        let label = format!("\"{}<br/><small>{subtitle}</small>\"", node.name());
        let shaped = match node.role() {
            Role::Source => format!("([{label}])"),
            Role::Stage if node.is_join() => format!("{{{{{label}}}}}"),
            Role::Stage => format!("[{label}]"),
            Role::Sink => format!("[({label})]"),
        };
        let _ = writeln!(text, "    n{index}{shaped}");
    }
    for (index, node) in graph.nodes().iter().enumerate() {
        for (number, input) in node.inputs().iter().enumerate() {
            let route = node.route(number).map(|route| {
                let route = for_mermaid(&said(route));
                format!("<b>{route}</b><br/>")
            });
            let _ = writeln!(
                text,
                "    n{input} -->|\"{}{}\"| n{index}",
                route.unwrap_or_default(),
                for_mermaid(&node.carried().join(", "))
            );
        }
    }
    text
}

/// Within quotes Mermaid takes entities, without ampersands.
fn for_mermaid(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '"' => escaped += "#quot;",
            '&' => escaped += "#amp;",
            '<' => escaped += "#lt;",
            '>' => escaped += "#gt;",
            '#' | '`' | '|' | '\\' | ';' => escaped += &format!("#{};", u32::from(c)),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A graph for Graphviz.
pub(crate) fn dot(graph: &Graph) -> String {
    let mut text = format!("digraph \"{}\" {{\n  rankdir=LR;\n", graph.name());
    text += "  node [fontname=\"sans-serif\", shape=box, style=\"rounded\"];\n";
    text += "  edge [fontname=\"sans-serif\", fontsize=9];\n";
    for (index, node) in graph.nodes().iter().enumerate() {
        let shape = match node.role() {
            Role::Source => "oval",
            Role::Stage if node.is_join() => "hexagon",
            Role::Stage => "box",
            Role::Sink => "cylinder",
        };
        let (name, subtitle) = (node.name(), for_dot(&subtitle(node)));
        let _ = writeln!(
            text,
            "  n{index} [shape={shape}, label=\"{name}\\n{subtitle}\"];"
        );
    }
    for (index, node) in graph.nodes().iter().enumerate() {
        for (number, input) in node.inputs().iter().enumerate() {
            let route = node.route(number).map(|route| for_dot(&said(route)));
            let fields = node.carried().into_iter().map(for_dot);
            let lines: Vec<String> = route.into_iter().chain(fields).collect();
            let label = lines.join("\\n");
            let _ = writeln!(text, "  n{input} -> n{index} [label=\"{label}\"];");
        }
    }
    text + "}\n"
}

fn for_dot(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    escaped.replace(char::is_control, " ")
}

/// The route of an edge in words.
fn said(route: &str) -> String {
    if route == "else" {
        route.to_owned()
    } else {
        format!("when {route}")
    }
}

fn subtitle(node: &GraphNode) -> String {
    let mut text = node.kind().to_owned();
    if node.is_join() {
        text += ", join";
    }
    if node.workers() > 1 {
        text += &format!(", {} workers", node.workers());
    }
    text
}

const BOX_WIDTH: usize = 150;
const BOX_HEIGHT: usize = 52;
const COLUMN_GAP: usize = 96;
/// Of a picture with routes: they are longer than names of fields.
const WIDE_COLUMN_GAP: usize = 200;
/// Letters of a route that fit into the wide gap; the rest shows when it is pointed at.
const ROUTE_LETTERS: usize = 36;
const ROW_GAP: usize = 40;
const MARGIN: usize = 24;
const LINE_HEIGHT: usize = 13;

/// A picture: nodes in columns by their distance from the sources, edges
/// labelled with the fields that they carry.
pub(crate) fn svg(graph: &Graph) -> String {
    let places = places(graph);
    let n_columns = places
        .iter()
        .map(|(column, _)| column + 1)
        .max()
        .unwrap_or(1);
    let n_rows = places.iter().map(|(_, row)| row + 1).max().unwrap_or(1);
    let has_route =
        |node: &GraphNode| (0..node.inputs().len()).any(|number| node.route(number).is_some());
    let column_gap = if graph.nodes().iter().any(has_route) {
        WIDE_COLUMN_GAP
    } else {
        COLUMN_GAP
    };
    // Labels stand below the edge that they are about.
    let n_labels = graph
        .nodes()
        .iter()
        .map(|node| node.carried().len() + usize::from(has_route(node)))
        .max()
        .unwrap_or(0);
    let width = 2 * MARGIN + n_columns * BOX_WIDTH + (n_columns - 1) * column_gap;
    let row_height = BOX_HEIGHT.max(BOX_HEIGHT / 2 + (n_labels + 1) * LINE_HEIGHT) + ROW_GAP / 2;
    let height = 2 * MARGIN + n_rows * row_height + 2 * LINE_HEIGHT;
    let centre = |(column, row): (usize, usize)| {
        let x = MARGIN + column * (BOX_WIDTH + column_gap);
        (
            x,
            MARGIN + 2 * LINE_HEIGHT + row * row_height + BOX_HEIGHT / 2,
        )
    };
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <defs><marker id=\"arrow\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"8\" \
         markerHeight=\"8\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"#5b6770\"/></marker></defs>\n"
    );
    let title = graph
        .description()
        .map_or(graph.name().to_owned(), |description| {
            format!("{}: {description}", graph.name())
        });
    let _ = writeln!(
        text,
        "<text x=\"{MARGIN}\" y=\"{}\" font-weight=\"bold\">{}</text>",
        MARGIN,
        escape(&title)
    );
    for (index, node) in graph.nodes().iter().enumerate() {
        let to = centre(places[index]);
        for (number, input) in node.inputs().iter().enumerate() {
            let from = centre(places[*input]);
            text += &svg_edge(node, number, from, to, column_gap);
        }
    }
    for (index, node) in graph.nodes().iter().enumerate() {
        let (x, y) = centre(places[index]);
        let (fill, stroke) = match node.role() {
            Role::Source => ("#e8f3ec", "#3c8c5a"),
            Role::Stage => ("#eef2f8", "#4a6fa5"),
            Role::Sink => ("#f8efe4", "#b9772e"),
        };
        let radius = if node.role() == Role::Stage {
            6
        } else {
            BOX_HEIGHT / 2
        };
        let (top, middle) = (y - BOX_HEIGHT / 2, x + BOX_WIDTH / 2);
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"{top}\" width=\"{BOX_WIDTH}\" height=\"{BOX_HEIGHT}\" \
             rx=\"{radius}\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"1.5\"/>\n\
             <text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" font-weight=\"bold\">{}</text>\n\
             <text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" font-size=\"11\" \
             fill=\"#5b6770\">{}</text>",
            y - 4,
            escape(node.name()),
            y + 14,
            escape(&subtitle(node)),
        );
    }
    text + "</svg>\n"
}

/// The edge that leads to `node` as its `number`-th input, with its labels.
fn svg_edge(
    node: &GraphNode,
    number: usize,
    from: (usize, usize),
    (x, y): (usize, usize),
    column_gap: usize,
) -> String {
    let (from_x, from_y) = (from.0 + BOX_WIDTH, from.1);
    let middle = x.saturating_sub(column_gap / 2);
    let mut text = format!(
        "<path d=\"M{from_x} {from_y}C{middle} {from_y} {middle} {y} {} {y}\" fill=\"none\" \
         stroke=\"#5b6770\" stroke-width=\"1.5\" marker-end=\"url(#arrow)\"/>\n",
        x - 2
    );
    let mut top = y.min(from_y) + y.abs_diff(from_y) / 2 + LINE_HEIGHT + 2;
    if let Some(route) = node.route(number) {
        text += &svg_route(route, middle, top);
        top += LINE_HEIGHT;
    }
    for (line, field) in node.carried().iter().enumerate() {
        let _ = writeln!(
            text,
            "<text x=\"{middle}\" y=\"{}\" font-size=\"10\" text-anchor=\"middle\" \
             fill=\"#5b6770\">{}</text>",
            top + line * LINE_HEIGHT,
            escape(field)
        );
    }
    text
}

/// The text of a route, cut to what fits.
fn svg_route(route: &str, middle: usize, top: usize) -> String {
    let whole = said(route);
    let mut shown: String = whole.chars().take(ROUTE_LETTERS).collect();
    if shown.len() < whole.len() {
        shown.pop();
        shown.push('…');
    }
    format!(
        "<text x=\"{middle}\" y=\"{top}\" font-size=\"10\" text-anchor=\"middle\" \
         font-style=\"italic\" fill=\"#8a4b1f\"><title>{}</title>{}</text>\n",
        escape(&whole),
        escape(&shown)
    )
}

/// Column and row of each node: a column right of its last input, and the next
/// free row of that column.
fn places(graph: &Graph) -> Vec<(usize, usize)> {
    let mut places: Vec<(usize, usize)> = Vec::new();
    for node in graph.nodes() {
        let column = node
            .inputs()
            .iter()
            .map(|input| places[*input].0 + 1)
            .max()
            .unwrap_or(0);
        let row = places.iter().filter(|(taken, _)| *taken == column).count();
        places.push((column, row));
    }
    places
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
