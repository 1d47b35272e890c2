"""What the frozen layers of a causal model make of texts: computed once in a run, and kept.

Where only top layers are trained (policy.trainable_layers), the layers below give the same states
of a text in every update, in every validation and for every line of a run. Kept, they cost a copy.

A result must not depend on what happens to be kept. So a text's states are computed from it alone,
never together with others, by the same operations whoever asks first: whole, without a gradient,
in eval mode. They are kept under the text, a digest of all weights that they depend on, and the
type of products. Of a text that continues a source, where several do, only its own states are: they
come from a pass over it alone, on the cache of one over the source alone.

How a model's layers are called is Transformers' business, so nothing is rebuilt here: the model
makes its pass as always (positions, masks, final norm), but its frozen layers are answered for with
the kept states, and a pass that computes these ends where the first trained part is called.
`LanguageModel` tries that on a probe and does without where it is not the same.
"""

import hashlib
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from pgtg.models.structure import answering, build_of, layers_of
from pgtg.types import TokenIds

# names under which decoder stacks keep the norm after their last layer; by name, since the order of
# children misleads (BART's norm of the embeddings comes after its layers, OPT's final norm before)
FINAL_NORMS = ("ln_f", "norm", "final_layer_norm", "final_layernorm", "layer_norm")


def layer_list(model: Any) -> list[nn.Module]:
    """The (decoder's) layers of a Transformers model, the lowest first; none if it has no list."""
    found = [m for m in layers_of(model).children() if isinstance(m, nn.ModuleList)]
    return list(max(found, key=len)) if found else []


def top_of(model: Any, layers: int) -> list[nn.Module]:
    """The top layers of the (decoder's) stack, the lowest first, and the norm after them."""
    named = layers_of(model).named_children()
    return [*layer_list(model)[-layers:], *(own for name, own in named if name in FINAL_NORMS)]


class KeptStates:
    """States of texts in the host's memory, up to a size; what has no room is computed again.

    Texts are read in the same order again and again, in which the one that was not used for the
    longest time is always the next that is needed: so room is made at random.

    Args:
        size: Of all states together [bytes].
    """

    def __init__(self, size: int):
        self.size, self.held = size, 0
        self._states: dict[bytes, Tensor] = {}
        self._names: list[bytes] = []
        self._random = random.Random(0)

    def __deepcopy__(self, memo: dict[int, Any]) -> "KeptStates":
        """Copies of a model share what is kept."""
        return self

    def __len__(self) -> int:
        return len(self._names)

    def get(self, name: bytes) -> Tensor | None:
        return self._states.get(name)

    def put(self, name: bytes, states: Tensor) -> None:
        """Keep the states of a text that are not kept yet."""
        if states.nbytes > self.size:
            return
        while self.held + states.nbytes > self.size:
            place = self._random.randrange(len(self._names))
            self._names[place], self._names[-1] = self._names[-1], self._names[place]
            self.held -= self._states.pop(self._names.pop()).nbytes
        self._states[name] = states
        self._names.append(name)
        self.held += states.nbytes


class Reached(Exception):
    """A pass came to the first trained part of the model; with the states that it was given."""


