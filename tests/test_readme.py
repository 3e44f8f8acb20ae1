"""What README prints is what runs."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_import_example_runs_as_printed():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["stats"].converged.all() and names["slope"].shape == (16, 16)


def test_papers_import_reprise_by_its_name_and_common_imports_no_paper():
    for path in ROOT.glob("common/**/*.py"):
        text = path.read_text()
        assert "reprise.papers" not in text.replace('f"reprise.papers.{', ""), path
    for path in [*ROOT.glob("papers/**/*.py"), *ROOT.glob("common/ops/*.py")]:
        if path.name in ("losses.py", "layers.py", "models.py", "solvers.py", "inner.py"):
            assert not re.search(
                r"reprise\.common\.(training|data)|reprise\.configs", path.read_text()
            )
