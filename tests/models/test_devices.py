from models.devices import resolve_precision, settled_precision


def test_a_precision_is_settled_once(tmp_path):
    assert settled_precision(tmp_path, "auto") == resolve_precision("auto")
    (tmp_path / "precision.txt").write_text("fp16")
    assert settled_precision(tmp_path, "auto") == "fp16"
    assert not list(tmp_path.glob("*.tmp"))
