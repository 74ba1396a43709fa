"""OpenAI's own client (pip install openai) talks to `dualslm serve`; examples/realtime.py shows /v1/realtime.

python examples/clients/openai_client.py http://127.0.0.1:8000/v1 hello.wav [text|audio|stream|transcription|responses]
"""

import base64
import sys
from pathlib import Path

if len(sys.argv) < 3:
    sys.exit(__doc__)
from openai import OpenAI

url, file, what = [*sys.argv[1:], "audio"][:3]
client = OpenAI(base_url=url, api_key="none")

data = base64.b64encode(Path(file).read_bytes()).decode()
said = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
typed = {"type": "text", "text": "I lost my umbrella at the bank."}
messages = [{"role": "user", "content": [typed if what == "text" else said]}]

if what in ("text", "audio"):
    answer = client.chat.completions.create(model="dualslm", messages=messages)
    print(answer.choices[0].message.content)
elif what == "stream":
    for chunk in client.chat.completions.create(model="dualslm", messages=messages, stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
elif what == "transcription":
    with open(file, "rb") as sound:
        print(client.audio.transcriptions.create(model="dualslm", file=sound).text)
elif what == "responses":
    print(client.responses.create(model="dualslm", input="I lost my umbrella at the bank.").output_text)
