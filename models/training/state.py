"""All that changes while the generator is trained: modules, optimisers, averages."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from jaxtyping import Float, Int
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPTextModel

from data.errors import InvalidConfig
from models.devices import default_device, resolve_precision, to_device
from models.generator.modules import Generator, compile_blocks
from models.generator.options import GeneratorConfig
from models.generator.token_table import RowAverage, synchronized_gradient
from models.training.perception import (
    InstanceHead,
    PerceptionHead,
    SemanticHead,
    captured_features,
    up_block_channels,
)

_EMA_POWER = 0.75


class TrainedModules(nn.Module):
    """Text encoder, UNet and perception head as one module, for one data-parallel wrapper."""

    def __init__(
        self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel, head: PerceptionHead | None
    ):
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet
        self.head = head

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  # as of any module
        """Set the mode of all modules but residual blocks themselves.

        All that diffusers' do in training is to copy a shortcut's input to channels first, against a warning
        of data-parallel training: on a CPU, and compiled, ours have channels last.
        """
        super().train(mode)
        for block in self.unet.modules():
            if isinstance(block, ResnetBlock2D):
                block.training = False
        return self

    def enable_checkpointing(self) -> None:
        """Compute activations twice to need less memory."""
        self.unet.enable_gradient_checkpointing()
        self.text_encoder.activation_checkpointing_enable()

    def forward(
        self,
        inputs: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
        input_ids: Int[Tensor, "batch tokens"],
        token_weights: Float[Tensor, "batch objects tokens"],
    ) -> tuple[Tensor, Tensor | None]:
        """Predict noise or velocity, and the masks' logits where there is a head."""
        states = self.text_encoder(input_ids).last_hidden_state
        with captured_features(self.unet) as features:
            prediction = self.unet(inputs, timesteps, states).sample
        if self.head is None:
            return prediction, None
        return prediction, self.head(features, states, token_weights, inputs.shape[2:])

    @property
    def sparse_table(self) -> nn.Parameter | None:
        """The text encoder's token embedding, where its touched rows alone are trained."""
        embedding = self.text_encoder.get_input_embeddings()
        return embedding.weight if embedding.sparse else None


class WeightAverage:
    """Exponential moving average of the weights that are exported.

    diffusers' `EMAModel` for all but a sparse token table, whose rows are averaged when touched.
    """

    def __init__(self, modules: TrainedModules, decay: float):
        table = modules.sparse_table
        self._parameters = [
            parameter
            for module in (modules.unet, modules.text_encoder)
            for parameter in module.parameters()
            if parameter.requires_grad and parameter is not table
        ]
        self.dense = EMAModel(
            self._parameters, decay=decay, use_ema_warmup=True, power=_EMA_POWER, foreach=True
        )
        self.rows = None if table is None else RowAverage(table)

    def before_step(self, rows: Tensor) -> None:
        """Prepare for an optimiser step that changes these rows of a sparse token table."""
        if self.rows is not None:
            self.rows.catch_up(rows)

    def after_step(self, rows: Tensor) -> None:
        """Count an optimiser step that has changed these rows of a sparse token table."""
        self.dense.step(self._parameters)
        if self.rows is not None:
            self.rows.step(rows, self.dense.cur_decay_value)

    def copy_to_model(self) -> None:
        """Overwrite the weights with their averages."""
        self.dense.copy_to(self._parameters)
        if self.rows is not None:
            self.rows.copy_to_table()

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Let the model have the averages for a while."""
        self.dense.store(self._parameters)
        with self.rows.kept_table() if self.rows is not None else nullcontext():
            self.copy_to_model()
            try:
                yield
            finally:
                self.dense.restore(self._parameters)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        rows = {} if self.rows is None else {"rows": self.rows.state_dict()}
        return {"dense": self.dense.state_dict()} | rows

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore in place what `state_dict` returned."""
        self.dense.load_state_dict(state["dense"])
        self.dense.to(device=self._parameters[0].device)
        if self.rows is not None:
            self.rows.load_state_dict(state["rows"])


