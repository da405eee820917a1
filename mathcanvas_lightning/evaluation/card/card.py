"""Builds and writes the run card of a file of scores."""

import hashlib
import json
from pathlib import Path
from typing import Any

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.evaluation.card.markdown import card_markdown
from mathcanvas_lightning.evaluation.verdicts import Scores
from mathcanvas_lightning.generation.backends.secrets import without_secrets
from mathcanvas_lightning.generation.run.journal.about import AnswersAbout
from mathcanvas_lightning.generation.run.provenance import software


def card_path(scores: Path) -> Path:
    """Path of the card of a file of scores, such as answers.jsonl_scores_card.json."""
    return scores.with_name(f"{scores.stem}_card.json")


def write_card(
    scores_file: Path, scores: Scores, answers: str, about: AnswersAbout, command: str
) -> Path:
    """Writes the card as JSON, and as Markdown beside it.

    Args:
        scores_file: File of the scores.
        scores: The scores of all records.
        answers: File of answers.
        about: What is known of the answers.
        command: The command that scores the answers again.

    Returns:
        Path of the JSON file.
    """
    card = make_card(scores_file, scores, answers, about, command)
    path = card_path(scores_file)
    text = json.dumps(card, ensure_ascii=False, indent=1, default=str)
    for target, content in ((path, text + "\n"), (path.with_suffix(".md"), card_markdown(card))):
        with written_whole(target) as temporary:
            temporary.write_bytes(content.encode(errors="backslashreplace"))
    return path


def make_card(
    scores_file: Path, scores: Scores, answers: str, about: AnswersAbout, command: str
) -> dict[str, Any]:
    """The content of a card, without secrets; see `write_card`.

    Returns:
        JSON values; None for what is not known, as for answers without a journal.
    """
    settings, sampling = dict(about.settings or {}), dict(about.sampling or {})
    card = {
        "scores": {
            "file": scores_file.name,
            "accuracy": scores.accuracy,
            "interval": scores.interval,
            "records": scores.num_records,
            "responses": scores.num_responses,
        },
        "answers": {"file": answers, "fingerprint": file_fingerprint(local_path(answers))},
        "model": {
            "name": about.model,
            "checkpoint": settings.pop("checkpoint", settings.pop("model_path", None)),
            "fingerprint": settings.pop("weights", None),
        },
        "settings": settings or None,
        "prompt": about.prompt,
        "sampling": sampling or None,
        "seed": sampling.get("seed"),
        "data": {"name": about.dataset, **(about.data or {})},
        "software": {"answers": about.software, "scores": software()},
        "commands": {"answers": about.command, "scores": command},
    }
    shown: dict[str, Any] = without_secrets(json.loads(json.dumps(card, default=str)))
    return shown


def file_fingerprint(path: Path) -> str | None:
    """Hash of the content of a file, or of all files of a folder; None if it can't be read."""
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    digest = hashlib.blake2b(digest_size=8)
    try:
        for one in files:
            with one.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
    except OSError:
        return None
    return digest.hexdigest()
