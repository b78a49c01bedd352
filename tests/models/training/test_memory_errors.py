import pytest
import torch

from data.errors import OutOfMemory
from models.generator.options import GeneratorConfig, ProbeConfig
from models.training.memory_errors import memory_errors


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
