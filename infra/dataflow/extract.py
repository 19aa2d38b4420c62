"""What the launcher of the Flex Template `extract` runs: `soundlake extract`, from the template's parameters."""

import sys

from soundlake.pipelines.cli.flex_template import main

if __name__ == "__main__":
    sys.exit(main("extract"))
