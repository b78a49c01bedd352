"""The report's page from small tables: what it says, and that it says nothing that was not measured."""

import math
import re
from dataclasses import replace
from html import escape

import numpy as np
import pytest

from tasks.pages import report_tables as tables
from tasks.pages.report_page import Gallery, Picture, Report, card_sections, write_report

THREE_SEEDS = {
    "real": (0.5551, 0.5612, 0.5503),
    "real x 0.5": (0.501, 0.511, 0.495),
    "real+hard": (0.5724, 0.5801, 0.5662),
    "real+copy-paste": (0.55, 0.53, 0.57),
}


@pytest.fixture(scope="module")
def report(rows):
    """Three seeds, everything measured; no curves, which take long to draw."""
    found = rows.comparison(THREE_SEEDS)
    pixels = np.zeros((64, 64, 3), np.uint8)
    return Report(
        preset="demo",
        changes={"retrain.seeds": [0, 1, 2]},
        results={"map_real": 0.5555, "kid_hard": None},
        answers=found.answers,
        missing=[],
        warnings=[],
        arms=found.arms,
        detectors=found.detectors,
        contrasts=found.contrasts,
        fidelity=rows.fidelity(),
        scores=rows.scores("scorer", {"real": 0.89, "origin": 0.82, "easy": 0.9, "hard": 0.7}),
        galleries=[
            Gallery("Pictures", "Some.", [[Picture(pixels, "a <b>", marked=True), Picture(pixels, "c")]]),
            Gallery("No pictures", "None.", []),
        ],
        training=[],
        data={"Data": [{"split": "train", "images": 600}], "Left out": []},
        steps=[{"step": "ingest 0123abcd", "seconds": 90.0, "made from": "x: 99887766"}],
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    """The page of `report`, with curves."""
    training = [{"step": float(k), "loss_ldm": 1 / k} for k in range(1, 60)]
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, replace(report, training=training))
    return path.read_text()


@pytest.fixture
def written(report, tmp_path):
    """Writes the page of a report that differs in something, and returns it; no galleries."""

    def write(**changes):
        write_report(tmp_path / "report.html", replace(report, **({"galleries": []} | changes)))
        return (tmp_path / "report.html").read_text()

    return write


def text_of(page):
    """The page without its pictures."""
    return re.sub(r"base64,[^\"]*", "", page)


def cells(page, first):
    """The row of a table that begins with a cell."""
    row = re.search(rf"<tr><td[^>]*>{re.escape(first)}</td>(.*?)</tr>", page)
    return re.findall(r"<td[^>]*>([^<]*)</td>", row[1])


def test_the_answer_comes_first_with_its_interval(report, page):
    answer = "real+hard against real: +0.0174 (+0.0136 to +0.0211) mAP over 3 seeds: it helps."
    first = page.index(f'<p class="first">{answer}</p>')
    others = page.index("<p>real+copy-paste against real: ")
    worth = page.index("<p>real+hard: worth more real images than the ruler measures.</p>")
    assert first < others < worth < page.index("<h2>")
    of_ruler = ("real: ", "real x 0.5: ")
    assert not [text for text in tables.worth_sentences(report.arms) if text.startswith(of_ruler)]


def test_arms_have_the_digits_that_their_intervals_allow(page):
    mean, gain, over, verdict, ap50, *_, worth = cells(page, "real+hard")
    assert mean == "0.573 (0.556 to 0.590)"
    assert gain == "+0.0174 (+0.0136 to +0.0211)"
    assert (over, verdict, ap50, worth) == ("seeds", "helps", "0.773", "+∞ (+∞ to +∞)")
    assert cells(page, "real")[1:4] == ["—", "—", "—"]


def test_one_seed_has_no_interval_but_over_the_images(written, rows):
    found = rows.comparison({"real": (0.5,), "real+hard": (0.52,)})
    page = written(**vars(found))
    mean, gain, over, *_ = cells(page, "real+hard")
    assert (mean, gain, over) == ("0.52", "+0.020 (-0.010 to +0.050)", "images")
    assert "1 seed, interval over images" in page
    assert cells(page, "real+hard against real") == ["small", "0.32", "0.3", "+0.02"]
    assert not re.search(r"\b(inf|nan)\b", text_of(page))


