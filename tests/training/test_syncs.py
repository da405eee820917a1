"""A training step never waits for the device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mathcanvas_lightning.batch import MicroBatch
from tests.conftest import TRAINER_WARNINGS
from tests.data.make_rows import config, interleaved_row, t2i_shards, write_shards
from tests.training.runs import network, train, training_data

pytestmark = pytest.mark.filterwarnings(*TRAINER_WARNINGS, "ignore:You defined a `validation_step`")
WAITING = {
    "aten::_local_scalar_dense": "a number that the host reads",
    "aten::nonzero": "a size that depends on values",
    "aten::masked_select": "a size that depends on values",
    "aten::_unique2": "a size that depends on values",
    "aten::unique_consecutive": "a size that depends on values",
}


class NoWaiting(TorchDispatchMode):
    """Raises where a GPU would have to finish before the host can continue."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        assert name not in WAITING, f"{name}: {WAITING[name]}"
        if name == "aten::index":
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            assert not masks, "indexing by a mask"
        if name == "aten::repeat_interleave" and not (kwargs or {}).get("output_size"):
            raise AssertionError("repeat_interleave without output_size")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("statement", [lambda x: x.max().item(), lambda x: x[x > 0], torch.nonzero])
def test_the_mode_notices(statement: Any) -> None:
    with pytest.raises(AssertionError), NoWaiting():
        statement(torch.ones(3))


def test_forward_losses_and_backward(tmp_path: Path) -> None:
    rows = write_shards(tmp_path / "rows", [interleaved_row(n, images=2) for n in range(8)])
    pictures = t2i_shards(tmp_path / "t2i", 8)
    data = training_data(config(rows), config(pictures, "t2i"))
    model = network()
    seen: list[MicroBatch] = []
    training_step = model.training_step

    def step(batch: MicroBatch, batch_idx: int) -> Any:
        assert batch.pack.layout is not None  # made by the data worker
        model.network.attention_path = "dense"  # as on a GPU, the host doesn't look at the mask
        with NoWaiting():
            loss = training_step(batch, batch_idx)
        seen.append(batch)
        return loss

    backward = model.backward

    def watched(loss: Any, *args: Any, **kwargs: Any) -> None:
        with NoWaiting():
            backward(loss, *args, **kwargs)

    model.training_step, model.backward = step, watched  # type: ignore[method-assign]
    train(model, data, tmp_path / "run")
    assert len(seen) == 3
    assert any(len(batch.pack.mse_indexes) for batch in seen)
