#!/usr/bin/env bash
# pylance 14.0.2: `cleanup_old_versions(older_than=0)` does not remove a data file that
# was written and never committed, as a writer leaves it that is killed between the two.
# Files that no version ever named count as "unverified", and are kept for seven days
# whatever `older_than` says; `delete_unverified=True` removes them, and with them the
# files of every writer that is about to commit.
#
# Seen: 2 data files after the first cleanup, 1 after the second; the table has 1 version
# and needs 1 file.
#
# Ingestion meets it after each `kill -9` or power cut in the middle of a large document:
# a night with many restarts grows the table's folder by files that nothing names. Who
# wants them gone sooner without harming other writers has to note each file before it
# is written, and remove those of runs that have ended.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pylance==14.0.2 pyarrow==26.0.1

"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import os
import sys
from datetime import timedelta

import lance
import pyarrow as pa
from lance.fragment import write_fragments

table = sys.argv[1] + "/pages.lance"
lance.write_dataset(pa.table({"page": [1, 2]}), table)
write_fragments(pa.table({"page": [3]}), table)  # and no commit


def cleaned(**options):
    lance.dataset(table).cleanup_old_versions(older_than=timedelta(0), **options)
    return len(os.listdir(table + "/data"))


n_files = cleaned()
n_files_left = cleaned(delete_unverified=True)
versions = lance.dataset(table).versions()
print(f"{n_files} data files, then {n_files_left}; {len(versions)} version")
assert (n_files, n_files_left, len(versions)) == (2, 1, 1)
PYTHON
