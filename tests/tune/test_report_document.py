"""Reports of made-up findings: what they say, what they leave out, and that nothing in them is taken for markup."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from voicechat_tune.report.conclusion import conclude
from voicechat_tune.report.document import write_report
from voicechat_tune.report.figures import pareto
from voicechat_tune.report.findings import Findings, Heads, RunSummary, TrialSummary, findings_from
from voicechat_tune.report.markdown import fenced, plain
from voicechat_tune.report.results import Point, pareto_front, table_results

SCRIPT = "<script>alert('x')</script>"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="  # 1 x 1, red


def run(number, variant, table, seed, final, status="finished", **choices):
    steps = (100, 200, 300, 400) if status == "finished" else (100,)
    history = [
        {"step": step, "train_loss": 1.5, "validation_loss": final + (400 - step) / 400, "nats_per_character": 0.5}
        for step in steps
    ]
    facts = {
        "parameters": 1000.0 + len(variant),
        "non_embedding_parameters": 900.0 + len(variant),
        "flops_per_token": 6000.0,
        "tokens_per_second": 9000.0,
        "cache_bytes_per_token": 64.0 * len(variant),
        "validation_loss": final,
        "test_loss": final + 0.02,
    }
    return RunSummary(number, variant, table, seed, choices, status, [] if status == "failed" else history, facts)


def comparison(shifts, seeds=8, noise=0.002, tables=("equal width",), **more):
    """Variants with known differences from the baseline."""
    random = np.random.default_rng(1)
    runs = []
    for table in tables:
        for variant, shift in {"standard": 0.0, **shifts}.items():
            for seed in range(seeds):
                loss = 1.6 + seed / 100 + shift + (random.normal(0, noise) if variant != "standard" else 0)
                runs.append(run(len(runs) + 1, variant, table, seed, loss))
    return Findings("A comparison", "comparison", "What was asked.", runs, baseline="standard", **more)


def sweep(**more):
    runs = [
        run(1, "standard", "tuning", 1, 1.7, **{"training.learning_rate": 0.001, "model.attention": "standard"}),
        run(2, "metric", "tuning", 1, 1.6, **{"training.learning_rate": 0.02, "model.attention": "metric"}),
        run(3, "metric", "tuning", 1, 1.5, "stopped", **{"training.learning_rate": 0.5, "model.attention": "metric"}),
        run(4, "metric", "tuning", 1, 1.5, "failed", **{"training.learning_rate": 9.0}),
    ]
    trials = [
        TrialSummary(each.number, each.variant, each.choices, each.status, losses, each.facts, is_ranked, is_best)
        for each, losses, is_ranked, is_best in [
            (runs[1], [1.6], True, True),
            (runs[0], [1.7], True, False),
            (runs[2], [2.25], False, False),
            (runs[3], [], False, False),
        ]
    ]
    return Findings("A sweep", "sweep", "What was searched.", runs, trials=trials, **more)


class Page(HTMLParser):
    """The elements, the sections' ids, the addresses and the texts of a document."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, html):
        super().__init__()
        self.tags, self.ids, self.addresses, self.texts, self.alts = [], [], [], [], []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if tag == "section" and name == "id":
                self.ids.append(value)
            if name in ("src", "href", "action", "data", "srcset"):
                self.addresses.append(value)
            if name == "alt":
                self.alts.append(value)
            assert not name.startswith("on"), "no handlers"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)


def written(findings, folder):
    write_report(findings, folder)
    return Page((folder / "report.html").read_text()), (folder / "report.md").read_text()


def summary(findings):
    return conclude(findings, table_results(findings) if findings.kind == "comparison" else []).summary


