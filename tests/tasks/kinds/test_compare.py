from types import SimpleNamespace

import pytest

from tasks.kinds.compare import _result


@pytest.mark.parametrize(
    ("images", "counts"),
    [
        ({"real": 600}, (600, 0, 0)),
        ({"real": 600, "spare real": 100}, (700, 0, 0)),
        ({"real": 600, "synthetic (hard)": 512}, (600, 512, 0)),
        ({"real": 600, "pseudo-labelled": 900}, (600, 0, 900)),
    ],
)
def test_images_are_counted_by_where_they_and_their_labels_come_from(images, counts):
    trained = SimpleNamespace(
        summary={"images": images, "iterations": 10, "passes": 1.0},
        options={"augmentation": "flip"},
    )
    found = _result("main", "arm", 0, trained, {"map": 0.5})
    assert (found.num_real, found.num_synthetic, found.num_pseudo_labelled) == counts
