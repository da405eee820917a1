"""Overhead of the predict loop: with many records and no model, and compared to a bare vLLM engine.

Without a model (EchoBackend): a complete run over the records, and the same command again when all
records are answered (it reads the input and the journal and writes the output again). Each run has
its own process; the peak memory is shown beside that of a run over ten records.

With --model: `vllm.LLM.chat` on all prompts at once against `Trainer.predict` with VLLMBackend,
including journal and output file. Both engines are loaded in separate processes and used in turn.
The results are medians of several rounds. Decoding is greedy, and equal answers are counted.

Example:
  python tools/benchmark_predict.py --records 10000 100000
  python tools/benchmark_predict.py --records 10000 --model demo/smollm2 --prompts 200 --rounds 5
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import resource
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from mathcanvas_lightning.generation.backends.base import EchoBackend, GenerationBackend
from mathcanvas_lightning.generation.backends.vllm.backend import VLLMBackend
from mathcanvas_lightning.generation.requests import Sampling
from mathcanvas_lightning.generation.run.datamodule import RecordDataModule
from mathcanvas_lightning.generation.run.module import QUIET_TRAINER, GenerationModule
from mathcanvas_lightning.generation.run.writer import ResponseWriter
from mathcanvas_lightning.records.record import RecordInput

FEW = 10
WINDOW = 1024


def write_questions(folder: Path, num: int) -> Path:
    """Additions, as JSON lines."""
    path = folder / f"questions{num}.jsonl"
    with path.open("w") as file:
        for n in range(num):
            question = f"What is {n % 97} + {n % 89}? Explain each of your steps in a sentence."
            file.write(json.dumps({"sample_index": n, "query_cot": question}) + "\n")
    return path


def predict(
    backend: GenerationBackend, source: Path, output: Path, sampling: Sampling
) -> list[str]:
    """A complete run; returns the answers."""
    data = RecordDataModule([RecordInput(path=str(source), output=str(output))])
    trainer = Trainer(accelerator="cpu", callbacks=[ResponseWriter()], **QUIET_TRAINER)
    trainer.predict(GenerationModule(backend, sampling), datamodule=data, return_predictions=False)
    return [json.loads(line)["model_answer"] for line in output.open()]


def echo_run(source: Path, output: Path) -> dict[str, float]:
    """One run with EchoBackend; called in a separate process."""
    quiet()
    started = time.perf_counter()
    predict(EchoBackend(), source, output, Sampling())
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mib": peak}


def measure_echo(num: int, rounds: int) -> dict[str, Any]:
    """A first and a second run over the records: medians."""
    context = multiprocessing.get_context("fork")  # of a process that has only imported
    found: dict[str, list[dict[str, float]]] = {"first": [], "again": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            source = write_questions(Path(folder), num)
            for runs in found.values():
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    work = pool.submit(echo_run, source, Path(folder) / "answers.jsonl")
                    runs.append(work.result())  # raises if the process fails or is killed
    return {
        "records": num,
        **{
            f"{kind}_{name}": median(run[name] for run in runs)
            for kind, runs in found.items()
            for name in ("seconds", "peak_mib")
        },
    }


def measure_engine(model: str, num: int, max_tokens: int, rounds: int) -> dict[str, Any]:
    """The predict loop and a bare engine on the same prompts: medians of rounds."""
    from vllm import LLM, SamplingParams

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    options: dict[str, Any] = {"max_model_len": WINDOW, "dtype": "float32"}
    bare = LLM(model, **options, enforce_eager=True)
    backend = VLLMBackend(model, **options, engine_options={"enforce_eager": True})
    backend.start()
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    num_equal = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_questions(folder, num)
        questions = [json.loads(line)["query_cot"] for line in source.open()]
        conversations: list[Any] = [[{"role": "user", "content": text}] for text in questions]
        for number in range(rounds + 1):
            started = time.perf_counter()
            answers = bare.chat(
                conversations,
                SamplingParams(temperature=0, max_tokens=max_tokens),
                use_tqdm=False,
            )
            seconds["bare"].append(time.perf_counter() - started)
            kept = Kept(backend)
            started = time.perf_counter()
            output = folder / f"answers{number}.jsonl"
            ours = predict(kept, source, output, Sampling(max_tokens=max_tokens))
            seconds["ours"].append(time.perf_counter() - started)
            num_equal = sum(a.outputs[0].text == b for a, b in zip(answers, ours, strict=True))
    backend.close()
    found = {kind: median(times[1:]) for kind, times in seconds.items()}  # without the warm-up
    return {
        "prompts": num,
        "max_tokens": max_tokens,
        "bare_seconds": found["bare"],
        "ours_seconds": found["ours"],
        "overhead": found["ours"] / found["bare"] - 1,
        "equal_answers": num_equal,
    }


class Kept:
    """A backend that stays open after a run, so that the next run need not start it."""

    def __init__(self, backend: GenerationBackend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def close(self) -> None:
        """Does nothing."""


def show(found: dict[str, Any], console: Console) -> None:
    """Prints tables."""
    table = Table("records", "run", "seconds", "µs a record", "peak, MiB", title="EchoBackend")
    for column in table.columns:
        column.justify = "right"
    for one in found["echo"]:
        for kind in ("first", "again"):
            seconds = one[f"{kind}_seconds"]
            table.add_row(
                f"{one['records']:,}",
                kind,
                f"{seconds:.2f}",
                f"{1e6 * seconds / one['records']:,.0f}",
                f"{one[f'{kind}_peak_mib']:,.0f}",
            )
    console.print(table)
    if (engine := found.get("engine")) is not None:
        table = Table("prompts", "bare engine, s", "predict loop, s", "overhead", "equal answers")
        table.add_row(
            f"{engine['prompts']:,}",
            f"{engine['bare_seconds']:.2f}",
            f"{engine['ours_seconds']:.2f}",
            f"{engine['overhead']:+.1%}",
            f"{engine['equal_answers']:,}",
        )
        console.print(table)


def quiet() -> None:
    """Hides warnings and log messages of Lightning and transformers."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def main() -> None:
    """Runs the benchmark and prints the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--model", help="Folder of a model; by default no engine is measured.")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--max_tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="Also write the figures to this file.")
    options = parser.parse_args()
    quiet()
    sizes = [FEW, *options.records]
    found: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "echo": [measure_echo(num, options.rounds) for num in sizes],
    }
    if options.model:
        found["engine"] = measure_engine(
            options.model, options.prompts, options.max_tokens, options.rounds
        )
    show(found, Console())
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
