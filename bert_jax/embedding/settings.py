"""What turns an encoder into a sentence encoder, as one frozen value. Imports no JAX."""

from dataclasses import dataclass
from typing import Literal, get_args

from bert_jax.errors import BertJaxError

Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)  # in the order in which sentence-transformers' flags concatenate


@dataclass(frozen=True)
class Prompt:
    """A text that is put before every text of one use of the encoder, like E5's "query: "."""

    name: str
    text: str


@dataclass(frozen=True)
class SentenceSettings:
    """How final hidden states become one vector per text: the modules and prompts of sentence-transformers.

    Attributes:
      pooling: how the states of a text are summarised; several results are concatenated in this order.
      normalize: whether vectors are divided by their Euclidean norm.
      max_length: tokens a text may have, [CLS] and [SEP] (and the prompt) counted; what is longer is cut.
      prompts: texts that can be put in front, by name. default_prompt: the one that is used when none is asked for.
      lowercase: lower-case the text before a tokenizer that does not (``do_lower_case`` of the Transformer module).
      include_prompt: whether the prompt's tokens take part in pooling (INSTRUCTOR leaves them out).
      similarity: the measure that the vectors were trained for; a note for whoever compares them.

    Raises:
      BertJaxError: no pooling or one twice, room for no token, a prompt name twice, or a default that is no prompt.
    """

    pooling: tuple[Pooling, ...] = ("mean",)
    normalize: bool = False
    max_length: int = 512
    prompts: tuple[Prompt, ...] = ()
    default_prompt: str | None = None
    lowercase: bool = False
    include_prompt: bool = True
    similarity: Similarity = "cosine"

    def __post_init__(self):
        unknown = [mode for mode in self.pooling if mode not in POOLINGS]
        if unknown or not self.pooling or len(set(self.pooling)) < len(self.pooling):
            found = ", ".join(map(str, self.pooling)) or "empty"
            raise BertJaxError(f"pooling is {found}: name one or more of {', '.join(POOLINGS)}, each once")
        if self.max_length < 3:
            raise BertJaxError(f"max_length is {self.max_length}: [CLS], one token and [SEP] need at least 3")
        names = [prompt.name for prompt in self.prompts]
        if twice := {name for name in names if names.count(name) > 1}:
            raise BertJaxError(f"the prompt {min(twice)!r} is given twice: each name needs one text")
        if self.default_prompt is not None:
            self.prompt_text(self.default_prompt)

    def prompt_text(self, name: str | None) -> str:
        """The text of the prompt called ``name``; of the default prompt for None, empty where there is no default.

        Raises:
          BertJaxError: no prompt has this name; those that exist are listed.
        """
        name = self.default_prompt if name is None else name
        if name is None:
            return ""
        texts = {prompt.name: prompt.text for prompt in self.prompts}
        if name not in texts:
            known = f"there are {', '.join(map(repr, texts))}" if texts else "this encoder has none"
            raise BertJaxError(f"no prompt is called {name!r}: {known}")
        return texts[name]
