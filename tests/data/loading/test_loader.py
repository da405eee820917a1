"""Packs on their way to the training process: few open files, page-locked memory, one copy."""

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import fields
from io import BytesIO
from multiprocessing import (
    Pipe,
    active_children,
    get_context,
    popen_fork,
    set_forkserver_preload,
)
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from mathcanvas_lightning.batch import MicroBatch, PackedBatch
from mathcanvas_lightning.cli.fit import WORKER_MODULES
from mathcanvas_lightning.common.exits import exit_on_signals
from mathcanvas_lightning.data.loading import worker as worker_module
from mathcanvas_lightning.data.loading.config import WorkerConfig
from mathcanvas_lightning.data.sequence.roles import NO_DROPOUT
from tests.conftest import ROOT, png, run_python
from tests.data.hashes import digest
from tests.data.make_rows import config, interleaved_shards, module, write_shards

NUM_IMAGES = 60


def loaded_packs(folder: Path) -> list[Any]:
    data = module(config(interleaved_shards(folder, 6))).train_data
    return [data.dataset[task] for task in data.tasks(0, data.plan.schedule(0, 1), 0, 1)]


def storages(pack: PackedBatch) -> set[int]:
    layout = [getattr(pack.layout, member.name) for member in fields(pack.layout)]
    values = [*vars(pack).values(), *pack.images, *layout]
    return {v.untyped_storage().data_ptr() for v in values if isinstance(v, torch.Tensor)}


def test_a_pack_is_sent_as_one_tensor(tmp_path: Path) -> None:
    [loaded, *_] = loaded_packs(tmp_path)
    sent: list[torch.Tensor] = []

    class Pickler(ForkingPickler):
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                sent.append(value)
                return torch.tensor, (value.tolist(),)
            return NotImplemented

    Pickler(BytesIO()).dump(loaded)
    assert len(sent) == 1
    assert sent[0].dtype == torch.uint8


def test_pinning_copies_to_one_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The DataLoader pins what a worker returns by its own method."""
    [loaded, *_] = loaded_packs(tmp_path)
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    found = pin_memory(loaded)
    assert len(pinned) == 1
    assert found.pack is not loaded.pack
    assert len(storages(found.pack)) == 1
    assert hashed(found) == hashed(loaded)


def hashed(loaded: Any) -> str:
    task = loaded.task
    batch = MicroBatch(
        pack=loaded.pack,
        samples=loaded.samples,
        image_seeds=loaded.image_seeds,
        step_totals=task.step_totals,
        epoch=task.epoch,
        step=task.step,
    )
    return digest(batch)


def test_a_buffer_is_copied_to_the_device_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [loaded, *_] = loaded_packs(tmp_path)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    pack = pin_memory(loaded).pack
    copies: list[bool] = []
    copy = torch.Tensor.to

    def count(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        copies.append(options["non_blocking"])
        return copy(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", count)
    data = module(config(tmp_path))
    batch = MicroBatch(
        pack=pack,
        samples=loaded.samples,
        image_seeds=loaded.image_seeds,
        step_totals=loaded.task.step_totals,
        epoch=0,
        step=0,
    )
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert copies == [True]
    assert moved.pack.layout.order.device.type == "meta"


def test_the_layout_is_made_before_a_pack_leaves_its_worker(tmp_path: Path) -> None:
    for loaded in loaded_packs(tmp_path):
        pack = loaded.pack
        layout = vars(pack)["layout"]
        und = torch.cat([pack.text_indexes, pack.vit_indexes])
        order = layout.order
        assert torch.equal(order, torch.cat([und.sort().values, pack.latent_indexes]))
        assert torch.equal(order[layout.und_storage_indexes], und)
        assert torch.equal(order[layout.inverse], torch.arange(pack.sequence_length))
        noisy = pack.noisy_latents()
        assert torch.equal(layout.noisy_latents, torch.nonzero(noisy)[:, 0])
        sizes = [rows * columns for rows, columns in pack.latent_shapes]
        assert [bool(flags[0]) for flags in noisy.split(sizes)] == list(layout.noisy_items)


@pytest.mark.usefixtures("other_thread")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_comes_after_the_workers_have_started(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, started = popen_fork.Popen._launch, []  # type: ignore[attr-defined]

    def launch_and_interrupt(self: popen_fork.Popen, process: Any) -> None:
        launch(self, process)
        os.kill(os.getpid(), number)
        time.sleep(0.1)  # the exception would come here
        started.append(process)

    monkeypatch.setattr(popen_fork.Popen, "_launch", launch_and_interrupt)
    workers = WorkerConfig(num_workers=2, start_method="fork")
    data = module(config(interleaved_shards(tmp_path, 6)), workers=workers)
    with pytest.raises((KeyboardInterrupt, SystemExit)), exit_on_signals(signal.SIGTERM):
        next(iter(data.train_dataloader()))
    assert len(started) == 2
    gc.collect()  # or when the iterator is deleted
    assert not set(started) & set(active_children())


def test_a_worker_does_not_show_that_the_main_process_has_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(worker_module, "parent_process", lambda: None)
    worker_module.set_up_worker(0)
    for error in (EOFError(), ConnectionResetError(), ValueError("wrong")):
        sys.excepthook(type(error), error, None)  # as the thread that sends tensors does
    assert capsys.readouterr().err == "ValueError: wrong\n"


def load_after_sigterm(folder: Path) -> None:
    """Runs in a separate process: all processes but this one get SIGTERM, as from a scheduler."""
    set_forkserver_preload(list(WORKER_MODULES))  # as `fit` does
    workers = WorkerConfig(num_workers=2, prefetch_factor=1, start_method="forkserver")
    batches = iter(module(config(folder), workers=workers).train_dataloader())
    found = [next(batches), next(batches)]  # one of each worker: both have started
    children = psutil.Process().children(recursive=True)
    # From yet another process: a worker obeys this one.
    subprocess.run(["kill", "-TERM", *(str(one.pid) for one in children)], check=True)
    found += batches
    wanted = module(config(folder)).train_dataloader()
    assert [digest(batch) for batch in found] == [digest(batch) for batch in wanted]
    assert len(found) > 6
    assert len(children) >= 3  # the server and two workers


@pytest.mark.slow
def test_workers_survive_a_sigterm_to_all_processes(tmp_path: Path) -> None:
    folder = interleaved_shards(tmp_path, 30)
    script = f"""
