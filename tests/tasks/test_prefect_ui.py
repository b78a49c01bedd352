from prefect.logging import disable_run_logger

from tasks import prefect_ui
from tasks.prefect_ui import StepProgress, artifact_key


def test_progress_that_cannot_be_shown_does_not_end_the_step(monkeypatch, caplog):
    def broken(*arguments, **options):
        raise ConnectionError("the server starts again")

    monkeypatch.setattr(prefect_ui, "create_progress_artifact", broken)
    with disable_run_logger(), StepProgress("a step") as progress:
        progress(1, 2, "images")
        progress(2, 2, "images")
    assert "a step: progress is not shown in the UI: the server starts again" in caplog.text


def test_names_of_steps_are_keys_that_prefect_takes():
    assert artifact_key("b: retrain real+hard seed 2") == "b-retrain-real-hard-seed-2"
