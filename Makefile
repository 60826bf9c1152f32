# Every target is one script; see scripts/ and CONTRIBUTING.md.
.PHONY: demo test test-all lint bench bench-hook campaign kills render shell stop clean

# The whole stack in a guest on this machine: a task is worked on, a release broken and healed, before your eyes.
demo:
	@scripts/demo

# Lint, unit, evaluation and scenario tests.
test:
	@scripts/test

# The same, and the scenarios that say they are slow.
test-all:
	@scripts/test --all

lint:
	@scripts/lint

# Measurements; docs/benchmarks.md says what is measured and how.
bench:
	@scripts/bench

bench-hook:
	@scripts/bench-hook

# Broken releases, deployed by aistack and by three others; renews its section of docs/benchmarks.md.
# ARGS='--only wrong-port --systems aistack' for a part of it.
campaign:
	@scripts/campaign $(ARGS)

# Deployments that are killed, interrupted or lose power, at every phase and at random moments; and Ralph at his work.
kills:
	@scripts/kills

# bundle/reference/ and bundle/ralph/ from the examples of these names, and docs/options.md from the module; needs nix.
render:
	@scripts/render

# A shell in the demo's guest; CMD='aistack status' runs one command instead.
shell: export AISTACK_CMD = $(value CMD)
shell:
	@scripts/shell

# Power the demo's guest off.
stop:
	@scripts/stop

# Remove every guest and the cache.
clean:
	@scripts/clean
