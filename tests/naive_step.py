"""GuidedMix-Net a second time, straight from the equations: what the step is compared with."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from gmtool_training.method.step import StepInput
from torch import Tensor

from gmtool.config import MethodConfig
from gmtool.nn.model import GuidedMixNet, Output, normalize


def naive(
    model: GuidedMixNet,
    given: StepInput,
    method: MethodConfig,
    *,
    foreground: tuple[int, ...],
) -> Tensor:
    """Return the total loss of a step with one graph for everything: four forwards with gradient."""
    assert given.unlabeled is not None
    count = len(given.labeled.images)
    x_l, x_u, y = normalize(given.labeled.images), normalize(given.unlabeled), given.labeled.masks.long()
    drawn = given.random.beta(1, 1)
    while min(drawn, 1 - drawn) >= method.lambda_bound:
        drawn = given.random.beta(1, 1)
    lam = min(drawn, 1 - drawn)
    if method.batch_norm == "joint":
        both = model(torch.cat([x_l, x_u]))
        out_l, out_u = Output(*(t[:count] for t in both)), Output(*(t[count:] for t in both))
    else:
        out_l, out_u = model(x_l), model(x_u)
    m_l, m_u = F.softmax(out_l.logits, 1), F.softmax(out_u.logits, 1)
    total = F.cross_entropy(out_l.logits, y, ignore_index=255)
    if method.classification:
        occurs = torch.stack([(y == index).flatten(1).any(1) for index in foreground], dim=1).float()
        total = total + F.binary_cross_entropy_with_logits(out_l.image_logits, occurs)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return ((a[:, None] - b[None]) ** 2).sum(-1)

    partner = distance(out_u.embedding, out_l.embedding).argmin(1)
    if method.pairing == "random":
        partner = torch.from_numpy(given.random.random((count, count)).argmin(1))
    m_mix = F.softmax(model(lam * x_l[partner] + (1 - lam) * x_u).logits, 1)
    subtracted = m_l[partner].detach()
    m_dec = m_mix - subtracted if method.decoupling == "hard" else m_mix - lam * subtracted
    if method.normalize:
        m_dec = m_dec / (1 - lam)
    target = m_dec.detach() if method.detach == "pseudo" else m_dec
    direct = m_u.detach() if method.detach == "direct" else m_u
    total = total + given.omega * ((target - direct) ** 2).mean()
    if method.labeled_decoupling:
        other = (distance(out_l.embedding, out_l.embedding) + 1e9 * torch.eye(count)).argmin(1)
        if method.pairing == "random":
            other = torch.from_numpy((np.arange(count) + given.random.integers(1, count, size=count)) % count)
        m_mix = F.softmax(model(lam * x_l + (1 - lam) * x_l[other]).logits, 1)
        subtracted = m_l.detach()
        m_dec = m_mix - subtracted if method.decoupling == "hard" else m_mix - lam * subtracted
        if method.normalize:
            m_dec = m_dec / (1 - lam)
        total = total + ((m_dec - m_l[other].detach()) ** 2).mean()
    return total
