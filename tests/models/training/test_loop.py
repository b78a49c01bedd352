import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.models.resnet import ResnetBlock2D

from data.errors import InvalidConfig, InvalidModel, OutOfMemory, StorageError, TrainingDiverged
from models.generator.options import GeneratorConfig, NewModelConfig, ProbeConfig
from models.training.batches import make_batch, make_batches
from models.training.loop import (
    compute_losses,
    predict_masks,
    process_share,
    train_generator,
    train_step,
)
from models.training.metrics_file import TIMED, read_metrics
from models.training.state import merge_adapters, new_state

SMALL = GeneratorConfig(
    base_model=NewModelConfig(),
    resolution=64,
    layout_conditioning="both",
    num_steps=6,
    batch_size=4,
    learning_rate=1e-3,
    text_learning_rate=1e-3,
    base_batch_size=4,
    num_warmup_steps=2,
    checkpoint_interval=2,
    mixed_precision="no",
    num_workers=0,
)


class Killed(Exception):
    """Stands for the end of the process."""


def weights(generator):
    model = generator.model
    return {**model.unet.state_dict(), **model.text_encoder.state_dict()}


def train(prepare, work, kill_at=None, config=SMALL, steps=None):
    work.mkdir(exist_ok=True)
    generator, training_set = prepare()

    def on_step(metrics):
        if steps is not None:
            steps.append(metrics["step"])
        if metrics["step"] == kill_at:
            raise Killed

    train_generator(generator, training_set, config, work, "run", on_step=on_step)
    return weights(generator)


