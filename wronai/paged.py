"""A model in vLLM, which pages the memory of attention, on this machine's GPU. Importing this loads vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lm_eval.models.vllm_causallms import VLLM, SamplingParams

from wronai import engines, params, prefixes, served, tokens
from wronai.progress import Progress

AT_ONCE = 512  # requests handed over together: vLLM batches by itself, and two log-probabilities a token are held


class InVllm(served.Apart, VLLM):  # type: ignore[misc]  # VLLM has no types
    """As `served.Served`, without a server between."""

    def __init__(self, folder: Path, settings: params.Scoring) -> None:
        self.limit = settings.max_length
        super().__init__(
            pretrained=str(folder),
            dtype=settings.dtype,
            max_model_len=settings.max_length + served.EXTRA,
            batch_size=AT_ONCE,
            load_format="safetensors",  # by itself vLLM falls back to pickles
        )
        self.tokenizer = tokens.load(folder)

    def score(self, asked: Sequence[prefixes.Request], what: str, unit: str) -> list[tuple[float, bool]]:
        """What `prefixes.score` gives, with progress."""
        progress = Progress(what, len(asked), unit)
        found: list[tuple[float, bool]] = []
        for start in range(0, len(asked), AT_ONCE):
            part = asked[start : start + AT_ONCE]
            outputs = self._model_generate(requests=[list(request.ids) for request in part], generate=False)
            found += [
                self._parse_logprobs(tokens=list(request.ids), outputs=output, ctxlen=request.first)
                for request, output in zip(part, outputs, strict=True)
            ]
            progress.add(len(part))
        progress.close()
        return found

    def complete(self, wanted: Sequence[served.Wanted]) -> list[engines.Generation]:
        progress = Progress("answering", len(wanted), "questions")
        found: list[engines.Generation] = []
        for start in range(0, len(wanted), AT_ONCE):
            part = wanted[start : start + AT_ONCE]
            outputs = self._model_generate(
                requests=[want.ids for want in part],
                generate=True,
                sampling_params=[
                    SamplingParams(max_tokens=want.room, stop=want.until, seed=want.seed, **want.options)
                    for want in part
                ],
            )
            found += [
                engines.ending(self.tokenizer, output.outputs[0].token_ids, want.until, want.context)
                for want, output in zip(part, outputs, strict=True)
            ]
            progress.add(len(part))
        progress.close()
        return found
