"""What a request has cost."""

from __future__ import annotations

from dataclasses import dataclass

from rollout.service.work import Accepted, Done


@dataclass
class Usage:
    """Tokens of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_forwards: int = 0

    def add_prompt(self, accepted: Accepted) -> None:
        """Count a prompt, once however many samples it has."""
        self.prompt_tokens += accepted.num_prompt_tokens

    def add(self, done: Done) -> None:
        """Count a sample."""
        self.completion_tokens += done.length
        self.num_forwards += done.num_forwards

    def as_json(self) -> dict[str, int]:
        """OpenAI's field, and the forwards spent."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "num_forwards": self.num_forwards,
        }
