"""Entry point for the launcher of the Flex Template `encode`: `soundlake encode` with the template's parameters."""

import sys

from soundlake.pipelines.cli.flex_template import main

if __name__ == "__main__":
    sys.exit(main("encode"))
