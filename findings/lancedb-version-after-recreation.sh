#!/usr/bin/env bash
# lancedb 0.40.0 (pylance 14.0.2): a table that is dropped and made again under its name
# starts at version 1 again. A handle that was opened before answers `checkout_latest()`
# with the rows of the other table, under the same version number, without an error.
#
# Seen: `versions 1 1`, then `version 1: ['old']` and `version 1: ['new']`.
#
# Ingestion meets it when it remembers which version of a table it has checked, so as
# not to read the table again: place and version number name no content. The time or
# the transaction in the manifest must be part of what is remembered.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet lancedb==0.40.0 pylance==14.0.2 pyarrow==26.0.1

"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import lancedb

database = lancedb.connect(sys.argv[1] + "/tables")
first = database.create_table("pages", [{"document": "a.pdf", "text": "old"}])
first_version, first_texts = first.version, first.to_arrow()["text"].to_pylist()

database.drop_table("pages")
second = database.create_table("pages", [{"document": "b.pdf", "text": "new"}])
print("versions", first_version, second.version)
assert first_version == second.version == 1

first.checkout_latest()
texts = first.to_arrow()["text"].to_pylist()
print(f"version {first_version}: {first_texts}")
print(f"version {first.version}: {texts}")
assert (first.version, first_texts, texts) == (1, ["old"], ["new"])
PYTHON
