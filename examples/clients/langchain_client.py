"""LangChain (pip install langchain-openai) talks to `dualslm serve`.

python examples/clients/langchain_client.py http://127.0.0.1:8000/v1 hello.wav [text|audio|stream|responses]
"""

import base64
import sys
from pathlib import Path

if len(sys.argv) < 3:
    sys.exit(__doc__)
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

url, file, what = [*sys.argv[1:], "audio"][:3]
model = ChatOpenAI(model="dualslm", base_url=url, api_key="none", use_responses_api=what == "responses")

data = base64.b64encode(Path(file).read_bytes()).decode()
heard = HumanMessage([{"type": "audio", "base64": data, "mime_type": "audio/wav"}])

if what in ("text", "responses"):
    print(model.invoke("I lost my umbrella at the bank.").text)
elif what == "audio":
    print(model.invoke([heard]).text)
elif what == "stream":
    for chunk in model.stream([heard]):
        print(chunk.text, end="", flush=True)
    print()