from pathlib import Path
from tests.data.loading.test_loader import load_after_sigterm
if __name__ == "__main__":
    load_after_sigterm(Path({str(folder)!r}))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run_python("-W", "ignore", "-c", script, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr


def answer_as_worker(connection: Connection) -> None:
    worker_module.set_up_worker(0)
    connection.send("ready")
    while True:
        connection.send(connection.recv())


def test_only_the_main_process_can_end_a_worker() -> None:
    ours, theirs = Pipe()
    worker = get_context("fork").Process(target=answer_as_worker, args=(theirs,), daemon=True)
    worker.start()
    assert ours.recv() == "ready"
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    ours.send("still there")
    assert ours.recv() == "still there"
    worker_module.end_workers([worker])
    assert worker.exitcode == 0


def many_images(number: int) -> dict[str, Any]:
    drawn = [{"type": "image", "index": n} for n in range(NUM_IMAGES)]
    return {
        "id": f"row{number}",
        "answer": "A",
        "question_interleave": json.dumps([{"type": "text", "content": "q"}]),
        "solution_interleave": json.dumps([*drawn, {"type": "text", "content": "A"}]),
        "question_images": [],
        "solution_images": [{"bytes": png(32, 32), "path": None}] * NUM_IMAGES,
    }


def run_with_few_files(folder: Path, limit: int) -> None:
    """Runs in a separate process: sends packs of many images under a low limit of open files."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    data = module(
        config(folder),
        max_num_tokens=2000,
        max_num_tokens_per_sample=2000,
        workers=WorkerConfig(num_workers=2, prefetch_factor=4),
        dropout=NO_DROPOUT,
    )
    most = 0
    kept = []
    for batch in data.train_dataloader():
        kept.append(batch)
        most = max(most, len(list(Path("/proc/self/fd").iterdir())))
    assert len(kept) == 12
    assert len(kept[0].pack.images) == NUM_IMAGES
    print(most)


@pytest.mark.slow
def test_packs_of_many_images_need_few_open_files(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", [many_images(n) for n in range(12)])
    script = f"""
from pathlib import Path
from tests.data.loading.test_loader import run_with_few_files
if __name__ == "__main__":
    run_with_few_files(Path({str(folder)!r}), 120)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = run_python("-W", "ignore", "-c", script, env=environment, timeout=300)
    assert found.returncode == 0, found.stderr[-2000:]
    assert int(found.stdout) < 100
