"""What is used of MMDetection, imported after the operators that it needs."""

from mmengine.runner import checkpoint

from models.detector.checkpoints import load_from_local, load_url
from models.detector.mmcv_ops import install_mmcv_ops

install_mmcv_ops()
checkpoint.load_url = load_url  # MMEngine's would run what is in a file that a config downloads
checkpoint.CheckpointLoader.register_scheme("", load_from_local, force=True)

from mmdet.datasets.transforms import CopyPaste  # noqa: E402  # needs the operators above
from mmdet.registry import DATA_SAMPLERS, DATASETS, HOOKS, MODELS, TASK_UTILS, TRANSFORMS  # noqa: E402  # likewise
from mmdet.structures.mask import BitmapMasks  # noqa: E402  # likewise
from mmdet.utils import register_all_modules  # noqa: E402  # likewise

__all__ = [
    "DATASETS",
    "DATA_SAMPLERS",
    "HOOKS",
    "MODELS",
    "TASK_UTILS",
    "TRANSFORMS",
    "BitmapMasks",
    "CopyPaste",
    "register_all_modules",
]