@dataclass(slots=True)
class TrainingState:
    """All that changes while training.

    Attributes:
        generator: its modules are trained in place.
        modules: the same modules and the perception head.
        model: `modules` as Accelerate prepared them: in mixed precision, data-parallel.
        optimizers: of the dense parameters, then of a sparse token table.
        schedules: learning rates, one schedule for each optimiser.
        average: None to export the last weights.
        step: optimiser steps made.
    """

    accelerator: Accelerator
    generator: Generator
    modules: TrainedModules
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    schedules: list[torch.optim.lr_scheduler.LRScheduler]
    average: WeightAverage | None
    step: int = 0

    def parts(self) -> dict[str, Any]:
        """The parts with a `state_dict`, by name."""
        parts: dict[str, Any] = {"modules": self.modules}
        parts |= {f"optimizer{i}": item for i, item in enumerate(self.optimizers)}
        parts |= {f"schedule{i}": item for i, item in enumerate(self.schedules)}
        if self.average is not None:
            parts["average"] = self.average
        if self.accelerator.scaler is not None:
            parts["scaler"] = self.accelerator.scaler
        return parts


def new_state(generator: Generator, config: GeneratorConfig) -> TrainingState:
    """Set up modules, optimisers, schedules and averages for a generator.

    Raises:
        InvalidConfig: 8-bit Adam is asked for and bitsandbytes is not installed, or float16 on a CPU.
    """
    accelerator = _accelerator(config)
    modules = _trained_modules(generator, config)
    optimizers = [_dense_optimizer(modules, config)]
    if modules.sparse_table is not None:
        rate = _text_rate(modules, config, layer=0)
        optimizers.append(torch.optim.SparseAdam([modules.sparse_table], rate))
    average = None if config.ema_decay is None else WeightAverage(modules, config.ema_decay)
    schedules = [
        get_cosine_schedule_with_warmup(
            item,
            min(config.num_warmup_steps, config.num_steps // 2),
            round(config.num_steps * config.schedule_stretch),
        )
        for item in optimizers
    ]
    return TrainingState(
        accelerator=accelerator,
        generator=generator,
        modules=modules,
        model=accelerator.prepare_model(modules),
        # One only: each prepared optimiser would make a step of the fp16 loss scaler.
        optimizers=[accelerator.prepare_optimizer(optimizers[0]), *optimizers[1:]],
        schedules=schedules,
        average=average,
    )


def _accelerator(config: GeneratorConfig) -> Accelerator:
    device, precision = default_device(), resolve_precision(config.mixed_precision)
    if precision == "fp16" and device.type == "cpu":
        raise InvalidConfig("mixed_precision fp16 needs a GPU: use bf16 or no")
    # Else the reduction would hold all gradients once more.
    handlers: list[Any] = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    if config.num_processes > 1 and config.distributed_backend != "auto":
        handlers.append(InitProcessGroupKwargs(backend=config.distributed_backend))
    AcceleratorState._reset_state()  # noqa: SLF001  # of an earlier training in this process
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=precision,
        gradient_accumulation_steps=config.num_parts,
        kwargs_handlers=handlers,
    )


def _trained_modules(generator: Generator, config: GeneratorConfig) -> TrainedModules:
    unet, text_encoder = generator.model.unet, generator.model.text_encoder
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        head = _new_head(generator, config) if config.perception_weight > 0 else None
        if config.lora_rank is not None:
            add_adapters(unet, config.lora_rank)
            if generator.encoder.canvas_channels:  # which its first convolution has to learn
                unet.conv_in.requires_grad_(requires_grad=True)
    to_device(unet)
    to_device(text_encoder)
    release_text_encoder(text_encoder, config)
    modules = TrainedModules(text_encoder, unet, head).to(default_device()).train()
    if config.gradient_checkpointing is True:
        modules.enable_checkpointing()
    if config.torch_compile:
        compile_blocks(unet)
    # Gathered row by row instead, see `clip_gradients`.
    ignored = [name for name, item in modules.named_parameters() if item is modules.sparse_table]
    ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model  # noqa: SLF001
    ignore(modules, ignored)  # type: ignore[no-untyped-call]
    return modules


def release_text_encoder(text_encoder: CLIPTextModel, config: GeneratorConfig) -> None:
    """Have it trained or not, all rows of its token embedding or those that a step touches."""
    trained = config.text_learning_rate > 0
    text_encoder.requires_grad_(trained)
    touched = trained and config.embedding_rows == "touched"
    text_encoder.get_input_embeddings().sparse = touched


def _new_head(generator: Generator, config: GeneratorConfig) -> PerceptionHead:
    channels = up_block_channels(generator.model.unet)
    if config.perception_head == "semantic":
        return SemanticHead(channels, len(generator.encoder.categories))
    return InstanceHead(channels, generator.model.text_encoder.config.hidden_size)


