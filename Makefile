.DEFAULT_GOAL := help
.PHONY: help setup build demo test lint bench bench-short install graph clean-data

CARGO := scripts/cargo
RUSTDOCFLAGS ?= -D warnings
BENCH_PROFILE ?= release

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Fetch what the build and the demo need into the cache folder
	@scripts/setup

build: setup ## Build everything on the dev profile
	@scripts/build

demo: ## Index the sample documents, then ask three questions
	@scripts/demo

test: setup ## Run all tests, doc tests included, and build the examples
	$(CARGO) test --workspace --locked

lint: setup ## Formatting, clippy and rustdoc with warnings denied; cargo-deny and typos if installed
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS='$(RUSTDOCFLAGS)' $(CARGO) doc --workspace --no-deps --locked
	@scripts/optional-lints

bench: setup ## Run the benchmarks (BENCH_PROFILE=dev reuses what the demo compiled)
	$(CARGO) bench --workspace --locked --profile $(BENCH_PROFILE) --bench engine --bench isolation --bench maxsim --bench memory --bench pages

bench-short: setup ## A part of the benchmarks of the engine and of memory, with wide limits
	PAGEMILL_BENCH=short $(CARGO) bench --workspace --locked --profile dev --bench engine --bench memory

install: setup ## Build with optimizations and install the `pagemill` command
	$(CARGO) install --path . --locked --profile release

graph: setup ## Draw the graph of the first shipped pipeline
	@binary=$$(scripts/build) && "$$binary" graph

clean-data: ## Remove what the shipped pipelines wrote
	rm -rf data