def everything():
    """Findings with all that a comparison can have, hostile names and samples among it."""
    hostile = f"metric | {SCRIPT} *x*"
    findings = comparison(
        {hostile: 0.05, "equal": 0.0},
        tables=("equal width", "equal parameters", "equal FLOPs"),
        heads={hostile: Heads([{"layer": 0, "head": 1, "self_weight": 0.25, "note": SCRIPT}], {"spectra": PIXEL})},
        prompt="ROMEO:",
        samples={
            "standard": f"ROMEO: {SCRIPT}",
            hostile: "JULIET:\n````\n# no heading\n![i](http://example.org/i.png)",
        },
        environment={"machine": f'two cores "{SCRIPT}"', "commit": "abc"},
    )
    tuning = run(99, hostile, "tuning", 50, 1.7, **{"training.learning_rate": 0.003})
    return replace(findings, title=f"Title {SCRIPT}", runs=[*findings.runs, tuning])


def test_the_page_stands_alone_and_escapes_what_it_is_given(tmp_path):
    page, _ = written(everything(), tmp_path)
    assert "script" not in page.tags
    assert page.text.count(SCRIPT) > 10
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    for address in page.addresses:
        assert base64.b64decode(address.partition(",")[2], validate=True).startswith(b"\x89PNG")
    html = (tmp_path / "report.html").read_text()
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import", style)
    assert "default-src 'none'" in html
    assert all(page.alts)


def test_a_full_comparison_has_every_section_in_order(tmp_path):
    page, markdown = written(everything(), tmp_path)
    expected = "conclusion method tables curves forest pareto heads samples tuning environment"
    assert page.ids == expected.split()
    headings = [line[3:] for line in markdown.splitlines() if line.startswith("## ")]
    assert len(headings) == len(page.ids)


@pytest.mark.parametrize(
    ("findings", "sections"),
    [
        (Findings("Nothing", "sweep", "None.", []), "conclusion method"),
        (Findings("Nothing", "comparison", "None.", []), "conclusion method"),
        (comparison({}), "conclusion method tables curves"),
        (comparison({"metric": 0.1}), "conclusion method tables curves forest pareto"),
        (sweep(), "conclusion method trials curves parallel-coordinates"),
        (
            sweep(
                importances={"training.learning_rate": 0.8, "model.attention": 0.2},
                objectives=["validation_loss", "cache_bytes_per_token"],
                samples={"trial 2": "ROMEO: no"},
                environment={"machine": "m"},
            ),
            "conclusion method trials curves pareto importances parallel-coordinates samples environment",
        ),
        (replace(sweep(), runs=sweep().runs[3:], trials=sweep().trials[3:]), "conclusion method trials"),
    ],
)
def test_sections_without_data_are_left_out(tmp_path, findings, sections):
    page, _ = written(findings, tmp_path)
    assert page.ids == sections.split()


def test_markdown_keeps_its_figures_beside_it_and_escapes(tmp_path):
    _, markdown = written(everything(), tmp_path)
    # What is in fences is not markup.
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"(?<!\\)\]\((.*?)\)", outside)
    assert links
    assert all((tmp_path / link).read_bytes().startswith(b"\x89PNG") for link in links)
    assert "<script" not in outside
    assert "# no heading" not in outside
    for table in re.findall(r"(?:^\|.*\n)+", outside, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a | b", r"a \| b"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("*x* _y_ `z` [l](u) # ~", r"\*x\* \_y\_ \`z\` \[l\](u) \# \~"),
        ("1. one\n- two", r"1\. one - two"),
        ("- item", r"\- item"),
        ("--- ", r"\---"),
        ("+0.0452 is 1.5", "+0.0452 is 1.5"),
    ],
)
def test_plain_text_in_markdown(text, expected):
    assert plain(text) == expected


def test_a_fence_is_longer_than_those_in_it():
    assert fenced("a\n````\nb") == "`````text\na\n````\nb\n`````"
    assert fenced("plain") == "```text\nplain\n```"


@pytest.mark.parametrize("findings", [everything(), sweep(importances={"training.learning_rate": 1.0})])
def test_the_numbers_come_back_from_json(tmp_path, findings):
    write_report(findings, tmp_path)
    assert findings_from(json.loads((tmp_path / "findings.json").read_text())) == findings


