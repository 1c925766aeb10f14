"""Counters of the chat server in Prometheus' text format. They are sums over all clients."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from axzoo.serving.answers import AnswerSummary


@dataclass
class RequestCounters:
    """Counts requests by path and status, and the tokens and seconds of complete answers."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    answers: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    ttft_seconds: float = 0.0

    def add_answer(self, summary: AnswerSummary) -> None:
        self.answers += 1
        self.prompt_tokens += summary.prompt_tokens
        self.answer_tokens += summary.answer_tokens
        self.ttft_seconds += summary.ttft

    def text(self, waiting: int) -> str:
        """Return all metrics. `waiting` is the number of requests that wait or are being answered."""
        lines = ["# HELP axzoo_requests_total Finished requests.", "# TYPE axzoo_requests_total counter"]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'axzoo_requests_total{{path="{path}",status="{status}"}} {count}')
        for name, kind, meaning, value in (
            ("requests_active", "gauge", "Requests that wait for the model or are being answered.", waiting),
            ("answers_total", "counter", "Complete answers.", self.answers),
            ("prompt_tokens_total", "counter", "Tokens of the prompts of complete answers.", self.prompt_tokens),
            ("answer_tokens_total", "counter", "Tokens of complete answers.", self.answer_tokens),
            ("ttft_seconds_total", "counter", "Times to first token of complete answers.", self.ttft_seconds),
        ):
            lines += [f"# HELP axzoo_{name} {meaning}", f"# TYPE axzoo_{name} {kind}", f"axzoo_{name} {value}"]
        return "\n".join(lines) + "\n"
