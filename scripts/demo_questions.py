"""Asks the demo's questions: demo_questions.py BINARY [PIPELINE].

Shows what `pagemill search` prints, checks its JSON, and exits 1 when the page
that answers is not the first hit.
"""

import json
import os
import pathlib
import subprocess
import sys

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11 pip brings the same parser
    from pip._vendor import tomli as tomllib

QUESTIONS = pathlib.Path("tests/questions.toml")


def search(binary, pipeline, query, *options):
    command = [binary, "search", query, *options]
    if pipeline:
        command += ["--pipeline", pipeline]
    sys.stdout.flush()
    return command


def first_hit(binary, pipeline, query):
    command = search(binary, pipeline, query, "--top", "1", "--json")
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    hits = json.loads(answer)["hits"]
    return hits[0] if hits else None


def is_right(hit, question):
    if hit is None:
        return False
    # A hit may name the document by its path or URI, a question by its file name.
    same_document = os.path.basename(hit["document"]) == os.path.basename(question["document"])
    return same_document and hit["page"] == question["page"]


def main():
    binary, pipeline = sys.argv[1], "".join(sys.argv[2:3])
    questions = tomllib.loads(QUESTIONS.read_text(encoding="utf-8"))["question"]
    questions = [question for question in questions if question.get("demo")]
    if not questions:
        sys.exit(f"error: no question in `{QUESTIONS}` has `demo = true`")

    wrong = 0
    for question in questions:
        query = question["ask"]
        print(f"\n== pagemill search {query!r}")
        subprocess.run(search(binary, pipeline, query, "--top", "1"), check=True)
        hit = first_hit(binary, pipeline, query)
        if is_right(hit, question):
            print(f"right: {question['document']}, page {question['page']}")
            continue
        wrong += 1
        found = f"`{hit['document']}`, page {hit['page']}" if hit else "nothing"
        print(f"wrong: `{question['document']}`, page {question['page']} answers; found {found}")

    n_right = len(questions) - wrong
    print(f"\n{n_right} of {len(questions)} questions found their page first")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: `pagemill search` failed with exit code {error.returncode}")
