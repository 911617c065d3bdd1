#!/usr/bin/env bash
# Checks the stages that ask a server, against a real one: llama.cpp's by way of Python.
#
#     scripts/check_model_server.sh PAGEMILL MODEL.gguf [PYTHON]
#
# PAGEMILL is the program, PYTHON one with `llama-cpp-python[server]`. A model of random
# weights does (scripts/fixtures/synthetic_gguf.py): what is checked is that every page gets
# a row, in the shape that was asked for, and what becomes of pages whose server dies.
set -euo pipefail

pagemill=$(realpath "$1")
model=$(realpath "$2")
python=${3:-python3}
root=$(realpath "$(dirname "$0")/..")
folder=$(mktemp -d)
server=
port=
stop_server() {
    [ -z "$server" ] || { kill -9 "$server" 2>/dev/null && wait "$server" 2>/dev/null; } || true
    server=
}
trap 'stop_server; rm -rf "$folder"' EXIT

start_server() { # further arguments of the server
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    "$python" -m llama_cpp.server --model "$model" --host 127.0.0.1 --port "$port" --n_ctx 4096 "$@" \
        >"$folder/server.log" 2>&1 &
    server=$!
    for _ in $(seq 120); do
        curl -sf "http://127.0.0.1:$port/v1/models" >/dev/null && return
        kill -0 "$server" 2>/dev/null || { tail -n 20 "$folder/server.log"; exit 1; }
        sleep 1
    done
    echo "the server does not come up" >&2
    exit 1
}

pipeline() { # name, then the stage's lines on standard input
    cat >"$folder/$1.toml" <<TOML
[$1]
dead_letters = "$folder/$1-dead"

[$1.source.files]
kind = "read_files"
path = "$root/examples/documents"
include = ["invoice.pdf", "paper.pdf", "slides.pdf"]

[$1.stage.pages]
kind = "render_pdf"
input = "files"
long_side_px = 128

[$1.stage.asked]
input = "pages"
model = { url = "http://127.0.0.1:$port/v1", name = "any", attempts = ${ATTEMPTS:-3}, timeout_s = 120 }
$(cat)

[$1.sink.rows]
kind = "jsonl"
input = "asked"
path = "$folder/$1-rows"
TOML
}

run() { # name
    local status=0
    "$pagemill" run "$1" --config "$folder/$1.toml" >"$folder/$1.log" 2>&1 || status=$?
    echo "== $1: exit code $status"
    tail -n 12 "$folder/$1.log"
    return "$status"
}

rows() { # name, a Python expression over `rows` that must hold
    "$python" - "$folder/$1-rows" "$2" <<'PYTHON'
import glob, json, sys
files = glob.glob(sys.argv[1] + "/**/*.jsonl", recursive=True)
rows = [json.loads(line) for file in files for line in open(file)]
for row in rows[:2]:
    print({k: v if not isinstance(v, (str, list)) else v[:60] for k, v in row.items() if k not in ("text", "words")})
if not eval(sys.argv[2]):
    sys.exit(f"not so: {sys.argv[2]}, of {len(rows)} rows")
print(f"{len(rows)} rows: {sys.argv[2]}")
PYTHON
}

start_server --chat_format chatml

pipeline generate <<'TOML'
kind = "generate"
image = false
prompt = "Page {{ page }} of {{ uri }}."
max_new_tokens = 12
TOML
run generate
# A server that loses the prompt answers every page alike.
rows generate 'len(rows) > 1 and len({row["answer"] for row in rows}) == len(rows)'

pipeline extract <<'TOML'
kind = "extract"
image = false
prompt = "Page {{ page }} of {{ uri }}."
max_new_tokens = 64
schema = { type = "object", properties = { sort = { enum = ["bill", "book"] }, paid = { type = "boolean" } }, required = ["sort", "paid"], additionalProperties = false }
TOML
run extract
rows extract 'len(rows) > 1 and all(row["sort"] in ("bill", "book") and row["paid"] in (True, False) for row in rows)'

pipeline classify <<'TOML'
kind = "classify"
image = false
prompt = "Page {{ page }} of {{ uri }}."
labels = ["invoice", "letter", "other"]
TOML
run classify
# The probabilities come from what the server tells of its tokens, and the label is the likeliest.
rows classify 'len(rows) > 1 and all(abs(sum(p.values()) - 1) < 1e-6 and p[row["label"]] == max(p.values()) == row["label_probability"] for row in rows for p in [json.loads(row["label_probabilities"])])'

ATTEMPTS=2 pipeline killed <<'TOML'
kind = "generate"
image = false
prompt = "Page {{ page }} of {{ uri }}."
max_new_tokens = 100
TOML
(sleep "${KILL_AFTER_S:-12}"; kill -9 "$server") &
killer=$!
status=0
run killed || status=$?
wait "$killer" || true
[ "$status" = 3 ] || { echo "a run whose server died ends with $status, not 3"; exit 1; }
"$pagemill" dead-letters list --config "$folder/killed.toml" | head -n 12
stop_server

# As the metadata of a model made for vectors says: the last token's is the text's.
start_server --embedding true --kv_overrides qwen3.pooling_type=int:3
pipeline embed <<'TOML'
kind = "embed_text"
TOML
run embed
rows embed 'sum(len(row["vector"] or []) == 1024 for row in rows) == sum(bool(row["text"].strip()) for row in rows) > 1'
echo "all is well"
