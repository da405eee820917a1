"""Planning, packing speed and fill of the data module, beside a straightforward greedy packer.

1. Planning: synthetic rows, only their token counts; CPU seconds to plan an epoch, peak memory
   above the index, measured in a separate process.
2. Fill: the plan and the greedy packer on the same lengths, and the rows that the greedy one drops.
3. Reading: row groups, bytes and open files a pack, when packs are dealt out to workers.
4. Packing: tokens per CPU second from real shards of line drawings, or of the pictures of a folder,
   in this process, on one thread. First it checks that both make the same samples.
Times are medians of runs; in packing the two alternate. Needs pandas, like the tests.

Example:
  python tools/benchmark_data.py --json data.json
  python tools/benchmark_data.py --plan_rows 20000 --coloured 1
  python tools/benchmark_data.py --plan_rows 20000 --pictures mathvision/images
  python tools/benchmark_data.py --plan_rows 50000 --rows 50 --repeats 3
"""

import argparse
import gc
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import torch
from benchmark_data_baseline import (
    GreedyLimits,
    Picture,
    PlainPacker,
    draw_picture,
    fill_greedily,
    make_text,
    write_rows,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mathcanvas_lightning.batch import to_unit_range
from mathcanvas_lightning.common.parallel import usable_cores
from mathcanvas_lightning.data.datamodule import BAGEL_7B_GEOMETRY, MathCanvasDataModule
from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.loading.config import DatasetConfig, WorkerConfig
from mathcanvas_lightning.data.loading.loader import PackLoader
from mathcanvas_lightning.data.loading.lookahead import with_wanted_rows
from mathcanvas_lightning.data.loading.pack_dataset import CACHE_BYTES, LoadedPack
from mathcanvas_lightning.data.loading.packed_data import PackedData
from mathcanvas_lightning.data.plan.epoch import Plan, PlannedDataset
from mathcanvas_lightning.data.rows.readers import Role, RowFormat
from mathcanvas_lightning.data.rows.row_cache import RowCache
from mathcanvas_lightning.data.sequence.roles import (
    MARKERS,
    NO_DROPOUT,
    SPLITS,
    DropoutConfig,
    Elements,
    packed_lengths,
)
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.demo.new_bagel import save_tokenizer, train_tokenizer

LIMITS = GreedyLimits()
CONTENTS = ("text_ids", "ce_label_ids", "latent_position_ids", "vit_position_ids")
"""What is compared of a pack; where it stands is, too."""
MAX_GREEDY_ROWS = 100_000
LONG_SAMPLE = 9_000  # tokens
ROWS_PER_GROUP = 32
CHECKED_ROWS = 8  # whose pixels are compared
COLOURED = 0.28  # 45 of 160 pictures of MathVision's test set have channels that differ
VAE, VIT = ImageTransform(), ImageTransform(image_stride=14)

FINE_COLUMNS = (
    *("cpu_seconds", "index_s", "reads per pack", "MiB per pack", "MiB per sample"),
    *("reads per row group", "open files per pack"),
)

Contents = dict[str, dict[str, Tensor]]
"""By sample, what it became."""
Packs = Iterator[tuple[list[str], Any]]
"""Ids of the samples of a pack, and the pack."""
Case = dict[str, tuple[RowFormat, float | None, float]]
CASES: dict[str, Case] = {
    "interleaved": {"interleaved": ("interleaved", None, 1.0)},
    "mixture": {
        "t2i, code-derived": ("t2i", 3.0, 1.0),
        "t2i, competition": ("t2i", 2.2, 0.5),
        "t2i, others": ("t2i", 1.4, 0.7),
        "edit, competition": ("edit", 2.2, 0.4),
        "edit, foundational": ("edit", 1.1, 0.9),
        "interleaved": ("interleaved", 1.0, 0.3),
        "vlm": ("vlm", 1.0, 0.6),
    },
}
"""Data sets by name: format; weight, of the published stage-1 recipe (interleaved: of stage 2; vlm:
chosen here); rows, as a part of the samples per epoch takes of it: most are visited repeatedly."""
TEMPLATES: dict[RowFormat, list[Role]] = {
    "interleaved": [
        *[Role.PROMPT_TEXT, Role.CONTEXT_IMAGE],
        *[Role.ANSWER_TEXT, Role.DRAWN_IMAGE] * 4,
    ],
    "t2i": [*[Role.PROMPT_TEXT] * 3, Role.TARGET_IMAGE],
    "edit": [Role.CONTEXT_IMAGE, *[Role.PROMPT_TEXT, Role.CONTEXT_IMAGE] * 3],
    "vlm": [Role.SEEN_IMAGE, *[Role.FIXED_TEXT, Role.FIXED_ANSWER] * 2],
}
"""The longest row of each format; others lack some elements."""


def planned(
    name: str, row_format: RowFormat, elements: Elements, weight: float | None, dropout: Any
) -> PlannedDataset:
    """A data set as its index describes it."""
    starts = elements.offsets[:-1]
    return PlannedDataset(
        name=name,
        row_format=row_format,
        elements=elements,
        counters=starts,
        row_groups=np.arange(len(starts)) // ROWS_PER_GROUP,
        weight=weight,
        dropout=dropout,
    )


def synthetic_rows(row_format: RowFormat, num_rows: int, seed: int) -> Elements:
    """Texts of many lengths and pictures of many shapes."""
    random = np.random.default_rng(seed)
    roles = np.array(TEMPLATES[row_format], np.int8)
    steps = (np.arange(len(roles), dtype=np.int16) + 1) // 2 * (row_format == "edit")
    keep = _present(row_format, num_rows, random)
    is_image = np.array([{*SPLITS[role]} not in ({"text"}, set()) for role in Role])
    roles = np.broadcast_to(roles, keep.shape)[keep]
    image = is_image[roles]
    tokens = _image_tokens(random)
    latent_tokens, vit_tokens = tokens[random.integers(0, len(tokens), len(roles))].T
    words = np.clip(random.lognormal(np.log(70), 0.6, len(roles)), 8, 600).astype(np.int32)
    return Elements(
        offsets=np.concatenate([[0], np.cumsum(keep.sum(axis=1))]),
        roles=roles,
        steps=np.broadcast_to(steps, keep.shape)[keep],
        text_tokens=words * ~image,
        latent_tokens=latent_tokens * image,
        vit_tokens=vit_tokens * image,
    )


def _image_tokens(random: np.random.Generator) -> np.ndarray:
    """[256, 2] latent and ViT tokens of pictures."""
    heights = random.integers(256, 1024, 256)
    widths = heights * np.exp(random.normal(0.2, 0.3, 256)).clip(0.4, 2.5)
    shapes = np.stack([widths.astype(int), heights], axis=1).tolist()
    sizes = [(*VAE.output_size(*shape), *VIT.output_size(*shape)) for shape in shapes]
    return np.array([((a // 16) * (b // 16), (c // 14) * (d // 14)) for a, b, c, d in sizes], "i4")


def _present(row_format: RowFormat, num_rows: int, random: np.random.Generator) -> np.ndarray:
    """[rows, elements of the template] which of them each row has."""
    place = np.arange(len(TEMPLATES[row_format]))
    most = {"interleaved": 4, "vlm": 2}.get(row_format, 3)
    steps = random.integers(1, most + 1, (num_rows, 1))
    if row_format == "t2i":
        return (place < steps) | (place == most)
    if row_format == "interleaved":
        has_picture = random.random((num_rows, 1)) < 0.5
        return (place < 2 + 2 * steps) & (has_picture | (place != 1))
    return place < 1 + 2 * steps


def make_case(case: Case, num_samples: int, seed: int) -> list[PlannedDataset]:
    """Data sets whose epoch has about this many samples."""
    total = sum(weight or 1.0 for _, weight, _ in case.values())
    datasets = []
    for number, (name, (row_format, weight, part)) in enumerate(case.items()):
        count = max(1, round(num_samples * (weight or 1.0) / total * part))
        rows = synthetic_rows(row_format, count, seed + number)
        datasets.append(planned(name, row_format, rows, weight, DropoutConfig()))
    return datasets


def measure_planning(
    case: Case | None, num_samples: int, seed: int, repeats: int
) -> dict[str, float]:
    """Plans an epoch several times, of long rows without a case; for a separate process."""
    datasets = make_case(case, num_samples, seed) if case else [long_rows(num_samples, seed)]
    gc.collect()
    before = _resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forgets the peak so far
    seconds, peak = [], 0.0
    for repeat in range(repeats):
        plan = Plan(datasets, seed=seed + repeat, max_num_tokens=LIMITS.max_num_tokens)
        started = time.process_time()
        epoch = plan.epoch(0)
        seconds.append(time.process_time() - started)
        peak = peak or _resident_mib("VmHWM") - before
    return {
        "rows": sum(data.num_rows for data in datasets),
        "samples": len(epoch.rows),
        "cpu_seconds": median(seconds),
        "packs": epoch.num_packs,
        "fill": epoch.fill,
        "peak_mib": peak,
    }


def _resident_mib(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def compare_fill(num_rows: int, seed: int) -> dict[str, dict[str, float]]:
    """Plan and greedy packer on the same lengths, without dropout."""
    rows = synthetic_rows("interleaved", num_rows, seed)
    lengths = packed_lengths(rows, rows.roles)
    figures = {}
    for what, some in (("all", lengths), ("long", lengths[lengths >= LONG_SAMPLE])):
        figures[f"{what}, greedy"] = fill_greedily(some.tolist(), LIMITS)
        figures[f"{what}, ours"] = fill_by_plan(some, seed)
    return figures


def fill_by_plan(lengths: Any, seed: int) -> dict[str, float]:
    """Packs of the plan; each row is one text of its length."""
    data = _texts(lengths)
    epoch = Plan([data], seed=seed, max_num_tokens=LIMITS.max_num_tokens).epoch(0)
    return {"fill": epoch.fill, "packs": epoch.num_packs, "samples": len(epoch.rows)}


def make_tokenizer(folder: Path, seed: int) -> Path:
    """A tokenizer that knows the words of the rows."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    save_tokenizer(train_tokenizer([make_text(random).text for _ in range(50)], 1024), folder)
    return folder


def find_tokenizer(options: argparse.Namespace, folder: Path) -> str:
    """The folder of the tokenizer, made if none is named."""
    made = folder / "tokenizer"
    if options.tokenizer is None and not made.exists():
        make_tokenizer(made, options.seed)
    return str(options.tokenizer or made)


def prepared(shards: Path, tokenizer: str, seed: int) -> PackedData:
    """The library's packer; indexes the shards when they are new."""
    module = MathCanvasDataModule(
        tokenizer,
        train=[DatasetConfig(path=str(shards), vae_transform=VAE, vit_transform=VIT)],
        max_num_tokens=LIMITS.max_num_tokens,
        max_num_tokens_per_sample=LIMITS.max_num_tokens_per_sample,
        dropout=NO_DROPOUT,
        seed=seed,
        index_workers=0,
        quarantine_file=str(shards.parent / "quarantine.jsonl"),
        progress=False,
    )
    module.setup("fit")
    return module.train_data


def our_packs(data: PackedData) -> Packs:
    """Packs of the library as the loader requests them, planning included."""
    for task in with_wanted_rows(data.tasks(0, data.plan.schedule(0, 1), 0, 1), num_workers=0):
        loaded = data.dataset[task]
        if not isinstance(loaded, LoadedPack):
            raise loaded
        yield [sample.uid for sample in loaded.samples], loaded.pack


def plain_packs(shards: Path, tokenizer: str) -> Packs:
    """Packs of the straightforward packer."""
    packer = PlainPacker(TextTokenizer(tokenizer), BAGEL_7B_GEOMETRY, VAE, VIT, LIMITS)
    return ((pack.uids, pack) for pack in packer.packs(sorted(shards.glob("*.parquet"))))


def contents(packs: Packs) -> Contents:
    """What each sample became, wherever it was packed."""
    found: Contents = {}
    for uids, pack in packs:
        ends = np.cumsum(pack.sample_lens).tolist()
        for uid, start, end in zip(uids, [0, *ends], ends, strict=False):
            found[uid] = _sample_contents(pack, start, end, uid)
    return found


def _sample_contents(pack: Any, start: int, end: int, uid: str) -> dict[str, Tensor]:
    def part(values: Tensor, indexes: Tensor) -> Tensor:
        return values[(indexes >= start) & (indexes < end)]

    found = {"position_ids": pack.position_ids[start:end].clone()}
    for what in CONTENTS:
        indexes = getattr(pack, f"{what.split('_')[0]}_indexes")
        found[what] = part(getattr(pack, what), indexes)
        found[f"places of {what}"] = part(indexes, indexes) - start
    if int(uid.removeprefix("row_")) < CHECKED_ROWS:
        found["vit_patches"] = to_unit_range(part(pack.vit_patches, pack.vit_indexes))
    return found


def check_agreement(ours: Contents, baseline: Contents) -> None:
    """Stops if the two don't make the same samples."""
    assert ours.keys() == baseline.keys(), "they disagree on the rows"
    for uid, sample in ours.items():
        for name, values in sample.items():
            other = baseline[uid][name]
            if values.is_floating_point():  # a level is 2/255 of the range -1..1
                same = values.shape == other.shape and (values - other).abs().max() < 1 / 255
            else:
                same = torch.equal(values, other)
            assert same, f"they disagree on the {name} of {uid}"


def picture_source(options: argparse.Namespace) -> Picture:
    """What gives the pictures of the packed rows."""
    if options.pictures is None:
        return partial(draw_picture, coloured=options.coloured)
    files = sorted(path for path in options.pictures.rglob("*") if path.is_file())
    if not files:
        sys.exit(f"{options.pictures}: no pictures found; name a folder of PNG or JPEG files")
    return lambda random: files[random.integers(len(files))].read_bytes()


def measure_packing(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Checks that both make the same samples, then times them."""
    say(f"writing {options.rows:,} rows of pictures and text")
    shards = folder / "shards"
    write_rows(shards, options.rows, options.seed, picture_source(options))
    tokenizer = find_tokenizer(options, folder)
    started = time.process_time()
    data = prepared(shards, tokenizer, options.seed)
    index_seconds = time.process_time() - started
    say("comparing the samples of both packers")
    check_agreement(contents(our_packs(data)), contents(plain_packs(shards, tokenizer)))
    figures: dict[str, dict[str, float]] = {}
    seconds: dict[str, list[float]] = {"baseline": [], "ours": []}
    for repeat in range(options.repeats):
        say(f"packing, run {repeat + 1} of {options.repeats}")
        fresh = our_packs(prepared(shards, tokenizer, options.seed))  # no row is cached
        for name, packs in (("baseline", plain_packs(shards, tokenizer)), ("ours", fresh)):
            started = time.process_time()
            lengths = [sum(pack.sample_lens) for _, pack in packs]
            seconds[name].append(time.process_time() - started)
            figures[name] = {"packs": len(lengths), "tokens": sum(lengths)}
    assert figures["ours"]["tokens"] == figures["baseline"]["tokens"], f"tokens differ: {figures}"
    for name, figure in figures.items():
        took = median(seconds[name])
        figure |= {"cpu_seconds": took, "tokens_per_cpu_s": figure["tokens"] / took}
        figure["fill"] = figure["tokens"] / (figure["packs"] * LIMITS.max_num_tokens)
    figures["ours"]["index_s"] = index_seconds
    return figures


def long_rows(num_rows: int, seed: int) -> PlannedDataset:
    """Rows of one to five drawings of 3,400 tokens, which leave few ways to fill a pack."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 6, num_rows) * 3400 + random.integers(100, 1200, num_rows)
    return _texts(lengths)


def _texts(lengths: Any) -> PlannedDataset:
    columns = dict.fromkeys(("steps", "latent_tokens", "vit_tokens"), np.zeros(len(lengths), "i2"))
    elements = Elements(
        offsets=np.arange(len(lengths) + 1),
        roles=np.full(len(lengths), Role.PROMPT_TEXT, np.int8),
        text_tokens=(lengths - MARKERS).astype(np.int32),
        **columns,
    )
    return planned("rows", "interleaved", elements, None, NO_DROPOUT)


def measure_reading(data: PackedData, num_workers: int) -> dict[str, float]:
    """Reads the rows of an epoch as workers would, without building packs."""
    caches = [RowCache(CACHE_BYTES // num_workers) for _ in range(num_workers)]
    reads: Counter[tuple[int, str, int]] = Counter()
    rows = packs = num_bytes = 0
    tasks = data.tasks(0, data.plan.schedule(0, 1), 0, 1)
    for number, task in enumerate(with_wanted_rows(tasks, num_workers)):
        packs += 1
        rows += len(task.samples)
        for ref in task.samples:
            source = data.datasets[ref.dataset].source

            def read(wanted: Any, ref: Any = ref, source: Any = source) -> Any:
                nonlocal num_bytes
                reads[ref.group] += 1
                found = source.storage.metadata(ref.path).row_group(ref.row_group)
                num_bytes += sum(
                    found.column(n).total_compressed_size for n in range(found.num_columns)
                )
                return source.read(ref.path, ref.row_group, wanted)

            cache = caches[number % num_workers]
            cache.read(ref.group, ref.row, task.wanted[ref.group], read)
    return {
        "packs": packs,
        "reads per pack": sum(reads.values()) / packs,
        "MiB per pack": num_bytes / packs / 2**20,
        "MiB per sample": num_bytes / rows / 2**20,
        "reads per row group": sum(reads.values()) / len(reads),
        "open files per pack": count_open_files(data),
    }


def count_open_files(data: PackedData, num_packs: int = 8) -> float:
    """Open files of this process for each pack that a worker has sent."""
    tasks = islice(data.tasks(0, data.plan.schedule(0, 1), 0, 1), num_packs)
    workers = WorkerConfig(num_workers=1)
    loader = iter(PackLoader(data.dataset, lambda: tasks, num_packs, data.quarantine, workers))
    kept = [next(loader)]
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept += loader
    return (len(list(Path("/proc/self/fd").iterdir())) - before) / max(1, len(kept) - 1)


def say(stage: str) -> None:
    """A progress line."""
    print(f"{datetime.now(UTC):%H:%M:%S} {stage}", file=sys.stderr, flush=True)


def share(text: str) -> float:
    """A number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 0 to 1")
    return number


def parse() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan_rows", type=int, default=2_000_000, help="(default: 2,000,000)")
    parser.add_argument("--rows", type=int, default=400, help="that are packed (default: 400)")
    parser.add_argument(
        "--coloured",
        type=share,
        default=COLOURED,
        help=f"share of drawings with blue and red lines, 0 to 1 (default: {COLOURED}, as in "
        "MathVision); the channels of others are equal",
    )
    parser.add_argument("--pictures", type=Path, help="folder of pictures (default: drawings)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of rows and plans (default: 0)")
    parser.add_argument("--tokenizer", type=Path, help="checkpoint folder (default: a new one)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def main() -> None:
    """Measures and shows."""
    options = parse()
    torch.set_num_threads(1)
    figures: dict[str, dict[str, dict[str, float]]] = {"planning": {}}
    cases: dict[str, Case | None] = {**CASES, "long rows": None}
    for name, case in cases.items():
        say(f"planning {options.plan_rows:,} samples, {name}")
        task = (case, options.plan_rows, options.seed, options.repeats)
        # A fork of this process, which has only imported so far.
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            figures["planning"][name] = pool.submit(measure_planning, *task).result()
    say("filling packs by plan and greedily")
    figures["fill"] = compare_fill(min(options.plan_rows, MAX_GREEDY_ROWS), options.seed)
    with tempfile.TemporaryDirectory() as folder:
        figures["packing"] = measure_packing(options, Path(folder))
        say("reading as 1 and as 8 workers")
        data = prepared(Path(folder, "shards"), find_tokenizer(options, Path(folder)), options.seed)
        figures["reading"] = {f"{n} workers": measure_reading(data, n) for n in (1, 8)}
    ours, baseline = (figures["packing"][name]["tokens_per_cpu_s"] for name in ("ours", "baseline"))
    show(figures, ours / baseline)
    if options.json:
        about = {
            "date": datetime.now(UTC).date().isoformat(),
            "cores": usable_cores(),
            "python": platform.python_version(),
            "versions": {module.__name__: module.__version__ for module in (torch, pa, PIL, np)},
            "options": {name: str(value) for name, value in vars(options).items()},
            "packing_ratio": ours / baseline,
        }
        options.json.write_text(json.dumps(about | figures, indent=2) + "\n")


def show(figures: dict[str, dict[str, dict[str, float]]], ratio: float) -> None:
    """Tables on the screen."""
    titles = {
        "planning": f"plan of an epoch, packs of {LIMITS.max_num_tokens:,} tokens",
        "fill": f"the same samples, by plan and greedily; long: {LONG_SAMPLE:,} tokens or more",
        "reading": "reading an epoch, packs dealt out to workers",
        "packing": f"packing, one thread: ours is {ratio:.2f} times as fast",
    }
    styles = {"fill": "{:.2%}"} | dict.fromkeys(FINE_COLUMNS, "{:.2f}")
    for stage, rows in figures.items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        table = Table("", *(column.replace("_", " ") for column in columns), title=titles[stage])
        for name, row in rows.items():
            cells = (
                styles.get(column, "{:,.0f}").format(row[column]) if column in row else "-"
                for column in columns
            )
            table.add_row(name, *cells)
        Console().print(table)


if __name__ == "__main__":
    main()
