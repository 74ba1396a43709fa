"""`llm`, the command line for LLMs (pip install llm), talks to `dualslm serve` by a file of four lines.

python examples/clients/llm_client.py http://127.0.0.1:8000/v1 hello.wav [text|audio|stream]

To keep it, write those lines into extra-openai-models.yaml in the folder that `dirname "$(llm logs path)"` names.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

if len(sys.argv) < 3:
    sys.exit(__doc__)
url, file, what = [*sys.argv[1:], "audio"][:3]
lines = f"- model_id: dualslm\n  model_name: dualslm\n  api_base: {url}\n  audio: true\n"

with tempfile.TemporaryDirectory() as folder:
    Path(folder, "extra-openai-models.yaml").write_text(lines)
    options = ["I lost my umbrella at the bank."] if what == "text" else ["Hello.", "-a", file]
    options += [] if what == "stream" else ["--no-stream"]
    command = [sys.executable, "-m", "llm", "-m", "dualslm", "--no-log", *options]
    sys.exit(subprocess.run(command, env=os.environ | {"LLM_USER_PATH": folder}, stdin=subprocess.DEVNULL).returncode)
