"""An adapter changes the answers as in peft."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mathcanvas_lightning.generation.backends.vllm.backend import VLLMBackend
from tests.generation.engine import (  # noqa: F401 - fixtures
    MAX_GAP,
    SMALL_CACHE,
    answers,
    ask,
    engine_lock,
    gaps,
    in_one_process,
    real_engine,
    smollm2,
)

pytestmark = [*real_engine, pytest.mark.filterwarnings("ignore")]
QUESTION = "What is 3+4?"


@pytest.fixture(scope="module")
def adapted_model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: F811
    """SmolLM2 with a random adapter, which is saved in `adapter_path`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(smollm2, dtype="float32")
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=3, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.adapter_path = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(model.adapter_path)
    return model


@pytest.fixture(scope="module")
def adapted(engine_lock: None, smollm2: Path, adapted_model: Any) -> Iterator[VLLMBackend]:  # noqa: F811
    engine = VLLMBackend(
        str(smollm2),
        model_name="adapted",
        lora_path=str(adapted_model.adapter_path),
        max_model_len=256,
        dtype="float32",
        engine_options=SMALL_CACHE,
    )
    with in_one_process():
        engine.start()
    yield engine
    engine.close()


@pytest.mark.slow
def test_adapter_is_applied(adapted: VLLMBackend, adapted_model: Any, smollm2: Path) -> None:  # noqa: F811
    from transformers import AutoTokenizer

    assert adapted.model_name == "adapted"
    (output,) = answers(adapted, [ask("q", QUESTION, max_tokens=16)])["q"].outputs
    prompt_ids = AutoTokenizer.from_pretrained(smollm2).apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False
    )
    assert max(gaps(adapted_model, prompt_ids, output.token_ids)) <= MAX_GAP
    with adapted_model.disable_adapter():
        assert max(gaps(adapted_model, prompt_ids, output.token_ids)) > 100 * MAX_GAP
