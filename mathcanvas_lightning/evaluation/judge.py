"""A model as judge: one request finds the answers in a response, one a part compares them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

from mathcanvas_lightning.common.paths import import_from_here
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
"""Of the first phase; `{question}` and `{response}` are filled in."""

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
"""Of the second phase; `{part}` is " to part (2)" for the second of several parts, else empty."""

NO_ANSWER = "NONE"
YES, NO = "1", "0"
_FIELD = re.compile(r"\{(question|response|reference|answer|part)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What to judge."""

    question: str
    response: str
    expected: Sequence[str]
    """The reference answer of each part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What became of a case."""

    extracted: str = ""
    """The final answer as the judge has read it, of all parts; empty if there is none."""
    parts: Sequence[bool | None] = field(default_factory=tuple)
    """Whether each part is right; None if that is undecided."""
    failures: Sequence[str] = field(default_factory=tuple)
    """Why parts are undecided."""


class Judge:
    """Decides by a model whether responses give the reference answers.

    Args:
        backend: Answers the requests; guided output ("0" or "1") keeps its verdicts readable.
        extract_prompt: Of the first phase: has `{response}`, and `{question}` if need be.
        compare_prompt: Of the second phase: has `{answer}` and `{reference}`, and `{part}` where
            questions have several parts.
        max_tokens: Of an extracted answer at most.

    Raises:
        ConfigError: If a prompt lacks what it must have.
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
            cases: Any number.
            advance: Told of requests that are done: one a case, then one a part (for cases
                without an answer, or not extracted, at once).

        Returns:
            A ruling for each. A request that fails, or is answered by anything but 0 or 1,
            leaves its part undecided.

        Raises:
            BackendError: If the backend can't go on.
        """
        extracted = self._ask(map(self._extraction, range(len(cases)), cases), advance)
        comparisons: list[GenerationRequest] = []
        for number, (case, said) in enumerate(zip(cases, extracted.values(), strict=True)):
            if said.text:
                comparisons += self._comparisons(number, case, said.text)
            else:
                advance(len(case.expected))
        compared = self._ask(comparisons, advance)
        return [
            _ruling(case, said, [compared.get(f"compare-{number}-{part}") for part in _parts(case)])
            for number, (case, said) in enumerate(zip(cases, extracted.values(), strict=True))
        ]

    def _extraction(self, number: int, case: Case) -> GenerationRequest:
        fields = {"question": case.question, "response": remove_thinking(case.response)}
        return _request(f"extract-{number}", self.extract_prompt, fields, self._extracting)

    def _comparisons(self, number: int, case: Case, answer: str) -> list[GenerationRequest]:
        fields = {"question": case.question, "answer": answer}
        return [
            _request(
                f"compare-{number}-{part}",
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
    ) -> dict[str, "_Said"]:
        """What is said to each request, in their order, whatever the order of the answers."""
        listed = list(requests)
        found: dict[str, _Said] = {}
        for response in generate(self.backend, listed):
            if response.failure is not None:
                failure = f"{response.failure.kind}: {response.failure.message}"
                found[response.uid] = _Said(failure=failure)
            else:
                text = remove_thinking(response.outputs[0].text)
                found[response.uid] = _Said(text="" if text.strip(" .*") == NO_ANSWER else text)
            advance(1)
        return {request.uid: found[request.uid] for request in listed}


def load_judge(path: str) -> Judge:
    """Makes a judge as a YAML file describes it.

    Args:
        path: A file with the arguments of `Judge`; the backend as `class_path` and `init_args`.

    Returns:
        The judge; its backend isn't started.

    Raises:
        ConfigError: If the file can't be read, or doesn't describe a judge.
    """
    import_from_here()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Judge, "judge")
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
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
class _Said:
    text: str = ""
    failure: str | None = None


def _parts(case: Case) -> range:
    return range(len(case.expected))


def _request(
    uid: str, prompt: str, fields: Mapping[str, str], sampling: Sampling
) -> GenerationRequest:
    """Fills in all fields at once: what is filled in may hold braces of its own."""
    text = _FIELD.sub(lambda name: fields.get(name[1], name[0]), prompt)
    return GenerationRequest(
        uid=uid, messages=(Message(role="user", parts=(text,)),), sampling=sampling
    )


def _ruling(case: Case, extraction: _Said, comparisons: Sequence[_Said | None]) -> Ruling:
    if extraction.failure is not None:
        undecided = (None,) * len(case.expected)
        return Ruling(parts=undecided, failures=(extraction.failure,))
    if not extraction.text:
        return Ruling(parts=(False,) * len(case.expected))
    parts, failures = [], []
    for said in comparisons:
        assert said is not None
        parts.append({YES: True, NO: False}.get(said.text))
        if said.failure is not None:
            failures.append(said.failure)
        elif parts[-1] is None:
            failures.append(f"verdict: {said.text!r:.60} is neither 0 nor 1")
    return Ruling(extracted=extraction.text, parts=tuple(parts), failures=tuple(failures))


def _require(name: str, prompt: str, fields: set[str]) -> None:
    if missing := fields - set(_FIELD.findall(prompt)):
        raise ConfigError(
            f"judge.{name}",
            found=f"no {' and no '.join(f'{{{one}}}' for one in sorted(missing))}",
            wanted="each of them in the prompt",
            remedy="Write them where the texts shall stand.",
        )
