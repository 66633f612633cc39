"""The modules of a decoder block whose outputs its MLP and its attention add to the residual stream.

This is the only file that knows how architectures name their parts.
"""

from __future__ import annotations

from functools import cached_property

from torch import nn

from lit_attr.models.selftest import BlockCall, are_all, is_added

# The names that implementations give the two sublayers of a decoder block.
COMPONENT_NAMES = {
    "mlp": ("mlp", "feed_forward", "ffn"),
    "attention": ("attn", "self_attn", "attention", "self_attention"),
}


class BlockWrites:
    """The writes of a decoder block. Each is searched for once, at its first use: a search runs the block often.

    Args:
        call: The block's call.
    """

    def __init__(self, call: BlockCall) -> None:
        self.call = call
        self._attention_beside: dict[nn.Module | None, nn.Module | None] = {}

    @cached_property
    def mlp(self) -> nn.Module | None:
        """The module whose output the MLP adds; None where there is none."""
        named = named_children(self.call.block, "mlp")
        # Where no norm comes before attention, the test's large states leave it large, so it has to be silent.
        for silent in ((), named_children(self.call.block, "attention")):
            for module in _candidates(self.call, "mlp"):
                if is_added(self.call, module, silent):
                    # Any module other than the MLP itself may be only a part of the write.
                    attention = None if module in named else self._attention(module)
                    if module in named or (attention is not None and are_all(self.call, (module, attention))):
                        return module
        return None

    @property
    def attention(self) -> nn.Module | None:
        """The module whose output attention adds; None where there is none."""
        return self._attention(self.mlp)

    def _attention(self, mlp: nn.Module | None) -> nn.Module | None:
        """The same, where the MLP's write is the output of `mlp`."""
        if mlp not in self._attention_beside:
            self._attention_beside[mlp] = _attention_write(self.call, mlp)
        return self._attention_beside[mlp]


def named_children(block: nn.Module, component: str) -> list[nn.Module]:
    """The children of a block that have a name of the component, `mlp` or `attention`."""
    return [child for name, child in block.named_children() if name in COMPONENT_NAMES[component]]


def _attention_write(call: BlockCall, mlp: nn.Module | None) -> nn.Module | None:
    named = named_children(call.block, "attention")
    # An MLP that comes after attention depends on what attention writes.
    silent = () if mlp is None else (mlp,)
    for module in _candidates(call, "attention"):
        if is_added(call, module, silent) and (module in named or are_all(call, (module, *silent))):
            return module
    return None


def _candidates(call: BlockCall, component: str) -> list[nn.Module]:
    """The modules whose output may be the write, the likeliest first."""
    named = named_children(call.block, component)
    others = {
        child for other in COMPONENT_NAMES if other != component for child in named_children(call.block, other)
    }
    children = [module for module in call.writers if module in set(call.block.children()) - others]
    if not named and component == "mlp":
        # OPT's projections are children of the block itself. The last to run is the one that writes.
        return children[::-1]
    if len(named) != 1 or named[0] not in children:
        return []
    inside = [module for module in call.writers if module in set(named[0].modules()) - set(named)]
    return children[children.index(named[0]) :] + inside[::-1]
