"""Which layers a stage adds to a model: adapters, low-rank updates (LoRA) of its weights, a mixture of its layers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PeftOptions:
    """Static; the default adds nothing.

    Attributes:
        adapter_size: inner width of the adapters; 0: none.
        adapter_placement: `houlsby` (after both sublayers) or `feed_forward`; a T5 has its own.
        adapter_init: `reference` or `near_identity`; see `registry.init_adapters_near_identity`.
        lora_rank: rank of the updates; 0: none.
        lora_scale: factor of the updates.
        lora_dropout: dropout rate of their inputs.
        lora_targets: names of the weights, as in `Trainable.lora_targets`.
        feature_layers: layers of a frozen encoder, without dropout, that heads read, as in `Trainable.feature_layers`;
            "": the last one, of an encoder that may train.
    """

    adapter_size: int = 0
    adapter_placement: str = "houlsby"
    adapter_init: str = "reference"
    lora_rank: int = 0
    lora_scale: float = 1.0
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ()
    feature_layers: str = ""

    def rank_of(self, *targets: str) -> tuple[str, ...]:
        """Those of these weights that have a low-rank update, in order."""
        return tuple(target for target in targets if self.lora_rank and target in self.lora_targets)

    @property
    def mixes_layers(self) -> bool:
        """Whether heads read other layers than the last."""
        return self.feature_layers not in ("", "last")

    def same_lora(self, other: "PeftOptions") -> bool:
        """Whether updates of the other can train on here."""
        mine, theirs = ((o.lora_rank, o.lora_scale, sorted(o.lora_targets)) for o in (self, other))
        return mine == theirs
