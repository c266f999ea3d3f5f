"""The OpenAI package against a service of diffusion models: what works unchanged, and what is ours beside it.

unmask serve --model tiny --port 8000
pip install openai
python examples/openai_client.py --url http://127.0.0.1:8000
"""

import argparse
import os

from openai import OpenAI


def main() -> None:
    """A completion, a chat, and a stream with denoising steps."""
    parser = argparse.ArgumentParser(description="Completion, chat and stream by the OpenAI package.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    url = parser.parse_args().url
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("UNMASK_API_KEY", "none"))
    model = client.models.list().data[0].id

    answer = client.completions.create(model=model, prompt="37+48=", max_tokens=8, temperature=0, seed=1)
    print("completion:", answer.choices[0].text, answer.choices[0].finish_reason, answer.usage)

    # What OpenAI's interface has no word for goes in `extra_body`: the order of denoising, blocks, caches.
    sampler = {"sampler": {"name": "threshold", "options": {"tau": 0.8}}}
    puzzle = [{"role": "user", "content": "0310200404001043:"}]
    chat = client.chat.completions.create(
        model=model, messages=puzzle, max_tokens=20, temperature=0, extra_body=sampler
    )
    print("chat:", chat.choices[0].message.content)

    print("stream: ", end="")
    for chunk in client.chat.completions.create(
        model=model, messages=puzzle, max_tokens=20, temperature=0, stream=True
    ):
        print(chunk.choices[0].delta.content or "", end="|")
    print()


if __name__ == "__main__":
    main()
