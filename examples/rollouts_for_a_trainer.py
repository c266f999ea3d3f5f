"""Rollouts for a trainer of your own: groups of answers with everything that a policy-gradient update needs.

    unmask serve --model tiny --port 8000
    python examples/rollouts_for_a_trainer.py --url http://127.0.0.1:8000 --out groups.jsonl

Needs nothing but Python: the service speaks JSON over HTTP. For each prompt it asks for a group of samples, scores them
with a reward of its own (here: is the sum right?), and writes a line an answer:

    prompt_id, tokens (T), step_map (T), old_logprobs (T), answer_length, advantage, weights_version, seed

`step_map` says at which denoising step each slot was committed; replaying it, a trainer rebuilds every canvas that the
model saw, and its log-probabilities under the present weights divided by `old_logprobs` are the ratios of PPO and GRPO.
Slots whose step is not below `num_steps` were never committed and carry no gradient. `weights_version` says which
weights drew the answer, so that a trainer can drop what is too old.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

TASKS = {"37+48=": "085", "12+34=": "046", "90-17=": "073", "25*03=": "075"}
"""Prompts and what their answers should be."""
MAX_TRIES = 5


def main() -> None:
    """Ask, score, write."""
    parser = argparse.ArgumentParser(description="Groups of rollouts with advantages, a JSON line an answer.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--num-samples", type=int, default=8, help="answers per prompt (G)")
    parser.add_argument("--sampler", default="confidence", help="one with an exact likelihood: GET /v1/samplers")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same answers")
    parser.add_argument("--out", default="-", help="file, or - for standard output")
    arguments = parser.parse_args()
    check_sampler(arguments.url, arguments.sampler)
    with open(arguments.out, "w", encoding="utf-8") if arguments.out != "-" else sys.stdout as out:
        for prompt, gold in TASKS.items():
            group = rollouts(arguments.url, prompt, arguments.num_samples, arguments.sampler, arguments.seed)
            for line in lines(prompt, gold, group):
                out.write(json.dumps(line) + "\n")


def rollouts(url: str, prompt: str, num_samples: int, sampler: str, seed: int) -> list[dict[str, Any]]:
    """A group: samples of one prompt, all drawn by the same weights unless these changed on the way."""
    body = {
        "prompt": prompt,
        "num_samples": num_samples,
        "max_new_tokens": 8,
        "sampler": sampler,
        "temperature": 1.0,
        "seed": seed,
    }
    found: list[dict[str, Any]] = call(f"{url}/v1/rollouts", body)["rollouts"]
    return found


def lines(prompt: str, gold: str, group: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What the trainer reads: advantages are rewards minus the mean of their group."""
    rewards = [float(answer["text"] == gold) for answer in group]
    mean = sum(rewards) / len(rewards)
    for answer, reward in zip(group, rewards, strict=True):
        yield {
            "prompt_id": prompt,
            "tokens": answer["tokens"],
            "step_map": answer["step_map"],
            "num_steps": answer["num_steps"],
            "old_logprobs": answer["logprobs"],
            "answer_length": answer["answer_length"],
            "reward": reward,
            "advantage": reward - mean,
            "weights_version": answer["weights_version"],
            "seed": answer["seed"],
        }


def check_sampler(url: str, name: str) -> None:
    """Refuse a sampler whose recorded log-probabilities are not the likelihood of its answers."""
    known = {sampler["name"]: sampler for sampler in call(f"{url}/v1/samplers")["data"]}
    if name not in known:
        sys.exit(f"no sampler is named {name!r}; the service has {', '.join(known)}")
    if not known[name]["exact_likelihood"]:
        sys.exit(f"{name} has no exact likelihood, so that ratios would be wrong; choose another sampler")


def call(url: str, body: dict[str, Any] | None = None) -> Any:
    """One request. A busy or restarting server says when to come again; everything else is an error to read."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("UNMASK_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    for _ in range(MAX_TRIES):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=300) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            message = json.load(error)["error"]["message"]
            if error.code not in (429, 503):
                sys.exit(f"{error.code}: {message}")
            time.sleep(float(error.headers.get("Retry-After", 1)))
        except urllib.error.URLError as error:
            sys.exit(f"no server answers at {url} ({error.reason}); start one with `unmask serve`")
    sys.exit(f"the server was busy {MAX_TRIES} times: {message}")


if __name__ == "__main__":
    main()
