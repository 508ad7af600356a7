# `make help` lists the targets.
PYTHON ?= python3
SOURCES := $(shell find learner service freshet -name '*.py' -o -path '*/static/*') deploy/model.toml pyproject.toml README.md requirements-build.lock
PORT ?= 8000

.DEFAULT_GOAL := help
.PHONY: help up test lint chaos fuzz bench docs screenshots sbom compose image digests ranklens lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

up: .venv/installed ## Run learner and service in one process on one SQLite file, freshet.db
	.venv/bin/freshet up --port $(PORT)

test: .venv-test/installed ## Run all tests; those of Kafka, Redis, Prometheus and pages where redis-server, java, mvn, prometheus and chromium are found
	@.venv-test/bin/python -m learner.compile
	OMP_NUM_THREADS=1 .venv-test/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: .venv-test/installed ## Check style, types and the import contracts
	.venv-test/bin/ruff format --check .
	.venv-test/bin/ruff check .
	.venv-test/bin/mypy
	.venv-test/bin/lint-imports

chaos: .venv-test/installed ## Kill any part at any moment and show that nothing is lost: make chaos ARGS="--help"
	OMP_NUM_THREADS=1 .venv-test/bin/python -m tests.chaos.run $(ARGS)

bench: .venv-bench/installed ## Measure against peers, floors and earlier revisions: make bench ARGS="--quick"; ARGS="--help" says more
	@.venv-bench/bin/python -m learner.compile
	OMP_NUM_THREADS=1 .venv-bench/bin/python -m benchmarks $(ARGS)

fuzz: .venv-fuzz/installed ## Fuzz the wire format, the records and every route: make fuzz ARGS="--quick"; --help says more
	OMP_NUM_THREADS=1 .venv-fuzz/bin/python -m tests.fuzz $(ARGS)

docs: .venv-docs/installed ## Build the site into build/site, every link checked; to be read from there, without a server
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

screenshots: .venv-test/installed ## Take the pictures of the live page that README shows, in six minutes (needs chromium)
	@.venv-test/bin/python -m learner.compile
	.venv-test/bin/python -m docs.screenshots $(ARGS)

sbom: .venv-docs/installed ## List what an image's environment is made of, with hashes, in CycloneDX: build/sbom.json
	@mkdir -p build
	.venv-docs/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --mc-type application \
	  --spec-version 1.6 --output-reproducible --validate --output-file build/sbom.json

image: ## Build the image, and start it on a read-only file system and without any capability (needs docker)
	tests/e2e/image_check.sh

compose: deploy/secrets/redis_password ## Start Kafka, Redis, a learner and a scorer in containers
	docker-compose up -d --build

digests: ## Write the digests of today's images to deploy/images.env and the Dockerfile (needs docker and a registry)
	@for line in $$(grep -v '^#' deploy/images.env); do \
	  tag=$${line#*=} tag=$${tag%@*}; docker pull -q $$tag >/dev/null && \
	  docker image inspect --format "$${line%%=*}=$$tag@{{index .RepoDigests 0}}" $$tag | sed 's/@.*@/@/' || exit 1; \
	done > .env.new && { grep '^#' deploy/images.env; cat .env.new; } > .env.all && mv .env.all deploy/images.env && rm .env.new
	@sed -i "s|^ARG PYTHON_IMAGE=.*|ARG $$(grep ^PYTHON_IMAGE= deploy/images.env)|" deploy/Dockerfile

deploy/secrets/redis_password: deploy/make_secrets.sh
	deploy/make_secrets.sh

ranklens: .venv-test/installed ## Replay RankLens into Kafka and score it: make ranklens ARGS="--help"
	.venv-test/bin/python -m examples.ranklens.replay $(ARGS)

lock: ## Resolve the dependencies anew, those of the build too (needs uv)
	uv pip compile -q -U --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --group build -o requirements-build.lock
	uv pip compile -q -U --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --extra deep -c requirements-build.lock -o requirements.lock pyproject.toml
	uv pip compile -q -U --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --group dev --extra deep --extra train --extra spark -c requirements.lock -c requirements-build.lock -o requirements-dev.lock pyproject.toml
	uv pip compile -q -U --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --group docs --group sbom -c requirements-dev.lock -o requirements-docs.lock
	uv pip compile -q -U --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --group bench -c requirements.lock -c requirements-build.lock -o requirements-bench.lock pyproject.toml
	uv pip compile -q -U --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --group test --group fuzz -c requirements-dev.lock -c requirements-build.lock -o requirements-fuzz.lock pyproject.toml

clean: ## Remove the environments and caches; leaves freshet.db alone
	rm -rf .venv .venv-test .venv-bench .venv-fuzz .venv-docs build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/installed: LOCK := requirements.lock
.venv-test/installed: LOCK := requirements-dev.lock
.venv-bench/installed: LOCK := requirements-bench.lock
.venv-fuzz/installed: LOCK := requirements-fuzz.lock
.venv-docs/installed: LOCK := requirements-docs.lock
.venv/installed .venv-test/installed .venv-bench/installed .venv-fuzz/installed: $(SOURCES) requirements.lock \
  requirements-dev.lock requirements-bench.lock requirements-fuzz.lock
	$(environment)
	@$(@D)/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements-build.lock
	@$(@D)/bin/pip install -q --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall .
	@cd $(@D) && bin/python -m learner.compile
	@touch $@
.venv-docs/installed: requirements-docs.lock
	$(environment)
	@touch $@

define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Freshet needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D) || \
	  { rm -rf $(@D); echo "No virtual environment could be made (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "installing what $(LOCK) holds into $(@D)"
	@$(@D)/bin/pip install -q --disable-pip-version-check --require-hashes -r $(LOCK)
endef
