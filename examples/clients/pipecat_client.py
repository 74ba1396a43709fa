"""Pipecat's OpenAI services (pip install 'pipecat-ai[openai]') talk to `dualslm serve`.

python examples/clients/pipecat_client.py http://127.0.0.1:8000/v1 hello.wav [text|audio]
"""

import asyncio
import base64
import sys
from pathlib import Path

if len(sys.argv) < 3:
    sys.exit(__doc__)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.openai.llm import OpenAILLMService

url, file, what = [*sys.argv[1:], "audio"][:3]

data = base64.b64encode(Path(file).read_bytes()).decode()
said = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
content = "I lost my umbrella at the bank." if what == "text" else [said]


async def main() -> None:
    """Asks once, without a pipeline of sound."""
    service = OpenAILLMService(base_url=url, api_key="none", settings=OpenAILLMService.Settings(model="dualslm"))
    print(await service.run_inference(LLMContext([{"role": "user", "content": content}])))


asyncio.run(main())
