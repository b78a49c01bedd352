import pytest
import torch

from data.errors import OutOfMemory
from models.generator.options import GeneratorConfig, ProbeConfig
from models.training.memory_errors import memory_errors, too_small


def told(**options):
    config = GeneratorConfig(**{"batch_size": 8, **options})
    with pytest.raises(OutOfMemory) as error, memory_errors(config):
        raise torch.OutOfMemoryError("CUDA out of memory")
    return str(error.value)


def test_what_gives_the_same_result_stands_before_what_does_not():
    same, other = told().partition(" and give another result: ")[::2]
    assert "before the first step: the memory of" in same
    assert (
        "give the same result: gradient_checkpointing=true, gradient_accumulation_steps=2 (now 1)"
        in same
    )
    assert "if it was a probe, probe.sampling.batch_size=8 (now 16)" in same
    assert other == "lora_rank=16 (at lora_learning_rate), optimizer=adamw-8bit."


def test_nothing_is_advised_that_is_so_already():
    options = {"gradient_checkpointing": True, "gradient_accumulation_steps": 8}
    text = told(**options, probe=ProbeConfig(interval=0), lora_rank=4)
    assert "the same result" not in text
    assert text.endswith("these need less and give another result: optimizer=adamw-8bit.")


@pytest.mark.parametrize(
    ("batch_size", "processes", "now", "more"),
    [(8, 1, 2, 4), (8, 2, 1, 2), (9, 1, 3, 9), (10, 1, 2, 5)],
)
def test_a_share_is_cut_into_about_twice_as_many_parts(batch_size, processes, now, more):
    options = {"num_processes": processes, "gradient_accumulation_steps": now}
    text = told(batch_size=batch_size, **options)
    assert f"gradient_accumulation_steps={more} (now {now})" in text


GB = 10**9
SAVED = {"lora_rank": 9 * GB, "optimizer": 6 * GB, "ema_decay": 3 * GB}


def least(config):
    """34 GB, and with parts of a batch as small as can be 20 GB; less with each thrifty option."""
    defaults = GeneratorConfig()
    changed = [name for name in SAVED if getattr(config, name) != getattr(defaults, name)]
    whole = 20 * GB if config.gradient_accumulation_steps == "auto" else 34 * GB
    return whole - sum(SAVED[name] for name in changed)


OPENED = "gradient_accumulation_steps=auto"
SAME = "It fits, with the same result, with train_generator."
OTHER = "It fits, for another result, with train_generator."
NONE = "No option makes it fit: the least is 2.0 GB, "
ALL = "lora_rank=16 and optimizer=adamw-8bit and ema_decay=null"


@pytest.mark.parametrize(
    ("memory", "options", "advice"),
    [
        (24, {"gradient_accumulation_steps": 1}, f"{SAME}{OPENED}"),
        (14, {}, f"{OTHER}lora_rank=16 or optimizer=adamw-8bit"),
        (11, {"gradient_accumulation_steps": 1}, f"{OTHER}{OPENED} and lora_rank=16"),
        (4, {}, f"{OTHER}{ALL}"),
        (1, {}, f"{NONE}with train_generator.{ALL}. Take a larger device, or a lower resolution"),
        (
            1,
            {"lora_rank": 16},
            f"{NONE}with train_generator.optimizer=adamw-8bit and ema_decay=null.",
        ),
        (1, {"lora_rank": 16, "ema_decay": None, "optimizer": "adamw-8bit"}, f"{NONE}as it is."),
    ],
)
def test_too_small_a_device_names_what_really_fits(memory, options, advice):
    text = str(too_small(GeneratorConfig(**options), memory * GB, least))
    assert f"which has {memory}.0 GB. {advice}" in text


def test_too_small_a_device_is_told_what_is_needed_as_things_are():
    config = GeneratorConfig(gradient_accumulation_steps=1)
    assert "needs at least 34.0 GB on its device" in str(too_small(config, 8 * GB, least))
