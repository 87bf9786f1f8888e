"""The miniature's word-level tokenizer: one token a word, a number or an operator, with a ChatML chat template.

Spaces belong to the word before or after them, so that a number is the same token everywhere, and decoding gives the
text back exactly.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from w2sr.miniature.world import MAX_VALUE, NAMES, OBJECTS

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>")
INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."
SPLIT = r" ?\\boxed\{| ?[A-Za-z]+(?: (?=\d))?|\d+| [+\-*/=] |[^\w\s]|\s"
WORDS = (
    "user assistant system You are a helpful . ? : , } \n Today Step by step In short The answer is So has more fewer "
    "than twice three times half as many How does have Please reason and put your final within"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary() -> list[str]:
    """Every token, in the order of ids: special tokens, numbers 0 to 199, then words with their spaces."""
    tokens = [*SPECIAL, *(str(n) for n in range(MAX_VALUE + 1)), " ", "\n", "\\boxed{", " \\boxed{"]
    tokens += [f" {sign} " for sign in "+-*/="]
    for word in [*WORDS.split(), *NAMES, *OBJECTS]:
        tokens += [word, f" {word}"] if word.isalpha() else [word]
    tokens += [" has "]
    return list(dict.fromkeys(tokens))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer as transformers sees it. Stops on `<|im_end|>`, pads with `<|endoftext|>`."""
    vocab = {token: index for index, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
