"""A reply as it comes; with none,speech to the words alone, as if their tone could not be heard.

python examples/stream.py http://127.0.0.1:8000/v1 hello.wav [none,speech]
"""

import base64
import sys
from pathlib import Path

from openai import OpenAI

if len(sys.argv) < 3:
    sys.exit(__doc__)
url, file, *view = sys.argv[1:]
client = OpenAI(base_url=url, api_key="none")

data = base64.b64encode(Path(file).read_bytes()).decode()
said = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
stream = client.chat.completions.create(
    model="dualslm",
    messages=[{"role": "user", "content": [said]}],
    stream=True,
    extra_body={"view": view[0] if view else "speech,speech"},
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
