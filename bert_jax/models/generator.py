"""ELECTRA's generator (Clark et al. 2020): an encoder of its own on the embeddings of another, the discriminator.

In google-research/electra (model/modeling.py, BertModel with scope "generator") both find their embeddings under
"electra/embeddings": the tables of tokens, positions and segments and the norm are the same variables, whatever the two widths.
Each maps them to its own width where that is not E, and the generator's output is tied to the shared token table.
"""

import dataclasses

from bert_jax.errors import BertJaxError
from bert_jax.models.api import Params
from bert_jax.models.config import EncoderConfig

PART = "rtd"  # where the parameters of a run that trains both hold what the generator does not share


def config_of(discriminator: EncoderConfig, width: float) -> EncoderConfig:
    """ELECTRA's generator (Clark et al. 2020, section 3.1): as deep as the ``discriminator``, ``width`` times as wide.

    Heads and feed-forward width follow from its width, as in google-research/electra (run_pretraining.py,
    get_generator_config). Embeddings have the width of the discriminator's, because they are the discriminator's.

    Raises:
      BertJaxError: its width is no multiple of its heads.
    """
    hidden = round(discriminator.hidden_width * width)
    heads = max(1, hidden // 64)
    if not hidden or hidden % heads:
        raise BertJaxError(
            f"generator_width {width} of hidden_width {discriminator.hidden_width} makes a generator of width {hidden}, not a "
            f"multiple of its {heads} heads (one for every 64): choose another"
        )
    return dataclasses.replace(
        discriminator, hidden_width=hidden, heads=heads, ffn_width=4 * hidden, with_heads=("mlm",), labels=(),
        read_layers=(), lora_rank=0,
    )


def own(params: Params) -> Params:
    """What a generator does not share, of its parameters or their axes: everything but tables and norm of the embeddings."""
    projection = {name: part for name, part in params["embeddings"].items() if name == "projection"}
    return {name: part for name, part in params.items() if name != "embeddings"} | projection


def merged(embeddings: Params, own: Params) -> Params:
    """A generator's parameters as :func:`bert_jax.models.api.apply` takes them; ``embeddings`` are the discriminator's."""
    shared = {name: part for name, part in embeddings.items() if name != "projection"}
    projection = {name: part for name, part in own.items() if name == "projection"}
    return {"embeddings": shared | projection} | {name: part for name, part in own.items() if name != "projection"}
