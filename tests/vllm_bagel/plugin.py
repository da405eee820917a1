"""The plugin's entry point, for a checkout that was installed before it had one."""

import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from mathcanvas_lightning.vllm_bagel import PLUGIN

GROUP = "vllm.general_plugins"


@pytest.fixture(scope="session")
def registered_plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Makes vLLM find the plugin in all processes that the tests start."""
    if PLUGIN in {one.name for one in entry_points(group=GROUP)}:
        yield
        return
    folder = tmp_path_factory.mktemp("plugin")
    write_plugin(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        yield


def write_plugin(folder: Path) -> None:
    """Writes the metadata of a distribution that declares only the entry point."""
    info = folder / "mathcanvas_bagel_plugin-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mathcanvas-bagel-plugin\nVersion: 0\n"
    )
    target = "mathcanvas_lightning.vllm_bagel.plugin:register"
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{PLUGIN} = {target}\n")