def add_adapters(unet: UNet2DConditionModel, rank: int) -> None:
    """Adapt the UNet's attention, and freeze all else of it."""
    unet.requires_grad_(requires_grad=False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))


def _dense_optimizer(modules: TrainedModules, config: GeneratorConfig) -> torch.optim.Optimizer:
    """Of all but a sparse token table, in groups that have the name of their rate."""
    groups = [*_image_groups(modules, config), *_text_groups(modules, config)]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415  # optional, CUDA only
    except ImportError as error:
        raise InvalidConfig("optimizer adamw-8bit needs: pip install bitsandbytes") from error
    return AdamW8bit(groups, weight_decay=config.weight_decay)


def _image_groups(modules: TrainedModules, config: GeneratorConfig) -> Iterator[dict[str, Any]]:
    """Of the UNet and the head; adapters, which begin at no effect, by themselves."""
    parts = [part for part in (modules.unet, modules.head) if part is not None]
    trained = [item for part in parts for item in part.named_parameters() if item[1].requires_grad]
    adapters = [parameter for name, parameter in trained if ".lora_" in name]
    others = [parameter for name, parameter in trained if ".lora_" not in name]
    if others:
        yield {"params": others, "lr": config.rates[0], "name": "learning_rate"}
    if adapters:
        rate = config.lora_learning_rate
        yield {"params": adapters, "lr": rate, "name": "lora_learning_rate"}


def _text_groups(modules: TrainedModules, config: GeneratorConfig) -> list[dict[str, Any]]:
    """The text encoder's parameters, by layer where the layers' rates differ and by weight decay."""
    encoder = modules.text_encoder
    layers = encoder.encoder.layers
    depth = {id(p): k for k, layer in enumerate(layers, 1) for p in layer.parameters()}
    depth |= {id(p): 0 for p in encoder.embeddings.parameters()}
    positions = encoder.embeddings.position_embedding.weight
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in encoder.parameters():
        if not parameter.requires_grad or parameter is modules.sparse_table:
            continue
        layer = depth.get(id(parameter), len(layers) + 1)
        bare = not config.text_vector_decay and (parameter.ndim == 1 or parameter is positions)
        key = _text_rate(modules, config, layer), 0.0 if bare else config.weight_decay
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay, "name": "text_learning_rate"}
        for (rate, decay), parameters in groups.items()
    ]


def _text_rate(modules: TrainedModules, config: GeneratorConfig, layer: int) -> float:
    """Learning rate of a layer of the text encoder, times the decay once for each above it [G, from BEiT].

    Args:
        layer: counted from the bottom, from 1; 0: the embeddings; one above the last: what follows them.
    """
    num_above = len(modules.text_encoder.encoder.layers) + 1 - layer
    return config.rates[1] * config.text_layer_decay**num_above


def clip_gradients(
    state: TrainingState, max_norm: float
) -> tuple[Float[Tensor, ""], Int[Tensor, " touched"]]:
    """Scale all gradients to a norm of at most `max_norm`, in place.

    Returns:
        The norm before, on the device, and the rows of a sparse token table that have a gradient.
    """
    accelerator, table = state.accelerator, state.modules.sparse_table
    accelerator.unscale_gradients(state.optimizers[0])
    dense = [p for p in state.modules.parameters() if p.grad is not None and p is not table]
    gradients = [parameter.grad for parameter in dense if parameter.grad is not None]
    of_table = None
    if table is not None and table.grad is not None:
        of_table = synchronized_gradient(
            table.grad,
            lambda part: accelerator.gather(accelerator.pad_across_processes(part)),
            accelerator.num_processes,
        )
        if accelerator.scaler is not None:
            of_table = of_table / accelerator.scaler.get_scale()
        gradients.append(of_table.values())
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    nn.utils.clip_grads_with_norm_(dense, max_norm, norm, foreach=True)
    if table is None or of_table is None:
        return norm, torch.zeros(0, dtype=torch.long, device=norm.device)
    table.grad = of_table * torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    return norm, of_table.indices()[0]


def merge_adapters(generator: Generator) -> None:
    """Fold low-rank adapters into the UNet's weights, where there are any."""
    unet = generator.model.unet
    if hasattr(unet, "peft_config"):
        unet.fuse_lora()
        unet.unload_lora()
