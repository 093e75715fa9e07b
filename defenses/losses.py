"""Losses of adversarial training: the divergence of two outputs, and the terms of MART."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from robustbench_med.objectives.classification import two_sided
from robustbench_med.types import Logits, PerSample, Truth


def divergence(p: Logits, q: Logits, y: Truth) -> Float[Tensor, ""]:
    """Return the mean Kullback-Leibler divergence KL(p || q) of two outputs, in nats.

    For labels, it compares softmax probabilities and takes the mean over images. For masks, the
    mean is over the pixels that count. For findings, it compares the Bernoulli distribution of each
    finding and takes the mean over the known findings.

    Args:
        p: logits of the clean images.
        q: logits of the perturbed images.
        y: truth, see Batch; its shape tells the task, and -1 does not count.
    """
    if p.ndim == 2 and y.ndim == 2:
        return _mean(_bernoulli(p, q), y)
    return _mean(label_divergence(p, q), y)


def label_divergence(
    p: Float[Tensor, "b k *s"], q: Float[Tensor, "b k *s"]
) -> Float[Tensor, "b *s"]:
    """Return KL(softmax p || softmax q) per image or pixel; a single logit l is the pair (0, l)."""
    log_p, log_q = two_sided(p).log_softmax(1), two_sided(q).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def _bernoulli(p: Float[Tensor, "b k"], q: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    yes = p.sigmoid() * (functional.logsigmoid(p) - functional.logsigmoid(q))
    return yes + (-p).sigmoid() * (functional.logsigmoid(-p) - functional.logsigmoid(-q))


def _mean(values: Tensor, y: Truth) -> Float[Tensor, ""]:
    known = (y >= 0).to(values)
    return (values * known).sum() / known.sum().clamp_min(1)


def margin_term(logits: Float[Tensor, "b k"], y: Int[Tensor, " b"]) -> PerSample:
    """Return the margin term of the boosted cross-entropy: -log(1 - p of the best wrong class).

    Source: Wang et al., ICLR 2020, equation 7, second term; computed as a difference of two
        logsumexp, so that p near 1 does not underflow.
    """
    pair = two_sided(logits)
    wrong = pair.scatter(1, y[:, None], -torch.inf).argmax(1, keepdim=True)
    return pair.logsumexp(1) - pair.scatter(1, wrong, -torch.inf).logsumexp(1)


def wrong_probability(logits: Float[Tensor, "b k"], y: Int[Tensor, " b"]) -> PerSample:
    """Return 1 - p of the true class, the weight of an image in MART's divergence (equation 10)."""
    pair = two_sided(logits)
    return (pair.scatter(1, y[:, None], -torch.inf).logsumexp(1) - pair.logsumexp(1)).exp()
