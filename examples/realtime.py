"""A recording sent as a microphone would send it, over OpenAI's realtime interface; the reply comes as text.

python examples/realtime.py http://127.0.0.1:8000/v1 hello.wav
"""

import base64
import sys

import soundfile
import soxr
from openai import OpenAI

if len(sys.argv) != 3:
    sys.exit(__doc__)
url, file = sys.argv[1:]

RATE = 24_000  # Hz, of OpenAI's audio/pcm
samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
sound = (soxr.resample(samples.mean(1), rate, RATE) * 32767).astype("<i2").tobytes()
sound += bytes(2 * RATE)  # a second of silence: the turn ends there

with OpenAI(base_url=url, api_key="none").realtime.connect(model="dualslm") as connection:
    for start in range(0, len(sound), RATE // 5):  # a tenth of a second at once
        connection.input_audio_buffer.append(audio=base64.b64encode(sound[start : start + RATE // 5]).decode())
    for event in connection:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
        elif event.type == "error":
            sys.exit(event.error.message)
        elif event.type == "response.done":
            print()
            break
