"""Our models in lmms-eval: `--model mathcanvas`. Only lmms-eval imports this file.

Source of the interface: lmms-eval 0.7.3, `lmms_eval/api/model.py` and `lmms_eval/protocol.py`.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lmms_eval.api.model import lmms

from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.generation.requests import Message
from mathcanvas_lightning.integrations.benchmark import (
    BenchmarkFiles,
    Question,
    Reply,
    answer_questions,
    to_parts,
)
from mathcanvas_lightning.integrations.model_args import ModelArgs, read_model_args

log = logging.getLogger(__name__)


class LmmsModel(lmms):
    """Answers the requests of lmms-eval with the backends of `mathcanvas predict`.

    A task's `temperature`, `top_p`, `max_new_tokens` and `do_sample` count, unless the arguments
    of the model set them. Its stop texts (`until`) do not: a chain of thought has empty lines, the
    usual stop text. In the mode `image` the answer is JSON with the text and the files of the
    drawings, as the tasks for drawings read it.

    Args:
        batch_size: Maximum number of problems in progress, if it is above 1.
        max_batch_size: The same, and it takes precedence.
        device: "cpu", or any other device to use a GPU if there is one.
        arguments: See `read_model_args`.

    Raises:
        ConfigError: If an argument is missing or wrong.
    """

    is_simple = False

    def __init__(
        self,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        if str(batch_size).isdecimal() and int(batch_size) > 1 and max_batch_size is None:
            max_batch_size = int(batch_size)
        self._args: ModelArgs = read_model_args({**arguments, "max_batch_size": max_batch_size})
        self._is_image = self._args.backend["init_args"].get("mode") == "image"
        self._is_cpu = str(device).startswith("cpu") or not torch.cuda.is_available()
        self._local_rank = 0
        self._args.module({})  # checks the arguments before the data sets are loaded
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            self._join()

    @property
    def device(self) -> torch.device:
        """Device of this process, for lmms-eval's collectives."""
        return torch.device("cpu" if self._is_cpu else f"cuda:{self._local_rank}")

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers requests.

        Args:
            requests: Requests of any tasks; a request that occurs several times gets as many
                samples.

        Returns:
            One text for each; empty if the request failed.

        Raises:
            MathCanvasError: See `answer_questions`.
        """
        groups: dict[tuple[str, str], list[Any]] = {}
        for request in requests:
            _, _, options, _, task, _ = request.args
            groups.setdefault((task, _sampling_key(options)), []).append(request)
        replies: dict[tuple[str, str, str], list[str]] = {}
        for (task, key), some in groups.items():
            counts = Counter(str(request.args[3]) for request in some)
            found = self._answer(task, json.loads(key), some, max(counts.values()))
            replies |= {(task, key, index): texts for index, texts in found.items()}
        return [
            replies[one.args[4], _sampling_key(one.args[2]), str(one.args[3])].pop(0)
            for one in requests
        ]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:  # noqa: ARG002
        """Not possible: a chain with drawings has no likelihood."""
        raise _unsupported("likelihoods of given answers")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:  # noqa: ARG002
        """Not possible yet."""
        raise _unsupported("several rounds of one task")

    def _answer(
        self, task: str, sampling: Mapping[str, Any], requests: Sequence[Any], num_samples: int
    ) -> dict[str, list[str]]:
        """Answers the requests of a task: index -> texts of its samples."""
        several = {} if num_samples == 1 else {"n": num_samples}
        module = self._args.module({**sampling, **several})
        unique = {str(request.args[3]): request for request in requests}
        folder = self._args.output
        if self.world_size > 1:
            folder /= f"rank{self.rank}"
        replies = answer_questions(
            [self._question(request) for request in unique.values()],
            module,
            BenchmarkFiles(folder=folder, name=task),
            accelerator="cpu" if self._is_cpu else "gpu",
            devices=1 if self._is_cpu else [self._local_rank],
            rerun=self._args.rerun,
        )
        failures = [reply.failure for reply in replies if reply.failure is not None]
        if failures:
            text = "%s: %d of %d requests have no answer and count as empty, the first because %s"
            log.warning(text, task, len(failures), len(replies), failures[0])
        return {
            index: self._texts(reply, num_samples)
            for index, reply in zip(unique, replies, strict=True)
        }

    def _texts(self, reply: Reply, num_samples: int) -> list[str]:
        if reply.failure is not None:
            return [""] * num_samples
        if not self._is_image:
            return list(reply.texts)
        return [
            json.dumps({"text": text, "images": [str(path) for path in paths]})
            for text, paths in zip(reply.texts, reply.drawings, strict=True)
        ]

    def _question(self, request: Any) -> Question:
        _, doc_to_messages, _, index, task, split = request.args
        place = f"{task}, document {index}"
        messages = doc_to_messages(self.task_dict[task][split][index])
        return Question(
            index=str(index),
            messages=tuple(
                Message(role=one["role"], parts=to_parts(_contents(one, place), place))
                for one in messages
            ),
        )

    def _join(self) -> None:
        """Joins the processes of `accelerate launch`, which share the documents."""
        from accelerate import Accelerator

        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        self._local_rank = self.accelerator.local_process_index


def _contents(message: Mapping[str, Any], place: str) -> list[Any]:
    """The texts and pictures of a message of lmms-eval."""
    content = message["content"]
    if isinstance(content, str):
        return [content]
    found: list[Any] = []
    for one in content:
        if one["type"] == "text":
            found.append(one["text"])
        elif one["type"] == "image":
            picture = one["url"]
            found.append([picture] if isinstance(picture, str) else picture)
        else:
            raise InputError(
                place,
                found=f"content of the type {one['type']}",
                wanted="text and image",
                remedy="Choose a task without it.",
            )
    return found


def _sampling_key(options: Mapping[str, Any]) -> str:
    """The sampling that a task asks for, as JSON of fields of `Sampling`."""
    is_greedy = options.get("do_sample") is False
    found = {
        "temperature": 0.0 if is_greedy else options.get("temperature"),
        "top_p": options.get("top_p"),
        "max_tokens": options.get("max_new_tokens"),
    }
    return json.dumps({name: value for name, value in found.items() if value is not None})


def _unsupported(found: str) -> ConfigError:
    return ConfigError(
        "the task",
        found=found,
        wanted="a task that generates answers (generate_until)",
        remedy="Choose the variant of the task that generates.",
    )
