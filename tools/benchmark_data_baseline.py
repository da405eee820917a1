"""The rows that `benchmark_data.py` packs, and the straightforward packer it compares with.

The packer follows the reference's method: rows come through pandas, a drawing is transformed twice
for the VAE and once for the ViT, packs grow as Python lists of numbers, images are padded to the
largest of the pack, and packs are filled greedily with a buffer for samples that don't fit. There
are no dense attention masks, as in the published recipe.
"""

import json
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mathcanvas_lightning.batch import TokenGeometry
from mathcanvas_lightning.conversion.output.columns import shard_schema
from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.conversion.output.writer import ShardLayout, ShardWriter
from mathcanvas_lightning.data.images.decode import ImageLimits, check_image
from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.rows.schema import (
    ImageSegment,
    InterleavedExample,
    Segment,
    TextSegment,
)
from mathcanvas_lightning.data.rows.stored_images import StoredImage
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer

Item = TypeVar("Item")
TEXT = """the triangle circle angle line point perpendicular through radius of length equal to we
draw so that AB BC CD degrees midpoint tangent square hence area is and from height base side a"""
SIZES_PX = ((512, 384), (640, 480), (512, 512), (900, 700))
Picture = Callable[[np.random.Generator], bytes]
"""Gives the bytes of a picture."""


def write_rows(folder: Path, num_rows: int, seed: int, picture: Picture) -> None:
    """Shards of generated rows, as the converter lays them out."""
    random = np.random.default_rng(seed)
    layout = ShardLayout(name="rows", encoding="json", samples_per_file=128, row_group_rows=32)
    with ShardWriter(
        OutputFolder(str(folder)),
        folder="",
        layout=layout,
        schema=shard_schema("json", {}),
        settings="",
        chain=str,
        finished=(),
    ) as writer:
        for number in range(num_rows):
            row = make_row(number, random, picture)
            images = (_stored(row.question), _stored(row.solution))
            writer.add(row, record=number, images=images)
        writer.finish()
        writer.write_info()


def _stored(segments: Sequence[Segment]) -> tuple[StoredImage, ...]:
    limits, images = ImageLimits(), [s.data for s in segments if isinstance(s, ImageSegment)]
    return tuple(StoredImage.of(data, check_image(data, limits)) for data in images)


def make_row(number: int, random: np.random.Generator, picture: Picture) -> InterleavedExample:
    """A question with a picture, and a solution of one to three steps with one each."""
    solution = [
        part
        for _ in range(random.integers(1, 4))
        for part in (make_text(random), ImageSegment(data=picture(random)))
    ]
    return InterleavedExample(
        uid=f"row_{number}",
        question=(make_text(random), ImageSegment(data=picture(random))),
        solution=(*solution, make_text(random)),
        answer="42",
    )


def make_text(random: np.random.Generator) -> TextSegment:
    """20 to 150 words."""
    words = random.choice(TEXT.split(), random.integers(20, 151))
    return TextSegment(text=" ".join(words))


