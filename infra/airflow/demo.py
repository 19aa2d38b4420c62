"""Print settings for `make airflow-demo`: the demo corpus in a folder, labelled by folder. Standard library only."""

import sys
from pathlib import Path

here, command = Path(sys.argv[1]).resolve(), Path(sys.executable).with_name("soundlake")
print(f"""lake = "{here}/lake"
command = ["{command}"]

[corpora.demo]
audio = "{here}/audio"
by_folder = true

[training]
steps = 600""")
