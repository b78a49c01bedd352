"""What is read of trained detectors for their comparison."""

from types import SimpleNamespace

import pytest

from tasks.kinds.compare import _result


@pytest.mark.parametrize(
    ("summary", "passes", "numbers"),
    [
        ({"images": {"real": 600}, "passes": 2.0}, (2.0, None), (600, 0, 0)),
        (
            {"images": {"real": 600, "synthetic (hard)": 512}, "passes": 2.0},
            (2.0, 2.0), (600, 512, 0),
        ),
        (
            {"images": {"real": 600, "spare real": 512}, "passes": 2.0, "added passes": 0.5},
            (2.0, 0.5), (1112, 0, 0),
        ),
        ({"images": {"synthetic (hard)": 512}, "passes": 2.0}, (None, 2.0), (0, 512, 0)),
        (
            {"images": {"real": 600, "pseudo-labelled": 900}, "passes": 2.0},
            (2.0, 2.0), (600, 0, 900),
        ),
    ],
)  # fmt: skip
def test_passes_and_images_are_counted_by_where_images_and_labels_come_from(
    summary, passes, numbers
):
    trained = SimpleNamespace(
        summary={"iterations": 9, **summary}, options={"augmentation": "flip"}
    )
    found = _result("main", "arm", 0, trained, {"map": 0.5})
    assert (found.passes, found.added_passes) == passes
    assert (found.num_real, found.num_synthetic, found.num_pseudo_labelled) == numbers
