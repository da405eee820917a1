"""A model as judge: one request extracts the answers, one request per part compares them."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentParser

from mathcanvas_lightning.common.paths import import_from_here, local_path
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.evaluation.judging.replies import extracted_answer, read_verdict
from mathcanvas_lightning.generation.backends.base import GenerationBackend
from mathcanvas_lightning.generation.requests import Sampling
from mathcanvas_lightning.generation.run.post_processors import remove_thinking

if TYPE_CHECKING:
    from mathcanvas_lightning.evaluation.judging.run import Reply

EXTRACT_PROMPT = """\
Below are a question and a response to it. Write down the final answer that the response gives, \
in its own words and notation, and nothing else: no reasoning, no correction, no answer of your \
own. If the question has several parts, write each part's answer on a line of its own, beginning \
with its number in brackets. If the response gives no final answer, write NONE.

Question:
{question}

Response:
{response}

Final answer:"""
"""Prompt of the first phase; `{question}` and `{response}` are filled in."""

COMPARE_PROMPT = """\
Below are a question, its reference answer, and the final answer of a student. Do both answers \
say the same? Other notation, units left out, or a choice's text in place of its letter do not \
matter; other values do. Do not solve the question yourself.

Question:
{question}

Reference answer{part}:
{reference}

Final answer of the student:
{answer}

Write 1 if the student's answer{part} says the same as the reference answer, else 0."""
"""Prompt of the second phase.

`{part}` is " to part (2)" for the second of several parts, and empty for a single part.
"""

YES, NO = "1", "0"
_FIELD = re.compile(r"\{(question|response|reference|answer|part)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A response to judge."""

    question: str
    response: str
    expected: Sequence[str]
    """The reference answer of each part of the question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """The judge's decision on a case."""

    extracted: str = ""
    """The final answer to all parts, as the judge extracted it; empty if it found none."""
    parts: Sequence[bool | None] = field(default_factory=tuple)
    """For each part, whether it is right; None if undecided."""
    failures: Sequence[str] = field(default_factory=tuple)
    """Reasons for undecided parts."""


class Judge:
    """Asks a model whether responses agree with the reference answers.

    The requests are a predict run: each reply is in a journal, and a run that was interrupted asks
    only what has no reply yet.

    Args:
        backend: Backend that answers the requests.
        extract_prompt: Prompt of the first phase; must contain `{response}`, may contain
            `{question}`.
        compare_prompt: Prompt of the second phase; must contain `{answer}` and `{reference}`, and
            `{part}` for questions with several parts. It must ask for 1 or 0, or yes or no.
        max_tokens: Maximum length of a reply, in tokens, with the thoughts of a model that thinks.
        template_options: More variables for the model's chat template, such as
            `enable_thinking: false`.
        guided: Restrict verdicts to 0 or 1 where the backend can. False lets a model think before
            its verdict, which is then read from its text.

    Raises:
        ConfigError: If a prompt lacks a field.
    """

    def __init__(
        self,
        backend: GenerationBackend,
        *,
        extract_prompt: str = EXTRACT_PROMPT,
        compare_prompt: str = COMPARE_PROMPT,
        max_tokens: int = 4096,
        template_options: dict[str, Any] | None = None,
        guided: bool = True,
    ) -> None:
        _require("extract_prompt", extract_prompt, {"response"})
        _require("compare_prompt", compare_prompt, {"answer", "reference"})
        self.backend = backend
        self.extract_prompt = extract_prompt
        self.compare_prompt = compare_prompt
        self.template_options = template_options or {}
        self._extracting = Sampling(max_tokens=max_tokens)
        self._comparing = Sampling(
            max_tokens=max_tokens, choice=(NO, YES) if guided else None, guide_strictly=False
        )

    def judge(
        self,
        cases: Sequence[Case],
        advance: Callable[[int], None] = lambda _: None,
        folder: Path | None = None,
    ) -> list[Ruling]:
        """Judges some cases.

        Args:
            cases: Any number of cases.
            advance: Called with the number of finished requests. There are one a case and one a
                part; for cases without an extracted answer the parts count as finished at once.
            folder: Folder of the journals; without one, nothing is kept.

        Returns:
            A ruling for each case. If a request fails, or its reply has no verdict, the part is
            undecided.

        Raises:
            BackendError: If the backend stops working; the same call continues in the folder.
            OutputError: If the folder has replies of another judge.
        """
        from mathcanvas_lightning.evaluation.judging.run import JudgeRun  # Lightning: slow

        with ExitStack() as stack:
            if folder is None:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="mathcanvas-judge-")))
            run = JudgeRun(
                backend=self.backend, folder=folder, template_options=self.template_options
            )
            prompts = [self._extraction(case) for case in cases]
            extracted = run.ask("extract", prompts, self._extracting, advance)
            answers = [_answer(reply) for reply in extracted]
            comparisons = [
                self._comparisons(case, answer.text) if answer.text else []
                for case, answer in zip(cases, answers, strict=True)
            ]
            listed = [prompt for prompts in comparisons for prompt in prompts]
            advance(sum(len(case.expected) for case in cases) - len(listed))
            replies = iter(run.ask("compare", listed, self._comparing, advance))
        return [
            _ruling(case, answer, list(islice(replies, len(prompts))))
            for case, answer, prompts in zip(cases, answers, comparisons, strict=True)
        ]

    def _extraction(self, case: Case) -> str:
        response = remove_thinking(case.response)
        return _filled(self.extract_prompt, {"question": case.question, "response": response})

    def _comparisons(self, case: Case, answer: str) -> list[str]:
        fields = {"question": case.question, "answer": answer}
        has_parts = len(case.expected) > 1
        return [
            _filled(
                self.compare_prompt,
                {
                    **fields,
                    "reference": expected,
                    "part": f" to part ({part})" if has_parts else "",
                },
            )
            for part, expected in enumerate(case.expected, start=1)
        ]