def test_the_same_findings_give_the_same_report(tmp_path):
    for name in ("one", "two"):
        write_report(everything(), tmp_path / name)
    for file in ("report.html", "report.md", "findings.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_clear_differences_and_equivalence_are_said(tmp_path):
    findings = comparison({"worse, tied": 0.05, "better": -0.05, "same": 0.001}, seeds=10)
    page, _ = written(findings, tmp_path)
    said = summary(findings)
    assert re.search(r"“better” \(−0\.05\d\d\) is better; “same” \(.0\.00\d\d\) is equivalent", said)
    assert re.search(r"“worse, tied” \(\+0\.0[45]\d\d\) is worse", said)
    assert said in page.text
    assert "undecided" not in said


def test_noise_is_undecided(tmp_path):
    findings = comparison({"metric": 0.0, "other": 0.0}, noise=0.05)
    page, markdown = written(findings, tmp_path)
    assert "are undecided" in summary(findings)
    assert "The data decide nothing" in page.text
    assert "The data decide nothing" in markdown
    assert "since neither a difference nor equivalence is shown" in page.text


def test_a_measurable_difference_within_the_margin_is_called_negligible():
    findings = comparison({"metric": 0.004}, noise=0.0005)
    (sentence,) = conclude(findings, table_results(findings)).sentences["equal width"]
    assert sentence.endswith("equivalent within ±0.01, measurably but negligibly higher.")


def test_few_seeds_are_owned_to():
    findings = comparison({"metric": 0.3}, seeds=5)
    conclusion = conclude(findings, table_results(findings))
    assert "with fewer than 6 paired seeds the sign-flip test cannot reach p below 0.05" in conclusion.summary
    assert "its least p is 0.0625" in conclusion.sentences["equal width"][0]
    assert " worse" not in conclusion.summary
    single = comparison({"metric": 0.3}, seeds=1)
    (sentence,) = conclude(single, table_results(single)).sentences["equal width"]
    assert "no interval" in sentence
    assert "1 paired seed)" in sentence


def test_too_many_comparisons_for_the_seeds_are_owned_to():
    shifts = {f"variant {letter}": 0.3 for letter in "abcdefg"}
    assert "8 seeds and 7 comparisons leave the least corrected p at 0.0547" in summary(comparison(shifts))
    assert "least corrected p" not in summary(comparison(shifts, seeds=9))


def test_lost_runs_unpaired_seeds_and_missing_baselines_are_named():
    findings = comparison({"metric": 0.05}, tables=("equal width", "equal FLOPs"))
    runs = [
        replace(each, status="failed")
        if (each.table, each.variant, each.seed) == ("equal width", "metric", 3)
        else replace(each, status="stopped")
        if (each.table, each.variant) == ("equal FLOPs", "standard")
        else each
        for each in findings.runs
    ]
    tuning = run(100, "metric", "tuning", 7, 1.6)
    findings = replace(findings, runs=[*runs, tuning])
    results = table_results(findings)
    caveats = "\n".join(conclude(findings, results).caveats)
    assert "“metric” at equal width, seed 3 (failed)" in caveats
    assert "“standard” at equal FLOPs, seeds 0, 1, 2, 3, 4, 5, 6 and 7 (stopped)" in caveats
    assert "“metric” or the baseline lacks seed 3" in caveats
    assert "At equal FLOPs there is no finished run of a baseline" in caveats
    assert "Settings were chosen with seeds that are compared too" in caveats
    assert results[0].differences["metric"].seeds == [0, 1, 2, 4, 5, 6, 7]


def test_verdicts_that_the_test_part_does_not_bear_out_are_owned_to():
    findings = comparison({"same": 0.0, "worse": 0.3})
    assert conclude(findings, table_results(findings)).caveats == []
    random = np.random.default_rng(2)
    noisy = [
        replace(each, facts={**each.facts, "test_loss": 1.6 + random.normal(0, 0.05)})
        if each.variant == "same"
        else each
        for each in findings.runs
    ]
    (caveat,) = conclude(replace(findings, runs=noisy), table_results(findings)).caveats
    assert caveat.startswith("At equal width, “same” is equivalent by the validation part; the test part alone (")
    assert caveat.endswith(") would leave it undecided.")


def test_one_model_in_two_tables_is_owned_to():
    findings = comparison({"metric": 0.3, "other": 0.3}, tables=("equal parameters", "equal FLOPs"))
    runs = [
        replace(each, choices={"model.mlp_width": 520 if each.variant == "metric" else len(each.table)})
        for each in findings.runs
    ]
    caveats = conclude(replace(findings, runs=runs), table_results(findings)).caveats
    assert caveats == [
        "“metric” is the same model at equal parameters and at equal FLOPs: one result, not two that agree."
    ]


def test_settings_at_the_edge_of_what_was_tried_are_owned_to():
    tuned = [
        run(100 + number, variant, "tuning", 99, loss, **{"training.learning_rate": rate, "model.attention": variant})
        for variant, losses in {"standard": (1.7, 1.6, 1.65), "metric": (1.6, 1.65, 1.7)}.items()
        for number, (rate, loss) in enumerate(zip((0.001, 0.002, 0.004), losses, strict=True))
    ]
    findings = comparison({"metric": 0.05})
    caveats = conclude(replace(findings, runs=[*findings.runs, *tuned]), table_results(findings)).caveats
    assert caveats == [
        "“metric” did best with the lowest learning rate that was tried, 0.001: a lower one may suit it better."
    ]


def test_a_table_shows_what_was_measured(tmp_path):
    page, markdown = written(comparison({"metric": 0.05}), tmp_path)
    for heading in ("final loss [95% CI]", "test loss", "Holm p", "training FLOPs/token", "cache bytes/token"):
        assert heading in page.texts
    assert "peak memory, MiB" not in page.texts
    # Of 8 seeds 1.60 to 1.67.
    assert re.search(
        r"\| standard \| 1\.6350 \\\[1\.61\d\d, 1\.65\d\d\\\] \| 0\.5000 \| 1\.6350 \| 1\.6550 \|", markdown
    )


def test_a_sweep_names_its_best_finished_trial_and_what_that_is_worth(tmp_path):
    findings = sweep()
    page, markdown = written(findings, tmp_path)
    said = summary(findings)
    assert said.startswith(
        "Of 4 trials, 2 finished, 1 stopped early and 1 failed. The best is trial 2 with a validation"
    )
    assert "training.learning_rate = 0.02" in said
    assert "The next is 0.1000 behind." in said
    assert "a small lead may be chance" in page.text
    rows = [line.split(" | ") for line in markdown.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["| 2", "| 1", "| 3", "| 4"]
    loss = rows[0].index("validation loss")
    assert [row[loss] for row in rows[2:]] == ["1.6000", "1.7000", "≈ 2.2500", "–"]


def test_of_several_objectives_no_trial_is_the_winner():
    findings = sweep(objectives=["validation_loss", "tokens_per_second"])
    trials = [replace(trial, is_best=trial.is_ranked) for trial in findings.trials]
    said = summary(replace(findings, trials=trials))
    assert said.endswith(
        "By validation loss and tokens/second no other trial beats the trials 2 and 1 (the Pareto front)."
    )


def test_the_mean_over_seeds_is_told_as_one(tmp_path):
    findings = sweep()
    best = replace(findings.trials[0], losses=[1.5, 1.7], choices={})
    findings = replace(findings, trials=[best, *findings.trials[1:]])
    assert "trial 2 with a validation loss of 1.6000 nats per token, the mean over 2 seeds. The next" in summary(
        findings
    )
    assert "a mean over 2 seeds" in "".join(conclude(findings, []).caveats)
    _, markdown = written(findings, tmp_path)
    assert "1.5000 to 1.7000" in markdown


def test_the_pareto_front_is_what_nothing_beats():
    points = [
        Point(label, "", cost, loss) for label, cost, loss in [("a", 1, 3), ("b", 2, 2), ("c", 3, 2), ("d", 3, 4)]
    ]
    assert [point.label for point in pareto_front(points)] == ["a", "b"]
    assert [point.label for point in pareto_front(points, larger_is_better=True)] == ["c"]
    assert pareto(points, "parameters").axes[0].get_xlabel() == "parameters"
