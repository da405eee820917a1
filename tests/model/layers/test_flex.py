"""Number of graphs that torch compiles for packs of all kinds."""

import functools
from collections.abc import Sequence

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention

from mathcanvas_lightning.batch import AttentionMode, make_splits
from mathcanvas_lightning.model.layers.attention import Attention, attends, make_layout
from mathcanvas_lightning.model.layers.compilation import MAX_GRAPHS, compile_options
from mathcanvas_lightning.model.layers.flex import ATTEND, make_block_mask

CPU = torch.device("cpu")
HEADS = {"decoder": (4, 2, 2), "vit": (3, 3, 3)}
PACKS: Sequence[Sequence[tuple[int, AttentionMode]]] = [
    [(300, "causal"), (64, "full"), (64, "noise")],
    [(700, "causal")],
    [(1, "causal")],
    [(128, "full")],
    [(50, "causal"), (20, "full"), (400, "noise")],
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
def test_each_stack_needs_few_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    # FlexAttention refuses a backward pass on the CPU, but only its kernels lack it.
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    graphs = {}
    for stack, attend in ATTEND.items():
        heads = HEADS[stack]
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(attend, backend=counter, **compile_options(fullgraph=True))
        for has_grad in (True, False):
            for pack in PACKS:
                lengths, modes = zip(*pack, strict=True)
                total = sum(lengths)
                layout = make_layout([total], make_splits(lengths, modes), CPU)
                rule = functools.partial(attends, layout)
                mask = make_block_mask(rule, total, CPU)
                qkv = [torch.randn(total, n, 16, requires_grad=has_grad) for n in heads]
                out = compiled(*(x.transpose(0, 1)[None] for x in qkv), mask)
                wanted = Attention(layout, "dense")(*qkv)
                torch.testing.assert_close(out[0].transpose(0, 1), wanted, atol=1e-5, rtol=1e-4)
                if has_grad:
                    out.sum().backward()
        graphs[stack] = counter.frame_count
    assert all(2 <= number <= MAX_GRAPHS // 4 for number in graphs.values()), graphs
    assert torch._dynamo.config.recompile_limit >= MAX_GRAPHS


def test_beyond_the_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    options = compile_options(fullgraph=True)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    compiled = torch.compile(lambda x: x * 2, backend="eager", **options)
    compiled(torch.ones(3))
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        compiled(torch.ones(3, dtype=torch.int64))