def test_sizes_and_classes_are_told_by_contrast_and_escaped(written, rows):
    found = rows.comparison(THREE_SEEDS, classes=("cube", "<script>alert(1)</script>", "2 $x$"))
    page = written(contrasts=found.contrasts)
    gain = "+0.0174 (+0.0136 to +0.0211)"
    assert cells(page, "real+hard against real") == ["small", "0.3729", "0.3555", gain]
    assert "<script" not in page
    assert cells(page, "&lt;script&gt;alert(1)&lt;/script&gt;") == ["0.5729", "0.5555", gain]
    assert "<summary>By class: real+hard against real</summary>" in page


def test_several_detectors_are_told_apart(report, written, rows):
    other = rows.comparison(
        {"real": (0.3, 0.31, 0.32), "real+hard": (0.3, 0.33, 0.31)}, detector="rtm<det>"
    )
    page = written(
        arms=[*report.arms, *other.arms],
        detectors=[*report.detectors, *other.detectors],
        contrasts=[*report.contrasts, *other.contrasts],
    )
    assert "<h3>Detector main</h3>" in page
    assert "<h3>Detector rtm&lt;det&gt;</h3>" in page
    assert cells(page, "real+hard (rtm&lt;det&gt;)")[0].startswith("0.31")
    assert "By class: real+hard against real with rtm&lt;det&gt;" in page
    assert page.count('alt="mAP by arm"') == page.count('alt="gain over real by arm"') == 2


def test_a_missing_arm_is_marked(report, page, written):
    assert 'class="missing"' not in page
    holed = written(missing=["main/real+hard/0"], arms=[], scores=[])
    assert '<p class="missing"><strong>No result of main/real+hard/0:</strong>' in holed
    card = "\n".join(
        card_sections(replace(report, missing=["main/real+hard/0"], warnings=["Few."]))
    )
    assert "**No result of main/real+hard/0:" in card
    assert "**Few.**" in card
    assert '<p class="missing">Few &amp; small.</p>' in written(
        warnings=["Few & small."], arms=[], scores=[]
    )


def test_where_images_were_cut_the_page_says_what_is_judged(report, page, written):
    assert "on real validation images. Points" in " ".join(page.split())
    tiled = replace(report, whole="3 whole images, 12 tiles each")
    text = " ".join(written(whole=tiled.whole).split())
    assert "on real validation images, on 3 whole images, 12 tiles each. Points" in text
    assert "On 3 whole images, 12 tiles each." in card_sections(tiled)


def test_without_a_question_the_page_says_so(written, rows):
    found = rows.comparison({"real": (0.5, 0.6)})
    page = written(**vars(found))
    assert "No question was asked of the arms" in page
    assert "By size of objects" not in page
    assert 'alt="gain over real by arm"' not in page


def test_only_the_standard_extractor_makes_a_fid(page, rows):
    assert "<th>FID</th>" in page
    assert cells(page, "real (floor)")[0].count(" to ") == 1
    row = tables.fidelity_table(rows.fidelity(extractor="random VGG, seed 0"))[0]
    assert "Fréchet distance (random VGG, seed 0)" in row
    assert "FID" not in row


def test_an_undefined_distance_is_said_in_words(report, page, written, rows):
    few = rows.fidelity(num_images=40, num_features=64)
    words = "FID of floor, origin, easy, hard: undefined: fewer images than features, see KID."
    found = written(fidelity=few, arms=[], scores=[])
    assert f"<strong>{words}</strong>" in found
    assert cells(found, "origin")[0] == "undefined"
    assert words in card_sections(replace(report, fidelity=few))
    nothing = [{**row, "kid": None} for row in few]
    assert tables.fidelity_notes(nothing)[0].endswith("undefined: too few images, and so is KID.")
    assert "undefined" not in page


def test_a_floor_of_fewer_images_is_said_to_be_too_high(page, rows):
    found = rows.fidelity()
    assert tables.fidelity_notes(found) == []
    assert found[0]["images"] == "floor"
    (note,) = tables.fidelity_notes([{**found[0], "num_images": 25}, *found[1:]])
    assert note.startswith(
        "The floor is of 25 images, as there are no more, and generated sets of up to 40"
    )