@pytest.mark.parametrize(("kill_at", "lora_rank"), [(1, None), (2, None), (5, None), (5, 2)])
def test_a_killed_run_ends_bit_identical(prepare, tmp_path, kill_at, lora_rank):
    config = SMALL.model_copy(update={"lora_rank": lora_rank})
    whole = train(prepare, tmp_path / "whole", config=config)
    with pytest.raises(Killed):
        train(prepare, tmp_path / "killed", kill_at, config)
    resumed = train(prepare, tmp_path / "killed", config=config)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [row["step"] for row in read_metrics(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_cut_off_while_written_does_no_harm(prepare, tmp_path):
    whole = train(prepare, tmp_path / "whole")
    with pytest.raises(Killed):
        train(prepare, tmp_path / "killed", 3)
    (tmp_path / "killed" / "checkpoint.tmp").write_bytes(b"half")
    resumed = train(prepare, tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_of_another_run_is_refused(prepare, tmp_path):
    train(prepare, tmp_path / "run")
    generator, training_set = prepare()
    with pytest.raises(InvalidModel, match="another configuration"):
        train_generator(generator, training_set, SMALL, tmp_path / "run", "other")


def test_a_full_disk_leaves_the_last_good_checkpoint(prepare, tmp_path, monkeypatch):
    whole = train(prepare, tmp_path / "whole")
    save = torch.save

    def full(document, file):
        if document["step"] > 2:
            raise RuntimeError("PytorchStreamWriter failed writing file")
        save(document, file)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(StorageError, match=r"step 4 .* goes on from .*checkpoint-00000002"):
            train(prepare, tmp_path / "run")
    assert [item.name for item in (tmp_path / "run").glob("checkpoint*")] == [
        "checkpoint-00000002.pt"
    ]
    resumed = train(prepare, tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_only_the_newest_checkpoints_are_kept(prepare, tmp_path):
    train(prepare, tmp_path / "run", config=SMALL.model_copy(update={"keep_checkpoints": 1}))
    assert [path.name for path in (tmp_path / "run").glob("*.pt")] == ["checkpoint-00000006.pt"]


@pytest.mark.parametrize(("damaged", "first"), [([6], 5), ([4, 6], 1)])
def test_damaged_checkpoints_are_named_and_the_one_before_is_taken(
    prepare, tmp_path, caplog, damaged, first
):
    whole, steps = train(prepare, tmp_path / "run"), []
    for step in damaged:
        path = tmp_path / "run" / f"checkpoint-{step:08}.pt"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    resumed = train(prepare, tmp_path / "run", steps=steps)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert steps[0] == first
    named = [f"checkpoint-{step:08}.pt is damaged" in caplog.text for step in (2, 4, 6)]
    assert named == [step in damaged for step in (2, 4, 6)]


def test_training_lowers_the_loss_on_a_fixed_batch(prepare):
    generator, training_set = prepare()
    config = SMALL.model_copy(update={"num_steps": 60, "num_warmup_steps": 5})
    state = new_state(generator, config)
    batch = make_batch(generator, training_set, config, 0)
    losses = [train_step(state, config, [batch]).read()["loss"] for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]


def test_divergence_names_the_step(prepare):
    generator, training_set = prepare()
    state = new_state(generator, SMALL)
    batch = make_batch(generator, training_set, SMALL, 0)
    batch.latents.fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match="step 0: the loss is nan"):
        train_step(state, SMALL, [batch]).read()


def test_infinite_gradients_are_a_divergence(prepare):
    generator, training_set = prepare()
    state = new_state(generator, SMALL)
    generator.model.unet.conv_out.weight.register_hook(lambda gradient: gradient * torch.inf)
    batch = make_batch(generator, training_set, SMALL, 0)
    with pytest.raises(TrainingDiverged, match="step 0: the norm of the gradients is"):
        train_step(state, SMALL, [batch]).read()


@pytest.mark.parametrize(("step", "ahead"), [(5, 0), (4, 1), (5, 1)])
def test_divergence_in_a_run_names_the_last_good_checkpoint(
    prepare, tmp_path, monkeypatch, step, ahead
):
    def diverge(state, config, batches):
        if state.step == step:
            batches[0].latents.fill_(torch.inf)
        return train_step(state, config, batches)

    monkeypatch.setattr("models.training.loop.train_step", diverge)
    monkeypatch.setattr("models.training.loop._steps_ahead", lambda device: ahead)
    with pytest.raises(TrainingDiverged, match=rf"step {step}: .*checkpoint-00000004\.pt"):
        train(prepare, tmp_path)
    assert max(tmp_path.glob("checkpoint*")).name == "checkpoint-00000004.pt"


def test_steps_begun_ahead_change_neither_weights_nor_metrics(prepare, tmp_path, monkeypatch):
    config = SMALL.model_copy(update={"checkpoint_interval": 4, "probe": ProbeConfig(interval=3)})
    whole = train(prepare, tmp_path / "whole", config=config)
    monkeypatch.setattr("models.training.loop._steps_ahead", lambda device: 1)
    begun = []

    def begin(state, config, batches):
        seen = read_metrics(tmp_path / "ahead" / "metrics.jsonl")
        begun.append((state.step, len(seen)))
        return train_step(state, config, batches)

    monkeypatch.setattr("models.training.loop.train_step", begin)
    ahead = train(prepare, tmp_path / "ahead", config=config)
    assert begun == [(0, 0), (1, 0), (2, 1), (3, 3), (4, 4), (5, 4)]
    assert all(torch.equal(whole[name], ahead[name]) for name in whole)
    timeless = [
        [
            {k: v for k, v in row.items() if k not in TIMED}
            for row in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "ahead")
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(
    ("where", "told"), [("train_step", "step 0: "), ("new_state", "before the first step: ")]
)
def test_a_device_that_is_too_small_is_told_with_the_options_to_turn(
    prepare, tmp_path, monkeypatch, where, told
):
    def fill(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(f"models.training.loop.{where}", fill)
    with pytest.raises(OutOfMemory, match=rf"^{told}.* gradient_accumulation_steps=2 \(now 1\)"):
        train(prepare, tmp_path)


@pytest.fixture
def stepped(prepare, monkeypatch):
    """Makes one step, with fp16's loss scaler beginning at a scale or without; its state and parameters."""

    def step(scale=None):
        config = SMALL.model_copy(update={"num_warmup_steps": 0})
        generator, training_set = prepare()
        state = new_state(generator, config)
        before = parameters(state)
        if scale is not None:
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            state.accelerator.scaler = scaler
            state.optimizers[0] = AcceleratedOptimizer(state.optimizers[0].optimizer, False, scaler)
            state.accelerator.native_amp = True
            monkeypatch.setattr(type(state.accelerator), "mixed_precision", "fp16")
        metrics = train_step(state, config, [make_batch(generator, training_set, config, 0)])
        return state, before, metrics

    return step


def parameters(state):
    return torch.cat([item.detach().flatten().clone() for item in state.modules.parameters()])


def test_the_loss_scaler_of_fp16_changes_nothing_where_gradients_are_finite(stepped):
    plain, before, metrics = stepped()
    scaled, _, found = stepped(1024.0)
    assert not torch.equal(parameters(plain), before)
    torch.testing.assert_close(parameters(scaled), parameters(plain), rtol=1e-4, atol=1e-6)
    assert found.read()["grad_norm"] == pytest.approx(metrics.read()["grad_norm"], rel=1e-4)


@pytest.mark.filterwarnings(
    "ignore:Detected call of `lr_scheduler.step"
)  # the scaler left a step out
def test_a_step_whose_gradients_overflow_in_fp16_changes_the_scale_alone(stepped, monkeypatch):
    def overflowing(*arguments):
        loss, parts = compute_losses(*arguments)
        return loss * 1e38, parts

    monkeypatch.setattr("models.training.loop.compute_losses", overflowing)
    state, before, metrics = stepped(1024.0)
    assert torch.equal(parameters(state), before)
    assert state.accelerator.scaler.get_scale() == 512.0
    assert state.step == 1
    assert state.schedules[0].last_epoch == 1
    assert "grad_norm" not in metrics.read()
    assert all(parameter.grad is None for parameter in state.modules.parameters())


def test_without_perception_loss_the_head_is_not_trained(prepare):
    generator, training_set = prepare()
    config = SMALL.model_copy(update={"perception_weight": 0.0})
    state = new_state(generator, config)
    metrics = train_step(state, config, [make_batch(generator, training_set, config, 0)]).read()
    assert "loss_perception" not in metrics
    assert state.modules.head is None


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("conditioning", ["tokens", "canvas", "both"])
def test_every_kind_of_conditioning_and_prediction_trains(prepare, prediction_type, conditioning):
    generator, training_set = prepare(conditioning, prediction_type=prediction_type)
    state = new_state(generator, SMALL)
    metrics = train_step(state, SMALL, [make_batch(generator, training_set, SMALL, 0)]).read()
    assert 0 < metrics["loss"] < 10


def test_a_frozen_text_encoder_stays_as_it_is(prepare):
    generator, training_set = prepare()
    config = SMALL.model_copy(update={"text_learning_rate": 0.0, "num_warmup_steps": 0})
    before = {k: v.clone() for k, v in generator.model.text_encoder.state_dict().items()}
    state = new_state(generator, config)
    train_step(state, config, [make_batch(generator, training_set, config, 0)])
    after = generator.model.text_encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_metrics_survive_a_cut_off_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1.0}) + '\n{"step"')
    assert read_metrics(path) == [{"step": 1.0}]


def one_step(prepare, **options):
    generator, training_set = prepare()
    config = SMALL.model_copy(update={"num_warmup_steps": 0, **options})
    state = new_state(generator, config)
    batches = make_batches(generator, training_set, config, 0, process_share(config, 0))
    return train_step(state, config, batches).read(), state


def test_latents_encoded_online_give_the_same_training(prepare, tmp_path):
    losses = []
    for latents in ("cached", "online"):
        generator, training_set = prepare(latents=latents)
        (tmp_path / latents).mkdir()
        config = SMALL.model_copy(update={"latents": latents})
        train_generator(generator, training_set, config, tmp_path / latents, "run")
        losses.append([row["loss"] for row in read_metrics(tmp_path / latents / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    "options", [{"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}]
)
def test_what_only_saves_memory_changes_no_loss_and_no_gradient(prepare, options):
    plain, thrifty = one_step(prepare)[0], one_step(prepare, **options)[0]
    assert thrifty["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert thrifty["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own
def test_compiled_blocks_have_the_same_loss_and_gradients(prepare, monkeypatch):
    """Traced and differentiated by torch.compile, without the minutes of its code generator."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, compiled = one_step(prepare)[0], one_step(prepare, torch_compile=True)
    middle = compiled[1].modules.unet.mid_block
    assert all(block._compiled_call_impl for block in (*middle.attentions, *middle.resnets))
    assert compiled[0]["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert compiled[0]["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("after_probe", [False, True])
def test_channels_stay_last_where_residual_blocks_change_their_number(prepare, after_probe):
    generator, training_set = prepare()
    state = new_state(generator, SMALL)
    if after_probe:
        state.modules.eval()
        state.modules.train()
    last = []
    for block in state.modules.unet.modules():
        if isinstance(block, ResnetBlock2D) and block.conv_shortcut is not None:
            assert block.dropout.training
            block.conv_shortcut.register_forward_pre_hook(
                lambda _, inputs: last.append(
                    inputs[0].is_contiguous(memory_format=torch.channels_last)
                )
            )
    train_step(state, SMALL, [make_batch(generator, training_set, SMALL, 0)])
    assert last
    assert all(last)


def test_the_semantic_head_trains(prepare):
    metrics, state = one_step(prepare, perception_head="semantic")
    assert metrics["loss_perception"] > 0
    assert all(parameter.grad is None for parameter in state.modules.parameters())


def test_a_heads_masks_can_be_looked_at(prepare):
    _, state = one_step(prepare)
    generator, training_set = prepare()
    batch = make_batch(generator, training_set, SMALL, 1)
    predicted, true = predict_masks(state, batch)
    assert predicted.shape == true.shape == batch.masks.shape


def test_adapters_change_the_attention_alone_and_are_merged(prepare):
    before = {name: value.clone() for name, value in weights(prepare()[0]).items()}
    _, state = one_step(prepare, lora_rank=2, text_learning_rate=0.0)
    state.average.copy_to_model()
    merge_adapters(state.generator)
    after = weights(state.generator)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("to_q" in name for name in changed) or any("to_v" in name for name in changed)
    assert all("to_" in name or name.startswith("conv_in") for name in changed)


def test_adapters_have_a_rate_of_their_own_that_is_the_same_at_any_batch(prepare):
    given = {"lora_rank": 2, "learning_rate": 1e-3, "text_learning_rate": 2e-3}
    config = SMALL.model_copy(update={**given, "batch_size": 8, "base_batch_size": 16})
    state = new_state(prepare()[0], config)
    rates = {
        id(parameter): group["initial_lr"]
        for group in state.optimizers[0].param_groups
        for parameter in group["params"]
    }
    unet, head, text = state.modules.unet, state.modules.head, state.modules.text_encoder
    for name, parameter in unet.named_parameters():
        rate = 1e-4 if "lora" in name else 5e-4 if name.startswith("conv_in") else None
        assert rates.pop(id(parameter), None) == rate
    assert {rates.pop(id(parameter)) for parameter in head.parameters()} == {5e-4}
    assert set(rates.values()) == {1e-3}
    assert rates.keys() <= {id(parameter) for parameter in text.parameters()}


def test_each_rate_is_measured_by_its_name(prepare):
    given = {"text_learning_rate": 2e-3, "text_layer_decay": 0.5}
    rates = {name: rate for name, rate in one_step(prepare, **given)[0].items() if "rate" in name}
    assert rates.keys() == {"learning_rate", "text_learning_rate"}
    adapted = one_step(prepare, **given, lora_rank=2, lora_learning_rate=5e-4)[0]
    assert {name: rate for name, rate in adapted.items() if "rate" in name} == {
        **rates, "lora_learning_rate": pytest.approx(rates["text_learning_rate"] / 4),
    }  # fmt: skip


def test_the_averaged_weights_of_a_single_step_are_the_weights(prepare):
    _, state = one_step(prepare)
    last = {name: value.clone() for name, value in weights(state.generator).items()}
    with state.average.in_model():
        torch.testing.assert_close(weights(state.generator), last)
    assert all(torch.equal(last[k], value) for k, value in weights(state.generator).items())


def test_without_averaging_the_last_weights_stay(prepare):
    _, state = one_step(prepare, ema_decay=None)
    assert state.average is None


def test_options_that_the_machine_lacks_are_refused(prepare):
    with pytest.raises(InvalidConfig, match="pip install bitsandbytes"):
        one_step(prepare, optimizer="adamw-8bit")
    if not torch.cuda.is_available():
        with pytest.raises(InvalidConfig, match="fp16 needs a GPU"):
            one_step(prepare, mixed_precision="fp16")


def test_bfloat16_has_nearly_the_same_loss(prepare):
    half = one_step(prepare, mixed_precision="bf16")[0]["loss"]
    assert half == pytest.approx(one_step(prepare)[0]["loss"], rel=0.02)


def test_the_probe_sees_the_averages_and_changes_nothing(prepare, tmp_path):
    whole = train(prepare, tmp_path / "whole")
    generator, training_set = prepare()
    config = SMALL.model_copy(update={"probe": ProbeConfig(interval=3)})
    seen = []

    def on_probe(state):
        seen.append(next(state.modules.unet.parameters()).detach().clone())
        return {"layout_recall": 0.5}

    (tmp_path / "probed").mkdir()
    work = tmp_path / "probed"
    train_generator(generator, training_set, config, work, "run", on_probe=on_probe)
    assert len(seen) == 2
    assert all(torch.equal(whole[name], value) for name, value in weights(generator).items())
    rows = read_metrics(work / "metrics.jsonl")
    assert [row["step"] for row in rows if "layout_recall" in row] == [3, 6]


def test_ten_steps_have_the_golden_losses(prepare, tmp_path):
    """A change of the training's mathematics shows here; `GOLDEN=write pytest` accepts it."""
    generator, training_set = prepare()
    config = SMALL.model_copy(update={"num_steps": 10})
    train_generator(generator, training_set, config, tmp_path, "run")
    names = ("loss", "loss_ldm", "loss_perception", "grad_norm")
    rows = [{name: row[name] for name in names} for row in read_metrics(tmp_path / "metrics.jsonl")]
    golden = Path(__file__).parents[2] / "golden" / "losses.json"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(json.dumps(rows, indent=1) + "\n")
    for row, expected in zip(rows, json.loads(golden.read_text()), strict=True):
        assert row == pytest.approx(expected, rel=2e-3)
