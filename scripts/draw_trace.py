"""Draws a trace of `pagemill run --trace FILE` as a picture: draw_trace.py FILE OUT.svg.

One lane a worker; what it did is filled, what it waited for is grey. For looking
closer, open the trace itself in ui.perfetto.dev.
"""

import html
import json
import sys

WIDTH, LANE, LEFT, TOP = 960, 26, 130, 34
COLOURS = ["#4a78b5", "#b5654a", "#5a9a68", "#8a6bb1", "#b59a3c", "#4aa0a8", "#a8588a"]


def main(source, target):
    with open(source, encoding="utf-8") as file:
        events = json.load(file)
    lanes = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    spans = [e for e in events if e["ph"] == "X"]
    if not spans:
        sys.exit(f"error: {source} has no spans")
    begin = min(e["ts"] for e in spans)
    end = max(e["ts"] + e["dur"] for e in spans)
    scale = (WIDTH - LEFT - 10) / (end - begin)
    rows = {tid: row for row, tid in enumerate(sorted(lanes))}
    nodes = sorted({name.rsplit("-", 1)[0] for name in lanes.values()})
    height = TOP + LANE * len(rows) + 24
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="18" fill="#555">{(end - begin) / 1e6:.1f} s; filled: working, '
        "grey: waiting for input or for room</text>",
    ]
    for tid, row in rows.items():
        y = TOP + row * LANE
        name = html.escape(lanes[tid])
        svg.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end" fill="#222">{name}</text>')
        svg.append(f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT - 10}" height="{LANE - 6}" fill="#f4f4f4"/>')
    for event in spans:
        x, width = LEFT + (event["ts"] - begin) * scale, max(event["dur"] * scale, 0.4)
        y = TOP + rows[event["tid"]] * LANE
        node = lanes[event["tid"]].rsplit("-", 1)[0]
        colour = "#cfcfcf" if event["cat"] == "waiting" else COLOURS[nodes.index(node) % len(COLOURS)]
        blocked = event.get("args", {}).get("blocked_ms", 0) * 1e3 * scale
        svg.append(
            f'<rect x="{x:.1f}" y="{y}" width="{max(width - blocked, 0.4):.1f}" height="{LANE - 6}" fill="{colour}"/>'
        )
    svg.append("</svg>")
    with open(target, "w", encoding="utf-8") as file:
        file.write("\n".join(svg) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
