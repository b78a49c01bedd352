"""Options of detectors' training. Light: imports neither torch nor MMDetection."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from data.artifacts.digests import DigestMemory, combined_digest
from data.artifacts.options import AddedLater, Options, RuntimeOnly
from data.attributes.options import VerificationOptions
from data.errors import InvalidConfig
from models.detector.config_sources import config_files, dotted, named_weights, weights_in
from models.precision import require_gpu
from models.process_options import (
    DistributedBackend,
    NumNodes,
    RdzvEndpoint,
    check_backend,
    check_hosts,
)

if TYPE_CHECKING:
    from data.vocabulary.tables import Dataset

CODE_VERSION = 3
"""Of training and inference; bumped by hand when what they make changes."""

Budget = Literal["iterations", "exposure"]
"""What is equal in a comparison with real images alone: optimiser steps, or passes over the real images."""


def config_digest(name: str, digests: DigestMemory) -> str:
    """Digest of a detector config's content and of all that it inherits from.

    Raises:
        InvalidConfig: there is no such config.
    """
    return combined_digest(digests.files(config_files(name)))


class DetectorConfig(Options):
    """Which MMDetection detector to train, and how."""

    config: str = Field(
        "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
        description="A config packaged with MMDetection (`mmdet::…`) or the path of a config file.",
    )
    overrides: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="MMEngine options by dotted name, such as model.neck.out_channels.",
    )
    pretrained: bool = Field(
        True,
        description="Start from the backbone weights that the config names; off: from scratch, and without "
        "load_from nothing of the backbone is frozen.",
    )
    image_size: tuple[int, int] = Field(
        (1333, 800), description="Long and short side that images are resized to, in pixels."
    )
    load_from: Path | None = Field(
        None,
        description="Checkpoint of a whole detector to start from, .pth or safetensors; weights of "
        "another shape, such as the classes', are left as they are.",
    )
    augmentation: Literal["flip", "copy-paste"] = Field(
        "flip",
        description="Random flips, or those and, in labelled real images, MMDetection's CopyPaste.",
    )
    num_epochs: float = Field(
        6, ge=0, description="Passes over the real training images; 0: num_iterations says."
    )
    num_iterations: int = Field(0, ge=0, description="Optimiser steps; 0: num_epochs says.")
    batch_size: int = Field(8, ge=1, description="Images per optimiser step.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Null: the config's, times batch_size / its auto_scale_lr.base_batch_size.",
    )
    num_warmup_iterations: int = Field(
        500, ge=0, description="Of the learning rate; at most a tenth of all iterations."
    )
    config_hooks: Annotated[bool, AddedLater] = Field(
        False,
        description="The config's own hooks, such as its average of the weights (EMA), which is then what "
        "is kept; their epochs are the same shares of this training. Off: none.",
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = Field(
        "no",
        description="Of the training; needs a GPU. bf16 rounds the regions of a two-stage detector to 4 "
        "pixels from pixel 512 on and to 8 from 1,024 on, fp16 to 1.",
    )
    num_processes: Annotated[int, AddedLater] = Field(
        1,
        ge=1,
        description="Data-parallel processes that share a batch, one for each GPU. Another number is another "
        "result: each draws by itself, and many losses are averaged within each first.",
    )
    num_nodes: NumNodes = 1
    rdzv_endpoint: RdzvEndpoint = None
    distributed_backend: DistributedBackend = "auto"
    checkpoint_interval: Annotated[int, RuntimeOnly] = Field(
        1000, ge=1, description="Steps between resumable checkpoints."
    )
    seed: int = 0
    num_workers: Annotated[int, RuntimeOnly] = Field(
        2, ge=0, description="Data loader processes, of each process; 0: none."
    )

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_size % self.num_processes:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of num_processes {self.num_processes}"
            )
        return self

    @model_validator(mode="after")
    def _hosts_find_each_other(self) -> Self:
        check_hosts(self.num_processes, self.num_nodes, self.rdzv_endpoint)
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if bool(self.num_epochs) == bool(self.num_iterations):
            raise ValueError(
                f"num_epochs is {self.num_epochs:g} and num_iterations {self.num_iterations}: "
                "one of them must be 0 and the other say how long to train"
            )
        return self

    @property
    def num_gpus(self) -> int:
        """One for each process of a host."""
        return self.num_processes // self.num_nodes

    def iterations(self, num_real: int) -> int:
        """Optimiser steps of a training in which there are so many real images."""
        return self.num_iterations or max(
            math.ceil(self.num_epochs * num_real / self.batch_size), 1
        )

    def foreign(self, digests: DigestMemory) -> dict[str, str]:
        """Digests of the config and of weights in files.

        Raises:
            InvalidConfig: the config or weights that it names are not there, or no learning rate is given
                and nothing says for which batch the config's is.
        """
        found = {"config": config_digest(self.config, digests)}
        if self.learning_rate is None:
            self._require_rule()
        given, own = self._given_weights(), self._own_weights()
        for name, path in given.items():
            if "://" not in path:
                self._require(path)
                found[f"overrides.{name}"] = digests.file(Path(path))
        files = sorted(name for name in own if "://" not in name)
        for path in files if not given else ():
            self._require(path)
        there = [Path(path) for path in files if Path(path).is_file()]
        if there:
            found["weights"] = combined_digest(sorted(digests.files(there)))
        if self.load_from:
            self._require(str(self.load_from))
            found["load_from"] = digests.file(self.load_from)
        return found

    def keyed(self, without: Collection[str] = ()) -> dict[str, Any]:
        """Overrides count the same nested and dotted."""
        flat = dotted(self.overrides)
        overrides = {k: v for k, v in flat.items() if f"overrides.{k}" not in without}
        return super().keyed(without) | {"overrides": overrides}

    def downloads(self) -> tuple[str, ...]:
        """Addresses of weights."""
        names = {*self._own_weights(), *self._given_weights().values()}
        return tuple(sorted(name for name in names if "://" in name))

    def _own_weights(self) -> set[str]:
        """Weights that the config names."""
        return named_weights(self.config) if self.pretrained else set()

    def _given_weights(self) -> dict[str, str]:
        """Weights that the overrides name, by the option's dotted name."""
        return weights_in(self.overrides) if self.pretrained else {}

    def _require_rule(self) -> None:
        """Refuse what is sure to lack a rule for the rate, without reading the config as MMEngine does."""
        files = config_files(self.config)
        texts = [repr(self.overrides), *(path.read_text(errors="replace") for path in files)]
        if files[0].suffix == ".py" and not any("base_batch_size" in text for text in texts):
            raise InvalidConfig(
                f"detector config {self.config!r}: learning_rate is null, and there is no "
                "auto_scale_lr.base_batch_size that says for which batch the config's is: give learning_rate"
            )

    def _require(self, path: str) -> None:
        if not Path(path).is_file():
            raise InvalidConfig(
                f"detector config {self.config!r} starts from the weights {path!r}: there is no such "
                "file. Correct the path, or set pretrained=false"
            )


