"""OpenAI's own client talks to `dualslm serve`: speech in, text out, with the talk so far.

python examples/openai_client.py http://127.0.0.1:8000/v1 hello.wav again.wav
"""

import base64
import sys
from pathlib import Path

from openai import OpenAI

if len(sys.argv) < 3:
    sys.exit(__doc__)
url, *files = sys.argv[1:]
client = OpenAI(base_url=url, api_key="none")

messages = []
for file in files:
    data = base64.b64encode(Path(file).read_bytes()).decode()
    said = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    messages.append({"role": "user", "content": [said]})
    answer = client.chat.completions.create(model="dualslm", messages=messages)
    messages.append({"role": "assistant", "content": answer.choices[0].message.content})
    print(f"{file}: {answer.choices[0].message.content}")

with open(files[0], "rb") as file:
    print("words, from L alone:", client.audio.transcriptions.create(model="dualslm", file=file).text)
