#!/usr/bin/env bash
# The service by curl: `unmask serve --model tiny --port 8000`, then `examples/curl.sh http://127.0.0.1:8000`.
# With a key: UNMASK_API_KEY=... examples/curl.sh
set -euo pipefail
url="${1:-http://127.0.0.1:8000}"

ask() { # PATH [JSON]: --fail-with-body shows the error's text, which says what to change
  local path="$1"
  shift
  curl --silent --show-error --fail-with-body --no-buffer --max-time 120 \
    ${UNMASK_API_KEY:+--header "Authorization: Bearer $UNMASK_API_KEY"} \
    --header 'Content-Type: application/json' ${1:+--data "$1"} "$url$path"
  echo
}

echo '# models and samplers'
ask /v1/models
ask /v1/samplers

echo '# a completion in the form of OpenAI'
ask /v1/completions '{"prompt": "37+48=", "max_tokens": 8, "temperature": 0}'

echo '# two samples with step maps, log-probabilities and the version of the weights'
ask /v1/rollouts '{"prompt": "030,100,093=023:", "num_samples": 2, "max_new_tokens": 20, "temperature": 1, "seed": 7}'

echo '# the same, step by step: which slot was committed when, and how sure the model was'
ask /v1/rollouts '{"prompt": "37+48=", "max_new_tokens": 8, "temperature": 0, "sampler": "entropy", "stream": true}'

echo '# two holes in a text'
ask /v1/infill '{"segments": [{"text": "0310200404001043:43"}, {"hole": 4}, {"text": "213434"}, {"hole": 4}], "temperature": 0}'

echo '# numbers for Prometheus'
ask /metrics
