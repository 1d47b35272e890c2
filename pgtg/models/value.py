"""The critic of an actor–critic method: what a state is worth, read off a model of its own."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pgtg.models.backends.sharding import gathered, like
from pgtg.models.language import LanguageModel
from pgtg.ops.sampling import seeded
from pgtg.runs.folder import load_tensors, save_tensors
from pgtg.runtime.distributed import first
from pgtg.types import TokenBatch


class ValueModel(nn.Module):
    """V(s_t): a linear head without bias on the last state before each token.

    Args:
        backbone: A language model that nothing else trains.
        seed: What the head is drawn from, as torch draws a linear layer's.
    """

    def __init__(self, backbone: LanguageModel, seed: int):
        super().__init__()
        self.backbone = backbone
        with seeded(seed):
            head = nn.Linear(backbone.width, 1, bias=False)
        self.head = head.to(backbone.device)

    def forward(self, batch: TokenBatch) -> Float[Tensor, "N T"]:
        """The value of the state that each of the T right-padded tokens was drawn from."""
        return self.head(self.backbone.states(batch)[:, :-1].float()).squeeze(-1)


class ActorCritic(nn.Module):
    """A policy and its critic, trained together."""

    def __init__(self, policy: LanguageModel, critic: ValueModel):
        super().__init__()
        self.policy, self.critic = policy, critic

    def forward(self, batch: TokenBatch) -> tuple[Float[Tensor, "N T V"], Float[Tensor, "N T"]]:
        """Logits and values of the states that the T right-padded tokens were drawn from."""
        return self.policy.logits(batch), self.critic(batch)


def save_trained(module: nn.Module, path: Path) -> None:
    """Write the weights of a module that are trained; of several processes all come here."""
    found = gathered({name: p for name, p in module.named_parameters() if p.requires_grad})
    first(save_tensors)(path, found)


def load_trained(module: nn.Module, path: Path) -> None:
    """Put back what `save_trained` wrote, by parameter name."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in load_tensors(path).items():
            parameters[name].copy_(like(value, parameters[name]))
