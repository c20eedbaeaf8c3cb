"""The report: one file that needs no other, whatever the findings say."""

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lbgap import plotting
from lbgap.experiments.demo import Demo, Phi, Row, demo_page
from lbgap.landscape import Line
from lbgap.landscape.shape import shape_of
from lbgap.status import status

VOID = {"meta", "img", "br", "link"}


def make_demo(findings=("LB is sharper.",), seeds=2, name="mnist1d"):
    phi = (Phi(1e-3, 12.345, 0.5, 0.0, 0.25, ""), Phi(5e-4, 3.0, 0.5, 3.5, 0.25, ""))
    rows = tuple(
        Row(regime, seed, batch, 5000, 0.012, 99.5, float("nan"), 71.25, 9.876, 4.5, phi)
        for seed in range(seeds)
        for regime, batch in (("SB", 32), ("LB", 400))
    )
    settings = {
        "data": name,
        "network": {"hidden": [128, 64]},
        "updates": 5000,
        "seeds": list(range(seeds)),
        "versions": {"lbgap": "0.1.0"},
    }
    return Demo(rows, tuple(findings), settings, Path("out"), 61.7)


@pytest.fixture(scope="module")
def figures():
    line = Line(
        value=math.nan,
        status=status("nothing_between"),
        settings={"loss": "cross_entropy"},
        evaluations=2.0,
        seconds=0.0,
        alphas=(0.0, 1.0),
        train_loss=(0.1, 0.2),
        train_accuracy=(99.0, 98.0),
        test_loss=None,
        test_accuracy=None,
        shape=shape_of((0.0, 1.0), (0.1, 0.2), (0.1, 0.2), 0.1),
        test_shape=None,
    )
    bars = plotting.plot_bars(["SB", "LB"], {"vertex": [[1.0], [2.0]]}, "phi")
    return {"sharpness": bars, "line": plotting.plot_line(line)}


class Page(HTMLParser):
    """Collects attributes and text, and checks that every tag is closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.attributes, self.texts, self.rows = [], [], {}, []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag == "tr":
            self.rows.append([])
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        for tag in self.open:
            self.texts[tag][-1] += text
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += text


def test_it_is_self_contained(figures):
    page = demo_page(make_demo(), figures)
    parsed = Page(page)
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert not {"script", "link", "iframe", "object"} & parsed.texts.keys()
    links = [value for _, name, value in parsed.attributes if name in ("src", "href", "srcset", "action")]
    assert len(links) == 2
    for link, figure in zip(links, figures.values(), strict=True):
        kind, _, data = link.partition(";base64,")
        assert kind == "data:image/svg+xml"
        image = base64.b64decode(data, validate=True)
        assert image == plotting.encode(figure, "svg")
        assert all(target.startswith(b"#") for target in re.findall(rb'href="([^"]*)"', image))
    assert all(value for tag, name, value in parsed.attributes if (tag, name) == ("img", "alt"))


def test_it_has_every_finding_number_and_setting(figures):
    findings = [f"Finding number {index}." for index in range(7)]
    result = make_demo(findings)
    parsed = Page(demo_page(result, figures))
    assert parsed.texts["li"][:7] == findings
    heading, *rows = parsed.rows
    assert len(rows) == len(result.rows)
    assert {len(row) for row in parsed.rows} == {len(heading)}
    assert [cell.strip() for cell in rows[1]] == [
        *("LB", "0", "400", "5000", "0.012", "99.50", "nan", "71.25", "9.88", "4.5"),
        *("12.35", "0.50", "0", "0.25", "3", "0.50", "3.5", "0.25"),
    ]
    assert json.loads(parsed.texts["pre"][0]) == result.settings
    assert "5,000 updates" in parsed.texts["p"][0]
    assert "128-64" in parsed.texts["p"][0]
    assert "2 starts" in parsed.texts["p"][0]
    assert "1 start," in Page(demo_page(make_demo(seeds=1), figures)).texts["p"][0]


def test_markup_in_findings_and_settings_is_text(figures):
    nasty = '<script>alert("1")</script> & <b>'
    page = demo_page(make_demo([nasty], name=nasty), figures)
    assert "<script" not in page
    assert "<b>" not in page
    parsed = Page(page)
    assert parsed.texts["li"][0] == nasty
    assert json.loads(parsed.texts["pre"][0])["data"] == nasty