class FrozenLayers:
    """The layers of a causal model below its top ones.

    Args:
        model: A Transformers model, which these layers stay part of.
        top: Layers above them.
        kept: Where states of texts are kept.
        tuples: Whether the model takes a layer's states out of a tuple.
        shared: Whether rows of one source can share its states above.
    """

    def __init__(
        self,
        model: Any,
        top: int,
        kept: KeptStates,
        *,
        tuples: bool = False,
        shared: bool = False,
    ):
        self.model, self.kept, self.tuples, self.shared = model, kept, tuples, shared
        self.below, self.above = layer_list(model)[:-top], top_of(model, top)
        self._mark: tuple[Any, ...] = ()
        self._digest = b""

    def giving(self, states: Float[Tensor, "N L D"]) -> AbstractContextManager[None]:
        """Passes of the model inside begin with these states in the place of the layers'."""
        answer = (states,) if self.tuples else states
        return answering(self.below, lambda *args, **kwargs: answer)

    def states(
        self, texts: Sequence[TokenIds], read: Callable[[TokenIds], object]
    ) -> list[Float[Tensor, "L D"]]:
        """The layers' states of texts, each with a token or more.

        Args:
            read: Makes a pass of the model over a text alone.
        """
        digest, found = self.digest() + _arithmetic(), list[Tensor]()
        for text in texts:
            name = digest + array("q", text).tobytes()
            states = self.kept.get(name)
            if states is None:
                states = self._read(text, read)
                self.kept.put(name, states)
            found.append(states)
        return found

    def states_of_group(
        self,
        source: TokenIds,
        texts: Sequence[TokenIds],
        read: Callable[[TokenIds, DynamicCache, int], object],
    ) -> tuple[Float[Tensor, "S D"], list[Float[Tensor, "T D"]]]:
        """The layers' states of a source, and of texts that each continue it.

        Args:
            read: Makes a pass over tokens alone on a cache of so many others, which it adds to.
        """
        begun = (
            self.digest() + _arithmetic() + b"group" + array("q", [len(source), *source]).tobytes()
        )
        names = [begun, *(begun + array("q", text).tobytes() for text in texts)]
        found = [self.kept.get(name) for name in names]
        if None in found:
            cache = DynamicCache(config=self.model.config)
            own = self._read(source, lambda ids: read(ids, cache, 0))
            if found[0] is None:
                found[0] = own
                self.kept.put(begun, own)
        for place, (name, text) in enumerate(zip(names[1:], texts, strict=True), 1):
            if found[place] is None:
                made = self._read(text, lambda ids: read(ids, cache, len(source)))
                cache.crop(-len(text))
                if self.kept.get(name) is None:  # two rows may have the same text
                    self.kept.put(name, made)
                found[place] = made
        first, *rest = (states for states in found if states is not None)
        return first, rest

    def _read(self, text: TokenIds, read: Callable[[TokenIds], object]) -> Float[Tensor, "L D"]:
        try:
            with answering(self.above, _reached):
                read(text)
        except Reached as reached:
            return reached.args[0][0]
        raise AttributeError(f"{type(self.model).__name__} does not call its layers")

    def weights(self) -> Iterator[Tensor]:
        """All that states may depend on: the model's weights, but for what stands above alone."""
        above = {id(weight) for module in self.above for weight in _weights(module)}
        below = {id(weight) for module in self.below for weight in _weights(module)}
        return (w for w in _weights(self.model) if id(w) in below or id(w) not in above)

    def digest(self) -> bytes:
        """sha256 of the weights; made again where one of them was changed since."""
        weights = list(self.weights())
        mark = tuple((w.data_ptr(), w._version, w.dtype, w.shape) for w in weights)
        if mark != self._mark:
            found = hashlib.sha256(repr((build_of(self.model), len(self.below))).encode())
            for weight in weights:
                values = weight.detach().contiguous().flatten()
                found.update(f"{weight.dtype} {tuple(weight.shape)}".encode())
                found.update(values.view(torch.uint8).numpy().data)
            self._mark, self._digest = mark, found.digest()
        return self._digest

    def trained(self) -> bool:
        """Whether a weight that states depend on is to get a gradient."""
        return any(weight.requires_grad for weight in self.weights())


def _arithmetic() -> bytes:
    """What passes take products in, if that is not the type of the weights."""
    autocast = torch.is_autocast_enabled("cpu")
    return str(torch.get_autocast_dtype("cpu")).encode() if autocast else b""


def _weights(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _reached(*args: Any, **kwargs: Any) -> None:
    raise Reached(args[0] if args else kwargs["hidden_states"])


def placed(
    states: Sequence[Float[Tensor, "L D"]], starts: Sequence[int], width: int
) -> Float[Tensor, "N W D"]:
    """States of texts as one rectangle: each from its column on, cut at the last; 0 elsewhere."""
    found = states[0].new_zeros(len(states), width, states[0].shape[-1])
    for row, own, start in zip(found, states, starts, strict=True):
        end = min(start + len(own), width)
        row[start:end] = own[: end - start]
    return found
