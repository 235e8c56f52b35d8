"""Attention that several ranks share, for any mask: who owns which tokens, what travels, and the calls.

    import omnicupy as oc, omnicupy.parallel
    plan = oc.parallel.plan(mask, ranks=8)
    out = oc.parallel.attention(q, k, v, plan, group=group)   # torch tensors: this rank's rows and keys

`import omnicupy` does not import this package. It imports torch at the first call on tensors.
"""

from omnicupy.parallel.attention import attention, attention_backward
from omnicupy.parallel.make import plan
from omnicupy.parallel.nccl import NcclGroup
from omnicupy.parallel.one_process import attention_backward_of_ranks, attention_of_ranks
from omnicupy.parallel.plan import Plan
from omnicupy.parallel.prediction import Speeds
from omnicupy.parallel.statistics import PlanStats

__all__ = [
    "NcclGroup",
    "Plan",
    "PlanStats",
    "Speeds",
    "attention",
    "attention_backward",
    "attention_backward_of_ranks",
    "attention_of_ranks",
    "plan",
]
