# Daily commands. `make` alone lists them; CONTRIBUTING.md says when to use which.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Versions of tools that are run, not installed.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
SEEDS       ?= 200
KILLS       ?= 50
LEADERKILLS ?= 20
FUZZTIME    ?= 1m
FUZZ        ?= .
PKG         ?= ./...

# Packages compete for the cores: their servers and clusters have deadlines, so
# two at a time, and a timeout that only a hang reaches.
TALLY := go build -o .cache/tally ./scripts/tally && .cache/tally
TEST  := $(TALLY) -vet=off -p 2 -timeout 15m

export GOFLAGS := -buildvcs=false $(filter-out -buildvcs=%,$(GOFLAGS))

.PHONY: help
help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## bin/mayfly: static, reproducible from the commit
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.buildVersion=$(VERSION)' -o bin/mayfly ./cmd/mayfly

.PHONY: setup
setup: ## install what the tests need, if it is missing (PostgreSQL, OpenSSH's client, Chromium)
	@scripts/setup

.PHONY: setup-demo
setup-demo: # what the demos need: PostgreSQL
	@scripts/setup demo

.PHONY: setup-bench
setup-bench: # what the benchmark needs: PostgreSQL, MariaDB, Redis
	@scripts/setup bench

.PHONY: demo-approval
demo-approval: setup-demo build ## a privileged grant that two people co-sign, step by step
	@go run ./e2e/demo -approval

.PHONY: demo
demo: setup-demo build ## the main job against a real PostgreSQL, step by step
	@go run ./e2e/demo

.PHONY: check
check: ## the two-minute loop: format, vet, staticcheck, short tests without e2e
	@scripts/format
	@go vet $(PKG)
	@go run $(STATICCHECK) $(PKG)
	@$(TEST) -short $$(scripts/packages)

.PHONY: test
test: setup build ## everything: vet, then every test; ends on the runner's summary
	@go vet ./...
	@$(TEST) ./...

.PHONY: e2e
e2e: setup build ## real processes: clusters, databases, KILLS kills -9 and LEADERKILLS of leaders
	@$(TEST) ./e2e/bench ./e2e/demo ./e2e/harness ./e2e/house ./e2e/screens
	@$(TALLY) -vet=off -timeout 60m ./e2e -kills $(KILLS) -leaderkills $(LEADERKILLS)

.PHONY: sim
sim: ## the simulation: make sim SEEDS=2000; a failing seed is printed and replays
	go test ./broker -count=1 -timeout 60m -run TestSim -seeds=$(SEEDS)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each; FUZZ=Regexp picks some
	@scripts/fuzz '$(FUZZ)' $(FUZZTIME)

.PHONY: bench
bench: setup-bench build ## the benchmark table, as ratios against raw limits of this machine
	@go run ./e2e/bench

.PHONY: screenshots
screenshots: setup ## pictures of every page of the console, in .cache/screens
	@go run ./e2e/screens

.PHONY: race
race: setup ## tests without e2e under the race detector (needs a C compiler)
	@export CGO_ENABLED=1; $(TALLY) -race -vet=off -p 1 -timeout 30m $$(scripts/packages)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin .cache .demo
