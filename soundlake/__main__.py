"""``python -m soundlake``: the `soundlake` command."""

from soundlake.pipelines.cli.program import script

if __name__ == "__main__":
    script()
