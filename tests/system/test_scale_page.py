"""docs/scale.md holds what its program computes, and nothing else."""

from benches import scale


def test_the_page_is_as_computed() -> None:
    page = scale.PAGE.read_text()
    assert scale.filled(page) == page, "python -m benches.scale --write"
    assert all(f"<!-- benches.scale {name} -->" in page for name in scale.TABLES)
