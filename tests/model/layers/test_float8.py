"""Products in float8: which layers, their error, gradients of every pack, what is refused."""

import sys

import pytest
import torch
from torch import nn

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.adapters import LoRASettings, add_lora
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers.float8 import use_float8
from mathcanvas_lightning.model.parallelize import Parallelism, Precision, build_network
from mathcanvas_lightning.model.synthetic import Kind, synthetic_inputs, synthetic_pack
from mathcanvas_lightning.training.numeric import NumericConfig

CONFIG = BagelConfig.preset("tiny", llm_num_hidden_layers=2, vit_num_hidden_layers=2)
CPU = torch.device("cpu")


def build(*, float8: bool = True, lora: bool = False) -> Bagel:
    def prepare(model: Bagel) -> None:
        model.freeze()
        if lora:
            add_lora(model, LoRASettings(rank=16))

    return build_network(
        CONFIG,
        None,
        None,
        device=CPU,
        precision=Precision(params=torch.float32, compute=torch.float32, float8=float8),
        parallelism=Parallelism(),
        prepare=prepare,
        seed=0,
    )


@pytest.mark.parametrize("sample", [["question", "vit", "answer", "noisy"], ["answer"]])
def test_losses_and_gradients_are_close(sample: list[Kind]) -> None:
    pytest.importorskip("torchao.float8")
    exact, model = build(float8=False), build()
    assert list(model.state_dict()) == list(exact.state_dict())
    batch = synthetic_pack([sample], CONFIG, text_tokens=(20, 30), image_side=(3, 5))
    found = []
    for network in (exact, model):
        output = network(batch, **synthetic_inputs(batch, CONFIG))
        (output.ce.sum() + output.velocities.square().sum()).backward()
        found.append({n: p.grad for n, p in network.named_parameters() if p.requires_grad})
        found.append({"hidden": output.hidden_states.detach()})
    for name, wanted in (found[0] | found[1]).items():
        ours = (found[2] | found[3])[name]
        assert wanted is not None
        assert ours is not None
        # 4 % error of each product add up over layers and both passes.
        assert float((ours - wanted).norm()) <= 0.4 * float(wanted.norm()) + 1e-6, name
    error = (found[3]["hidden"] - found[1]["hidden"]).norm() / found[1]["hidden"].norm()
    assert 1e-3 < float(error) < 0.2  # it is not computed in float32


def test_only_layers_of_the_decoder_whose_sizes_fit() -> None:
    float8 = pytest.importorskip("torchao.float8.float8_linear")
    model = build()
    names = {n for n, m in model.named_modules() if isinstance(m, float8.Float8Linear)}
    assert len(names) == CONFIG.llm.num_hidden_layers * 14
    assert all(name.startswith("language_model.model.layers.") for name in names)
    with pytest.raises(ConfigError, match="multiples of 16"):
        use_float8([nn.Sequential(nn.Linear(8, 16))], CPU, is_compiled=False)


def test_adapters_and_nf4_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.lora"):
        build(lora=True)
    with pytest.raises(ConfigError, match="nf4"):
        NumericConfig(float8=True, frozen_dtype="nf4")


@pytest.mark.parametrize(
    ("capability", "is_compiled", "message"),
    [((8, 0), True, r"8\.0"), ((9, 0), False, r"compile false")],
)
def test_gpus_without_float8_are_refused(
    capability: tuple[int, int],
    is_compiled: bool,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with pytest.raises(ConfigError, match=message):
        use_float8([nn.Linear(16, 16)], torch.device("cuda"), is_compiled=is_compiled)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ConfigError, match=r"mathcanvas-lightning\[float8\]"):
        use_float8([nn.Linear(16, 16)], CPU, is_compiled=False)
