"""What the code that GeoDiffusion released does otherwise, as options of the generator's training."""

from typing import Any, Literal

RecipeName = Literal["ours", "geodiffusion"]

RECIPES: dict[str, dict[str, Any]] = {
    "ours": {},
    "geodiffusion": {
        "resize_filter": "bilinear",
        "location_embedding": "raw",
        "prompt_padding": "longest",
        "foreground_overlap": "last",
        "foreground_things_only": False,
        "text_layer_decay": 0.95,
        "embedding_rows": "all",
        "schedule_stretch": 8.0,
        "text_vector_decay": False,
        "ema_decay": None,
    },
}
"""Name to the options in which it differs from the defaults; `geodiffusion`: what the released scripts do."""

RELEASED_RATES: dict[str, float] = {
    "learning_rate": 1.5e-4,
    "text_learning_rate": 0.75 * 1.5e-4,
    "base_batch_size": 256,
}
"""Of the released scripts, for a batch of 8 × 32."""
