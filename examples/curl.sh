#!/bin/sh
# The server's routes by curl:  sh examples/curl.sh http://127.0.0.1:8000/v1 hello.wav
set -eu
if [ $# -lt 2 ]; then
  echo "usage: sh examples/curl.sh http://127.0.0.1:8000/v1 hello.wav" >&2
  exit 1
fi
url=$1
file=$2

echo "reply:"
printf '{"model": "dualslm", "messages": [{"role": "user", "content": [{"type": "input_audio",
  "input_audio": {"format": "wav", "data": "%s"}}]}]}' "$(base64 < "$file" | tr -d '\n')" |
  curl --silent --show-error --fail-with-body "$url/chat/completions" -H "Content-Type: application/json" -d @-
echo

echo "words, from L alone:"
curl --silent --show-error --fail-with-body "$url/audio/transcriptions" -F model=dualslm -F "file=@$file" -F response_format=text

echo "how it is said, from P alone:"
curl --silent --show-error --fail-with-body "$url/audio/attributes" -F model=dualslm -F "file=@$file"
echo
