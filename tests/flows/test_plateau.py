import pytest

from flows.plateau import doubling, length_option, real_alone
from flows.run_config import build_run


def test_the_plateau_is_where_doubling_changes_less_than_a_standard_error():
    far = doubling([0.40, 0.42, 0.41], [0.55, 0.56, 0.57])
    assert far.change == pytest.approx(0.15)
    assert not far.is_plateau
    near = doubling([0.60, 0.62, 0.61], [0.62, 0.60, 0.612])
    assert near.is_plateau
    assert near.standard_error == pytest.approx(0.0116, abs=1e-3)
    assert doubling([0.6, 0.6], [0.5, 0.55]).is_plateau  # longer is worse
    with pytest.raises(ValueError, match="two seeds"):
        doubling([0.5], [0.6])


def test_one_detector_is_trained_so_many_times_as_long_on_real_images():
    other = {"num_epochs": 3.0, "num_iterations": 0}
    config = build_run("smoke", {"retrain": {"others": {"second": other}, "seeds": [0, 1]}})
    longer = real_alone(config, "main", 4).retrain
    assert (longer.detector.num_iterations, longer.arms, longer.seeds) == (32, ("real",), (0, 1))
    assert real_alone(config, "second", 2).retrain.detector.num_epochs == 6
    assert length_option(config, "main", 4) == "retrain.detector.num_iterations=32"
    assert length_option(config, "second", 2) == "retrain.others.second.num_epochs=6.0"
