"""Validation pictures show the right images beside the predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from mathcanvas_lightning.batch import LossTotals
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.vae import to_pixels
from mathcanvas_lightning.training.callbacks.pictures import (
    GAP_PX,
    PictureLogger,
    clean_estimates,
    compare,
)
from mathcanvas_lightning.training.inputs import draw_inputs
from mathcanvas_lightning.training.run.logger import RunLogger
from tests.conftest import TRAINER_WARNINGS
from tests.data.make_rows import config, interleaved_shards
from tests.training.runs import network, train, training_data, weights

pytestmark = pytest.mark.filterwarnings(*TRAINER_WARNINGS)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("data") / "rows", 16)


def fit(shards: Path, folder: Path, *callbacks: Any, steps: int = 1, **options: Any) -> Any:
    """Trains with a validation after each step."""
    model = network()
    data = training_data(config(shards), validation=(config(shards, name="val"),))
    train(
        model,
        data,
        folder,
        callbacks=list(callbacks),
        max_steps=steps,
        val_check_interval=1,
        limit_val_batches=1,
        **options,
    )
    return model, data


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("run")
    logger = CSVLogger(folder, name="", version="")
    model, data = fit(shards, folder, PictureLogger(num_images=2), logger=logger)
    return folder, model, next(iter(data.val_dataloader()[0]))


def noisy_images(pack: Any) -> list[int]:
    flags, start, found = pack.noisy_latents().tolist(), 0, []
    for (rows, columns), image in zip(pack.latent_shapes, pack.latent_image_ids, strict=True):
        if flags[start]:
            found.append(image)
        start += rows * columns
    return found


def test_file_shows_the_images_of_the_first_batch(run: tuple[Path, Any, Any]) -> None:
    folder, model, batch = run
    picture = np.asarray(Image.open(folder / "pictures" / "step_1.png"))
    images = [batch.pack.images[i].movedim(0, -1).numpy() for i in noisy_images(batch.pack)[:2]]
    assert len(images) == 2
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    assert picture.shape == (2 * height + GAP_PX, 2 * width + GAP_PX, 3)
    with torch.no_grad():
        (output, inputs), _ = model.run(batch, LossTotals.of(batch.pack))
    estimates = clean_estimates(batch.pack, inputs, output.velocities, 2, 2)
    for row, (image, estimate) in enumerate(zip(images, estimates, strict=True)):
        top = row * (height + GAP_PX)
        right = picture[top : top + image.shape[0], width + GAP_PX :][:, : image.shape[1]]
        assert np.array_equal(right, image)
        left = picture[top : top + image.shape[0], : image.shape[1]]
        decoded = to_pixels(model.vae.decode(estimate.latent[None]))[0].numpy()
        assert np.abs(left.astype(int) - decoded.astype(int)).max() <= 1


def test_target_velocities_give_the_clean_latents(run: tuple[Path, Any, Any]) -> None:
    _, model, batch = run
    pack = batch.pack
    inputs = draw_inputs(model.vae, batch, 2, 2.0)
    estimates = clean_estimates(pack, inputs, inputs.target(pack), 2, 99)
    assert [estimate.image for estimate in estimates] == noisy_images(pack)
    for estimate in estimates:
        [number] = [n for n, i in enumerate(pack.latent_image_ids) if i == estimate.image][:1]
        start = sum(h * w for h, w in pack.latent_shapes[:number])
        rows, columns = pack.latent_shapes[number]
        tokens = inputs.latents[start : start + rows * columns]
        # Token (row, column) holds its 2 x 2 patch in (row, column, channel) order.
        for token, values in enumerate(tokens):
            y, x = 2 * (token // columns), 2 * (token % columns)
            patch = estimate.latent[:, y : y + 2, x : x + 2].permute(1, 2, 0).flatten()
            assert torch.allclose(patch, values, atol=1e-5)


@pytest.mark.slow
def test_training_does_not_change(shards: Path, tmp_path: Path) -> None:
    with_pictures, _ = fit(shards, tmp_path / "a", PictureLogger(), steps=2)
    without, _ = fit(shards, tmp_path / "b", steps=2)
    assert with_pictures.network.training
    for name, tensor in weights(without).items():
        assert torch.equal(tensor, weights(with_pictures)[name]), name


@pytest.mark.slow
def test_every_n_steps(shards: Path, tmp_path: Path) -> None:
    fit(shards, tmp_path, PictureLogger(every_n_steps=2), steps=4, num_sanity_val_steps=1)
    found = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert found == ["step_1.png", "step_3.png"]


class FakeWandb(WandbLogger):
    """Records pictures, without the wandb package."""

    def __init__(self) -> None:
        Logger.__init__(self)
        self.pictures: list[Any] = []

    @property
    def experiment(self) -> Any:
        return self

    @property
    def name(self) -> str:
        return "fake"

    @property
    def version(self) -> str:
        return "0"

    @property
    def save_dir(self) -> str:
        return "nowhere"

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        pass

    log_hyperparams = watch = save = finalize = after_save_checkpoint = log_metrics

    def log_image(self, key: str, images: list[Any], step: int | None = None, **_: Any) -> None:
        self.pictures.append((key, images[0].size, step))


class FakeTensorBoard(TensorBoardLogger):
    """Records the arguments of add_image."""

    added: list[Any]

    @property
    def experiment(self) -> Any:
        return self

    def add_image(self, tag: str, image: Any, step: int, dataformats: str) -> None:
        self.added = [(tag, image.shape, step, dataformats)]

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        pass

    log_hyperparams = log_graph = save = finalize = log_metrics


def test_loggers_that_accept_pictures(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTensorBoard, "__init__", lambda self, root: set_up(self, root))
    wandb, board = FakeWandb(), FakeTensorBoard(str(tmp_path))
    fit(shards, tmp_path, PictureLogger(num_images=1), logger=[board, wandb])
    [(tag, (height, width, channels), step, layout)] = board.added
    assert (tag, channels, step, layout) == ("val/pictures", 3, 1, "HWC")
    assert wandb.pictures == [("val/pictures", (width, height), 1)]
    assert not list(tmp_path.rglob("*.png"))
    folder = tmp_path / "run"
    fit(shards, folder, PictureLogger(num_images=1), logger=[RunLogger(folder), wandb])
    assert [path.relative_to(folder) for path in folder.rglob("*.png")] == [
        Path("pictures/step_1.png")
    ]


def set_up(logger: Any, root: str) -> None:
    Logger.__init__(logger)
    logger._root_dir = logger._save_dir = root
    logger._name, logger._version, logger._sub_dir = "board", 0, None


def test_no_picture_without_predictions(run: tuple[Path, Any, Any]) -> None:
    _, model, batch = run
    assert compare(model.vae, batch.pack, []) is None


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"num_images": 0}])
def test_wrong_numbers(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="1 or more of each"):
        PictureLogger(**options)
