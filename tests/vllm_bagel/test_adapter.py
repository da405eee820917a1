"""A LoRA adapter on the projections of both experts: as if it were merged into the weights."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mathcanvas_lightning.generation.backends.vllm.backend import VLLMBackend
from mathcanvas_lightning.generation.backends.vllm.messages import ContextRequest, ContextResult
from mathcanvas_lightning.model.bagel import Bagel
from tests.conftest import golden_folder
from tests.generation.engine import SMALL_CACHE, engine_lock, in_one_process, real_engine
from tests.parity.test_generation import parts
from tests.vllm_bagel.contexts import NUM_WRITTEN, cases, native_cases, native_texts
from tests.vllm_bagel.plugin import registered_plugin

__all__ = ["engine_lock", "registered_plugin"]
pytestmark = [
    *real_engine,
    pytest.mark.usefixtures("registered_plugin"),
    pytest.mark.skipif(not (golden_folder() / "tiny_bagel").is_dir(), reason="no golden files"),
]
RANK, ALPHA = 4, 8.0
ADAPTED = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def adapted(folder: Path) -> Bagel:
    """The model with an adapter merged in; the adapter is saved as peft saves it."""
    model = copy.deepcopy(parts()[0])
    generator = torch.Generator().manual_seed(3)
    adapter = {}
    for name, layer in model.language_model.named_modules():
        if not name.split(".")[-1].removesuffix("_moe_gen").endswith(ADAPTED):
            continue
        rows, columns = layer.weight.shape
        down = torch.randn(RANK, columns, generator=generator) * 0.3
        up = torch.randn(rows, RANK, generator=generator) * 0.3
        layer.weight.data += up @ down * (ALPHA / RANK)
        key = f"base_model.model.language_model.{name}"
        adapter |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    assert any("moe_gen" in name for name in adapter)
    save_file(adapter, folder / "adapter_model.safetensors")
    names = sorted({name.split(".lora_")[0].split(".")[-1] for name in adapter})
    about = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": names}
    (folder / "adapter_config.json").write_text(json.dumps({**about, "bias": "none"}))
    return model


def test_adapter(engine_lock: None, registered_plugin: None, tmp_path: Path) -> None:
    found = cases()
    wanted = native_texts(found, model=adapted(tmp_path))
    plain = native_cases().values()
    assert sum(one.ids != other.ids for one, other in zip(wanted, plain, strict=True)) > 20
    backend = VLLMBackend(
        str(golden_folder() / "tiny_bagel"),
        dtype="float32",
        max_model_len=1024,
        lora_path=str(tmp_path),
        engine_options=SMALL_CACHE,
    )
    with in_one_process():
        backend.start()
    try:
        client = backend.client
        client.submit(
            [
                ContextRequest(
                    uid=case.name,
                    context=case.context,
                    end_id=own.unused_id,
                    max_tokens=NUM_WRITTEN,
                    wants_logprobs=True,
                )
                for case, own in zip(found, wanted, strict=True)
            ]
        )
        results: dict[str, ContextResult] = {}
        while client.num_pending:
            results |= {r.uid: r for r in client.collect() if isinstance(r, ContextResult)}
    finally:
        backend.close()
    for case, own in zip(found, wanted, strict=True):
        assert list(results[case.name].token_ids) == own.ids, case.name
        assert results[case.name].logprobs == pytest.approx(own.logprobs, abs=1e-4)
