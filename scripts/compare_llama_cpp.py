"""Times text generation against llama.cpp on one machine.

    cargo build --release -p pagemill-models --example generate_speed
    python scripts/fixtures/synthetic_gguf.py MODELS
    python scripts/compare_llama_cpp.py MODELS/q8_0 MODELS/q4_k_m \\
        --ours target/release/examples/generate_speed

Each round measures both engines, one after the other, on the same file: a prompt of 512
tokens, then 128 tokens of an answer, the likeliest each time. Neither ends early: llama.cpp
goes on after an end, ours may not say one. Of all rounds the median counts, since other
work on the machine disturbs single ones. Packages: llama-cpp-python, numpy.
"""

import argparse
import glob
import json
import os
import statistics
import subprocess
import sys
import time

N_PROMPT, N_ANSWER, MANY = 512, 128, 8


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="each with one GGUF file")
    parser.add_argument("--ours", default="target/release/examples/generate_speed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--llama-cpp", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.llama_cpp:
        print(json.dumps(llama_cpp_speed(arguments.folders[0], arguments.threads)))
        return
    print(f"{'':14}{'pagemill':>10}{'llama.cpp':>11}{'ratio':>8}   of {arguments.rounds} rounds")
    for folder in arguments.folders:
        rounds = []
        for number in range(arguments.rounds):
            # In turn who is first: what the other leaves in caches and clocks helps neither.
            engines = [ours, theirs] if number % 2 == 0 else [theirs, ours]
            measured = {}
            for engine in engines:
                measured.update(engine(folder, arguments))
            rounds.append(measured)
        table(os.path.basename(folder.rstrip("/")), rounds)


def table(name, rounds):
    print(name)
    for label, own, other in [
        ("prompt", "prompt", "their_prompt"),
        ("answer", "answer", "their_answer"),
        (f"{MANY} prompts", "prompts", "their_prompt"),
        (f"{MANY} answers", "answers", "their_answer"),
    ]:
        median = lambda key: statistics.median(measured[key] for measured in rounds)
        ratios = [measured[own] / measured[other] for measured in rounds]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"  {label:12}{median(own):10.1f}{median(other):11.1f}{statistics.median(ratios):8.2f}   {spread}")


def ours(folder, arguments):
    command = [arguments.ours, folder, "float", str(N_PROMPT), str(N_ANSWER), "--json", "--rounds", "1"]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(arguments.threads)}
    lines = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout.splitlines()
    one, many = (json.loads(line) for line in lines)
    assert (one["batch"], many["batch"]) == (1, MANY)
    return {
        "prompt": one["prompt_tokens_per_s"],
        "answer": one["answer_tokens_per_s"],
        "prompts": many["prompt_tokens_per_s"],
        "answers": many["answer_tokens_per_s"],
    }


def theirs(folder, arguments):
    # A process of its own: its threads would otherwise wait actively while ours compute.
    command = [sys.executable, __file__, "--llama-cpp", "--threads", str(arguments.threads), folder]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return json.loads(found)


def llama_cpp_speed(folder, n_threads):
    """By its C functions: what its Python wrapper adds to a token is not its speed."""
    import llama_cpp

    (path,) = glob.glob(os.path.join(folder, "*.gguf"))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = 1024
    settings.n_batch = settings.n_ubatch = N_PROMPT
    settings.n_threads = settings.n_threads_batch = n_threads
    context = llama_cpp.llama_init_from_model(model, settings)
    sampler = llama_cpp.llama_sampler_init_greedy()
    tokens = (llama_cpp.llama_token * N_PROMPT)(*(97 + number * 7919 % 90000 for number in range(N_PROMPT)))
    # The first call reads the weights; it is not counted.
    llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, 32))
    llama_cpp.llama_synchronize(context)
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)

    started = time.perf_counter()
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, N_PROMPT)) == 0
    llama_cpp.llama_synchronize(context)
    prompt_s = time.perf_counter() - started

    newest = (llama_cpp.llama_token * 1)(llama_cpp.llama_sampler_sample(sampler, context, -1))
    started = time.perf_counter()
    for _ in range(N_ANSWER):
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(newest, 1)) == 0
        newest[0] = llama_cpp.llama_sampler_sample(sampler, context, -1)
    answer_s = time.perf_counter() - started
    return {"their_prompt": N_PROMPT / prompt_s, "their_answer": N_ANSWER / answer_s}


if __name__ == "__main__":
    main()
