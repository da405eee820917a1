r"""The rules of other scorers, written anew from their description, for a comparison.

- math-verify alone: `parse` and `verify` with their defaults.
- exact match: the text without case, white space and punctuation, as the `exact_match` metric of
  lm-evaluation-harness with `ignore_case` and `ignore_punctuation`; of a response, the text after
  "####" or the last number ("flexible-extract" of its task gsm8k).
- inspect_ai math, lm-eval minerva_math: the scorers of inspect_ai and lm-evaluation-harness
  themselves, where these packages are installed.
- minerva: units and words are removed and short forms of TeX completed, then both sides are equal
  as texts or as formulas (Lewkowycz et al., "Solving Quantitative Reasoning Problems with Language
  Models", 2022, appendix D; the task minerva_math of lm-evaluation-harness). Of a response, the
  last box or the text after "answer is".
"""

import asyncio
import importlib
import re
import string
from collections.abc import Callable
from types import SimpleNamespace

import sympy
from latex2sympy2_extended import latex2sympy
from math_verify import parse, verify

_WORDS = (  # noqa: SIM905
    "square ways integers dollars mph inches ft hours km units sue points feet minutes digits "
    "cents degrees cm gm pounds meters meals edges students multiples"
).split()
_ANSWER = re.compile(r"answer is:?\s*(.*?)(?:\.\s|\.?$)", re.IGNORECASE | re.MULTILINE)
_BOX = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")


def math_verify_alone(given: str, expected: str) -> bool:
    """Compares the formulas that math-verify finds in both texts."""
    sides = [
        text if re.search(r"\$|\\boxed|\n|[a-z]{3}", text) else f"${text}$"
        for text in (expected, given)
    ]
    gold, answer = (parse(side, parsing_timeout=None) for side in sides)
    return bool(gold and answer and verify(gold, answer, timeout_seconds=None))


def exact_match(given: str, expected: str) -> bool:
    """Compares texts without case, white space and punctuation."""
    if len(given) > 60 or "\n" in given or given.startswith("The "):
        marked = re.findall(r"####\s*(\S+)", given) or re.findall(r"-?[\d.,]*\d", given)
        given = marked[-1] if marked else given
    return _bare(given) == _bare(expected)


def minerva(given: str, expected: str) -> bool:
    """Compares normalized answers as texts, then as formulas."""
    marked = _BOX.findall(given) or _ANSWER.findall(given)
    first, second = _normalized(marked[-1] if marked else given), _normalized(expected)
    if first == second:
        return True
    try:
        sides = [latex2sympy(text, normalization_config=None) for text in (first, second)]
        return bool(sympy.simplify(sides[0] - sides[1]) == 0)
    except Exception:  # what can't be read differs
        return False


def installed_scorers() -> dict[str, Callable[[str, str], bool]]:
    """The scorers of other packages that can be imported here."""
    found: dict[str, Callable[[str, str], bool]] = {}
    for name, module, make in (
        ("inspect_ai math", "inspect_ai.scorer", _inspect_ai),
        ("lm-eval minerva_math", "lm_eval.tasks.minerva_math.utils", _lm_eval),
    ):
        try:
            found[name] = make(importlib.import_module(module))
        except (ImportError, AssertionError):  # lm-eval asserts the version of its parser
            continue
    return found


def _inspect_ai(module: object) -> Callable[[str, str], bool]:
    """The scorer `math()` of inspect_ai; a reference that it can't parse is a wrong verdict."""
    score, target = module.math(), module.Target  # type: ignore[attr-defined]

    def rule(given: str, expected: str) -> bool:
        state = SimpleNamespace(output=SimpleNamespace(completion=given))
        return bool(asyncio.run(score(state, target(expected))).value == "C")

    return rule


def _lm_eval(module: object) -> Callable[[str, str], bool]:
    """The task minerva_math of lm-evaluation-harness; of a response, its box or "answer is"."""
    normalize, is_equiv = module.normalize_final_answer, module.is_equiv  # type: ignore[attr-defined]

    def rule(given: str, expected: str) -> bool:
        marked = _BOX.findall(given) or _ANSWER.findall(given)
        return bool(is_equiv(normalize(marked[-1] if marked else given), normalize(expected)))

    return rule


def _bare(text: str) -> str:
    text = text.casefold().translate(str.maketrans("", "", string.punctuation))
    return "".join(text.split())


def _normalized(answer: str) -> str:
    answer = answer.rpartition("=")[2]
    for article in ("an ", "a ", r"\$", r"\ ", " "):
        answer = answer.replace(article, "")
    answer = answer.replace("mbox", "text").replace(r",\text{and}", ",").replace(r"\text{and}", ",")
    for word in _WORDS:
        answer = answer.replace(word, "")
    answer = re.sub(
        r"\\text\{(?:s|\.|m)?\}(?:\^[23])?|\^\{?\\circ\}?|\\;|,\\!|\{,\}|\"", "", answer
    )
    inner = re.search(r"\$(.*?)\$", answer)
    answer = inner[1] if inner else answer
    answer = re.sub(r"\\(?:text|textbf|overline|boxed)\{(.*?)\}", r"\1", answer)
    answer = re.sub(r"frac([^{])(.)", r"frac{\1}{\2}", answer)
    answer = re.sub(r"sqrt([^{\[])", r"sqrt{\1}", answer).replace("$", "")
    return answer.replace(",", "") if answer.replace(",", "").isdigit() else answer
