"""Files of scores, arranged by model and data set."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathcanvas_lightning.common.keys import flatten
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.evaluation.credit import plain_credit
from mathcanvas_lightning.evaluation.score_files import (
    SUFFIX,
    ScoredLine,
    iter_scored,
    read_scores_about,
    scores_path,
)
from mathcanvas_lightning.generation.run.journal.about import AnswersAbout

Key = str | int
"""Id of a record, or its position in the file if it has none."""
IGNORED = frozenset({"settings.weights", "settings.lora_weights", "sampling.seed"})
"""Settings that never distinguish models for a reader."""
MAX_CHARACTERS = 30
"""Longer values are cut in the name of a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredFile:
    """The verdicts of one model on one data set."""

    path: Path
    about: AnswersAbout
    is_right: Mapping[Key, bool]
    """Record -> whether its first answer is right in all parts."""
    credit: Mapping[Key, float]
    """Record -> mean over its answers of the share of right parts."""
    expected: Mapping[Key, tuple[str, ...]]
    """Record -> reference answer of each part."""

    @property
    def stem(self) -> str:
        """Name of the file of answers, without suffixes."""
        return self.path.name.removesuffix(SUFFIX).partition(".")[0]


def read_scored(path: str) -> ScoredFile:
    """Reads a file of scores.

    Args:
        path: The file, or the file of answers beside it.

    Returns:
        Its verdicts.

    Raises:
        InputError: If there is no such file, or it has no records.
    """
    place = _find(local_path(path))
    listed = list(iter_scored(place))
    uids = [line.uid for line in listed]
    has_ids = None not in uids and len(set(uids)) == len(uids)
    lines: dict[Key, ScoredLine] = {
        (line.uid if has_ids and line.uid else line.index): line for line in listed
    }
    if not lines:
        raise InputError(
            str(place),
            found="no records",
            wanted="scores of at least one record",
            remedy="Score the answers again.",
        )
    answered = {key: line for key, line in lines.items() if line.responses}
    return ScoredFile(
        path=place,
        about=read_scores_about(place),
        is_right={k: one.responses[0].verdict == "right" for k, one in answered.items()},
        credit={k: _mean_credit(one) for k, one in answered.items()},
        expected={
            k: tuple(part.expected for part in one.responses[0].parts)
            for k, one in answered.items()
        },
    )


def _mean_credit(line: ScoredLine) -> float:
    return sum(plain_credit(one.is_right) for one in line.responses) / len(line.responses)


def _find(path: Path) -> Path:
    """The file of scores; that of a file of answers if it was named in its place."""
    beside = scores_path(path)
    return beside if not path.name.endswith(SUFFIX) and beside.is_file() else path


def group_by_dataset(files: Sequence[ScoredFile]) -> dict[str, list[ScoredFile]]:
    """Arranges files of scores by data set: by its name, or by records in common.

    Args:
        files: Files of scores.

    Returns:
        Data set -> its files, in the given order.

    Raises:
        InputError: If the files of a data set have different records.
    """
    groups: dict[str, list[ScoredFile]] = {}
    for file in files:
        name = next((name for name, group in groups.items() if _belongs(file, name, group)), None)
        if name is None:
            name = _new_name(file.about.dataset or file.stem, groups)
        groups.setdefault(name, []).append(file)
    for group in groups.values():
        for other in group[1:]:
            _check_same(group[0], other)
    return groups


def _belongs(file: ScoredFile, name: str, group: Sequence[ScoredFile]) -> bool:
    known = [one.about.dataset for one in group if one.about.dataset is not None]
    if file.about.dataset is not None and known:
        return file.about.dataset == name
    return any(file.is_right.keys() & one.is_right.keys() for one in group)


def _new_name(name: str, taken: Collection[str]) -> str:
    number = 2
    unique = name
    while unique in taken:
        unique, number = f"{name} ({number})", number + 1
    return unique


def _check_same(first: ScoredFile, other: ScoredFile) -> None:
    place = f"{first.path} and {other.path}"
    odd = sorted(map(str, first.is_right.keys() ^ other.is_right.keys()))
    if odd:
        raise InputError(
            place,
            found=f"{len(odd):,} records in only one of them, such as {odd[0]}",
            wanted="scores of the same records",
            remedy="Answer and score the same records with both models; name different data sets "
            "with mathcanvas score --dataset.",
        )
    for key, expected in first.expected.items():
        if other.expected[key] != expected:
            raise InputError(
                place,
                found=f"other reference answers of the record {key}: {list(expected)} and "
                f"{list(other.expected[key])}",
                wanted="scores of the same records",
                remedy="Name different data sets with mathcanvas score --dataset, or score again.",
            )


def model_names(groups: Mapping[str, Sequence[ScoredFile]]) -> dict[Path, str]:
    """Names models so that no two of a data set have the same name.

    Args:
        groups: Data set -> its files.

    Returns:
        File -> name of its model, with the settings that distinguish it from others of this name,
        or with the name of the file if the settings are not known.
    """
    names = {file.path: _base(file) for group in groups.values() for file in group}
    differing: dict[str, set[str]] = {}
    for group in groups.values():
        for file in group:
            same = [_leaves(one.about) for one in group if _base(one) == _base(file)]
            keys = {key for found in same for key in found}
            varying = {key for key in keys if len({str(one.get(key)) for one in same}) > 1}
            differing.setdefault(_base(file), set()).update(varying)
    for group in groups.values():
        for file in group:
            known, shown = _leaves(file.about), sorted(differing[_base(file)])
            parts = [_setting(key, known[key]) for key in shown if key in known]
            names[file.path] += f" ({', '.join(parts)})" if parts else ""
    return {file.path: _unique(file, group, names) for group in groups.values() for file in group}


def _setting(key: str, value: Any) -> str:
    text = str(value)
    cut = text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."
    return f"{key.rpartition('.')[2]} {cut}"


def _unique(file: ScoredFile, group: Sequence[ScoredFile], names: Mapping[Path, str]) -> str:
    same = [one for one in group if names[one.path] == names[file.path]]
    return names[file.path] if len(same) == 1 else f"{names[file.path]} ({file.stem})"


def _base(file: ScoredFile) -> str:
    return file.about.model or file.stem


def _leaves(about: AnswersAbout) -> dict[str, Any]:
    parts = {name: getattr(about, name) or {} for name in ("settings", "sampling", "prompt")}
    return {key: value for key, value in flatten(parts) if key not in IGNORED}
