"""Activation memory budgets: what is kept, and equal gradients."""

import pytest
import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.parallelize import Parallelism, compile_layers, units
from mathcanvas_lightning.model.synthetic import synthetic_inputs, synthetic_pack

CONFIG = BagelConfig.preset("tiny", llm_num_hidden_layers=1, vit_num_hidden_layers=2)
CPU = torch.device("cpu")


def saved_and_gradient(parallelism: Parallelism) -> tuple[int, Tensor]:
    """Bytes that the decoder keeps for the backward pass, and a gradient."""
    torch._dynamo.reset()
    model = Bagel.empty(CONFIG, dtype=torch.float32, device=CPU)
    model.reset_parameters(0)
    compile_layers(model, parallelism, CPU)
    batch = synthetic_pack([["question", "clean", "vit", "answer", "noisy"]], CONFIG)
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(batch, **synthetic_inputs(batch, CONFIG))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    (output.ce.sum() + output.velocities.square().sum()).backward()
    gradient = model.language_model.model.embed_tokens.weight.grad
    assert gradient is not None
    return sum(size for place, size in sizes.items() if place not in weights), gradient


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
def test_a_budget_keeps_less_and_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a compiled layer computes is the same on the CPU; only its attention is not compiled.
    monkeypatch.setattr(functorch_config, "activation_memory_budget", 1.0)
    whole, wanted = saved_and_gradient(Parallelism())
    budgets = [
        Parallelism(
            compile=True,
            compile_backend="aot_eager_decomp_partition",
            activation_memory_budget=budget,
        )
        for budget in (1.0, 0.0)
    ]
    (most, first), (least, second) = (saved_and_gradient(budget) for budget in budgets)
    assert least < most < whole
    for gradient in (first, second):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": True, "activation_memory_budget": 1.5}, "1.5"),
        ({"activation_memory_budget": 0.1}, "compile False"),
        (
            {
                "compile": True,
                "activation_memory_budget": 0.1,
                "activation_checkpointing": "full",
            },
            "'full'",
        ),
    ],
)
def test_contradictions_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Parallelism(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("layers", "sizes"), [(26, [7, 7, 7, 5]), (5, [2, 2, 1]), (2, [1, 1])])
def test_vit_layers_are_gathered_in_groups(layers: int, sizes: list[int]) -> None:
    with torch.device("meta"):
        model = Bagel(BagelConfig.preset("tiny", vit_num_hidden_layers=layers + 1))
    found = units(model, grouped=True)
    assert [len(unit) for unit in found] == [*sizes, *[1] * model.config.llm.num_hidden_layers]
    assert [layer for unit in found for layer in unit] == model.layers()
    assert units(model, grouped=False) == [[layer] for layer in model.layers()]
