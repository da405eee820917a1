"""Entry point of lmms-eval: names our model to it, without importing the model."""

from typing import Any

MODEL = "mathcanvas_lightning.integrations.lmms_model.LmmsModel"


def manifest() -> Any:
    """The manifest of the model `mathcanvas`, which lmms-eval asks for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="mathcanvas", chat_class_path=MODEL)