class Fold(Options):
    """Training images that one of several detectors does not see, and scores."""

    number: int = Field(ge=0)
    of: int = Field(ge=2)


class DetectorTraining(DetectorConfig):
    """A detector to train, and on what."""

    fold: Fold | None = Field(None, description="Left out of the real training images.")
    real_multiple: float = Field(
        1.0,
        gt=0,
        description="Real images, in multiples of the training images: below 1 some of those, above 1 "
        "spare ones with them.",
    )
    images: Literal["real", "real+synthetic", "synthetic", "real+spare", "real+pseudo"] = Field(
        "real",
        description="Which of the real and the set's; or as many spare real ones as the set has images; "
        "or the pseudo-labelled ones too.",
    )
    budget: Budget = Field(
        "iterations",
        description="As long as without the set, or longer by its images: as often past the real ones.",
    )
    added_share: Annotated[float | None, AddedLater] = Field(
        None,
        gt=0,
        lt=1,
        description="Share of every batch of images other than the training images; null: in proportion "
        "to their number.",
    )
    real_only_end: Annotated[float, AddedLater] = Field(
        0.0,
        ge=0,
        lt=1,
        description="Last share of the iterations, of the training images alone.",
    )

    box_noise: Annotated[float, AddedLater] = Field(
        0.0, ge=0, description="Standard deviation of edges of real boxes, in shares of their side."
    )

    def added_per_real(self, num_real: int, num_added: int) -> float:
        """How many other images are seen for one training image over a whole training."""
        if self.added_share is None:
            mixed = num_added / num_real
        else:
            mixed = self.added_share / (1 - self.added_share)
        return mixed * (1 - self.real_only_end) / (1 + mixed * self.real_only_end)

    def check_without_data(self) -> None:
        """Refuse mixed precision or NCCL without a GPU.

        Raises:
            InvalidConfig: there is none.
        """
        check_backend(self.distributed_backend)
        if self.mixed_precision != "no":
            require_gpu("mixed_precision", self.mixed_precision)

    def check(self, dataset: "Dataset") -> None:
        """Refuse more folds or real images than there are.

        Raises:
            InvalidConfig: there are fewer.
        """
        from data.attributes.folds import fold_image_ids  # noqa: PLC0415  # loads what the command line need not

        if self.fold:
            fold_image_ids(dataset, "train", self.fold.number, self.fold.of)
        if self.images == "real+spare" and not dataset.split_images("spare"):
            raise InvalidConfig(
                "the arm more-real needs spare real images: give ingest.spare, or leave the arm out"
            )
        num_train, num_spare = (len(dataset.split_images(name)) for name in ("train", "spare"))
        require_real(self.real_multiple, num_train, num_spare)

    def check_inputs(self, dataset: "Dataset", inputs: Mapping[str, Options]) -> None:
        """Refuse fewer spare images than the synthetic set will have, where no image is dropped from it.

        Raises:
            InvalidConfig: there are fewer.
        """
        verified = inputs.get("verified")
        if isinstance(verified, VerificationOptions) and verified.action == "drop-image":
            return
        if self.images == "real+spare":
            require_spare(dataset, inputs["synthetic"].num_drawn(dataset))


def require_real(multiple: float, num_train: int, num_spare: int) -> None:
    """Refuse a multiple of the training images of which there are none, or not so many.

    Raises:
        InvalidConfig: it is one.
    """
    wanted = round(multiple * num_train)
    if not 1 <= wanted <= num_train + num_spare:
        raise InvalidConfig(
            f"{multiple:g} times the {num_train} training images are {wanted}, and there are "
            f"{num_train + num_spare} with the spare ones: change retrain.ruler or the spare images"
        )


def require_spare(dataset: "Dataset", wanted: int) -> None:
    """Refuse fewer spare images than a synthetic set has.

    Raises:
        InvalidConfig: there are fewer.
    """
    num_spare = len(dataset.split_images("spare"))
    if num_spare < wanted:
        raise InvalidConfig(
            f"the arm more-real needs as many spare images as the synthetic set has, {wanted}: there are "
            f"{num_spare}; give more, or a smaller synthesize.num_train_layouts"
        )
