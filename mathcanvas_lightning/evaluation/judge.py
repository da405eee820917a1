"""A model as judge: one request extracts the answers, one request a part compares them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import yaml
from jsonargparse import ArgumentParser

from mathcanvas_lightning.common.paths import import_from_here, local_path
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.backends.base import GenerationBackend, generate
from mathcanvas_lightning.generation.requests import GenerationRequest, Message, Sampling
from mathcanvas_lightning.generation.run.post_processors import remove_thinking

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

NO_ANSWER = "NONE"
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
    """The final answer to all parts, as the judge extracted it; empty if there is none."""
    parts: Sequence[bool | None] = field(default_factory=tuple)
    """For each part, whether it is right; None if undecided."""
    failures: Sequence[str] = field(default_factory=tuple)
    """Reasons for undecided parts."""


class Judge:
    """Asks a model whether responses agree with the reference answers.

    Args:
        backend: Backend that answers the requests; guided decoding restricts verdicts to 0 or 1.
        extract_prompt: Prompt of the first phase; must contain `{response}`, may contain
            `{question}`.
        compare_prompt: Prompt of the second phase; must contain `{answer}` and `{reference}`, and
            `{part}` for questions with several parts.
        max_tokens: Maximum length of an extracted answer, in tokens.

    Raises:
        ConfigError: If a prompt lacks a field.
    """

    def __init__(
        self,
        backend: GenerationBackend,
        *,
        extract_prompt: str = EXTRACT_PROMPT,
        compare_prompt: str = COMPARE_PROMPT,
        max_tokens: int = 512,
    ) -> None:
        _require("extract_prompt", extract_prompt, {"response"})
        _require("compare_prompt", compare_prompt, {"answer", "reference"})
        self.backend = backend
        self.extract_prompt = extract_prompt
        self.compare_prompt = compare_prompt
        self._extracting = Sampling(max_tokens=max_tokens)
        self._comparing = Sampling(max_tokens=8, choice=(NO, YES))

    def judge(
        self, cases: Sequence[Case], advance: Callable[[int], None] = lambda _: None
    ) -> list[Ruling]:
        """Judges some cases.

        Args:
            cases: Any number of cases.
            advance: Called with the number of finished requests. There are one a case and one a
                part; for cases without an extracted answer the parts count as finished at once.

        Returns:
            A ruling for each case. If a request fails, or its response is neither 0 nor 1, the
            part is undecided.

        Raises:
            BackendError: If the backend stops working.
        """
        extracted = self._ask(map(self._extraction, range(len(cases)), cases), advance)
        comparisons: list[GenerationRequest] = []
        for number, (case, reply) in enumerate(zip(cases, extracted.values(), strict=True)):
            if reply.text:
                comparisons += self._comparisons(number, case, reply.text)
            else:
                advance(len(case.expected))
        compared = self._ask(comparisons, advance)
        return [
            _ruling(case, reply, [compared.get(_uid(number, part)) for part in _parts(case)])
            for number, (case, reply) in enumerate(zip(cases, extracted.values(), strict=True))
        ]

    def _extraction(self, number: int, case: Case) -> GenerationRequest:
        fields = {"question": case.question, "response": remove_thinking(case.response)}
        return _request(f"extract-{number}", self.extract_prompt, fields, self._extracting)

    def _comparisons(self, number: int, case: Case, answer: str) -> list[GenerationRequest]:
        fields = {"question": case.question, "answer": answer}
        return [
            _request(
                _uid(number, part),
                self.compare_prompt,
                fields
                | {"reference": case.expected[part]}
                | {"part": f" to part ({part + 1})" if len(case.expected) > 1 else ""},
                self._comparing,
            )
            for part in _parts(case)
        ]

    def _ask(
        self, requests: Iterable[GenerationRequest], advance: Callable[[int], None]
    ) -> dict[str, "_Reply"]:
        """Returns uid -> reply, in the order of the requests."""
        listed = list(requests)
        found: dict[str, _Reply] = {}
        for response in generate(self.backend, listed):
            if response.failure is not None:
                failure = f"{response.failure.kind}: {response.failure.message}"
                found[response.uid] = _Reply(failure=failure)
            else:
                text = remove_thinking(response.outputs[0].text)
                found[response.uid] = _Reply(text="" if text.strip(" .*") == NO_ANSWER else text)
            advance(1)
        return {request.uid: found[request.uid] for request in listed}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    text: str = ""
    failure: str | None = None


def _uid(number: int, part: int) -> str:
    return f"compare-{number}-{part}"


def _parts(case: Case) -> range:
    return range(len(case.expected))


def _request(
    uid: str, prompt: str, fields: Mapping[str, str], sampling: Sampling
) -> GenerationRequest:
    """Fills in all fields in one pass, since the texts may contain braces."""
    text = _FIELD.sub(lambda name: fields.get(name[1], name[0]), prompt)
    return GenerationRequest(
        uid=uid, messages=(Message(role="user", parts=(text,)),), sampling=sampling
    )


def _ruling(case: Case, extraction: _Reply, comparisons: Sequence[_Reply | None]) -> Ruling:
    if extraction.failure is not None:
        undecided = (None,) * len(case.expected)
        return Ruling(parts=undecided, failures=(extraction.failure,))
    if not extraction.text:
        return Ruling(parts=(False,) * len(case.expected))
    parts, failures = [], []
    for reply in comparisons:
        assert reply is not None
        parts.append({YES: True, NO: False}.get(reply.text))
        if reply.failure is not None:
            failures.append(reply.failure)
        elif parts[-1] is None:
            failures.append(f"verdict: {reply.text!r:.60} is neither 0 nor 1")
    return Ruling(extracted=extraction.text, parts=tuple(parts), failures=tuple(failures))


def _require(name: str, prompt: str, fields: set[str]) -> None:
    if missing := fields - set(_FIELD.findall(prompt)):
        raise ConfigError(
            f"judge.{name}",
            found=f"no {' and no '.join(f'{{{one}}}' for one in sorted(missing))}",
            wanted="each of them in the prompt",
            remedy="Add them where the texts should be filled in.",
        )
