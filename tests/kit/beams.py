"""Beam search in plain Python, one row at a time, by the rules of t5x and by those of transformers."""

from collections.abc import Callable, Sequence

EOS = 1
Hypothesis = tuple[float, tuple[int, ...]]


def _candidates(alive: list[Hypothesis], next_log_p: Callable[..., Sequence[float]], beams: int) -> list[Hypothesis]:
    grown = [(score + p, (*tokens, v)) for score, tokens in alive for v, p in enumerate(next_log_p(tokens))]
    return sorted(grown, key=lambda hypothesis: -hypothesis[0])[: 2 * beams]


def _best(hypotheses: list[Hypothesis], beams: int) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis[0])[:beams]


def t5x_beams(next_log_p: Callable, length: int, beams: int, alpha: float) -> Hypothesis:
    """t5x/decoding.py beam_search; `next_log_p(tokens)` gives the log probabilities of all next tokens."""
    brevity = lambda n: ((5 + n) / 6) ** alpha  # noqa: E731
    alive: list[Hypothesis] = [(0.0, ())]
    finished: list[Hypothesis] = []
    for now in range(1, length + 1):
        candidates = _candidates(alive, next_log_p, beams)
        finished = _best(finished + [(s / brevity(now), t) for s, t in candidates if t[-1] == EOS], beams)
        alive = [h for h in candidates if h[1][-1] != EOS][:beams]
        if len(finished) == beams and finished[-1][0] > alive[0][0] / brevity(length + 1):
            break
    return finished[0] if finished else alive[0]


def transformers_beams(next_log_p: Callable, length: int, beams: int, alpha: float, *, never: bool) -> Hypothesis:
    """transformers/generation/utils.py _beam_search with early_stopping "never" or False."""
    alive: list[Hypothesis] = [(0.0, ())]
    finished: list[Hypothesis] = []
    for now in range(1, length + 1):
        candidates = _candidates(alive, next_log_p, beams)
        ends = lambda h: h[1][-1] == EOS or len(h[1]) == length  # noqa: E731
        finished = _best(finished + [(s / now**alpha, t) for s, t in candidates[:beams] if ends((s, t))], beams)
        alive = [h for h in candidates if not ends(h)][:beams]
        reach = length if never and alpha > 0 else now
        if not alive or (len(finished) == beams and finished[-1][0] >= alive[0][0] / reach**alpha):
            break
    return finished[0]
