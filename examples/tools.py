"""The LLM asks for a function to be called, gets what it gave, and answers.

python examples/tools.py http://127.0.0.1:8000/v1 hello.wav
"""

import base64
import json
import sys
from pathlib import Path

from openai import OpenAI

if len(sys.argv) < 3:
    sys.exit(__doc__)
client = OpenAI(base_url=sys.argv[1], api_key="none")


def weather(city: str) -> str:
    """The weather of a city."""
    return f"Rain in {city}, 12 degrees."


parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
described = {"name": "weather", "description": "The weather of a city, now.", "parameters": parameters}
tools = [{"type": "function", "function": described}]

data = base64.b64encode(Path(sys.argv[2]).read_bytes()).decode()
said = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
messages = [{"role": "user", "content": [said]}]
message = client.chat.completions.create(model="dualslm", messages=messages, tools=tools).choices[0].message
if message.tool_calls:
    messages.append(message)
    for call in message.tool_calls:
        print(f"{call.function.name}({call.function.arguments})")
        # an LLM may leave an argument out, or make one up: what it asks for is checked before anything is done
        arguments = json.loads(call.function.arguments)
        result = weather(arguments["city"]) if isinstance(arguments.get("city"), str) else "Which city?"
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    message = client.chat.completions.create(model="dualslm", messages=messages, tools=tools).choices[0].message
print(message.content)
