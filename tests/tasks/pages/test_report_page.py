from tasks.pages.report_page import loss_curves, write_report


def test_the_page_is_self_contained_and_escapes_text(tmp_path):
    metrics = [{"step": float(k), "loss_ldm": 1 / k} for k in range(1, 60)]
    curves = loss_curves(metrics)
    assert curves.startswith(b"\x89PNG")
    write_report(
        tmp_path / "report.html",
        results={"map_real": 0.25, "<b>": 1.0},
        tables={"Steps": [{"kind": "ingest", "seconds": 1.5}]},
        curves=curves,
        gallery=curves,
        gallery_rows=["real", "hard"],
    )
    page = (tmp_path / "report.html").read_text()
    assert "<td>map_real</td><td>0.25</td>" in page
    assert "&lt;b&gt;" in page
    assert "the same layouts, real, hard" in page
    assert "http" not in page.replace("http-equiv", "")