def draw_picture(random: np.random.Generator, *, coloured: float) -> bytes:
    """A geometry diagram: polygons, circles, chords, letters.

    Args:
        random: Decides shapes and colours.
        coloured: Share of the diagrams with blue and red lines; in others, all lines are black.
    """
    has_colour = random.random() < coloured
    width, height = SIZES_PX[random.integers(len(SIZES_PX))]
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)

    def points(count: int) -> list[tuple[int, int]]:
        return [(x, y) for x, y in random.integers(0, image.size, (count, 2)).tolist()]

    draw.polygon(points(random.integers(3, 7)), outline="black", width=3)
    for x, y in points(2):
        radius = int(random.integers(30, height // 3))
        draw.ellipse(
            (x - radius, y - radius, x + radius, y + radius),
            outline="blue" if has_colour else "black",
            width=2,
        )
    for letter in "ABCDEF":
        first, second = points(2)
        draw.line((first, second), fill="red" if has_colour else "black", width=2)
        draw.text(first, letter, fill="black", font_size=24)
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyLimits:
    """Limits of the greedy packer, in tokens; those of the published recipe by default."""

    expected_num_tokens: int = 46_080
    """A pack this full is given out."""
    max_num_tokens: int = 51_200
    max_num_tokens_per_sample: int = 25_600
    prefer_buffer_before: int = 25_600
    """Below it, a pack takes from the buffer."""
    max_buffer_size: int = 50
    """Samples."""


def greedy_packs(
    samples: Iterable[tuple[int, Item]],
    limits: GreedyLimits,
    *,
    lost: Counter[str],
    keep_all: bool = False,
) -> Iterator[list[tuple[int, Item]]]:
    """Fills packs in the order of the samples; what doesn't fit waits in a buffer.

    Args:
        samples: Tokens of each, and anything that goes with it.
        limits: Of packs, samples and buffer.
        lost: Counts the samples that reach no pack, by reason.
        keep_all: Lose only what is over the limits: a sample that finds the buffer full begins the
            next pack, and buffer and unfinished pack are given out at the end.

    Yields:
        The samples of a pack.
    """
    stream = iter(samples)
    buffer: deque[tuple[int, Item]] = deque()
    pack: list[tuple[int, Item]] = []
    filled = 0
    while True:
        # The first sample of a pack always comes from the data.
        buffered = bool(buffer) and 0 < filled < limits.prefer_buffer_before
        sample = buffer.popleft() if buffered else next(stream, None)
        if sample is None:
            break
        if sample[0] > limits.max_num_tokens_per_sample:
            lost["over the limit"] += 1
        elif filled + sample[0] <= limits.max_num_tokens:
            pack.append(sample)
            filled += sample[0]
            if filled >= limits.expected_num_tokens:
                yield pack
                pack, filled = [], 0
        elif not buffered and len(buffer) < limits.max_buffer_size:
            buffer.append(sample)
        else:
            yield pack
            pack, filled = ([sample], sample[0]) if keep_all else ([], 0)
            lost["buffer full"] += not keep_all
    if keep_all:
        yield from _flush([*pack, *buffer], limits.max_num_tokens)
    else:
        lost["unfinished at the end"] += len(pack) + len(buffer)


def _flush(samples: Sequence[tuple[int, Item]], capacity: int) -> Iterator[list[tuple[int, Item]]]:
    pack: list[tuple[int, Item]] = []
    for sample in samples:
        if pack and sum(length for length, _ in pack) + sample[0] > capacity:
            yield pack
            pack = []
        pack.append(sample)
    if pack:
        yield pack


def fill_greedily(lengths: Sequence[int], limits: GreedyLimits) -> dict[str, float]:
    """How full packs of these lengths become, and the samples that reach none, by reason."""
    lost = Counter({"over the limit": 0, "buffer full": 0, "unfinished at the end": 0})
    packs = list(greedy_packs(((length, None) for length in lengths), limits, lost=lost))
    tokens = sum(length for pack in packs for length, _ in pack)
    fill = tokens / max(1, len(packs) * limits.max_num_tokens)
    return {"fill": fill, "packs": len(packs), "samples": sum(map(len, packs)), **lost}


@dataclass(slots=True)
class _Split:
    kind: str  # text, noisy, clean or vit
    loss: bool = False
    ids: list[int] = field(default_factory=list)
    action: int | None = None
    image: Tensor | None = None


@dataclass(slots=True)
class _Sample:
    uid: str
    splits: list[_Split]


class PlainPacker:
    """Reads interleaved shards of the converter's layout and packs them.

    Args:
        tokenizer: For the texts.
        geometry: Patch sizes and position tables.
        vae_transform: Gives the size for the VAE.
        vit_transform: Gives the size for the ViT.
        limits: Of the packs.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        geometry: TokenGeometry,
        vae_transform: ImageTransform,
        vit_transform: ImageTransform,
        limits: GreedyLimits,
    ) -> None:
        self._tokenizer, self._special, self._geometry = tokenizer, tokenizer.special, geometry
        self._vae, self._vit, self._limits = vae_transform, vit_transform, limits

    def packs(self, files: Sequence[Path]) -> Iterator[SimpleNamespace]:
        """All rows, each once."""
        samples = ((self._length(sample), sample) for sample in self._samples(files))
        for pack in greedy_packs(samples, self._limits, lost=Counter(), keep_all=True):
            status = _Status()
            for _, sample in pack:
                self._add(sample, status)
            yield status.to_tensors()

    def _samples(self, files: Sequence[Path]) -> Iterator[_Sample]:
        for file in files:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                frame = parquet.read_row_group(group).to_pandas()
                for _, row in frame.iterrows():
                    yield self._parse(row)

    def _parse(self, row: Mapping[str, Any]) -> _Sample:
        splits: list[_Split] = []
        for section in ("question", "solution"):
            items = json.loads(row[f"{section}_interleave"])
            for number, item in enumerate(items):
                solution = section == "solution"
                if item["type"] == "text":
                    ids = self._tokenizer.encode(item["content"].strip())
                    action = self._action(items[number + 1 :]) if solution else None
                    splits.append(_Split("text", loss=solution, ids=ids, action=action))
                else:
                    data = row[f"{section}_images"][int(item["index"])]["bytes"]
                    splits += self._image_splits(data, drawn=solution)
        return _Sample(row["id"], splits)

    def _action(self, following: Sequence[Mapping[str, Any]]) -> int:
        if not following:
            return self._special.end_of_text
        text = following[0]["type"] == "text"
        return self._special.bos if text else self._special.start_of_image

    def _image_splits(self, data: bytes, *, drawn: bool) -> list[_Split]:
        image = Image.open(BytesIO(data)).convert("RGB")
        splits = []
        if drawn:
            splits.append(_Split("noisy", loss=True, image=_transform(image, self._vae)))
        splits.append(_Split("clean", image=_transform(image, self._vae)))
        splits.append(_Split("vit", image=_transform(image, self._vit)))
        return splits

    def _length(self, sample: _Sample) -> int:
        tokens = 0
        for split in sample.splits:
            if split.image is None:
                tokens += len(split.ids)
            else:
                _, height, width = split.image.shape
                patch = self._patch_px(split)
                tokens += height * width // patch**2
        return tokens + 2 * len(sample.splits)

    def _patch_px(self, split: _Split) -> int:
        geometry = self._geometry
        return geometry.vit_patch_px if split.kind == "vit" else geometry.latent_patch_px

    def _add(self, sample: _Sample, status: "_Status") -> None:
        start, rope = status.curr, 0
        for split in sample.splits:
            if split.kind == "text":
                rope += self._add_text(split, status, rope)
            else:
                self._add_image(split, status, rope)
                rope += split.kind != "noisy"
        status.uids.append(sample.uid)
        status.sample_lens.append(status.curr - start)

    def _add_text(self, split: _Split, status: "_Status", rope: int) -> int:
        lists, ids = status.lists, [self._special.bos, *split.ids]
        places = range(status.curr, status.curr + len(ids))
        lists["text_ids"].extend(ids)
        lists["text_indexes"].extend(places)
        if split.loss:
            lists["ce_indexes"].extend(places)
            lists["ce_weights"].extend([len(ids) ** -0.5] * len(ids))
            lists["ce_label_ids"].extend([*split.ids, self._special.eos])
        status.curr += len(ids)
        lists["text_ids"].append(self._special.eos)
        lists["text_indexes"].append(status.curr)
        if split.action is not None:
            lists["ce_indexes"].append(status.curr)
            lists["ce_weights"].append(1.0)
            lists["ce_label_ids"].append(split.action)
        status.curr += 1
        lists["position_ids"].extend(range(rope, rope + len(ids) + 1))
        return len(ids) + 1

    def _add_image(self, split: _Split, status: "_Status", rope: int) -> None:
        assert split.image is not None
        lists, patch = status.lists, self._patch_px(split)
        rows, columns = split.image.shape[1] // patch, split.image.shape[2] // patch
        count = rows * columns
        lists["text_ids"].append(self._special.start_of_image)
        lists["text_indexes"].append(status.curr)
        places = range(status.curr + 1, status.curr + 1 + count)
        if split.kind == "vit":
            lists["vit_indexes"].extend(places)
            side = self._geometry.max_vit_side
            lists["vit_position_ids"].append(_table_positions(rows, columns, side))
            lists["vit_patches"].append(_patchify(split.image, patch))
            lists["vit_lens"].append(count)
        else:
            lists["latent_indexes"].extend(places)
            side = self._geometry.max_latent_side
            lists["latent_position_ids"].append(_table_positions(rows, columns, side))
            status.images.append(split.image)
            status.latent_shapes.append((rows, columns))
            if split.loss:
                lists["mse_indexes"].extend(places)
            logit = np.random.randn() if split.loss else float("-inf")
            lists["timestep_logits"].extend([logit] * count)
        lists["text_ids"].append(self._special.end_of_image)
        lists["text_indexes"].append(status.curr + count + 1)
        lists["position_ids"].extend([rope] * (count + 2))
        status.curr += count + 2


class _Status:
    """The pack that grows; names are those of `PackedBatch` where both have the same."""

    def __init__(self) -> None:
        self.curr = 0
        self.uids: list[str] = []
        self.sample_lens: list[int] = []
        self.latent_shapes: list[tuple[int, int]] = []
        self.images: list[Tensor] = []
        self.lists: defaultdict[str, list[Any]] = defaultdict(list)

    def to_tensors(self) -> SimpleNamespace:
        """The finished pack."""
        tensors = {
            name: torch.cat(values) if isinstance(values[0], Tensor) else torch.tensor(values)
            for name, values in self.lists.items()
        }
        return SimpleNamespace(
            uids=self.uids,
            sample_lens=self.sample_lens,
            latent_shapes=self.latent_shapes,
            padded_images=_pad(self.images),
            **tensors,
        )


def _transform(image: Image.Image, rule: ImageTransform) -> Tensor:
    """[3, H, W] float32, -1 to 1."""
    resized = image.resize(rule.output_size(*image.size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
    return pixels.to(torch.float32).div_(255).sub_(0.5).div_(0.5)


def _patchify(image: Tensor, patch: int) -> Tensor:
    channels, height, width = image.shape
    grid = image.reshape(channels, height // patch, patch, width // patch, patch)
    return torch.einsum("chpwq->hwpqc", grid).reshape(-1, patch**2 * channels)


def _table_positions(rows: int, columns: int, side: int) -> Tensor:
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (row * side + column).flatten()


def _pad(images: Sequence[Tensor]) -> Tensor:
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    padded = torch.zeros(len(images), 3, height, width)
    for place, image in zip(padded, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return padded
