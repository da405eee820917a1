"""Keys, tokens and headers are shown nowhere; everything else is."""

from collections.abc import Sequence

import pytest

from mathcanvas_lightning.generation.backends.secrets import (
    hide_secrets,
    is_secret,
    secrets_of,
    shown_command,
    without_secrets,
)
from mathcanvas_lightning.generation.backends.settings import journal_command, journal_options

SECRETS = """api_key api-key apikey apiKey OPENAI_API_KEY x-api-key hf_token token password headers
Authorization extra_headers client-secret credentials"""


@pytest.mark.parametrize("name", SECRETS.split())
def test_secret_names(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["max_tokens", "tokenizer", "keyboard", "monkey", "author", "eos_token_id", "header_size"],
)
def test_other_names(name: str) -> None:
    assert not is_secret(name)


def test_nested_secrets() -> None:
    options = {
        "headers": {"Authorization": "Bearer abc"},
        "extra": {"api_key": "x", "top_k": 3, "list": [{"token": "x", "n": 1}]},
        "url": "https://me:pass@host/v1",
    }
    kept = {"extra": {"top_k": 3, "list": [{"n": 1}]}, "url": "https://host/v1"}
    assert journal_options(options) == without_secrets(options) == kept


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["serve", "--port", "1", "a b"], "serve --port 1 'a b'"),
        (["serve", "--api-key", "S 1", "--port", "1"], "serve --api-key ... --port 1"),
        (["serve", "--api-key", "S1", "S2"], "serve --api-key ... ..."),
        (["serve", "--hf-token=S1 x"], "serve --hf-token=..."),
        (["env", "HF_TOKEN=S1", "serve"], "env HF_TOKEN=... serve"),
        (["curl", "-H", "Authorization: Bearer S1"], "curl -H ..."),
        (["curl", "Authorization: S1"], "curl Authorization:..."),
        (["serve", "--x", '{"api_key": "S1", "n": 1}'], "serve --x '{\"n\": 1}'"),
        (["bash", "-c", "serve --api-key 'S 1'"], "bash -c 'serve --api-key ...'"),
        (["bash", "-c", "echo 'a b'"], "bash -c 'echo '\"'\"'a b'\"'\"''"),
        (["serve", "http://me:S1@host/x"], "serve http://host/x"),
        (["sh", "-c", "echo SECRET", "--api-key", "SECRET"], "sh -c 'echo ...' --api-key ..."),
    ],
)
def test_commands(command: Sequence[str], shown: str) -> None:
    assert shown_command(command) == journal_command(command) == shown


def test_known_secrets_are_hidden_in_logs() -> None:
    command = ["serve", "--api-key", "S one", "--extra", '{"token": "two2"}']
    values = secrets_of(command, {"MY_TOKEN": "three", "HOME": "/root"})
    assert values == {"S one", "one", "two2", "three"}
    log = "args: {'api_key': ['S one']} two2 three /root"
    assert hide_secrets(log, values) == "args: {'api_key': ['...']} ... ... /root"


def test_what_looks_like_a_key_is_hidden() -> None:
    text = "refused: Bearer abcdefgh123, key sk-proj-0123456789abcdef, at https://a:b@host"
    assert hide_secrets(text) == "refused: ..., key ..., at https://host"
    assert hide_secrets("at https://me:p@ss@host/v1 now") == "at https://host/v1 now"
    harmless = "Bearer of news; sk-learn is a library; 3 / 4 at https://host/a@b"
    assert hide_secrets(harmless) == harmless
