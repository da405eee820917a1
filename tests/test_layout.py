"""Layout of the package: small folders, files and functions, few parameters, a true picture."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import mathcanvas_lightning
from mathcanvas_lightning.cli.main import COMMANDS
from tests.conftest import ROOT

PACKAGE = Path(mathcanvas_lightning.__file__).parent
MAX_MODULES, MAX_MODULE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 12, 400, 60, 8
COMMAND_FUNCTIONS = {command.function for command in COMMANDS.values()}
"""Functions whose parameters are the options of a command, as module:function."""

AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements below a node, which are far fewer than its expressions."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, name, ()):
            yield child
            yield from _statements(child)


@functools.cache
def _functions() -> list[tuple[str, AnyFunction]]:
    """All functions and methods, each with its place as module:function."""
    return [
        (f"{'.'.join(path.relative_to(PACKAGE).with_suffix('').parts)}:{node.name}", node)
        for path in _files()
        for node in _statements(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, AnyFunction)
    ]


def _parameters(function: AnyFunction) -> int:
    """Number of named parameters, without `self` and without `*args` and `**kwargs`."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_no_folder_holds_more_than_twelve_modules() -> None:
    folders = {path.parent for path in _files()}
    sizes = {str(f.relative_to(PACKAGE)): len(list(f.glob("*.py"))) for f in folders}
    assert {name: size for name, size in sizes.items() if size > MAX_MODULES} == {}


def test_no_module_is_longer_than_400_lines() -> None:
    lines = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in _files()}
    assert {name: count for name, count in lines.items() if count > MAX_MODULE_LINES} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    long = {
        place: node.end_lineno - node.lineno + 1
        for place, node in _functions()
        if node.end_lineno is not None and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    }
    assert long == {}


def test_no_function_but_a_command_has_more_than_eight_parameters() -> None:
    many = {
        place: _parameters(node)
        for place, node in _functions()
        if place not in COMMAND_FUNCTIONS and _parameters(node) > MAX_PARAMETERS
    }
    assert many == {}


def test_each_room_says_what_it_is_for() -> None:
    folders = {path.parent for path in _files()} - {PACKAGE}
    for folder in folders:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        assert 2 <= len([line for line in docstring.splitlines() if line]) <= 4, folder


def test_the_picture_in_the_guide_shows_every_folder() -> None:
    guide = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    picture = guide.split("mathcanvas_lightning/\n", 1)[1].split("\ntools/", 1)[0]
    shown: set[str] = set()
    above: list[str] = []
    for line in picture.splitlines():
        if folder := re.match(r"( +)(\w+)/", line):
            above[len(folder[1]) // 2 - 1 :] = [folder[2]]
            shown.add("/".join(above))
    assert shown == {str(path.parent.relative_to(PACKAGE)) for path in _files()} - {"."}
