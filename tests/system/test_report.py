"""The report in a real browser: opened from disk, at the width of a desk and of a phone; its sounds decode."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soundlake.model.judging.report import Heard, Pair, Worth, write
from soundlake.model.saved import artifact
from soundlake.pipelines import commands
from soundlake.pipelines.lake import lookup
from soundlake.pipelines.learning import judging
from tests.conftest import Made

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# A page that holds the report in a frame of a phone's width, waits for every sound's length, and writes what it saw.
WATCHER = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="frame" style="border:0;width:{width}px;height:4000px" srcdoc="{report}"></iframe><pre id="seen"></pre>
<script>
frame.onload = async () => {{
  const page = frame.contentDocument, sounds = [...page.querySelectorAll("audio")];
  await Promise.all(sounds.map(s => s.readyState >= 1 || s.error ? 0 : new Promise(done => {{
    s.addEventListener("loadedmetadata", done); s.addEventListener("error", done); }})));
  seen.textContent = JSON.stringify({{
    across: page.documentElement.scrollWidth, width: frame.clientWidth,
    sounds: sounds.map(s => s.error ? -1 : s.duration),
    pictures: [...page.images].map(i => i.complete ? i.naturalWidth : 0),
    points: page.querySelectorAll("circle").length,
    outside: [...page.querySelectorAll("[src],[href]")].map(e => e.getAttribute("src") || e.getAttribute("href"))
      .filter(u => !u.startsWith("data:")),
    headings: [...page.querySelectorAll("h2")].map(h => h.textContent),
    text: page.body.innerText,
  }});
}};
</script>"""


@pytest.fixture(scope="module")
def report(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = made.copy(tmp_path_factory.mktemp("report"))
    return Path(judging.evaluate(lake)["report"])


def test_it_is_one_file(report: Path, made: Made) -> None:
    text = report.read_text()
    assert text.startswith("<!doctype html>")
    assert "://" not in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert made.result["model"]["model_id"] in text


def test_training_writes_one_before_anything_is_judged(made: Made, tmp_path: Path) -> None:
    trained = commands.train(made.copy(tmp_path), settings={"max_steps": 2, "batch_size": 8, "contrastive": 0})
    text = Path(trained["report"]).read_text()
    assert "Reconstructions of held-out windows" in text
    assert "Worth, beside baselines" not in text


def test_names_and_labels_cannot_write_the_page(tmp_path: Path, made: Made) -> None:
    model = lookup.find_model(made.lake, None)
    bad = '<script>alert("&")</script>'
    sound = np.zeros(16_000, np.float32)
    window = np.full((model.spec.window_frames, model.spec.n_mels), model.spec.floor, np.float32)
    found = json.loads((model.directory / artifact.METRICS).read_text())
    worth = Worth(found, np.zeros((1, 2)), [bad], [bad], [[Heard(bad, bad, sound)]])
    write(
        tmp_path / "r.html",
        model.manifest,
        history=model.manifest["history"],
        pairs=[Pair(bad, window, window)],
        worth=worth,
    )
    text = (tmp_path / "r.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#34;&amp;&#34;)" in text


def test_without_labels(tmp_path: Path, made: Made) -> None:
    """Sentences stand there as they are, and no table of probes."""
    model = lookup.find_model(made.lake, None)
    found = json.loads((model.directory / artifact.METRICS).read_text())
    said = ["Nobody knows.", "Give labels."]
    found |= {"probes": None, "no_probes": "a probe needs two labels", "verdict": said}
    history = model.manifest["history"]
    write(tmp_path / "r.html", model.manifest, history=history, pairs=[], worth=Worth(found, None, [], [], []))
    text = (tmp_path / "r.html").read_text()
    assert re.findall("<li>(.*?)</li>", text) == said
    assert "No probes: a probe needs two labels." in text
    assert "linear probe" not in text


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium; on Debian: apt install chromium")
@pytest.mark.parametrize("width", [1200, 360])
def test_in_a_browser(report: Path, made: Made, tmp_path: Path, width: int) -> None:
    page = tmp_path / "page.html"
    page.write_text(WATCHER.format(width=width, report=html.escape(report.read_text())))
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    call = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet]
    call += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,4000", "--virtual-time-budget=20000"]
    done = subprocess.run([*call, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    # Nothing hangs over the edge of the page: wide tables scroll in a box of their own.
    assert seen["across"] <= seen["width"] == width
    assert seen["outside"] == []
    recordings = made.result["ledger"]["recordings"]
    assert seen["points"] == recordings
    assert min(seen["pictures"]) > 0
    # Two sounds a window shown, four a row of neighbours; each as long as a window.
    assert len(seen["sounds"]) >= 2 * 3 + 4 * 3
    assert all(0.05 < seconds < 2.3 for seconds in seen["sounds"])
    for heading in ("Worth, beside baselines", "Loss", "Reconstructions of held-out windows", "Map", "Neighbours"):
        assert heading in seen["headings"]
    assert "log-mel, 3 statistics" in seen["text"]
