"""litellm talks to `dualslm serve`, as to any server that speaks OpenAI's API: openai/ before the model's name.

python examples/clients/litellm_client.py http://127.0.0.1:8000/v1 hello.wav [text|audio|stream|transcription|responses]
"""

import base64
import sys
from pathlib import Path

if len(sys.argv) < 3:
    sys.exit(__doc__)
import litellm

url, file, what = [*sys.argv[1:], "audio"][:3]
to = {"model": "openai/dualslm", "api_base": url, "api_key": "none"}

data = base64.b64encode(Path(file).read_bytes()).decode()
said = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
heard = [{"role": "user", "content": [said]}]

if what == "text":
    answer = litellm.completion(messages=[{"role": "user", "content": "I lost my umbrella at the bank."}], **to)
    print(answer.choices[0].message.content)
elif what == "audio":
    print(litellm.completion(messages=heard, **to).choices[0].message.content)
elif what == "stream":
    for chunk in litellm.completion(messages=heard, stream=True, **to):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
elif what == "transcription":
    with open(file, "rb") as sound:
        print(litellm.transcription(file=sound, **to).text)
elif what == "responses":
    print(litellm.responses(input="I lost my umbrella at the bank.", **to).output[0].content[0].text)