def test_the_order_of_recall_is_judged_for_each_scorer(page, rows):
    scores = rows.scores("scorer", {"real": 0.9, "origin": 0.82, "easy": 0.9, "hard": 0.7})
    scores += rows.scores("detector", {"real": 0.9, "origin": 0.85, "easy": 0.85, "hard": 0.7})
    scores += rows.scores("yolo<v4>", {"real": 0.9, "origin": 0.8, "easy": 0.7, "hard": 0.75})
    first, second, third = tables.recall_sentences(scores)
    assert first == (
        "By the independent detector, recall orders easy > origin > hard: "
        "easy 0.900, origin 0.820, hard 0.700; steps +0.080 (+0.060 to +0.100), +0.120 (+0.100 to +0.140)."
    )
    assert second.startswith(
        "By the detector that gave the attributes, recall does not order"
    )  # a tie
    assert third.startswith("By the yolo<v4>, recall does not order")
    (unsure,) = tables.recall_sentences(
        rows.scores("scorer", {"origin": 0.82, "easy": 0.9, "hard": 0.81})
    )
    assert "recall cannot be told to order easy > origin > hard" in unsure
    (few,) = tables.recall_sentences([
        {**row, "recall_step": None} for row in rows.scores("scorer", {"easy": 0.9, "hard": 0.7})
    ])  # fmt: skip
    assert few.endswith("recall cannot be told to order easy > hard: easy 0.900, hard 0.700.")
    assert f"<p>{escape(first)}</p>" in page


def test_a_judge_that_finds_nothing_concludes_nothing(report, rows):
    scores = rows.scores("scorer", dict.fromkeys(("real", "origin", "easy", "hard"), 0.0))
    seeing = rows.scores("detector", {"real": 0.9, "origin": 0.8, "easy": 0.85, "hard": 0.0})
    (told,) = tables.blind_judges([*scores, *seeing])
    assert told.startswith(
        "The independent detector finds none of the 900 objects in the real images (recall 0)"
    )
    card = card_sections(replace(report, scores=scores))
    assert card[-1] == (
        "The independent detector finds nothing in real images: its recall of generated ones says nothing."
    )
    assert "orders easy > origin > hard" in tables.recall_sentences(seeing)[0]


def test_a_trial_says_that_its_numbers_mean_nothing(page, written):
    assert "A trial: every step ran." in written(preset="smoke")
    assert "A trial" not in page


def test_published_rows_stand_beside_those_of_coco_presets_alone(page, written, rows):
    assert "ublished" not in page
    coco = written(preset="coco-256", scores=[])
    for text in ("20.16", "19.28", "34.5", "35.4", "44.3", "46.6"):
        assert f">{text}<" in coco
    assert coco.count("published (DetDiffusion, CVPR 2024)") == 4
    assert cells(coco.partition("Published numbers")[2], "real+hard")[0] == "57.3"
    random = tables.published_fidelity("coco-512", rows.fidelity(extractor="random VGG"))
    assert [row["FID"] for row in random[2:]] == ["none: the extractor was random VGG"] * 3


def test_what_was_run_and_tables_to_paste(page, written):
    assert "Preset demo, with these options of its own" in page
    assert "<td>retrain.seeds</td><td>[0, 1, 2]</td>" in page
    assert "Preset demo as it is." in written(changes={}, arms=[], scores=[])
    assert "1 steps, 1.5 minutes of work" in page
    assert "99887766" in page
    pasted = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    assert [text.split(" | ")[0] for text in pasted] == ["| arm", "| images", "| scorer"]
    assert "<td>kid_hard</td><td>—</td>" in page


def test_pictures_are_embedded_marked_and_never_empty(page):
    assert '<div class="groups of-2">' in page
    assert '<figure class="marked">' in page
    assert 'alt="a &lt;b&gt;" class="small">' in page
    assert "No pictures" not in page


def test_the_page_needs_no_other_file_and_suits_a_telephone(page):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert not re.search(r"""(src|href)=["']?(?!["']?data:image/)""", page)
    assert not re.search(r"https?://|url\(|@import", text_of(page))
    assert page.count("<table>") == page.count('<div class="scroll"><table>')
    assert "<td>-1</td>" not in page


def test_a_report_of_almost_nothing_is_a_page_too(report, written):
    nothing = {
        "answers": [], "arms": [], "detectors": [], "contrasts": [], "fidelity": [], "scores": [], "data": {},
        "steps": [], "results": {}, "changes": {},
    }  # fmt: skip
    assert "None." in written(**nothing)
    assert card_sections(replace(report, **nothing))[0] == "**No question has a result.**"


def test_worth_is_a_result_where_it_is_infinite():
    arm = {"worth": -math.inf, "worth_low": -math.inf, "worth_high": 1234.4}
    assert tables._worth(arm) == "-∞ (-∞ to +1,230)"
    gain = {"worth": 4932.4, "worth_low": 812.3, "worth_high": 21_134.2}
    assert tables._worth(gain) == "+5,000 (+1,000 to +21,000)"
    assert tables._worth(arm | {"worth": math.nan}) is None
    assert tables._worth(dict.fromkeys(arm)) is None
