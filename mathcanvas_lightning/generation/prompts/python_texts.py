"""Reads text variables from a Python file without executing it."""

import ast
from collections.abc import Callable, Iterator, Mapping
from textwrap import dedent

from mathcanvas_lightning.errors import ConfigError

DEDENTS = ("dedent", "textwrap.dedent")


def python_texts(source: str, *, place: str) -> dict[str, str]:
    """Finds the module-level variables that hold plain texts.

    Args:
        source: Content of the file.
        place: Path of the file, for error messages.

    Returns:
        Name -> text. Understood are string literals, their sums (also with earlier variables),
        `dedent(...)` around them and `.strip()` after them. The last assignment counts.

    Raises:
        ConfigError: If the file is not valid Python.
    """
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            place,
            found=f"invalid Python ({error})",
            wanted="a Python file",
            remedy="Correct the file, or rename it to .txt if it is plain text.",
        ) from None
    texts: dict[str, str] = {}
    for name, value in _assignments(module):
        text = _text(value, texts)
        if text is None:
            texts.pop(name, None)
        else:
            texts[name] = text
    return texts


def _assignments(module: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for line in module.body:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
            yield from ((one.id, line.value) for one in targets if isinstance(one, ast.Name))


def _text(node: ast.expr, known: Mapping[str, str]) -> str | None:
    """The text of an expression; None if only execution could tell."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Name(id=name):
            return known.get(name)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            texts = [_text(left, known), _text(right, known)]
            return None if None in texts else "".join(filter(None, texts))
        case ast.Call(func=ast.Attribute(value=inner, attr="strip"), args=[], keywords=[]):
            return _changed(str.strip, _text(inner, known))
        case ast.Call(func=function, args=[inner]) if ast.unparse(function) in DEDENTS:
            return _changed(dedent, _text(inner, known))
    return None


def _changed(change: Callable[[str], str], text: str | None) -> str | None:
    return None if text is None else change(text)
