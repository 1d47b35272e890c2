"""The critic of an actor–critic method: what a state is worth, as a linear head reads it."""

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


class Critic(nn.Module):
    """V(s_t): a linear head without bias on the last state before each token.

    Args:
        seed: What the head is drawn from, as torch draws a linear layer's.
        backbone: A language model of its own; None: it reads the policy's states.
    """

    def __init__(
        self, width: int, device: torch.device, seed: int, backbone: LanguageModel | None = None
    ):
        super().__init__()
        self.backbone = backbone
        with seeded(seed):
            head = nn.Linear(width, 1, bias=False)
        self.head = head.to(device)

    def forward(self, states: Float[Tensor, "N T+1 D"]) -> Float[Tensor, "N T"]:
        """The value of the state that each of the T right-padded tokens was drawn from."""
        return self.head(states[:, :-1].float()).squeeze(-1)


class ActorCritic(nn.Module):
    """A policy and its critic, trained together; one pass gives both where they share states."""

    def __init__(self, policy: LanguageModel, critic: Critic):
        super().__init__()
        self.policy, self.critic = policy, critic

    def forward(self, batch: TokenBatch) -> tuple[Float[Tensor, "N T V"], Float[Tensor, "N T"]]:
        """Logits and values of the states that the T right-padded tokens were drawn from."""
        if self.critic.backbone is not None:
            return self.policy.logits(batch), self.critic(self.critic.backbone.states(batch))
        states, logits = self.policy.read(batch)
        return logits, self.critic(states)


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