def load_judge(path: str) -> Judge:
    """Makes a judge from a YAML file.

    Args:
        path: File with the arguments of `Judge`; the backend as `class_path` and `init_args`.

    Returns:
        The judge; its backend is not started yet.

    Raises:
        ConfigError: If the file can't be read, or its arguments are invalid.
    """
    import_from_here([path])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Judge, "judge")
    try:
        given = yaml.safe_load(local_path(path).read_text(encoding="utf-8"))
        parsed = parser.parse_object({"judge": given})
    except Exception as error:  # jsonargparse raises many kinds
        raise ConfigError(
            path,
            found=" ".join(str(error).split()) or type(error).__name__,
            wanted="a YAML file with the arguments of a judge",
            remedy="Give it at least backend: {class_path: ..., init_args: {...}}.",
        ) from None
    judge: Judge = parser.instantiate(parsed).judge
    return judge


def _filled(prompt: str, fields: Mapping[str, str]) -> str:
    """Fills in all fields in one pass, since the texts may contain braces."""
    return _FIELD.sub(lambda name: fields.get(name[1], name[0]), prompt)


def _answer(reply: "Reply") -> "Reply":
    """The extracted answer: a text that may be empty, or the reason why nothing is known of it."""
    if reply.failure is not None:
        return reply
    text = extracted_answer(reply.text)
    if text is None:
        return replace(reply, failure="extraction: a reply without text; raise max_tokens")
    return replace(reply, text=text)


def _ruling(case: Case, answer: "Reply", replies: Sequence["Reply"]) -> Ruling:
    if answer.failure is not None:
        undecided = (None,) * len(case.expected)
        return Ruling(parts=undecided, failures=(answer.failure,))
    if not answer.text:
        return Ruling(parts=(False,) * len(case.expected))
    parts, failures = [], []
    for reply in replies:
        parts.append(read_verdict(reply.text))
        if reply.failure is not None:
            failures.append(reply.failure)
        elif parts[-1] is None:
            failures.append(f"verdict: {reply.text!r:.60} is neither 0 nor 1")
    return Ruling(extracted=answer.text, parts=tuple(parts), failures=tuple(failures))


def _require(name: str, prompt: str, fields: set[str]) -> None:
    if missing := fields - set(_FIELD.findall(prompt)):
        raise ConfigError(
            f"judge.{name}",
            found=f"no {' and no '.join(f'{{{one}}}' for one in sorted(missing))}",
            wanted="each of them in the prompt",
            remedy="Add them where the texts should be filled in.",
        )
